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
use crate::trigger::{Delivery, Refused};

/// How long an event waits for a busy worker before one more is made: the time that making one takes, roughly.
pub(super) const SCOUT_DELAY: Duration = Duration::from_millis(1);

/// Events are brought back from disk as long as fewer than these wait: some for each worker, and not so many that memory would
/// notice.
const ROOM_EVENTS: usize = 256;
/// And less than this share of the bytes.
const ROOM_SHARE: usize = 4;

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
    abandoned: bool,
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
                abandoned: false,
            }),
            events_max: limits.queue_events_max,
            bytes_max: usize::try_from(limits.queue_bytes_max.0).unwrap_or(usize::MAX),
        }
    }

    // Nothing is awaited, and nothing can panic half way, while this is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event that has just come.
    #[expect(clippy::result_large_err, reason = "it goes straight to whoever decides what becomes of it")]
    pub(super) fn push(&self, item: Item) -> Result<Wanted, (Refused, Item)> {
        let state = self.lock();
        if state.closed {
            return Err((Refused::Stopping, item));
        }
        if state.items.len() >= self.events_max || state.bytes + item.event.data.len() > self.bytes_max {
            return Err((Refused::Full { events: state.items.len(), bytes: state.bytes }, item));
        }
        Ok(Self::add(state, item))
    }

    /// Adds an event that was admitted when it came, and was held back outside. Given back: the agent stops.
    #[expect(clippy::result_large_err, reason = "it goes straight to whoever decides what becomes of it")]
    pub(super) fn push_again(&self, item: Item) -> Result<Wanted, Item> {
        let state = self.lock();
        if state.abandoned { Err(item) } else { Ok(Self::add(state, item)) }
    }

    fn add(mut state: MutexGuard<'_, State>, item: Item) -> Wanted {
        state.bytes += item.event.data.len();
        if item.conflicts > 0 {
            state.items.push_front(item);
        } else {
            state.items.push_back(item);
        }
        if let Some(worker) = state.idle.pop() {
            drop(state);
            worker.notify_one();
            return Wanted::Nothing;
        }
        if state.workers == 0 {
            state.workers = 1;
            return Wanted::Worker;
        }
        if state.workers < state.workers_max && !state.scouting {
            state.scouting = true;
            return Wanted::Scout;
        }
        Wanted::Nothing
    }

    /// Whether what waits on disk may come back: few wait here.
    pub(super) fn has_room(&self) -> bool {
        let state = self.lock();
        state.items.len() < ROOM_EVENTS.min(self.events_max) && state.bytes < self.bytes_max / ROOM_SHARE
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

    /// Whether an event that could wait on disk has waited here for `patience`.
    pub(super) fn is_late(&self, now: Instant, patience: Duration) -> bool {
        let state = self.lock();
        let first = state.items.front();
        let could_wait = |item: &&Item| item.delivery == Delivery::AtLeastOnce && item.parked.is_none();
        first.filter(could_wait).is_some_and(|item| now.saturating_duration_since(item.enqueued) >= patience)
    }

    /// Takes out the events that can wait on disk instead, in their order.
    pub(super) fn take_spillable(&self) -> Vec<Item> {
        let mut state = self.lock();
        let (spill, stay): (Vec<_>, Vec<_>) = state.items.drain(..).partition(Item::may_spill);
        state.items = stay.into();
        state.bytes = state.items.iter().map(|item| item.event.data.len()).sum();
        spill
    }

    /// Takes events again.
    pub(super) fn reopen(&self) {
        self.lock().closed = false;
    }

    /// Takes out what is still here, and takes nothing any more.
    pub(super) fn abandon(&self) -> Vec<Item> {
        self.close();
        let mut state = self.lock();
        state.abandoned = true;
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

    fn item(data: &'static [u8]) -> Item {
        let event = Arc::new(Event { data: data.into(), ..Event::default() });
        let reply = Reply::Receipt(Receipt::new(drop));
        Item::new(event, Delivery::AtLeastOnce, reply, Clock::system().instant())
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
        assert!(queue.push_again(item(b"5")).is_ok());
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
        queue.abandon();
        assert_eq!(queue.worker_died(), Wanted::Nothing);
        assert!(queue.push_again(item(b"2")).is_err());
    }
}
