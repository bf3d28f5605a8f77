//! Sends the records of streams to where they are wanted, and lets go of them once they have arrived.
//!
//! # Promises
//! - A record is acknowledged in the journal only after the other side has confirmed it, so a crash repeats records, never
//!   loses one.
//! - Records of one stream are sent in order; after a refusal the stream goes on from the first that was refused. With
//!   `live-first` what comes on a new connection goes before what had to wait, each of the two in order.
//! - Of the streams that share a link the one with the higher priority leaves first; a lower one is never starved.
//! - While the other side is away nothing is lost and memory stays bounded: [`WINDOW_RECORDS`], [`WINDOW_BYTES`] per stream.
//! - After a restart sending goes on behind the last record that was acknowledged.
//! - A record that may have been sent before, or that was kept waiting by an outage or a restart, says `replayed`.
//! - A record that the other side can never take becomes a dead letter, and does not hold up the others.
//!
//! Each is the name of a test here, in `tests/uplink.rs` or in `tests/uplink_http.rs`.

pub mod envelope;
mod feed;
mod http;
mod lane;
mod mqtt;
mod progress;
mod rate;
mod status;
mod thread;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sync_client::Cloud;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::http::{HttpSender, Server};
use self::lane::Lane;
use self::mqtt::MqttSender;
use self::status::Board;
pub use self::status::{UplinkState, UplinkStatus};
pub(crate) use self::thread::UplinkThread;
use crate::broker::{self, Broker};
use crate::clock::Clock;
use crate::config::{StreamConfig, UplinkTo};
use crate::invocation::Publish;
use crate::journal::{DEAD_LETTERS, Journal};
use crate::name::{BrokerName, GatewayName, NameError, StreamName};
use crate::receipt::Receipt;

/// Records that may wait for their PUBACK on one link: less than a broker's connection takes, so that what functions publish
/// on it finds room; and never more than twice what the broker takes at once, so that it need not wait behind the rest.
pub const WINDOW_RECORDS: usize = 900;
/// Payload bytes of one stream that may wait for their confirmation.
pub const WINDOW_BYTES: usize = 4 << 20;
/// Requests that may wait for their answer on one link.
const WINDOW_REQUESTS: usize = 1;
/// Records in a row that may become dead letters. When even more are refused it is not the records' fault, and they wait.
const LETTERS_MAX: usize = 10;
/// How long a stop waits for confirmations that are under way.
const DRAIN: Duration = Duration::from_secs(2);
/// First and longest wait after a refusal.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// A broker, as the uplink sees it.
pub trait Publisher: Send + Sync + 'static {
    /// Sends `message` and keeps `receipt` when it has arrived. Waits while too much is under way; sends again by itself
    /// after a reconnect.
    fn publish(&self, message: Publish, receipt: Receipt) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// How the connection is.
    fn link(&self) -> Link;

    /// Tells when that may have changed.
    fn changes(&self) -> watch::Receiver<broker::Link>;
}

impl Publisher for Broker {
    fn publish(&self, message: Publish, receipt: Receipt) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(Self::publish(self, message, receipt))
    }

    fn link(&self) -> Link {
        let status = self.status();
        Link { connected: status.link != broker::Link::Down, reconnects: status.reconnects, at_once: status.at_once }
    }

    fn changes(&self) -> watch::Receiver<broker::Link> {
        self.link()
    }
}

/// How a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it stands.
    pub connected: bool,
    /// How often it was lost and made again.
    pub reconnects: u64,
    /// Records that the other side takes before it has confirmed one.
    pub at_once: usize,
}

/// The brokers that streams may name.
pub type Publishers = BTreeMap<BrokerName, Arc<dyn Publisher>>;

/// One stream that drains, for all who have to do with it.
struct Stream {
    journal: Arc<Journal>,
    gateway: GatewayName,
    name: StreamName,
    dead_letters: StreamName,
    config: StreamConfig,
    clock: Clock,
    board: Board,
    cancel: CancellationToken,
}

impl Stream {
    /// Says why it cannot go on: once per reason, not per try.
    fn complain(&self, why: &str) {
        if self.board.failed(why) {
            tracing::warn!(stream = %self.name, why, "records cannot be sent, trying again");
        }
    }
}

/// Ends with this value.
struct Task {
    stream: Arc<Stream>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stream.cancel.cancel();
    }
}

/// All streams that have an uplink, each with a task of its own.
pub struct Uplink {
    journal: Arc<Journal>,
    gateway: GatewayName,
    dead_letters: StreamName,
    clock: Clock,
    cloud: Option<Cloud>,
    /// Where the tasks run.
    threads: Handle,
    tasks: Mutex<BTreeMap<StreamName, Task>>,
    /// What the streams of one link share, by its name.
    lanes: Mutex<BTreeMap<String, Arc<Lane>>>,
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.tasks().keys()).finish()
    }
}

impl Uplink {
    /// Starts a task for each of `streams` that has an uplink.
    ///
    /// # Errors
    /// Never: the name of the dead letters is a name.
    pub fn start(
        journal: Arc<Journal>,
        publishers: &Publishers,
        gateway: GatewayName,
        streams: &BTreeMap<StreamName, StreamConfig>,
        clock: Clock,
    ) -> Result<Self, NameError> {
        Self::start_with(journal, publishers, gateway, streams, clock, None, Handle::current())
    }

    /// The same, with the control plane that streams may name, and where the tasks run.
    ///
    /// # Errors
    /// As [`Uplink::start`].
    pub fn start_with(
        journal: Arc<Journal>,
        publishers: &Publishers,
        gateway: GatewayName,
        streams: &BTreeMap<StreamName, StreamConfig>,
        clock: Clock,
        cloud: Option<Cloud>,
        threads: Handle,
    ) -> Result<Self, NameError> {
        let dead_letters = StreamName::parse(DEAD_LETTERS)?;
        let (tasks, lanes) = (Mutex::default(), Mutex::default());
        let uplink = Self { journal, gateway, dead_letters, clock, cloud, threads, tasks, lanes };
        uplink.start_missing(publishers, streams);
        Ok(uplink)
    }

    fn start_missing(&self, publishers: &Publishers, streams: &BTreeMap<StreamName, StreamConfig>) {
        let mut tasks = self.tasks();
        for (name, config) in streams {
            if !tasks.contains_key(name)
                && let Some(task) = self.task(publishers, name, config)
            {
                tasks.insert(name.clone(), task);
            }
        }
    }

    /// Follows a reload: tasks of streams that did not change go on untouched. `changed` names brokers that were made anew.
    pub async fn configure(
        &self,
        publishers: &Publishers,
        streams: &BTreeMap<StreamName, StreamConfig>,
        changed: &[BrokerName],
    ) {
        let keeps = |name: &StreamName, task: &Task| {
            let broker = task.stream.config.uplink.as_ref().and_then(|uplink| uplink.broker());
            streams.get(name) == Some(&task.stream.config) && broker.is_none_or(|broker| !changed.contains(broker))
        };
        let stopped: Vec<Task> = {
            let mut tasks = self.tasks();
            let names: Vec<_> =
                tasks.iter().filter(|(name, task)| !keeps(name, task)).map(|(name, _)| name.clone()).collect();
            names.iter().filter_map(|name| tasks.remove(name)).collect()
        };
        stop(stopped).await;
        self.start_missing(publishers, streams);
    }

    fn task(&self, publishers: &Publishers, name: &StreamName, config: &StreamConfig) -> Option<Task> {
        let uplink = config.uplink.as_ref()?;
        let stream = Arc::new(Stream {
            journal: Arc::clone(&self.journal),
            gateway: self.gateway.clone(),
            name: name.clone(),
            dead_letters: self.dead_letters.clone(),
            config: config.clone(),
            clock: self.clock.clone(),
            board: Board::default(),
            cancel: CancellationToken::new(),
        });
        let handle = match &uplink.to {
            UplinkTo::Mqtt(mqtt) => {
                let Some(publisher) = publishers.get(&mqtt.broker) else {
                    tracing::error!(stream = %name, broker = %mqtt.broker, "the uplink names a broker that is not in gateway.toml");
                    return None;
                };
                let lane = self.lane(format!("mqtt {}", mqtt.broker), WINDOW_RECORDS);
                let (stream, publisher) = (Arc::clone(&stream), Arc::clone(publisher));
                self.threads.spawn(MqttSender { stream, mqtt: mqtt.clone(), publisher, lane }.run())
            }
            UplinkTo::Http(http) => {
                let lane = self.lane(format!("http {}", http::server_of(&http.url)), WINDOW_REQUESTS);
                let server = Server::Http(http.clone());
                self.threads.spawn(HttpSender { stream: Arc::clone(&stream), server, lane }.run())
            }
            UplinkTo::Cloud => {
                let Some(cloud) = &self.cloud else {
                    tracing::error!(stream = %name, "the uplink is the control plane, which takes a restart of the agent to reach");
                    return None;
                };
                let (server, lane) = (Server::Cloud(cloud.clone()), self.lane("cloud".to_owned(), WINDOW_REQUESTS));
                self.threads.spawn(HttpSender { stream: Arc::clone(&stream), server, lane }.run())
            }
        };
        Some(Task { stream, handle })
    }

    fn lane(&self, link: String, places: usize) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry(link).or_insert_with(|| Lane::new(places)))
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<StreamName, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each stream's uplink is doing.
    pub fn status(&self) -> BTreeMap<StreamName, UplinkStatus> {
        let now = self.clock.instant();
        self.tasks().iter().map(|(name, task)| (name.clone(), task.stream.board.status(now))).collect()
    }

    /// Sends no more, waits a moment for confirmations that are under way, and returns. What is not confirmed stays.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks());
        stop(tasks.into_values().collect()).await;
    }
}

async fn stop(tasks: Vec<Task>) {
    tasks.iter().for_each(|task| task.stream.cancel.cancel());
    for mut task in tasks {
        if let Err(error) = (&mut task.handle).await {
            tracing::error!(%error, "an uplink's task failed");
        }
    }
}
