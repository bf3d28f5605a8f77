//! What is asked to be kept together, and what came of it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::JournalError;
use crate::invocation::KeyValueWrite;
use crate::name::{FunctionName, StreamName};

/// What one invocation wants kept: all of it, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Records to append, in order.
    pub records: Vec<(StreamName, Bytes, RecordMeta)>,
    /// Key-value writes, in order.
    pub key_values: Vec<(FunctionName, KeyValueWrite)>,
    /// Records that are done with: each goes, whatever comes before it in its stream.
    pub done: Vec<(StreamName, u64)>,
    /// What the invocation read. When any of it has changed since, the batch is refused as [`JournalError::Conflict`].
    pub reads: Vec<KeyValueRead>,
}

impl Batch {
    /// Whether there is nothing to keep and nothing to check.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.key_values.is_empty() && self.done.is_empty() && self.reads.is_empty()
    }

    /// Memory that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let records = self.records.iter().map(|(_, data, _)| data.len() + 64);
        let values =
            self.key_values.iter().map(|(_, write)| write.key.len() + write.value.as_ref().map_or(0, Bytes::len) + 64);
        records.chain(values).sum::<usize>() + 32 * self.done.len()
    }
}

/// A key that an invocation read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValueRead {
    /// Whose.
    pub function: FunctionName,
    /// In which of its buckets.
    pub bucket: String,
    /// Which; `None` when it listed the bucket's keys.
    pub key: Option<String>,
    /// The version that it saw.
    pub version: u64,
}

/// What a key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// Differs after each write; 0 when nothing was ever written.
    pub version: u64,
    /// The value; `None` when there is none.
    pub value: Option<Bytes>,
}

/// What is kept beside a record's payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordMeta {
    /// Unix time in milliseconds of what the record tells.
    pub time_ms: u64,
    /// W3C `traceparent` of the invocation that made it.
    pub trace_parent: Option<Arc<str>>,
}

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Sequences of its records, in their order.
    pub sequences: Vec<u64>,
}

/// A batch that has its place in the journal and is on its way to disk, whether or not somebody waits for it.
#[derive(Debug)]
#[must_use = "it is on disk only when `durable` returns"]
pub struct Committing {
    pub(super) committed: Committed,
    /// None when there was nothing to write.
    pub(super) answer: Option<oneshot::Receiver<Result<(), JournalError>>>,
}

impl Committing {
    /// What will have come of it when it is on disk.
    pub const fn committed(&self) -> &Committed {
        &self.committed
    }

    /// Waits until it is kept: on disk, unless all of its records are of streams whose durability waits.
    ///
    /// # Errors
    /// When the disk is in the way, or something it read never got to disk; then nothing of the batch is kept.
    pub async fn durable(self) -> Result<Committed, JournalError> {
        if let Some(answer) = self.answer {
            answer.await.map_err(|_| JournalError::Closed)??;
        }
        Ok(self.committed)
    }
}
