//! Which events of one function are on disk, and which of them may start. Decides only: nothing here touches a disk.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// One parked event, as memory knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of its record.
    pub(super) sequence: u64,
    /// When it may run.
    pub(super) due: Instant,
    /// Of its record.
    pub(super) bytes: u64,
    /// A hash of its topic; 0 when it has none.
    pub(super) topic: u64,
    /// Whether it waits for room only: what comes after it must wait behind it.
    pub(super) spilled: bool,
    /// Whether it is in memory, on its way through the function.
    pub(super) taken: bool,
}

/// The parked events of one function, by their place.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<u64, Entry>,
    startable: BTreeSet<(Instant, u64)>,
    bytes: u64,
    spilled: usize,
}

impl Index {
    /// Adds an entry, or puts it in the place of the one that was there.
    pub(super) fn insert(&mut self, place: u64, entry: Entry) {
        self.forget(place);
        self.bytes += entry.bytes;
        self.spilled += usize::from(entry.spilled && !entry.taken);
        self.entries.insert(place, entry);
    }

    /// The record `sequence` is done with. `None` when another one has taken its place.
    pub(super) fn remove(&mut self, place: u64, sequence: u64) -> Option<Entry> {
        self.entries.get(&place).filter(|entry| entry.sequence == sequence)?;
        self.forget(place)
    }

    fn forget(&mut self, place: u64) -> Option<Entry> {
        let entry = self.entries.remove(&place)?;
        self.startable.remove(&(entry.due, place));
        self.bytes -= entry.bytes;
        self.spilled -= usize::from(entry.spilled && !entry.taken);
        Some(entry)
    }

    /// Nothing is before it any more: it may run when it is due.
    pub(super) fn start(&mut self, place: u64) {
        if let Some(entry) = self.entries.get(&place).filter(|entry| !entry.taken) {
            self.startable.insert((entry.due, place));
        }
    }

    /// It is not to run before [`Index::start`] says so again.
    pub(super) fn hold(&mut self, place: u64) {
        if let Some(entry) = self.entries.get(&place) {
            self.startable.remove(&(entry.due, place));
        }
    }

    /// Takes out what has been due for longest.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u64, Entry)> {
        let (_, place) = self.startable.first().copied().filter(|(due, _)| *due <= now)?;
        self.startable.pop_first();
        let entry = self.entries.get_mut(&place)?;
        entry.taken = true;
        self.spilled -= usize::from(entry.spilled);
        Some((place, *entry))
    }

    /// What was taken has come to nothing: it waits again, until `due`. Whether it was still there.
    pub(super) fn put_back(&mut self, place: u64, sequence: u64, due: Instant) -> bool {
        match self.entries.get_mut(&place) {
            Some(entry) if entry.sequence == sequence && entry.taken => {
                entry.taken = false;
                entry.due = due;
                self.spilled += usize::from(entry.spilled);
                true
            }
            _ => false,
        }
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.startable.first().map(|(due, _)| *due)
    }

    /// Whether some wait for room only.
    pub(super) fn has_spilled(&self) -> bool {
        self.spilled > 0
    }

    pub(super) fn get(&self, place: u64) -> Option<&Entry> {
        self.entries.get(&place)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them, in the order of their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(place, entry)| (*place, entry))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    fn entry(sequence: u64, due: Instant, spilled: bool) -> Entry {
        Entry { sequence, due, bytes: 10, topic: 0, spilled, taken: false }
    }

    #[test]
    fn what_has_been_due_for_longest_starts_first() {
        let now = Clock::system().instant();
        let mut index = Index::default();
        for (place, after_ms) in [(1, 50), (2, 0), (3, 20), (4, 0)] {
            index.insert(place, entry(place, now + Duration::from_millis(after_ms), false));
            index.start(place);
        }
        let at = |ms| now + Duration::from_millis(ms);
        let places: Vec<_> = std::iter::from_fn(|| index.take(at(20))).map(|(place, _)| place).collect();
        assert_eq!(places, [2, 4, 3]);
        assert_eq!(index.next_due(), Some(at(50)));
        assert_eq!((index.len(), index.bytes()), (4, 40));
    }

    #[test]
    fn a_record_that_was_replaced_ends_nothing() {
        let now = Clock::system().instant();
        let mut index = Index::default();
        index.insert(1, entry(1, now, true));
        index.start(1);
        index.take(now).unwrap();
        assert!(!index.has_spilled());
        index.insert(1, entry(7, now + Duration::from_secs(1), false));
        assert_eq!(index.remove(1, 1), None);
        assert!(!index.put_back(1, 1, now));
        assert!(index.remove(1, 7).is_some());
        assert_eq!((index.len(), index.bytes(), index.next_due()), (0, 0, None));
    }

    #[test]
    fn what_came_to_nothing_waits_again() {
        let now = Clock::system().instant();
        let mut index = Index::default();
        index.insert(1, entry(1, now, true));
        index.start(1);
        index.take(now).unwrap();
        assert_eq!(index.take(now), None);
        assert!(index.put_back(1, 1, now + Duration::from_secs(1)));
        assert!(index.has_spilled());
        index.start(1);
        assert_eq!(index.take(now), None);
        assert_eq!(index.take(now + Duration::from_secs(1)).unwrap().0, 1);
    }
}
