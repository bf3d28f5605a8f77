//! What is written together, and what is checked before anything joins it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::recovery::key_value_bytes;
use super::segment::{Fault, Segment};
use super::{JournalError, State};
use crate::buffer::record::{self, Block, Frame, KEY_BYTES_MAX, Record};
use crate::buffer::retention::Piece;
use crate::invocation::KeyValueWrite;
use crate::limits::Limits;
use crate::name::{FunctionName, StreamName};
use crate::units::ByteSize;

/// Records that are stored as one value, so that a page of them stays inline.
const BLOCK_BYTES_MAX: u64 = 6 << 10;

/// Where the answer to a job goes.
pub(super) type Done = oneshot::Sender<Result<(), JournalError>>;

/// What a group will write, in the order in which it was asked for.
#[derive(Default)]
pub(super) struct Group {
    pub(super) blocks: Vec<Block>,
    /// The block that each stream's next record goes to, and its bytes.
    pub(super) filling: BTreeMap<StreamName, (usize, u64)>,
    pub(super) key_values: HashMap<Vec<u8>, (u64, Frame)>,
    /// Streams whose state changed.
    pub(super) touched: BTreeMap<StreamName, ()>,
    /// Those to answer when written, and those to answer when synced.
    pub(super) written: Vec<Done>,
    pub(super) synced: Vec<Done>,
    pub(super) commits: u64,
    pub(super) sync_within: Option<Duration>,
    pub(super) carried: Vec<(StreamName, Piece, u64)>,
    pub(super) bytes: usize,
}

impl Group {
    pub(super) fn sync_within(&mut self, within: Duration) {
        self.sync_within = Some(self.sync_within.map_or(within, |earlier| earlier.min(within)));
    }

    pub(super) fn push(&mut self, stream: &StreamName, record: Record) {
        let record_bytes = record.bytes();
        if let Some((at, bytes)) = self.filling.get_mut(stream)
            && *bytes + record_bytes <= BLOCK_BYTES_MAX
        {
            *bytes += record_bytes;
            self.blocks[*at].records.push(record);
            return;
        }
        self.filling.insert(stream.clone(), (self.blocks.len(), record_bytes));
        self.blocks.push(Block { stream: stream.clone(), records: vec![record] });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.key_values.is_empty() && self.touched.is_empty()
    }
}

pub(super) type PlannedKeyValue = (FunctionName, Vec<u8>, u64, i64, Frame);

/// Checks key-value writes against their limits: each with its key in the database, its bytes, by how much it changes the
/// function's total, and its value.
pub(super) fn plan_key_values(
    active: &Segment,
    state: &State,
    limits: &Limits,
    writes: Vec<(FunctionName, KeyValueWrite)>,
    group: &Group,
) -> Result<Vec<PlannedKeyValue>, JournalError> {
    let mut planned: Vec<PlannedKeyValue> = Vec::new();
    for (function, write) in writes {
        let too_large = |bytes: usize, max: ByteSize| JournalError::KeyValueTooLarge {
            function: function.clone(),
            key: write.key.chars().take(64).collect(),
            bytes: bytes as u64,
            max,
        };
        let value_bytes = write.value.as_ref().map_or(0, Bytes::len);
        if value_bytes as u64 > limits.value_bytes_max.0 {
            return Err(too_large(value_bytes, limits.value_bytes_max));
        }
        if write.bucket.len() + write.key.len() > KEY_BYTES_MAX {
            return Err(too_large(write.bucket.len() + write.key.len(), ByteSize(KEY_BYTES_MAX as u64)));
        }
        let bytes = write.value.as_ref().map_or(0, |value| key_value_bytes(&write.bucket, &write.key, value));
        let frame =
            Frame::KeyValue { function: function.clone(), bucket: write.bucket, key: write.key, value: write.value };
        let key = record::key(&frame);
        let earlier = planned.iter().rev().find(|(_, other, ..)| *other == key).map(|(_, _, bytes, ..)| *bytes);
        let earlier = earlier.or_else(|| group.key_values.get(&key).map(|(bytes, _)| *bytes));
        let before = match earlier {
            Some(bytes) => bytes,
            None => stored_bytes(active, &key).map_err(|fault| fault.about(&active.dir))?,
        };
        let change = bytes.cast_signed() - before.cast_signed();
        let changes: i64 = planned.iter().filter(|(of, ..)| *of == function).map(|(.., change, _)| change).sum();
        let total = state.key_value_bytes.get(&function).copied().unwrap_or(0).saturating_add_signed(changes + change);
        if change > 0 && total > limits.key_value_bytes_max.0 {
            return Err(JournalError::KeyValuesFull { function, bytes: total, max: limits.key_value_bytes_max });
        }
        planned.push((function, key, bytes, change, frame));
    }
    Ok(planned)
}

/// What the key-value under `key` counts at present.
fn stored_bytes(active: &Segment, key: &[u8]) -> Result<u64, Fault> {
    let frame = active.get(key)?.and_then(|bytes| record::decode(&bytes).ok());
    Ok(match frame {
        Some((_, Frame::KeyValue { bucket, key, value: Some(value), .. }, _)) => key_value_bytes(&bucket, &key, &value),
        _ => 0,
    })
}
