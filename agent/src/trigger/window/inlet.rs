//! The way into the windows of one function: triggers leave events here, and the [`Keeper`](super::keeper::Keeper) takes them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::config::WindowConfig;
use super::record::Waiting;
use crate::limits::Limits;
use crate::metrics::{Dropped, FunctionMetrics};
use crate::receipt::Receipt;
use crate::trigger::Refused;

/// Events in one commit.
const EVENTS_MAX: usize = 512;
/// Their bytes.
const BYTES_MAX: usize = 1 << 20;

/// An event on its way to disk, and who hears when it is there.
pub(super) struct Put {
    pub(super) waiting: Waiting,
    pub(super) receipt: Receipt,
}

/// See the module.
pub(super) struct Inlet {
    state: Mutex<State>,
    /// There is something to take.
    wake: Notify,
    /// What was there is on disk, or was given back.
    emptied: Notify,
    metrics: Arc<FunctionMetrics>,
    events_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Put>,
    /// Some of it is being written.
    is_writing: bool,
    /// All that wait, from here until no window needs them, and their bytes.
    events: usize,
    bytes: usize,
    windows: Option<BTreeMap<u32, WindowConfig>>,
    closed: bool,
}

impl Inlet {
    pub(super) fn new(limits: &Limits, metrics: Arc<FunctionMetrics>) -> Self {
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            emptied: Notify::new(),
            metrics,
            events_max: limits.windowed_events_max,
            bytes_max: usize::try_from(limits.windowed_bytes_max.0).unwrap_or(usize::MAX),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an event. On an error the receipt has been dropped.
    pub(super) fn put(&self, waiting: Waiting, receipt: Receipt) -> Result<(), Refused> {
        let size = waiting.cost();
        let mut state = self.lock();
        let refused = if state.closed {
            Some((Refused::Stopping, Dropped::Stopping))
        } else if state.events >= self.events_max || (state.bytes + size > self.bytes_max && state.events > 0) {
            Some((Refused::Full { events: state.events, bytes: state.bytes }, Dropped::QueueFull))
        } else {
            None
        };
        if let Some((refused, why)) = refused {
            // Whoever hears of the receipt may come back here at once.
            drop(state);
            drop(receipt);
            self.metrics.dropped(why);
            return Err(refused);
        }
        state.queue.push_back(Put { waiting, receipt });
        self.count(&mut state, 1, size);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn count(&self, state: &mut State, events: usize, bytes: usize) {
        (state.events, state.bytes) = (state.events + events, state.bytes + bytes);
        self.measure(state);
    }

    fn measure(&self, state: &State) {
        self.metrics.windowed.set(i64::try_from(state.events).unwrap_or(i64::MAX));
    }

    /// Counts events that were on disk at the start.
    pub(super) fn found(&self, events: usize, bytes: usize) {
        self.count(&mut self.lock(), events, bytes);
    }

    /// So many events, with so many bytes, wait no longer.
    pub(super) fn release(&self, events: usize, bytes: usize) {
        let mut state = self.lock();
        (state.events, state.bytes) = (state.events.saturating_sub(events), state.bytes.saturating_sub(bytes));
        self.measure(&state);
    }

    /// What the windows are from now on.
    pub(super) fn set_windows(&self, windows: BTreeMap<u32, WindowConfig>) {
        self.lock().windows = Some(windows);
        self.wake.notify_one();
    }

    /// What the windows are, when that was changed.
    pub(super) fn changed_windows(&self) -> Option<BTreeMap<u32, WindowConfig>> {
        self.lock().windows.take()
    }

    /// The next ones for one commit; [`Inlet::written`] follows.
    pub(super) fn take(&self) -> Vec<Put> {
        let mut state = self.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < EVENTS_MAX
            && let Some(put) = state.queue.front()
        {
            bytes += put.waiting.cost();
            if bytes > BYTES_MAX && !taken.is_empty() {
                break;
            }
            taken.extend(state.queue.pop_front());
        }
        state.is_writing = !taken.is_empty();
        if !state.queue.is_empty() {
            self.wake.notify_one();
        }
        taken
    }

    /// What was taken is on disk, or was given back.
    pub(super) fn written(&self) {
        self.lock().is_writing = false;
        self.emptied.notify_waiters();
    }

    /// Whether something is on its way to disk.
    pub(super) fn has_more(&self) -> bool {
        let state = self.lock();
        !state.queue.is_empty() || state.is_writing
    }

    /// Waits until there may be something to take.
    pub(super) async fn filled(&self) {
        self.wake.notified().await;
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Nobody takes anything any more: what has not been taken is given back.
    pub(super) fn abandon(&self) {
        let left = {
            let mut state = self.lock();
            (state.closed, state.is_writing) = (true, false);
            std::mem::take(&mut state.queue)
        };
        self.emptied.notify_waiters();
        // Whoever hears of a receipt may come back here at once.
        drop(left);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until nothing is on its way to disk.
    pub(super) async fn until_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Before the look, so that what ends in between is noticed.
            emptied.as_mut().enable();
            if !self.has_more() {
                return;
            }
            emptied.await;
        }
    }
}

impl fmt::Debug for Inlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inlet").field("events", &self.lock().events).finish_non_exhaustive()
    }
}
