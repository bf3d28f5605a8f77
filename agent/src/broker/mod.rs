//! Connections to MQTT brokers, 5 and 3.1.1.
//!
//! # Promises
//! - A message of QoS 1 or 2 is acknowledged, in order, when its receipt has settled, on the connection that it came over.
//! - A publish of QoS 1 or 2 is kept until the broker has confirmed it, and sent again after each reconnect.
//! - The session is persistent: what is published while the agent is away waits at the broker.
//! - A connection that is lost is made again, for ever, ever more slowly.
//!
//! rumqttc's packets are used, not its event loop: that one drops pending publishes when the broker has lost the session,
//! cannot tell when a publish was confirmed or why it was refused, ends in a loop when a QoS 2 handshake is cut in the
//! middle, and flushes for each packet. `tests/mqtt_*.rs` holds each of these against real brokers.

mod connection;
mod echo;
pub mod embedded;
mod greeting;
mod handover;
mod held;
mod hooks;
mod inbox;
mod intake;
pub(crate) mod packet;
mod retained;
mod session;
mod shares;
mod signal;
pub(crate) mod subscriptions;
mod transport;
mod window;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::connection::Wire;
use self::greeting::Hello;
use self::inbox::Inbox;
use self::intake::Intake;
use self::packet::Version;
use self::session::Session;
use self::signal::Signal;
use self::subscriptions::Subscriptions;
pub(crate) use self::transport::BackOff;
use self::transport::Transport;
use crate::clock::Clock;
use crate::config::MqttConfig;
use crate::invocation::Publish;
use crate::limits::Limits;
use crate::name::{BrokerName, GatewayName};
use crate::net::Net;
use crate::receipt::Receipt;
use crate::tls;
pub use crate::tls::FileError;
use crate::topic::TopicFilter;

/// Why a broker's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// `url`.
    #[error("broker `{broker}` has url `{url}`: {why}")]
    Url {
        /// Which.
        broker: BrokerName,
        /// As it was written.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A TLS file for a connection without TLS.
    #[error("broker `{broker}` has `{key}`, but its url is not `mqtts://`, so nothing would be encrypted")]
    NotSecure {
        /// Which.
        broker: BrokerName,
        /// The key in gateway.toml.
        key: &'static str,
    },
    /// A version that does not exist.
    #[error("broker `{broker}` has version {version}: it must be 5, or 3 for 3.1.1")]
    Version {
        /// Which.
        broker: BrokerName,
        /// As it was written.
        version: u8,
    },
    /// A QoS that does not exist.
    #[error("broker `{broker}` has max_qos {max_qos}: it must be 0, 1 or 2")]
    MaxQos {
        /// Which.
        broker: BrokerName,
        /// As it was written.
        max_qos: u8,
    },
    /// A file that cannot be read.
    #[error("broker `{broker}`: {file}")]
    File {
        /// Which.
        broker: BrokerName,
        /// The file, and what is wrong with it.
        file: FileError,
    },
    /// Certificates or keys that do not fit.
    #[error("broker `{broker}`: {why}")]
    Tls {
        /// Which.
        broker: BrokerName,
        /// What is wrong.
        why: String,
    },
}

/// A message that a broker sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its payload, as it came.
    pub payload: Bytes,
    /// 0, 1 or 2: the lower of what it was published with and what was subscribed with.
    pub qos: u8,
    /// Whether the broker had kept it from before the subscription.
    pub retain: bool,
    /// Whether it may have been handed out before.
    pub duplicate: bool,
    /// Whether a function of this agent has published it, and waits until it is settled.
    pub own: bool,
    /// MQTT 5 content type.
    pub content_type: Option<Arc<str>>,
    /// MQTT 5 user properties.
    pub properties: Vec<(String, String)>,
}

/// What to hear from a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Topics.
    pub filter: TopicFilter,
    /// 0, 1 or 2.
    pub qos: u8,
}

/// Who hears it.
pub trait OnMessage: Send + Sync {
    /// Called on the connection's task, in the order of arrival: must be quick and never wait. `receipt` is there for QoS 1
    /// and 2; when it fails the same message comes again after a while, and nothing after it is acknowledged until then.
    fn on_message(&self, message: Incoming, receipt: Option<Receipt>);
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Not connected.
    Down,
    /// Connected.
    Up,
    /// Connected, and the broker has answered to all subscriptions.
    Ready,
}

/// How a broker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerStatus {
    /// How the connection stands.
    pub link: Link,
    /// Unix time in milliseconds since when it stands so.
    pub since_ms: u64,
    /// Why it was last lost or refused.
    pub last_error: Option<String>,
    /// Filters that the broker refused, with the reason.
    pub refused: Vec<(String, String)>,
    /// Messages that came and are not acknowledged yet.
    pub in_flight: usize,
    /// Publishes that wait to be sent or confirmed.
    pub unconfirmed: usize,
    /// Publishes that the broker takes before it has confirmed one, on the latest connection.
    pub at_once: usize,
    /// Connections after the first.
    pub reconnects: u64,
    /// Messages that came, repeats included.
    pub received: u64,
    /// Publishes that are done: sent with QoS 0, confirmed with QoS 1 and 2.
    pub published: u64,
    /// QoS 0 publishes that were dropped because the broker was away, messages over the size limit, and what the embedded
    /// broker had no room for in the sessions of others.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    at_once: AtomicUsize,
    reconnects: AtomicU64,
    received: AtomicU64,
    published: AtomicU64,
    dropped: AtomicU64,
}

struct Standing {
    since_ms: u64,
    last_error: Option<String>,
    refused: Vec<(String, String)>,
}

/// What is wanted from the connection's task.
#[derive(Default)]
struct Orders {
    publishes: VecDeque<(Publish, Receipt)>,
    subscribe: Option<(Vec<Subscription>, Arc<dyn OnMessage>)>,
    pause: bool,
}

struct Shared {
    name: BrokerName,
    signal: Arc<Signal>,
    orders: Mutex<Orders>,
    /// Room for publishes that are not done.
    room: Semaphore,
    room_max: usize,
    inbox: Inbox,
    link: watch::Sender<Link>,
    standing: Mutex<Standing>,
    counters: Counters,
    /// The task is over.
    ended: CancellationToken,
    clock: Clock,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_link(&self, link: Link) {
        if self.link.send_if_modified(|now| std::mem::replace(now, link) != link) {
            self.standing().since_ms = self.clock.now_ms();
        }
    }
}

/// One broker of gateway.toml. Clones share one connection, which ends with the last of them.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
    // Behind an `Arc` because a token's own clones take a lock, and a broker is cloned for each publish.
    task: Arc<Task>,
    /// Functions that hear what is published here in this process, when it is the embedded broker.
    intake: Option<Arc<Intake>>,
}

/// The connection's task, which ends with this value.
struct Task(CancellationToken);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What a connection begins with.
struct Opening {
    version: Version,
    transport: Transport,
    hello: Hello,
}

impl Opening {
    fn of(
        name: &BrokerName,
        config: &MqttConfig,
        gateway: &GatewayName,
        limits: &Limits,
        net: Net,
    ) -> Result<Self, BrokerError> {
        let version = match config.version {
            5 => Version::V5,
            3 => Version::V3,
            version => return Err(BrokerError::Version { broker: name.clone(), version }),
        };
        if config.max_qos > 2 {
            return Err(BrokerError::MaxQos { broker: name.clone(), max_qos: config.max_qos });
        }
        let transport = Transport::new(name, config, net)?;
        let password = config.password_file.as_deref().map(|file| tls::password("password_file", file)).transpose();
        let password = password.map_err(|file| BrokerError::File { broker: name.clone(), file })?;
        let client_id = config.client_id.clone().unwrap_or_else(|| format!("tidegate-{gateway}-{name}"));
        let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
        let hello = Hello {
            client_id,
            login: config.username.clone().map(|user| (user, password.unwrap_or_default())),
            keep_alive_secs: u16::try_from(seconds(config.keep_alive.0)).unwrap_or(u16::MAX),
            session_expiry_secs: seconds(config.session_expiry.0),
            receive_maximum: limits.mqtt_in_flight_max,
        };
        Ok(Self { version, transport, hello })
    }
}

/// Whether the broker would let the agent in: connects as it does, by a name of its own and with a session that ends with the connection.
///
/// # Errors
/// With what kept it from that.
pub(crate) async fn greet(name: &BrokerName, config: &MqttConfig, gateway: &GatewayName) -> Result<(), String> {
    let opening =
        Opening::of(name, config, gateway, &Limits::default(), Net::real()).map_err(|error| error.to_string())?;
    let client_id = format!("{}-{:08x}", opening.hello.client_id, fastrand::u32(..));
    let hello = Hello { client_id, session_expiry_secs: 0, ..opening.hello };
    Wire::open(&opening.transport, opening.version, &hello, u32::MAX, u32::MAX).await.map(drop)
}

impl Broker {
    /// Starts to connect, and goes on for ever. Never waits for the network; must be called within a tokio runtime.
    /// `state_dir` is where it remembers what the session at the broker holds.
    ///
    /// # Errors
    /// When the configuration cannot be used: the URL, or a file that cannot be read.
    pub fn connect(
        name: BrokerName,
        config: &MqttConfig,
        gateway: &GatewayName,
        state_dir: &Path,
        limits: &Limits,
        clock: Clock,
        net: Net,
    ) -> Result<Self, BrokerError> {
        let Opening { version, transport, hello } = Opening::of(&name, config, gateway, limits, net)?;
        let file = state_dir.join("mqtt").join(format!("{name}.json"));
        let subscriptions = Subscriptions::open(file, &config.url, &hello.client_id);

        let signal = Arc::new(Signal::default());
        let room_max = usize::from(limits.mqtt_unconfirmed_max);
        let shared = Arc::new(Shared {
            name,
            orders: Mutex::default(),
            room: Semaphore::new(room_max),
            room_max,
            inbox: Inbox::new(Arc::clone(&signal)),
            signal,
            link: watch::Sender::new(Link::Down),
            standing: Mutex::new(Standing { since_ms: clock.now_ms(), last_error: None, refused: Vec::new() }),
            counters: Counters::default(),
            ended: CancellationToken::new(),
            clock,
        });
        let cancel = CancellationToken::new();
        let session = Session::new(Arc::clone(&shared), transport, version, hello, subscriptions, config, limits);
        tokio::spawn(session.run(cancel.clone()));
        Ok(Self { shared, task: Arc::new(Task(cancel)), intake: None })
    }

    /// This connection leads to the embedded broker, behind which `intake` hears.
    pub fn beside(self, intake: Option<Arc<Intake>>) -> Self {
        Self { intake, ..self }
    }

    /// Its name in gateway.toml.
    pub fn name(&self) -> &BrokerName {
        &self.shared.name
    }

    /// Whether both are the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Publishes. Waits only while too many are not done. The receipt is kept when the message was handed to the socket (QoS
    /// 0) or confirmed by the broker (QoS 1, 2), and failed when the broker refuses it. While the broker is away and there is
    /// no room, QoS 0 is dropped and counted.
    pub async fn publish(&self, publish: Publish, receipt: Receipt) {
        let shared = &self.shared;
        if let Some(intake) = &self.intake {
            intake.hear_own(&publish, &receipt);
        }
        match shared.room.try_acquire() {
            Ok(room) => room.forget(),
            Err(_) if publish.qos == 0 && *shared.link.borrow() == Link::Down => {
                shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
                return receipt.keep();
            }
            Err(_) => match shared.room.acquire().await {
                Ok(room) => room.forget(),
                Err(_) => return receipt.fail(format!("broker `{}` was disconnected", shared.name)),
            },
        }
        shared.orders().publishes.push_back((publish, receipt));
        shared.signal.raise();
    }

    /// Replaces what is heard, and by whom. Call it also with nothing: until the first call the broker's session is left as an
    /// earlier run has left it, and what comes waits.
    pub fn subscribe(&self, subscriptions: Vec<Subscription>, to: Arc<dyn OnMessage>) {
        let mut orders = self.shared.orders();
        orders.subscribe = Some((subscriptions, to));
        // Whoever waits for `Ready` waits for these.
        if *self.shared.link.borrow() == Link::Ready {
            self.shared.set_link(Link::Up);
        }
        drop(orders);
        self.shared.signal.raise();
    }

    /// Hands out nothing more; what comes is left for the session's next connection.
    pub fn pause(&self) {
        if let Some(intake) = &self.intake {
            intake.close();
        }
        self.shared.orders().pause = true;
        self.shared.signal.raise();
    }

    /// How the connection stands, to wait for.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// How it does.
    pub fn status(&self) -> BrokerStatus {
        let shared = &self.shared;
        let standing = shared.standing();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BrokerStatus {
            link: *shared.link.borrow(),
            since_ms: standing.since_ms,
            last_error: standing.last_error.clone(),
            refused: standing.refused.clone(),
            in_flight: shared.inbox.len() + self.intake.as_ref().map_or(0, |intake| intake.waiting()),
            unconfirmed: shared.room_max - shared.room.available_permits(),
            at_once: shared.counters.at_once.load(Ordering::Relaxed),
            reconnects: count(&shared.counters.reconnects),
            received: count(&shared.counters.received) + self.intake.as_ref().map_or(0, |intake| intake.received()),
            published: count(&shared.counters.published),
            dropped: count(&shared.counters.dropped) + self.intake.as_ref().map_or(0, |intake| intake.dropped()),
        }
    }

    /// Hands out nothing more, waits until all publishes are confirmed, at most `timeout`, and says good-bye. The session, with
    /// what was not acknowledged, stays at the broker.
    pub async fn disconnect(&self, timeout: Duration) {
        self.pause();
        let _ = tokio::time::timeout(timeout, self.shared.room.acquire_many(self.permits())).await;
        self.task.0.cancel();
        self.shared.ended.cancelled().await;
    }

    fn permits(&self) -> u32 {
        u32::try_from(self.shared.room_max).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
