//! Events as functions got them, with what came of each: `tidegate record` keeps them, `tidegate replay` runs them again.
//!
//! # Promises
//! - Recording never holds up an event: what a listener cannot take is counted, and told about where it is missing.
//! - While nobody records, an event costs one look at a number.
//! - A line is an event as the tests of a bundle read one, payload and attributes as they were, byte by byte.
//!
//! # A recording
//! JSON lines. Each is a CloudEvent whose member `outcome` says what the handler made of it; `{"missed":3}` stands about
//! where three are missing. [`line`] knows the members, [`ring`] keeps the newest of them in a file, [`read`] bears with damage.

pub mod line;
pub mod read;
pub mod ring;
pub mod tap;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::event::Event;
use crate::invocation::{Effects, KeyValueWrite, Outcome};
use crate::name::FunctionName;

/// One event, and the run of a handler on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// As the handler got it.
    pub event: Arc<Event>,
    /// None for an event that was written by hand.
    pub run: Option<Run>,
}

/// A run of a handler: what it was told, what it had read, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Which function ran.
    pub function: FunctionName,
    /// Its version.
    pub version: Arc<str>,
    /// Id of the run.
    pub invocation: Arc<str>,
    /// 1 for the first try of the event.
    pub attempt: u32,
    /// Unix time in milliseconds at which the handler began.
    pub started_ms: u64,
    /// How long it took.
    pub handler: Duration,
    /// QoS of publishes that name none.
    pub publish_qos: u8,
    /// What the keys held that it read, each as it was before.
    pub reads: Vec<KeyValueWrite>,
    /// What it gave.
    pub came: Came,
}

/// What a handler gave: how it ended, and what it wanted done.
#[derive(Clone, Debug, PartialEq)]
pub struct Came {
    /// The label of its [`Outcome`].
    pub ended: Cow<'static, str>,
    /// Why it failed, in words.
    pub why: Option<String>,
    /// The value that it returned.
    pub result: Bytes,
    /// What it publishes, appends and remembers; nothing when it failed.
    pub effects: Effects,
}

impl Came {
    /// Of a run. What it read is no part of what came of it.
    pub fn of(outcome: &Outcome, effects: &Effects) -> Self {
        let (why, result) = match outcome {
            Outcome::Succeeded(value) => (None, value.clone()),
            failure => (Some(failure.to_string()), Bytes::new()),
        };
        let Effects { field_writes, publishes, records, key_values, reads: _ } = effects;
        let effects = Effects {
            field_writes: field_writes.clone(),
            publishes: publishes.clone(),
            records: records.clone(),
            key_values: key_values.clone(),
            reads: HashMap::new(),
        };
        Self { ended: Cow::Borrowed(outcome.label()), why, result, effects }
    }

    /// Whether the handler succeeded.
    pub fn succeeded(&self) -> bool {
        self.ended == "succeeded"
    }

    fn bytes(&self) -> usize {
        let Effects { field_writes, publishes, records, key_values, reads: _ } = &self.effects;
        let field_writes = field_writes.iter().map(|write| write.point.len() + 64);
        let publishes = publishes.iter().map(|publish| publish.topic.len() + publish.data.len());
        let records = records.iter().map(|(_, data)| data.len());
        let why = self.why.as_ref().map_or(0, String::len);
        self.result.len()
            + why
            + field_writes.chain(publishes).chain(records).sum::<usize>()
            + key_value_bytes(key_values)
    }
}

impl Recorded {
    /// Memory that it takes, about.
    pub fn bytes(&self) -> usize {
        let run = self.run.as_ref().map_or(0, |run| run.came.bytes() + key_value_bytes(&run.reads));
        let attributes = self.event.attributes.iter().map(|(name, value)| name.len() + value.len());
        let Event { id, source, kind, subject, content_type, trace_parent, data, .. } = &*self.event;
        let texts = [
            Some(&**id),
            Some(source),
            Some(kind),
            subject.as_deref(),
            content_type.as_deref(),
            trace_parent.as_deref(),
        ];
        let texts = texts.into_iter().flatten().map(str::len);
        512 + data.len() + texts.sum::<usize>() + attributes.sum::<usize>() + run
    }
}

fn key_value_bytes(key_values: &[KeyValueWrite]) -> usize {
    key_values.iter().map(|write| write.key.len() + write.value.as_ref().map_or(0, Bytes::len)).sum()
}
