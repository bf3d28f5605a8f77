//! Sends the records of streams to where they are wanted, and lets go of them once they have arrived.
//!
//! # Promises
//! - A record is acknowledged in the journal only after the broker's PUBACK, so a crash repeats records, never loses one.
//! - Records of one stream are sent in order; after a refusal the stream goes on from the first that was refused.
//! - While the broker is away nothing is lost and memory stays bounded: [`WINDOW_RECORDS`], [`WINDOW_BYTES`] per stream.
//! - After a restart sending goes on behind the last record that was acknowledged.
//! - A record that may have been sent before, or that was kept waiting by an outage or a restart, says `replayed`.
//!
//! Each is the name of a test here or in `tests/uplink.rs`.

pub mod envelope;
mod sender;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::sender::Sender;
use crate::broker::{self, Broker};
use crate::clock::Clock;
use crate::config::{StreamConfig, UplinkConfig};
use crate::invocation::Publish;
use crate::journal::Journal;
use crate::name::{BrokerName, GatewayName, StreamName};
use crate::receipt::Receipt;

/// Records of one stream that may wait for their PUBACK.
pub const WINDOW_RECORDS: usize = 1_000;
/// Payload bytes of one stream that may wait for their PUBACK.
pub const WINDOW_BYTES: usize = 4 << 20;
/// How long a stop waits for PUBACKs that are under way.
const DRAIN: Duration = Duration::from_secs(2);

/// A broker, as the uplink sees it.
pub trait Publisher: Send + Sync + 'static {
    /// Sends `message` and keeps `receipt` when it has arrived. Waits while too much is under way; sends again by itself
    /// after a reconnect.
    fn publish(&self, message: Publish, receipt: Receipt) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// How the connection is.
    fn link(&self) -> Link;
}

impl Publisher for Broker {
    fn publish(&self, message: Publish, receipt: Receipt) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(Self::publish(self, message, receipt))
    }

    fn link(&self) -> Link {
        let status = self.status();
        Link { connected: status.link != broker::Link::Down, reconnects: status.reconnects, since_ms: status.since_ms }
    }
}

/// How a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it stands.
    pub connected: bool,
    /// How often it was lost and made again.
    pub reconnects: u64,
    /// Unix time in milliseconds since when it is so.
    pub since_ms: u64,
}

/// The brokers that streams may name.
pub type Publishers = BTreeMap<BrokerName, Arc<dyn Publisher>>;

/// How one stream's uplink is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct UplinkStatus {
    /// Records handed to the broker since the start, repeats included.
    pub sent: u64,
    /// Records that arrived since the start.
    pub confirmed: u64,
    /// Records that the broker refused since the start; each is sent again.
    pub refused: u64,
    /// Records that wait for their PUBACK.
    pub in_flight: u64,
    /// Why it waits before it tries again.
    pub last_error: Option<String>,
}

struct Task {
    config: StreamConfig,
    status: Arc<Mutex<UplinkStatus>>,
    cancel: CancellationToken,
    handle: JoinHandle<()>,
}

/// All streams that have an uplink, each with a task of its own.
pub struct Uplink {
    journal: Arc<Journal>,
    gateway: GatewayName,
    clock: Clock,
    tasks: Mutex<BTreeMap<StreamName, Task>>,
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.tasks().keys()).finish()
    }
}

impl Uplink {
    /// Starts a task for each of `streams` that has an uplink.
    pub fn start(
        journal: Arc<Journal>,
        publishers: &Publishers,
        gateway: GatewayName,
        streams: &BTreeMap<StreamName, StreamConfig>,
        clock: Clock,
    ) -> Self {
        let uplink = Self { journal, gateway, clock, tasks: Mutex::default() };
        let mut tasks = uplink.tasks();
        for (name, config) in streams {
            if let Some(task) = uplink.task(publishers, name, config) {
                tasks.insert(name.clone(), task);
            }
        }
        drop(tasks);
        uplink
    }

    /// Follows a reload: tasks of streams that did not change go on untouched. `changed` names brokers that were made anew.
    pub async fn configure(
        &self,
        publishers: &Publishers,
        streams: &BTreeMap<StreamName, StreamConfig>,
        changed: &[BrokerName],
    ) {
        let keeps = |name: &StreamName, task: &Task| {
            let broker = task.config.uplink.as_ref().map(|uplink| &uplink.mqtt);
            streams.get(name) == Some(&task.config) && broker.is_some_and(|broker| !changed.contains(broker))
        };
        let stopped: Vec<Task> = {
            let mut tasks = self.tasks();
            let names: Vec<_> =
                tasks.iter().filter(|(name, task)| !keeps(name, task)).map(|(name, _)| name.clone()).collect();
            names.iter().filter_map(|name| tasks.remove(name)).collect()
        };
        stop(stopped).await;
        for (name, config) in streams {
            let mut tasks = self.tasks();
            if !tasks.contains_key(name)
                && let Some(task) = self.task(publishers, name, config)
            {
                tasks.insert(name.clone(), task);
            }
        }
    }

    fn task(&self, publishers: &Publishers, stream: &StreamName, config: &StreamConfig) -> Option<Task> {
        let uplink: &UplinkConfig = config.uplink.as_ref()?;
        let Some(publisher) = publishers.get(&uplink.mqtt) else {
            tracing::error!(stream = %stream, broker = %uplink.mqtt, "the uplink names a broker that is not in gateway.toml");
            return None;
        };
        let status = Arc::new(Mutex::new(UplinkStatus::default()));
        let cancel = CancellationToken::new();
        let sender = Sender {
            journal: Arc::clone(&self.journal),
            publisher: Arc::clone(publisher),
            gateway: self.gateway.clone(),
            stream: stream.clone(),
            uplink: uplink.clone(),
            batch: config.batch.clone(),
            clock: self.clock.clone(),
            status: Arc::clone(&status),
            cancel: cancel.clone(),
        };
        Some(Task { config: config.clone(), status, cancel, handle: tokio::spawn(sender.run()) })
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<StreamName, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each stream's uplink is doing.
    pub fn status(&self) -> Vec<(StreamName, UplinkStatus)> {
        let status = |task: &Task| task.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.tasks().iter().map(|(name, task)| (name.clone(), status(task))).collect()
    }

    /// Sends no more, waits a moment for PUBACKs that are under way, and returns. What is not confirmed stays.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks());
        stop(tasks.into_values().collect()).await;
    }
}

async fn stop(tasks: Vec<Task>) {
    tasks.iter().for_each(|task| task.cancel.cancel());
    for task in tasks {
        if let Err(error) = task.handle.await {
            tracing::error!(%error, "an uplink's task failed");
        }
    }
}
