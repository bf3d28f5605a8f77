//! How many events wait in memory, and for which function most of them do.
//!
//! A broker has only so many messages under way to us; while those wait here, whatever their function, it sends no others, and
//! what it has no room for itself it drops. So before they are too many, the function that most of them wait for has its
//! events wait on disk instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of all functions.
#[derive(Debug, Default)]
pub(super) struct Load {
    events: AtomicUsize,
    functions: AtomicUsize,
}

/// Of one function.
#[derive(Debug, Default)]
pub(super) struct FunctionLoad {
    events: AtomicUsize,
    bytes: AtomicUsize,
    all: Arc<Load>,
}

impl FunctionLoad {
    pub(super) fn new(all: &Arc<Load>) -> Self {
        Self { all: Arc::clone(all), ..Self::default() }
    }

    /// Events that wait, and their payload bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.events.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Whether so many wait that what comes for this function should go to disk: `events_max` of all functions, of which it
    /// has its share or more, or `bytes_max` of its own.
    pub(super) fn is_crowded(&self, events_max: usize, bytes_max: usize) -> bool {
        let (mine, bytes) = self.waiting();
        let all = self.all.events.load(Ordering::Relaxed);
        let functions = self.all.functions.load(Ordering::Relaxed);
        bytes >= bytes_max || (all >= events_max && mine.saturating_mul(functions) >= all)
    }
}

/// Counts one event as waiting.
pub(super) struct Waiting {
    load: Arc<FunctionLoad>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn new(load: &Arc<FunctionLoad>, bytes: usize) -> Self {
        if load.events.fetch_add(1, Ordering::Relaxed) == 0 {
            load.all.functions.fetch_add(1, Ordering::Relaxed);
        }
        load.bytes.fetch_add(bytes, Ordering::Relaxed);
        load.all.events.fetch_add(1, Ordering::Relaxed);
        Self { load: Arc::clone(load), bytes }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let load = &self.load;
        load.all.events.fetch_sub(1, Ordering::Relaxed);
        load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if load.events.fetch_sub(1, Ordering::Relaxed) == 1 {
            load.all.functions.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_that_most_events_wait_for_is_the_crowded_one() {
        let all = Arc::default();
        let (slow, fast) = (Arc::new(FunctionLoad::new(&all)), Arc::new(FunctionLoad::new(&all)));
        let mut waiting: Vec<_> = (0..9).map(|_| Waiting::new(&slow, 1)).collect();
        waiting.push(Waiting::new(&fast, 1));
        assert!(slow.is_crowded(10, 100));
        assert!(!fast.is_crowded(10, 100));
        assert!(!slow.is_crowded(11, 100));
        assert!(slow.is_crowded(11, 9));
        waiting.clear();
        assert!(!slow.is_crowded(1, 1));
        assert_eq!(slow.waiting(), (0, 0));
    }
}
