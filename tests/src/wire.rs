//! A wire between the agent and a broker on which everything goes wrong that does in the field, and which sees who
//! confirmed what: the witness of what the agent has acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the wire is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// As a good one.
    #[default]
    Whole,
    /// What is connected ends, and nobody can connect.
    Cut,
    /// Each packet takes this much longer.
    Slow(Duration),
    /// Connections stay, and carry nothing any more: those of this time never will again.
    Dead,
}

/// What went over the wire, by `seq` of the payloads.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Messages to the agent that it has acknowledged.
    pub acknowledged: BTreeSet<u64>,
    /// Messages of the agent that the broker has acknowledged.
    pub confirmed: BTreeSet<u64>,
    /// Connections that were made.
    pub connections: u64,
}

/// A forwarder on a free port. Dropping it cuts the wire for good.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    state: watch::Sender<State>,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Wire {
    /// To a broker on this machine.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (state, watching) = watch::channel(State::Whole);
        let seen = Arc::<Mutex<Seen>>::default();
        let task = tokio::spawn(accept(listener, port, watching, Arc::clone(&seen)));
        Ok(Self { address, state, seen, task })
    }

    /// `mqtt://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// From now on it is so.
    pub fn becomes(&self, state: State) {
        self.state.send_replace(state);
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.becomes(State::Cut);
        self.task.abort();
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, port: u16, state: watch::Receiver<State>, seen: Arc<Mutex<Seen>>) {
    while let Ok((agent, _)) = listener.accept().await {
        if *state.borrow() != State::Cut {
            tokio::spawn(carry(agent, port, state.clone(), Arc::clone(&seen)));
        }
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Agent,
    Broker,
}

/// Ends when either side does, or when the wire is cut; what was under way is then lost.
async fn carry(agent: TcpStream, port: u16, state: watch::Receiver<State>, seen: Arc<Mutex<Seen>>) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    lock(&seen).connections += 1;
    // Small messages must not wait for each other's acknowledgements, here as on the real wire.
    let _ = (agent.set_nodelay(true), broker.set_nodelay(true));
    let (from_agent, to_agent) = agent.into_split();
    let (from_broker, to_broker) = broker.into_split();
    // Packet ids belong to one connection and one direction.
    let (open_to_agent, open_to_broker) = (Open::default(), Open::default());
    let mut cut = state.clone();
    tokio::select! {
        _ = pump(from_agent, to_broker, To::Broker, (&open_to_broker, &open_to_agent), state.clone(), &seen) => {}
        _ = pump(from_broker, to_agent, To::Agent, (&open_to_agent, &open_to_broker), state, &seen) => {}
        _ = cut.wait_for(|state| *state == State::Cut) => {}
    }
}

/// `seq` of messages that are under way, by packet id.
type Open = Mutex<BTreeMap<u16, u64>>;

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: To,
    (mine, others): (&Open, &Open),
    mut state: watch::Receiver<State>,
    seen: &Mutex<Seen>,
) -> std::io::Result<()> {
    loop {
        let packet = read_packet(&mut from).await?;
        let now = *state.borrow_and_update();
        match now {
            State::Slow(by) => tokio::time::sleep(by).await,
            // What was swallowed cannot be made up for: such a connection is dead until somebody gives it up.
            State::Dead => std::future::pending().await,
            State::Whole | State::Cut => {}
        }
        match read_message(&packet) {
            Some(Message::Publish { id, seq }) => drop(lock(mine).insert(id, seq)),
            Some(Message::Acknowledgement { id }) => {
                if let Some(seq) = lock(others).remove(&id) {
                    let mut seen = lock(seen);
                    let which = if way == To::Broker { &mut seen.acknowledged } else { &mut seen.confirmed };
                    which.insert(seq);
                }
            }
            None => {}
        }
        to.write_all(&packet).await?;
    }
}

async fn read_packet(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![from.read_u8().await?];
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = from.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let start = packet.len();
    packet.resize(start + length, 0);
    from.read_exact(&mut packet[start..]).await?;
    Ok(packet)
}

enum Message {
    Publish { id: u16, seq: u64 },
    Acknowledgement { id: u16 },
}

/// What the witness needs of a packet of MQTT 5. `None`: nothing.
fn read_message(packet: &[u8]) -> Option<Message> {
    let header = 1 + packet[1..].iter().position(|byte| byte & 0x80 == 0)? + 1;
    let body = packet.get(header..)?;
    let number = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    match packet[0] >> 4 {
        3 if packet[0] & 0b110 != 0 => {
            let id_at = 2 + usize::from(number(0)?);
            let payload = body.get(after_properties(body, id_at + 2)?..)?;
            Some(Message::Publish { id: number(id_at)?, seq: crate::seq(payload).ok()? })
        }
        // A PUBACK with a reason of 0x80 and above refuses.
        4 if body.get(2).is_none_or(|reason| *reason < 0x80) => Some(Message::Acknowledgement { id: number(0)? }),
        _ => None,
    }
}

/// Where the properties end that start at `at`.
fn after_properties(body: &[u8], at: usize) -> Option<usize> {
    let mut length = 0;
    for (i, byte) in body.get(at..)?.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(at + i + 1 + length);
        }
    }
    None
}
