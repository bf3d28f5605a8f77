//! Batches of streams whose durability waits: kept in memory until they are due, then written together in large blocks. A kill
//! may cost them, and nothing else does: when the disk refuses them, they wait for the next try.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::begin::Begun;
use crate::name::StreamName;

#[derive(Default)]
pub(super) struct Held {
    batches: Vec<Begun>,
    /// How many of its records each stream has here.
    streams: BTreeMap<StreamName, u64>,
    bytes: usize,
    /// When they must be on disk.
    by: Option<Instant>,
}

impl Held {
    /// Whether `batch` may wait here: it appends to streams that wait, and does nothing else.
    pub(super) fn takes(batch: &Begun) -> bool {
        let only_records = batch.key_values.is_empty() && batch.done.is_empty() && batch.depends.is_empty();
        !batch.within.is_zero() && !batch.records.is_empty() && only_records
    }

    pub(super) fn push(&mut self, batch: Begun, by: Instant) {
        self.by = Some(self.by.map_or(by, |earlier| earlier.min(by)));
        self.bytes += batch.bytes;
        for (stream, _) in &batch.records {
            *self.streams.entry(stream.clone()).or_default() += 1;
        }
        self.batches.push(batch);
    }

    /// Whether `batch` comes after records that are still here.
    pub(super) fn precedes(&self, batch: &Begun) -> bool {
        batch.records.iter().any(|(stream, _)| self.streams.contains_key(stream))
    }

    pub(super) fn is_due(&self, now: Instant, bytes_max: u64) -> bool {
        self.by.is_some_and(|by| by <= now) || self.bytes as u64 > bytes_max
    }

    pub(super) const fn by(&self) -> Option<Instant> {
        self.by
    }

    /// Tries again no sooner than `by`.
    pub(super) fn wait_until(&mut self, by: Instant) {
        self.by = self.by.map(|earlier| earlier.max(by));
    }

    /// All of them, in order.
    pub(super) fn take(&mut self) -> Vec<Begun> {
        std::mem::take(self).batches
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}
