//! A broker with the limits of a cloud service (AWS IoT Core's unless said), which ends the connection upon each violation
//! and remembers it. Real sockets; persistent sessions; a link that can be cut at a chosen publish.

mod connection;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tidegate::topic::TopicFilter;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::connection::serve;

/// What it does not let pass.
#[derive(Clone, Debug)]
pub struct Strictness {
    /// Largest packet in bytes; told in CONNACK to MQTT 5 only, as are all of these.
    pub packet_bytes_max: u32,
    /// Highest QoS.
    pub qos_max: u8,
    /// Publishes of a client that wait for their PUBACK.
    pub in_flight_max: u16,
    /// Publishes of one connection in any second.
    pub publishes_per_second: usize,
    pub topic_bytes_max: usize,
    pub topic_slashes_max: usize,
    pub session_expiry_secs_max: u32,
    /// What MQTT 5 clients are told to ping by, in seconds; silence of half as much again ends the connection.
    pub keep_alive_secs: Option<u16>,
    /// How long a PUBACK takes.
    pub ack_after: Duration,
}

impl Default for Strictness {
    fn default() -> Self {
        Self {
            packet_bytes_max: 128 << 10,
            qos_max: 1,
            in_flight_max: 100,
            publishes_per_second: 1_000_000,
            topic_bytes_max: 256,
            topic_slashes_max: 7,
            session_expiry_secs_max: 7 * 86_400,
            keep_alive_secs: None,
            ack_after: Duration::from_millis(2),
        }
    }
}

/// A publish that it took, in the order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub topic: String,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
    pub duplicate: bool,
    pub properties: Vec<(String, String)>,
}

#[derive(Default)]
struct Session {
    filters: Vec<(TopicFilter, u8)>,
    /// For the client: sent and not acknowledged, or not sent yet.
    queue: VecDeque<Taken>,
    unacknowledged: BTreeMap<u16, Taken>,
    expiry_secs: u32,
    wake: Arc<Notify>,
    /// Ends the connection that serves it.
    connection: CancellationToken,
}

#[derive(Default)]
struct State {
    down: bool,
    taken: Vec<Taken>,
    retained: BTreeMap<String, Taken>,
    violations: Vec<String>,
    sessions: BTreeMap<String, Session>,
    /// Publishes until the link is cut, and whether the last of them is acknowledged.
    cut_in: Option<(usize, bool)>,
    connections: CancellationToken,
    connected: usize,
}

pub struct StrictBroker {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accept: AbortHandle,
}

impl StrictBroker {
    pub async fn start(strictness: Strictness) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let accept = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let token = {
                    let state = shared.lock().unwrap();
                    if state.down {
                        continue;
                    }
                    state.connections.child_token()
                };
                let (state, strictness) = (Arc::clone(&shared), strictness.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = serve(socket, state, strictness, token.clone()) => {}
                        () = token.cancelled() => {}
                    }
                });
            }
        });
        Self { address, state, accept: accept.abort_handle() }
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Ends all connections, and lets nobody in.
    pub fn down(&self) {
        let mut state = self.state();
        state.down = true;
        std::mem::take(&mut state.connections).cancel();
    }

    pub fn up(&self) {
        self.state().down = false;
    }

    /// Ends the connection upon the `n`th publish from now: after it was taken, with or without its PUBACK.
    pub fn cut_at(&self, n: usize, acknowledged: bool) {
        self.state().cut_in = Some((n, acknowledged));
    }

    /// Whether the cut is still to come.
    pub fn is_armed(&self) -> bool {
        self.state().cut_in.is_some()
    }

    /// Forgets all sessions, as when they have expired.
    pub fn forget_sessions(&self) {
        self.state().sessions.clear();
    }

    /// What was taken, repeats included.
    pub fn taken(&self) -> Vec<Taken> {
        self.state().taken.clone()
    }

    pub fn taken_count(&self) -> usize {
        self.state().taken.len()
    }

    /// What clients did that they must not.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Connections that were let in.
    pub fn connected(&self) -> usize {
        self.state().connected
    }

    /// Session expiry that the client asked for, cut to what is allowed.
    pub fn session_expiry_secs(&self, client_id: &str) -> Option<u32> {
        self.state().sessions.get(client_id).map(|session| session.expiry_secs)
    }

    /// Publishes to whoever has subscribed; waits in the sessions of those who are away.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>, qos: u8) {
        let (topic, payload) = (topic.to_owned(), payload.into());
        let message = Taken { topic, payload, qos, retain: false, duplicate: false, properties: Vec::new() };
        self.state().route(&message);
    }
}

impl Drop for StrictBroker {
    fn drop(&mut self) {
        self.accept.abort();
        self.down();
    }
}

impl State {
    fn route(&mut self, message: &Taken) {
        for session in self.sessions.values_mut() {
            let filters = session.filters.iter().filter(|(filter, _)| filter.matches(&message.topic));
            if let Some(granted) = filters.map(|(_, qos)| *qos).max() {
                session.queue.push_back(Taken { qos: message.qos.min(granted), retain: false, ..message.clone() });
                session.wake.notify_one();
            }
        }
    }
}
