//! A bounded map that forgets what was not asked for in the longest time.

use std::collections::{BTreeMap, HashMap};

pub(super) struct Recent<T> {
    max: usize,
    entries: HashMap<u64, (u64, T)>,
    /// The keys, by when they were asked for.
    order: BTreeMap<u64, u64>,
    next: u64,
}

impl<T> Recent<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, entries: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// What is known of `key`, which counts as asked for.
    pub(super) fn get(&mut self, key: u64) -> Option<&mut T> {
        let (asked, value) = self.entries.get_mut(&key)?;
        self.order.remove(asked);
        self.next += 1;
        *asked = self.next;
        self.order.insert(self.next, key);
        Some(value)
    }

    /// Adds a key that is not there. Whether another one was forgotten for it.
    pub(super) fn add(&mut self, key: u64, value: T) -> bool {
        let full = self.entries.len() >= self.max;
        if full && let Some((_, oldest)) = self.order.pop_first() {
            self.entries.remove(&oldest);
        }
        self.next += 1;
        self.order.insert(self.next, key);
        self.entries.insert(key, (self.next, value));
        full
    }

    /// Forgets `key` when what is known of it `is_meant`.
    pub(super) fn forget(&mut self, key: u64, is_meant: impl FnOnce(&T) -> bool) {
        if self.entries.get(&key).is_some_and(|(_, value)| is_meant(value))
            && let Some((asked, _)) = self.entries.remove(&key)
        {
            self.order.remove(&asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_in_the_longest_time_is_forgotten() {
        let mut recent = Recent::new(2);
        assert!(!recent.add(1, 'a'));
        assert!(!recent.add(2, 'b'));
        assert!(recent.get(1).is_some());
        assert!(recent.add(3, 'c'), "2 has to go");
        assert!(recent.get(2).is_none());
        assert_eq!(recent.get(1).copied(), Some('a'));

        recent.forget(1, |value| *value == 'x');
        assert!(recent.get(1).is_some());
        recent.forget(1, |value| *value == 'a');
        assert!(recent.get(1).is_none());
        assert!(!recent.add(4, 'd'), "there is room again");
        assert!(recent.add(5, 'e'));
        assert!(recent.get(3).is_none());
        assert_eq!((recent.entries.len(), recent.order.len()), (2, 2));
    }
}
