//! What `GET /v1/status`, `GET /healthz` and `POST /v1/reload` answer; the command line reads the same types.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::deployment::DeploymentStatus;
use crate::metrics::{FunctionMetrics, Histogram, HistogramCounts};
use crate::name::{BrokerName, FunctionName, GatewayName, ModelName, StreamName};
use crate::trigger::source::SourceStatus;
use crate::uplink::UplinkStatus;

/// Whether the agent does its work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// One sentence for each thing that is wrong; none when all is well.
    pub reasons: Vec<String>,
}

/// What a reload changed; what is not named was not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// One line for each change: ``function `fahrenheit`: 1.0.0 → 1.1.0``.
    pub changes: Vec<String>,
    /// What is said in the config but needs a restart.
    pub needs_restart: Vec<String>,
}

/// The whole agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This machine's name.
    pub gateway: GatewayName,
    /// The agent's version.
    pub version: String,
    /// Since it started.
    pub uptime_ms: u64,
    /// By name.
    pub functions: Vec<FunctionStatus>,
    /// Functions that are not in service, and have events on disk.
    pub unclaimed: Vec<UnclaimedStatus>,
    /// By name.
    pub brokers: Vec<BrokerStatus>,
    /// By name: those that a trigger names.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// By broker: those of the brokers that are configured, and others that still hold publishes.
    pub outboxes: Vec<OutboxStatus>,
    /// By name, the dead letters among them.
    pub streams: Vec<StreamStatus>,
    /// By name.
    pub models: Vec<ModelStatus>,
    /// What is deployed; none when nobody may deploy to this gateway.
    #[serde(default)]
    pub deployment: Option<DeploymentStatus>,
}

/// One function. Counts are since the agent started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionStatus {
    /// Its name on this gateway.
    pub name: FunctionName,
    /// The version that serves.
    pub version: String,
    /// SHA-256 of its component.
    pub digest: String,
    /// What it runs on, in words: `mqtt local sensors/+/temp (changed /temperature)`, `every 5m`.
    pub triggers: Vec<String>,
    /// Instances that serve an event now.
    pub busy: u32,
    /// Instances that wait for one.
    pub idle: u32,
    /// Events that wait in memory.
    pub queued: usize,
    /// Events that wait on disk.
    pub parked: usize,
    /// The counters and times.
    #[serde(flatten)]
    pub numbers: FunctionNumbers,
}

/// Events that wait for a function which is not in gateway.toml any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnclaimedStatus {
    /// Its name.
    pub function: FunctionName,
    /// Events of it on disk. They run when it is back.
    pub events: u64,
}

/// What a function did since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionNumbers {
    /// Events that were taken.
    pub received: u64,
    /// Events that were not.
    pub dropped: u64,
    /// Events that filters left out.
    #[serde(default)]
    pub filtered: u64,
    /// Events that lacked what a filter compares, and passed.
    #[serde(default)]
    pub unfiltered: u64,
    /// Events that wait on disk for their windows.
    #[serde(default)]
    pub windowed: u64,
    /// Runs, by outcome; those that never occurred are left out.
    pub invocations: BTreeMap<String, u64>,
    /// Further attempts.
    pub retries: u64,
    /// Runs for nothing: what they had read was changed before their commit, or an outbox was full. Each was run again, and
    /// they count among the invocations.
    pub conflicts: u64,
    /// Events that were given up on.
    pub dead_letters: u64,
    /// Events that went to disk because too many waited in memory.
    pub spilled: u64,
    /// Events that were not run, because their idempotency key was dealt with.
    pub duplicates: u64,
    /// Instances made because no warm one was free.
    pub cold_starts: u64,
    /// Waiting in the queue.
    pub queue: Latency,
    /// In the handler.
    pub handler: Latency,
    /// Making its effects safe.
    pub commit: Latency,
}

impl From<&FunctionMetrics> for FunctionNumbers {
    fn from(metrics: &FunctionMetrics) -> Self {
        Self {
            received: metrics.received.get(),
            dropped: metrics.events_dropped(),
            filtered: metrics.events_filtered(),
            unfiltered: metrics.unfiltered.get(),
            windowed: u64::try_from(metrics.windowed.get()).unwrap_or(0),
            invocations: metrics.outcomes().filter(|(_, n)| *n > 0).map(|(label, n)| (label.to_owned(), n)).collect(),
            retries: metrics.retries.get(),
            conflicts: metrics.conflicts.get(),
            dead_letters: metrics.dead_letters.get(),
            spilled: metrics.spilled.get(),
            duplicates: metrics.duplicates.get(),
            cold_starts: metrics.cold_starts.get(),
            queue: Latency::from(&metrics.queue),
            handler: Latency::from(&metrics.handler),
            commit: Latency::from(&metrics.commit),
        }
    }
}

/// A histogram in two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half of them took at most this, in microseconds.
    pub p50_us: Option<u64>,
    /// All but one in a hundred took at most this, in microseconds.
    pub p99_us: Option<u64>,
}

impl From<&Histogram> for Latency {
    fn from(histogram: &Histogram) -> Self {
        Self::from(&histogram.counts())
    }
}

impl From<&HistogramCounts> for Latency {
    fn from(counts: &HistogramCounts) -> Self {
        let us = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self { count: counts.total(), p50_us: counts.quantile(0.5).map(us), p99_us: counts.quantile(0.99).map(us) }
    }
}

/// One MQTT broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// `local` in `[mqtt.local]`.
    pub name: BrokerName,
    /// Where it is.
    pub url: String,
    /// Whether there is a session now.
    pub connected: bool,
    /// Whether it has answered to all subscriptions: before, what others publish may be for nobody.
    pub ready: bool,
    /// Unix time in milliseconds at which `connected` last changed.
    pub since_ms: Option<u64>,
    /// Why there was no connection, the last time there was none.
    pub last_error: Option<String>,
    /// Messages received that are not acknowledged yet.
    pub in_flight: u64,
    /// Publishes that wait for their PUBACK.
    pub unconfirmed: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Messages received.
    pub received: u64,
    /// Messages published.
    pub published: u64,
}

/// What was committed for one broker and is not confirmed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxStatus {
    /// `local` in `[mqtt.local]`.
    pub broker: BrokerName,
    /// Whether the broker is in gateway.toml. If not, its publishes wait on disk until it is there again.
    pub configured: bool,
    /// How many wait.
    pub publishes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The budget: when it is full, functions that need it wait.
    pub bytes_max: u64,
    /// Unix time in milliseconds of the oldest.
    pub oldest_ms: Option<u64>,
    /// Why the broker refused a publish, the last time that it did.
    pub last_error: Option<String>,
}

/// One durable stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// `readings` in `[stream.readings]`.
    pub name: StreamName,
    /// Records on disk.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The budget.
    pub bytes_max: u64,
    /// Unix time in milliseconds of the oldest.
    pub oldest_ms: Option<u64>,
    /// How old that is, in milliseconds.
    pub age_ms: Option<u64>,
    /// Sequence number of the newest record ever.
    pub newest_sequence: u64,
    /// Up to which the other side has them.
    pub acked_sequence: u64,
    /// Lost to `max_age`.
    pub dropped_by_age: u64,
    /// Lost to `max_bytes`.
    pub dropped_by_bytes: u64,
    /// Lost to `gateway.buffer_bytes`, the budget of all streams together.
    pub dropped_by_buffer: u64,
    /// Lost to damage of the disk, as far as it is known.
    pub lost: u64,
    /// Where it drains to.
    pub uplink: Option<String>,
    /// How that goes.
    pub draining: Option<UplinkStatus>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// What functions call it.
    pub name: ModelName,
    /// SHA-256 of its file.
    pub digest: String,
    /// What runs it.
    pub engine: String,
    /// How long runs took.
    pub run: Latency,
}
