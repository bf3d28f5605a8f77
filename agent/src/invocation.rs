//! One run of a handler on one event: what it is told, how it ends, and what it wants done.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::name::{BrokerName, FunctionName, SourceName, StreamName};

/// The run that a call of the handler is part of; becomes the WIT `context`.
#[derive(Clone, Debug)]
pub struct Context {
    /// Which function runs.
    pub function: FunctionName,
    /// Its version.
    pub version: Arc<str>,
    /// Unique id of this run.
    pub invocation: Arc<str>,
    /// 1 for the first try of this event.
    pub attempt: u32,
    /// Unix time in milliseconds at which the run is stopped.
    pub deadline_ms: u64,
    /// Most linear memory that it may use, in bytes.
    pub memory_bytes: u64,
    /// W3C `traceparent` of the run's own span.
    pub trace_parent: Option<Arc<str>>,
    /// QoS of publishes that name none: as sure as the event came, so that 0 stays cheap and 1 stays safe.
    pub publish_qos: u8,
}

/// How an invocation ended. All but `Succeeded` say why in words for the function's author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler returned a value.
    Succeeded(Bytes),
    /// The handler asked for another attempt.
    Retry(String),
    /// The handler gave up on the event.
    Rejected(String),
    /// The handler gave up because a capability was not granted.
    Denied {
        /// The capability, as it is written in `capabilities`.
        capability: String,
        /// What the handler said.
        message: String,
    },
    /// Past its timeout.
    TimedOut {
        /// The timeout that was in force, in milliseconds.
        after_ms: u64,
    },
    /// A trap other than the ones below: unreachable code, a panic, division by zero, stack overflow, …
    Trapped(String),
    /// It asked for more linear memory than it may have.
    OutOfMemory {
        /// The limit that was in force, in bytes.
        limit_bytes: u64,
    },
    /// The returned value, or what it sent, is over a limit or malformed.
    BadOutput(String),
    /// No instance could be made: the agent's fault or the machine's, not the event's.
    Unavailable(String),
}

impl Outcome {
    /// One word for metrics and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Succeeded(_) => "succeeded",
            Self::Retry(_) => "retry",
            Self::Rejected(_) => "rejected",
            Self::Denied { .. } => "denied",
            Self::TimedOut { .. } => "timed-out",
            Self::Trapped(_) => "trapped",
            Self::OutOfMemory { .. } => "out-of-memory",
            Self::BadOutput(_) => "bad-output",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// Whether another attempt could end differently. A handler that is denied, rejects, or returns what is not allowed
    /// would do so again.
    pub const fn may_retry(&self) -> bool {
        matches!(
            self,
            Self::Retry(_) | Self::TimedOut { .. } | Self::Trapped(_) | Self::OutOfMemory { .. } | Self::Unavailable(_)
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded(value) => write!(f, "succeeded with {} bytes", value.len()),
            Self::Retry(why) => write!(f, "asked for another attempt: {why}"),
            Self::Rejected(why) => write!(f, "rejected the event: {why}"),
            Self::Denied { capability, message } if message.contains(&**capability) => {
                write!(f, "was denied: {message}")
            }
            Self::Denied { capability, message } => {
                write!(f, "was denied: capability `{capability}` is not granted ({message})")
            }
            Self::TimedOut { after_ms } => write!(f, "was stopped at its timeout of {after_ms} ms"),
            Self::Trapped(why) => write!(f, "trapped: {why}"),
            Self::OutOfMemory { limit_bytes } => {
                write!(f, "needed more than its memory of {}", crate::units::ByteSize(*limit_bytes))
            }
            Self::BadOutput(why) => write!(f, "gave bad output: {why}"),
            Self::Unavailable(why) => write!(f, "could not be started: {why}"),
        }
    }
}

/// Options of a publish; MQTT 5's, of which 3.1.1 carries the first two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Which broker; `None` is `mqtt.local`, or the one of the trigger.
    pub broker: Option<BrokerName>,
    /// Checked with [`crate::topic::check_topic`].
    pub topic: Arc<str>,
    /// The payload.
    pub data: Bytes,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// Media type, in MQTT 5's content type.
    pub content_type: Option<Arc<str>>,
    /// MQTT 5 user properties.
    pub properties: Vec<(Cow<'static, str>, String)>,
}

/// A key-value write; `None` deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValueWrite {
    /// The bucket's name; private to the function.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The new value.
    pub value: Option<Bytes>,
}

/// A point in the field that is to be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldWrite {
    /// Whose.
    pub source: SourceName,
    /// What the source calls it.
    pub point: String,
    /// In the unit that events have.
    pub value: FieldValue,
}

/// What to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// On or off.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any other.
    Number(f64),
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
        }
    }
}

/// What a handler sent while it ran. Held back until it succeeds, then committed together; dropped when it fails.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// What it sets in the field, in the order of the calls. Done before the others are committed.
    pub field_writes: Vec<FieldWrite>,
    /// In the order of the calls.
    pub publishes: Vec<Publish>,
    /// Records to append, in the order of the calls.
    pub records: Vec<(StreamName, Bytes)>,
    /// Key-value writes, in the order of the calls.
    pub key_values: Vec<KeyValueWrite>,
    /// What it read of its key-values: the version that it saw first. When one has changed since, its writes may be wrong.
    pub reads: HashMap<KeyRead, u64>,
}

/// What an invocation read of its key-values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRead {
    /// In which bucket.
    pub bucket: String,
    /// Which key; `None` when it listed the keys of the bucket.
    pub key: Option<String>,
}

/// Where the time of an invocation went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Making a new instance, when no warm one was free.
    pub cold_start: Option<Duration>,
    /// In the handler, inference included.
    pub handler: Duration,
    /// In models.
    pub inference: Duration,
}
