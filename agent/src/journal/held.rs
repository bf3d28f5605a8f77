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

    /// Those that were to be written and were not: they come before all that came since, and are tried again by `by`.
    pub(super) fn put_back(&mut self, batches: Vec<Begun>, by: Instant) {
        let since = std::mem::take(self);
        batches.into_iter().for_each(|batch| self.push(batch, by));
        let by = since.by.unwrap_or(by);
        since.batches.into_iter().for_each(|batch| self.push(batch, by));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buffer::age::Moment;
    use crate::journal::Record;

    fn batch(sequence: u64) -> Begun {
        let data = bytes::Bytes::from_static(b"1");
        let record = Record { sequence, time_ms: 1, time_unknown: false, trace_parent: None, data };
        Begun {
            records: vec![(StreamName::parse("lazy").unwrap(), record)],
            moment: Moment::default(),
            key_values: Vec::new(),
            done: Vec::new(),
            depends: Vec::new(),
            within: Duration::from_secs(30),
            bytes: 100,
        }
    }

    #[tokio::test]
    async fn what_was_not_written_keeps_its_place_before_what_came_meanwhile() {
        let (mut held, now) = (Held::default(), crate::clock::Clock::system().instant());
        held.push(batch(4), now);
        let not_written = held.take();
        held.push(batch(5), now + Duration::from_secs(2));
        held.put_back(not_written, now + Duration::from_secs(1));
        assert_eq!((held.by(), held.bytes), (Some(now + Duration::from_secs(1)), 200));
        assert!(held.precedes(&batch(6)));
        let sequences: Vec<u64> = held.take().iter().map(|batch| batch.records[0].1.sequence).collect();
        assert_eq!(sequences, [4, 5]);
    }
}
