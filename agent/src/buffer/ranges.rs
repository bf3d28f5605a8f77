//! A set of sequences, kept as ranges: what is done with among records that are still needed.

use std::collections::BTreeMap;

/// Sequences, of which neighbours cost as much as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds all from `first` to `last`.
    pub fn insert(&mut self, first: u64, last: u64) {
        let (mut from, mut to) = (first, last);
        while let Some((&start, &end)) = self.0.range(..=to.saturating_add(1)).next_back()
            && end.saturating_add(1) >= from
        {
            from = from.min(start);
            to = to.max(end);
            self.0.remove(&start);
        }
        self.0.insert(from, to);
    }

    /// Whether `sequence` is in it.
    pub fn contains(&self, sequence: u64) -> bool {
        self.end_of(sequence).is_some()
    }

    /// The end of the range that holds `sequence`.
    pub fn end_of(&self, sequence: u64) -> Option<u64> {
        self.0.range(..=sequence).next_back().map(|(_, end)| *end).filter(|end| *end >= sequence)
    }

    /// How many of the sequences from `first` to `last` are in it.
    pub fn count(&self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        let ranges = self.0.range(..=last).rev().take_while(|(_, end)| **end >= first);
        ranges.map(|(start, end)| (*end).min(last) - (*start).max(first) + 1).sum()
    }

    /// Forgets all up to `floor`.
    pub fn forget(&mut self, floor: u64) {
        while let Some(entry) = self.0.first_entry().filter(|entry| *entry.key() <= floor) {
            let (_, end) = entry.remove_entry();
            if end > floor {
                self.0.insert(floor + 1, end);
            }
        }
    }

    /// First and last of each range, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_and_everything_counts_once() {
        let mut ranges = Ranges::default();
        for (first, last) in [(5, 5), (9, 12), (7, 7), (6, 6), (11, 14), (20, 20)] {
            ranges.insert(first, last);
        }
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, 7), (9, 14), (20, 20)]);
        assert_eq!((ranges.count(1, 100), ranges.count(6, 9), ranges.count(8, 8), ranges.count(15, 19)), (10, 3, 0, 0));
        assert!(ranges.contains(12) && !ranges.contains(8) && !ranges.contains(15));
        ranges.forget(10);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(11, 14), (20, 20)]);
        ranges.insert(1, 30);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(1, 30)]);
    }
}
