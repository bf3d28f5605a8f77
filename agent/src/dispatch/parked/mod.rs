//! Events that wait on disk: for another attempt, for their turn, for room in memory.
//!
//! # Promises
//! - A parked event is acknowledged once it is on disk, and is done with only together with its effects, or as a dead letter.
//! - It is there after a restart, with its attempts counted and no wait longer than it was.
//! - Memory holds where it is and when it is due; the event is read back when it may run.
//! - Events that wait for room come back in the order in which they came, and before those that come later.
//! - What the disk cannot take is held in memory, unacknowledged, and nothing of it is dropped.
//!
//! # On disk
//! The stream `~parked.FUNCTION`: one record for each event ([`record`]). An event that is parked again gets another record, in
//! the commit that ends the earlier one.

mod fetch;
mod index;
mod record;
mod write;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::index::{Entry, Index};
pub(super) use self::record::{Header, Reason};
pub(super) use self::write::Anew;
use super::item::{Item, Reply};
use super::order::{Admitted, Lanes, Next, Turn};
use super::queue::Queue;
use super::{Inner, Running};
use crate::config::function::Order;
use crate::config::{StreamConfig, WhenFull};
use crate::journal::Journal;
use crate::limits::Limits;
use crate::name::{FunctionName, Own, StreamName};
use crate::receipt::NotKept;
use crate::trigger::Delivery;
use crate::units::ByteSize;

/// Where a parked event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stream: StreamName,
    /// Of its record.
    pub(super) sequence: u64,
    /// Of its first record.
    pub(super) place: u64,
}

/// An event on its way to disk.
struct Pending {
    item: Item,
    reason: Reason,
    due: Instant,
    why: Arc<str>,
}

struct State {
    order: Order,
    index: Index,
    lanes: Lanes,
    /// On their way to disk, in the order in which they go.
    pending: VecDeque<Pending>,
    /// How many of those wait for room only.
    pending_room: usize,
    /// What is on disk from before is not known yet; what needs to know waits here.
    loading: Option<Vec<Item>>,
    /// The disk took nothing lately, and was told of.
    refused: bool,
    /// Until then it is not asked.
    refused_until: Option<Instant>,
    /// The agent stops: nothing starts any more.
    stopped: bool,
}

impl State {
    fn takes_part_in_order(&self, item: &Item) -> bool {
        self.order == Order::Topic && item.topic != 0
    }

    fn pend(&mut self, item: Item, reason: Reason, due: Instant, why: Arc<str>) {
        self.pending_room += usize::from(reason == Reason::Room);
        self.pending.push_back(Pending { item, reason, due, why });
    }
}

/// The parked events of one function.
pub(super) struct Parked {
    stream: StreamName,
    state: Mutex<State>,
    /// Whether what comes has to look at the state.
    engaged: AtomicBool,
    /// Whether something due waits for room in the queue.
    hungry: AtomicBool,
    /// Nothing is brought back from disk: the function, or the agent, is being stopped.
    paused: AtomicBool,
    writes: Arc<Notify>,
    fetches: Arc<Notify>,
}

impl Parked {
    /// What is known before [`tend`] has looked.
    pub(super) fn new(function: &FunctionName, order: Order, journal: &Journal, limits: &Limits) -> Self {
        let stream = StreamName::own(Own::Parked, function.as_str());
        // The bound on what is parked is kept here, where nothing has to be refused for it; this one is never met.
        let max_bytes = ByteSize(limits.parked_bytes_max.0 * 2 + limits.record_bytes_max.0 * 2);
        let config = StreamConfig { max_bytes, when_full: WhenFull::Reject, ..StreamConfig::default() };
        journal.own_stream(stream.clone(), config);
        let left = journal.own_status().iter().any(|status| status.name == stream && status.records > 0);
        let state = State {
            order,
            index: Index::default(),
            lanes: Lanes::default(),
            pending: VecDeque::new(),
            pending_room: 0,
            loading: left.then(Vec::new),
            refused: false,
            refused_until: None,
            stopped: false,
        };
        let parked = Self {
            stream,
            state: Mutex::new(state),
            engaged: AtomicBool::new(true),
            hungry: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            writes: Arc::default(),
            fetches: Arc::default(),
        };
        parked.engage(&parked.lock());
        parked
    }

    // Nothing is awaited, and no item is dropped, while this is held: an item that goes may take the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engage(&self, state: &State) {
        let engaged = state.order == Order::Topic
            || state.loading.is_some()
            || state.pending_room > 0
            || state.index.has_spilled();
        self.engaged.store(engaged, Ordering::Release);
    }

    /// Sees where an event goes that has just come. Given back: it may run at once, and whether it needs a turn for that.
    fn admit(&self, item: Item, crowded: bool, now: Instant) -> Option<(Item, bool)> {
        if !self.engaged.load(Ordering::Acquire) && !crowded {
            return Some((item, false));
        }
        let mut state = self.lock();
        if state.takes_part_in_order(&item)
            && let Some(held) = &mut state.loading
        {
            held.push(item);
            return None;
        }
        self.admit_to(&mut state, item, crowded, now)
    }

    fn admit_to(&self, state: &mut State, item: Item, crowded: bool, now: Instant) -> Option<(Item, bool)> {
        let may_park = state.refused_until.is_none_or(|until| now >= until);
        let admitted = if state.takes_part_in_order(&item) {
            state.lanes.admit(item, crowded, may_park)
        } else if item.delivery == Delivery::AtLeastOnce
            && may_park
            && (crowded || state.pending_room > 0 || state.index.has_spilled())
        {
            Admitted::Parks(item)
        } else {
            Admitted::Runs(item)
        };
        match admitted {
            Admitted::Runs(item) => {
                let in_order = state.takes_part_in_order(&item);
                Some((item, in_order))
            }
            Admitted::Waits => None,
            Admitted::Parks(item) => {
                let reason = if crowded || !state.takes_part_in_order(&item) { Reason::Room } else { Reason::Turn };
                state.pend(item, reason, now, Arc::from(""));
                self.engage(state);
                self.writes.notify_one();
                None
            }
        }
    }

    /// Has what waits in `queue`, and need not, wait on disk: what comes is to wait behind it.
    fn spill(&self, queue: &Queue, now: Instant) {
        let mut state = self.lock();
        let refused = state.refused_until.is_some_and(|until| now < until);
        // Since it spills, nothing more that could has come into the queue.
        let spills = state.pending_room > 0 || state.index.has_spilled();
        if state.order != Order::None || state.stopped || refused || spills {
            return;
        }
        for item in queue.take_spillable() {
            state.pend(item, Reason::Room, now, Arc::from(""));
        }
        self.engage(&state);
        self.writes.notify_one();
    }

    /// Has `item` wait on disk for its next attempt, `wait` from now, and what follows it in its topic behind it.
    pub(super) fn park(&self, item: Item, now: Instant, wait: Duration, why: Arc<str>) {
        let mut state = self.lock();
        let followers = match &item.turn {
            Some(_) => state.lanes.parks(item.topic),
            None => Vec::new(),
        };
        state.pend(item, Reason::Retry, now + wait, why);
        for follower in followers {
            state.pend(follower, Reason::Turn, now, Arc::from(""));
        }
        self.writes.notify_one();
    }

    /// Another version may want another order. Gives back what need not wait any more.
    pub(super) fn set_order(&self, order: Order) -> Vec<Item> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.order, order) == order {
            return Vec::new();
        }
        let released = state.lanes.clear();
        state.arrange();
        self.engage(&state);
        self.fetches.notify_one();
        released
    }

    /// Nothing is brought back from disk until [`Parked::resume`].
    pub(super) fn pause(&self) {
        self.paused.store(true, Ordering::Release);
    }

    pub(super) fn resume(&self) {
        self.paused.store(false, Ordering::Release);
        self.fetches.notify_one();
    }

    /// Has a worker that just took an event tell whether there is room for more.
    pub(super) fn feed(&self, has_room: impl FnOnce() -> bool) {
        if self.hungry.load(Ordering::Acquire) && has_room() && self.hungry.swap(false, Ordering::AcqRel) {
            self.fetches.notify_one();
        }
    }

    /// Waits until what was on disk at the start is known.
    async fn until_loaded(&self) {
        while self.lock().loading.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether events are neither on disk nor in the queue.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.lock();
        !state.pending.is_empty() || state.lanes.is_waiting()
    }

    /// Those at these places, with these sequences, are done with.
    pub(super) fn forget(&self, places: &[(u64, u64)]) {
        let mut state = self.lock();
        for &(place, sequence) in places {
            if let Some(entry) = state.index.remove(place, sequence) {
                state.lanes.ended(entry.topic, place);
            }
        }
        self.engage(&state);
    }

    /// Events on disk, and what is kept of them there.
    pub(super) fn depth(&self) -> (usize, u64) {
        let state = self.lock();
        (state.index.len(), state.index.bytes())
    }

    /// Lets nothing start any more, and has what is left in memory, `queued` first, go to disk. Gives back what may not.
    pub(super) fn stop(&self, queued: Vec<Item>, now: Instant) -> Vec<Item> {
        let mut state = self.lock();
        state.stopped = true;
        state.refused_until = None;
        let held = state.loading.take().unwrap_or_default();
        let left: Vec<_> = queued.into_iter().chain(state.lanes.clear()).chain(held).collect();
        let mut gone = Vec::new();
        for item in left {
            let is_caller = matches!(item.reply, Reply::Answer(_));
            if item.delivery == Delivery::AtLeastOnce && item.parked.is_none() && !is_caller {
                state.pend(item, Reason::Room, now, Arc::from(""));
            } else {
                gone.push(item);
            }
        }
        self.writes.notify_one();
        gone
    }

    /// Whether everything is on disk that was on its way there.
    pub(super) fn is_written(&self) -> bool {
        self.lock().pending.is_empty()
    }
}

impl State {
    /// Finds out anew what may start.
    fn arrange(&mut self) {
        let waiting: Vec<_> =
            self.index.iter().filter(|(_, entry)| !entry.taken).map(|(place, entry)| (place, entry.topic)).collect();
        for (place, topic) in waiting {
            self.index.hold(place);
            if self.order == Order::Topic && topic != 0 {
                self.lanes.restore(topic, place);
            } else {
                self.index.start(place);
            }
        }
        for place in self.lanes.heads() {
            self.index.start(place);
        }
    }
}

impl Running {
    /// Takes in an event that has just come. Given back: it may run at once.
    pub(super) fn admit(self: &Arc<Self>, item: Item, crowded: bool, now: Instant) -> Option<Item> {
        if crowded && item.delivery == Delivery::AtLeastOnce {
            self.parked.spill(&self.queue, now);
        }
        let (mut item, in_order) = self.parked.admit(item, crowded, now)?;
        item.turn = in_order.then(|| Turn::new(self, item.topic));
        Some(item)
    }

    /// Puts an event into the queue that was admitted before.
    pub(super) fn run(self: &Arc<Self>, item: Item) {
        if let Some(inner) = self.inner.upgrade() {
            inner.push(self, item);
        }
    }

    /// The same, for one that just got its turn.
    fn run_in_turn(self: &Arc<Self>, mut item: Item) {
        item.turn = Some(Turn::new(self, item.topic));
        if let Some(inner) = self.inner.upgrade() {
            item.enqueued = inner.clock.instant();
            inner.push(self, item);
        }
    }

    /// The turn of an event of this topic is over.
    pub(super) fn turn_over(self: &Arc<Self>, topic: u64) {
        let Some(inner) = self.inner.upgrade() else { return };
        let now = inner.clock.instant();
        self.proceed(now, |lanes| lanes.turn_over(topic));
    }

    /// Looks whether an event of this topic may start.
    fn look(self: &Arc<Self>, topic: u64, now: Instant) {
        self.proceed(now, |lanes| lanes.next(topic));
    }

    /// Does what a lane wants next.
    fn proceed(self: &Arc<Self>, now: Instant, next: impl FnOnce(&mut Lanes) -> Next) {
        let item = {
            let mut state = self.parked.lock();
            if state.stopped || state.order == Order::None {
                return;
            }
            match next(&mut state.lanes) {
                Next::Nothing => return,
                Next::Run(item) => item,
                Next::Start(place) => {
                    state.index.start(place);
                    self.parked.fetches.notify_one();
                    return;
                }
                Next::Park(items) => {
                    for item in items {
                        state.pend(item, Reason::Turn, now, Arc::from(""));
                    }
                    self.parked.writes.notify_one();
                    return;
                }
            }
        };
        self.run_in_turn(item);
    }

    /// A parked event that was brought back has come to its end, or to nothing.
    fn settled(self: &Arc<Self>, place: u64, sequence: u64, result: Result<(), NotKept>) {
        let Some(inner) = self.inner.upgrade() else { return };
        let now = inner.clock.instant();
        let mut state = self.parked.lock();
        match result {
            Ok(()) => {
                if let Some(entry) = state.index.remove(place, sequence) {
                    state.lanes.ended(entry.topic, place);
                }
            }
            Err(why) => {
                if state.index.put_back(place, sequence, now + super::retry::BACKOFF_MIN) {
                    tracing::debug!(function = %self.name, %why, "a parked event is tried again");
                    if state.order == Order::None || state.topic_at(place) == 0 {
                        state.index.start(place);
                    }
                }
            }
        }
        self.parked.engage(&state);
        self.measure(&state.index);
        drop(state);
        self.parked.writes.notify_one();
        self.parked.fetches.notify_one();
    }

    fn measure(&self, index: &Index) {
        self.metrics.parked.set(i64::try_from(index.len()).unwrap_or(i64::MAX));
    }
}

impl State {
    fn topic_at(&self, place: u64) -> u64 {
        self.index.get(place).map_or(0, |entry: &Entry| entry.topic)
    }
}

/// Writes and brings back what `running` has to park, as long as it lives.
pub(super) async fn tend(inner: Arc<Inner>, running: Arc<Running>) {
    let (writes, fetches) = (Arc::clone(&running.parked.writes), Arc::clone(&running.parked.fetches));
    let (inner, running) = {
        fetch::load(&inner, &running).await;
        (Arc::downgrade(&inner), Arc::downgrade(&running))
    };
    tokio::join!(write::run(&inner, &running, &writes), fetch::run(&inner, &running, &fetches));
}
