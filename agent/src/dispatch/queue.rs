//! The bounded queue in front of one function, and who works on it.
//!
//! A worker owns one instance and serves one event at a time. The queue knows its workers so that a new event wakes the
//! one that went idle last (the others may then go), and so that one more is made only when an event has really waited.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::item::Item;
use crate::limits::Limits;
use crate::trigger::Refused;

/// How long an event waits for a busy worker before one more is made: the time that making one takes, roughly.
pub(super) const SCOUT_DELAY: Duration = Duration::from_millis(1);

/// What the caller of [`Queue::push`] has to start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A worker will come.
    Nothing,
    /// One worker; it is counted already.
    Worker,
    /// A call of [`Queue::scout`] after [`SCOUT_DELAY`].
    Scout,
}

struct State {
    items: VecDeque<Item>,
    bytes: usize,
    idle: Vec<Arc<Notify>>,
    workers: u32,
    workers_max: u32,
    scouting: bool,
    closed: bool,
}

/// See the module.
pub(super) struct Queue {
    state: Mutex<State>,
    events_max: usize,
    bytes_max: usize,
}

impl Queue {
    pub(super) fn new(limits: &Limits, workers_max: u32) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                bytes: 0,
                idle: Vec::new(),
                workers: 0,
                workers_max,
                scouting: false,
                closed: false,
            }),
            events_max: limits.queue_events_max,
            bytes_max: usize::try_from(limits.queue_bytes_max.0).unwrap_or(usize::MAX),
        }
    }

    // Nothing is awaited, and nothing can panic half way, while this is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `item`, whatever its place: order is kept by topic only where a function asks for it.
    pub(super) fn push(&self, item: Item) -> Result<Wanted, (Refused, Item)> {
        let mut state = self.lock();
        let bytes = item.event.data.len();
        if state.closed {
            return Err((Refused::Stopping, item));
        }
        // A retry was admitted when it came; it is held back outside and must find its place again.
        let admitted = item.attempt > 1;
        if !admitted && (state.items.len() >= self.events_max || state.bytes + bytes > self.bytes_max) {
            return Err((Refused::Full { events: state.items.len(), bytes: state.bytes }, item));
        }
        state.bytes += bytes;
        state.items.push_back(item);
        if let Some(worker) = state.idle.pop() {
            drop(state);
            worker.notify_one();
            return Ok(Wanted::Nothing);
        }
        if state.workers == 0 {
            state.workers = 1;
            return Ok(Wanted::Worker);
        }
        if state.workers < state.workers_max && !state.scouting {
            state.scouting = true;
            return Ok(Wanted::Scout);
        }
        Ok(Wanted::Nothing)
    }

    /// Whether one more worker is needed, since the oldest event has waited; then it is counted, and the caller starts it.
    pub(super) fn scout(&self, now: Instant) -> Wanted {
        let mut state = self.lock();
        state.scouting = false;
        let waited = state.items.front().is_some_and(|item| now.duration_since(item.enqueued) >= SCOUT_DELAY);
        if !waited || !state.idle.is_empty() || state.workers >= state.workers_max {
            return Wanted::Nothing;
        }
        state.workers += 1;
        Wanted::Worker
    }

    /// Marks that the caller will scout again, unless another does.
    pub(super) fn keep_scouting(&self) -> bool {
        let mut state = self.lock();
        let needed = !state.items.is_empty() && state.workers < state.workers_max && !state.scouting;
        state.scouting |= needed;
        needed
    }

    /// The next event for the worker `me`, which waits at most `idle_max`. `None`: the worker is no longer counted and ends.
    pub(super) async fn next(&self, me: &Arc<Notify>, idle_max: Duration) -> Option<Item> {
        loop {
            {
                let mut state = self.lock();
                if let Some(item) = state.items.pop_front() {
                    state.bytes -= item.event.data.len();
                    return Some(item);
                }
                if state.closed {
                    state.workers -= 1;
                    return None;
                }
                state.idle.push(Arc::clone(me));
            }
            if tokio::time::timeout(idle_max, me.notified()).await.is_err() {
                let mut state = self.lock();
                // Not in the list: an event chose this worker at the same moment, so it goes on.
                if let Some(position) = state.idle.iter().position(|other| Arc::ptr_eq(other, me)) {
                    state.idle.remove(position);
                    state.workers -= 1;
                    return None;
                }
            }
        }
    }

    /// Takes a worker that died (a panic) out of the count, and says whether another must take its place.
    pub(super) fn worker_died(&self) -> Wanted {
        let mut state = self.lock();
        if state.items.is_empty() {
            state.workers -= 1;
            return Wanted::Nothing;
        }
        Wanted::Worker
    }

    /// How many instances there may be from now on.
    pub(super) fn set_workers_max(&self, workers_max: u32) {
        self.lock().workers_max = workers_max;
    }

    /// Refuses new events; workers end when they have finished what is here.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for worker in state.idle.drain(..) {
            worker.notify_one();
        }
    }

    /// Takes out what is still here.
    pub(super) fn take_all(&self) -> Vec<Item> {
        let mut state = self.lock();
        state.bytes = 0;
        state.items.drain(..).collect()
    }

    /// Events that wait, and workers that are busy and idle.
    pub(super) fn depth(&self) -> (usize, u32, u32) {
        let state = self.lock();
        let idle = u32::try_from(state.idle.len()).unwrap_or(u32::MAX);
        (state.items.len(), state.workers.saturating_sub(idle), idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::dispatch::item::Reply;
    use crate::event::Event;
    use crate::receipt::Receipt;
    use crate::trigger::Delivery;

    fn item(data: &'static [u8]) -> Item {
        let now = Clock::system().instant();
        Item {
            event: Arc::new(Event { data: data.into(), ..Event::default() }),
            delivery: Delivery::AtLeastOnce,
            reply: Reply::Receipt(Receipt::new(drop)),
            attempt: 1,
            first: now,
            enqueued: now,
        }
    }

    fn queue(workers_max: u32) -> Queue {
        Queue::new(&Limits { queue_events_max: 3, ..Limits::default() }, workers_max)
    }

    fn push(queue: &Queue, data: &'static [u8]) -> Result<Wanted, Refused> {
        queue.push(item(data)).map_err(|(refused, _)| refused)
    }

    #[tokio::test]
    async fn the_first_event_gets_a_worker_and_the_next_ones_wait_for_it() {
        let (queue, me) = (queue(1), Arc::new(Notify::new()));
        assert_eq!(push(&queue, b"1"), Ok(Wanted::Worker));
        assert_eq!(push(&queue, b"2"), Ok(Wanted::Nothing));
        for expected in [b"1", b"2"] {
            assert_eq!(&queue.next(&me, Duration::ZERO).await.unwrap().event.data[..], expected);
        }
        // Idle for too long: it goes, and the next event gets another.
        assert!(queue.next(&me, Duration::ZERO).await.is_none());
        assert_eq!(push(&queue, b"3"), Ok(Wanted::Worker));
    }

    #[test]
    fn an_event_that_has_waited_gets_one_more_worker_up_to_the_concurrency() {
        let queue = queue(2);
        assert_eq!(push(&queue, b"1"), Ok(Wanted::Worker));
        assert_eq!(push(&queue, b"2"), Ok(Wanted::Scout));
        assert_eq!(push(&queue, b"3"), Ok(Wanted::Nothing), "one scout is enough");
        assert_eq!(queue.scout(Clock::system().instant() + SCOUT_DELAY), Wanted::Worker);
        assert!(!queue.keep_scouting(), "there are as many workers as there may be");
        assert_eq!(queue.depth(), (3, 2, 0));
    }

    #[test]
    fn a_full_queue_refuses_what_comes_but_not_what_comes_back() {
        let queue = queue(1);
        for data in [b"1", b"2", b"3"] {
            push(&queue, data).unwrap();
        }
        assert_eq!(push(&queue, b"4"), Err(Refused::Full { events: 3, bytes: 3 }));
        assert!(queue.push(Item { attempt: 2, ..item(b"5") }).is_ok());
    }

    #[tokio::test]
    async fn a_closed_queue_takes_nothing_and_finishes_what_it_has() {
        let (queue, me) = (queue(1), Arc::new(Notify::new()));
        push(&queue, b"1").unwrap();
        queue.close();
        assert_eq!(push(&queue, b"2"), Err(Refused::Stopping));
        assert!(queue.next(&me, Duration::from_secs(60)).await.is_some());
        assert!(queue.next(&me, Duration::from_secs(60)).await.is_none());
    }

    #[test]
    fn a_worker_that_dies_is_replaced_while_events_wait() {
        let queue = queue(1);
        push(&queue, b"1").unwrap();
        assert_eq!(queue.worker_died(), Wanted::Worker);
        queue.take_all();
        assert_eq!(queue.worker_died(), Wanted::Nothing);
    }
}
