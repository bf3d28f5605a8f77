//! What the streams of one link share: a bounded number of records under way, given to the highest priority first.
//!
//! A lower priority that waits gets every tenth place, so that it is never starved, however much the higher ones have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Places that go to higher priorities before one goes to a lower one that waits.
const TURNS: usize = 9;
/// What of that is remembered.
const CREDIT_MAX: usize = 64 * TURNS;

/// Who wants places: the stream's priority, and whether it is new or backlog (`live-first`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Level {
    pub(super) priority: u8,
    pub(super) is_live: bool,
}

/// Those of one level who have something to send.
#[derive(Debug, Default)]
struct Waiting {
    streams: usize,
    /// Places that went to higher levels meanwhile.
    passed_over: usize,
}

#[derive(Debug)]
struct State {
    places: usize,
    taken: usize,
    waiting: BTreeMap<Level, Waiting>,
}

impl State {
    /// There may be fewer places than are taken, after a new connection.
    const fn free(&self) -> usize {
        self.places.saturating_sub(self.taken)
    }

    /// How many of `wanted` places `level` may take now.
    fn grant(&mut self, level: Level, wanted: usize) -> usize {
        let waiting = || self.waiting.iter().filter(|(_, waiting)| waiting.streams > 0);
        let highest = waiting().next_back().map(|(level, _)| *level);
        let in_turn = waiting().map(|(level, waiting)| (waiting.passed_over >= TURNS, *level)).max();
        if self.free() == 0 || in_turn.is_none_or(|(_, first)| first != level) {
            return 0;
        }
        let mut granted = wanted.min(self.free());
        if let Some(waiting) = self.waiting.get_mut(&level) {
            if highest != Some(level) {
                granted = granted.min(waiting.passed_over / TURNS);
            }
            waiting.passed_over = waiting.passed_over.saturating_sub(granted * TURNS);
        }
        self.taken += granted;
        for lower in self.waiting.range_mut(..level).map(|(_, lower)| lower).filter(|lower| lower.streams > 0) {
            lower.passed_over = (lower.passed_over + granted).min(CREDIT_MAX);
        }
        granted
    }
}

/// The places of one link.
#[derive(Debug)]
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Notify,
}

impl Lane {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { places, taken: 0, waiting: BTreeMap::new() }),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a stream has something to send, as long as the value lives: lower levels leave it the places.
    pub(super) fn enter(self: &Arc<Self>, level: Level) -> Turn {
        self.state().waiting.entry(level).or_default().streams += 1;
        Turn { lane: Arc::clone(self), level }
    }

    /// Gives places back.
    pub(super) fn release(&self, places: usize) {
        if places > 0 {
            self.state().taken -= places;
            self.changed.notify_waiters();
        }
    }

    /// From now on there are so many places.
    pub(super) fn resize(&self, places: usize) {
        self.state().places = places;
        self.changed.notify_waiters();
    }
}

/// A stream that has something to send.
#[derive(Debug)]
pub(super) struct Turn {
    lane: Arc<Lane>,
    level: Level,
}

impl Turn {
    /// Keeps `turn` as what `level` asks for.
    pub(super) fn follow(turn: &mut Option<Self>, lane: &Arc<Lane>, level: Option<Level>) {
        if turn.as_ref().map(|turn| turn.level) != level {
            *turn = level.map(|level| lane.enter(level));
        }
    }

    /// Waits for its turn and for at least one free place; takes up to `wanted`.
    pub(super) async fn claim(&self, wanted: usize) -> usize {
        loop {
            let changed = self.lane.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change is missed.
            changed.as_mut().enable();
            let granted = self.lane.state().grant(self.level, wanted.max(1));
            if granted > 0 {
                // What is left may be for another.
                self.lane.changed.notify_waiters();
                return granted;
            }
            changed.await;
        }
    }
}

/// [`Turn::claim`] of a stream that may have nothing to send, and then for ever.
pub(super) async fn claim(turn: Option<&Turn>, wanted: usize) -> usize {
    match turn {
        Some(turn) => turn.claim(wanted).await,
        None => std::future::pending().await,
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.lane.state();
        if let Some(waiting) = state.waiting.get_mut(&self.level) {
            waiting.streams -= 1;
            // Who only steps out for a moment keeps its turn.
            if waiting.streams == 0 && waiting.passed_over == 0 {
                state.waiting.remove(&self.level);
            }
        }
        drop(state);
        self.lane.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const LOW: Level = Level { priority: 1, is_live: true };
    const HIGH: Level = Level { priority: 2, is_live: true };

    fn state(free: usize, waiting: &[Level]) -> State {
        let waiting = waiting.iter().map(|level| (*level, Waiting { streams: 1, passed_over: 0 }));
        State { places: free, taken: 0, waiting: waiting.collect() }
    }

    #[test]
    fn the_higher_priority_comes_first() {
        let mut state = state(10, &[LOW, HIGH]);
        assert_eq!((state.grant(LOW, 5), state.grant(HIGH, 4)), (0, 4));
        state.waiting.remove(&HIGH);
        assert_eq!((state.grant(LOW, 9), state.free()), (6, 0));
        let backlog = Level { is_live: false, ..HIGH };
        assert!(HIGH > backlog && backlog > LOW, "new records, then the backlog, then lower priorities");
    }

    #[test]
    fn a_lower_priority_gets_every_tenth_place() {
        let mut state = state(1, &[LOW, HIGH]);
        let mut got = (0, 0);
        for _ in 0..1000 {
            got.0 += state.grant(LOW, 1);
            got.1 += state.grant(HIGH, 1);
            state.taken = 0;
        }
        assert_eq!(got, (100, 900));
    }

    #[tokio::test]
    async fn who_waits_is_woken_when_a_place_is_free() {
        let lane = Lane::new(2);
        assert_eq!(lane.enter(LOW).claim(5).await, 2);
        let (low, high) = (lane.enter(LOW), lane.enter(HIGH));
        let low = tokio::spawn(async move { low.claim(1).await });
        let high = tokio::spawn(async move { high.claim(1).await });
        tokio::task::yield_now().await;
        lane.release(1);
        assert_eq!(high.await.unwrap(), 1);
        assert!(!low.is_finished());
        lane.release(1);
        assert_eq!(low.await.unwrap(), 1);
        lane.resize(1);
        lane.release(1);
        assert!(lane.enter(LOW).claim(1).now_or_never().is_none(), "one is taken still");
        lane.resize(3);
        assert_eq!(lane.enter(LOW).claim(5).await, 2);
    }
}
