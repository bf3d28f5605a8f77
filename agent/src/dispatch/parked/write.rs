//! Brings events to disk, many in one commit.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Entry, Header, Inner, Pending, Place, Reason, Running, State};
use crate::config::function::Order;
use crate::dispatch::item::{Item, Reply};
use crate::dispatch::order::topic_of;
use crate::event::Event;
use crate::journal::{Batch, Committed, JournalError, RecordMeta};
use crate::limits::Limits;

/// Events in one commit.
const EVENTS_MAX: usize = 512;
/// Payload bytes in one commit.
const BYTES_MAX: usize = 1 << 20;
/// How long the disk is left alone after it took nothing.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What is to be done with the events that wait to be written.
#[derive(Default)]
struct Step {
    write: Vec<Pending>,
    /// There is no room for them on disk, and they need not wait for it.
    hold: Vec<Pending>,
}

impl State {
    fn next_step(&mut self, limits: &Limits) -> Step {
        let mut step = Step::default();
        let (mut events, mut bytes) = (self.index.len(), self.index.bytes());
        let mut batch_bytes = 0;
        let mut blocked = std::collections::VecDeque::new();
        while let Some(pending) = self.pending.pop_front() {
            let size = pending.item.event.data.len();
            if step.write.len() >= EVENTS_MAX || (batch_bytes + size > BYTES_MAX && !step.write.is_empty()) {
                self.pending.push_front(pending);
                break;
            }
            let has_room = events < limits.parked_events_max && bytes + size as u64 <= limits.parked_bytes_max.0;
            if pending.item.parked.is_some() || (has_room && blocked.is_empty()) {
                events += usize::from(pending.item.parked.is_none());
                bytes += size as u64;
                batch_bytes += size;
                step.write.push(pending);
            } else if pending.reason == Reason::Retry {
                step.hold.push(pending);
            } else {
                blocked.push_back(pending);
            }
        }
        blocked.append(&mut self.pending);
        self.pending = blocked;
        self.count_room();
        step
    }

    fn count_room(&mut self) {
        self.pending_room = self.pending.iter().filter(|pending| pending.reason == Reason::Room).count();
    }
}

pub(super) async fn run(inner: &Weak<Inner>, running: &Weak<Running>, wake: &Notify) {
    loop {
        wake.notified().await;
        loop {
            let (Some(inner), Some(running)) = (inner.upgrade(), running.upgrade()) else { return };
            if !write(&inner, &running).await {
                break;
            }
        }
        if running.strong_count() == 0 {
            return;
        }
    }
}

/// Brings the next ones to disk. Whether there were any.
async fn write(inner: &Arc<Inner>, running: &Arc<Running>) -> bool {
    let step = running.parked.lock().next_step(&inner.limits);
    for pending in step.hold {
        hold(inner, running, pending);
    }
    if step.write.is_empty() {
        return false;
    }
    let (now, now_ms, parked_ms) = (inner.clock.instant(), inner.clock.now_ms(), inner.outlets.journal().age_ms());
    let max_age = running.current().spec.retry.max_age.0;
    let mut batch = Batch::default();
    let mut sizes = Vec::with_capacity(step.write.len());
    for pending in &step.write {
        let item = &pending.item;
        let header = Header {
            reason: pending.reason,
            attempt: item.attempt,
            place: item.parked.as_ref().map_or(0, |parked| parked.place),
            topic: item.topic,
            parked_ms,
            wait: pending.due.saturating_duration_since(now),
            age: item.age(now),
            max_age,
            why: Arc::clone(&pending.why),
        };
        let meta = RecordMeta { time_ms: now_ms, trace_parent: item.event.trace_parent.clone() };
        let data = header.encode(&item.event);
        sizes.push(data.len() as u64);
        batch.records.push((running.parked.stream.clone(), data, meta));
        item.end_in(&mut batch);
    }
    match inner.outlets.journal().commit(batch).await {
        Ok(committed) => {
            if std::mem::take(&mut running.parked.lock().refused) {
                tracing::info!(function = %running.name, "events can be parked on disk again");
            }
            let written = step.write.into_iter().zip(committed.sequences).zip(sizes);
            keep(running, written.map(|((pending, sequence), bytes)| (pending, sequence, bytes)).collect(), now);
        }
        Err(error) => refuse(inner, running, step.write, &error.to_string(), now),
    }
    true
}

/// An event on its way to disk in a batch of somebody else's, to be run from there.
pub(in crate::dispatch) struct Anew {
    running: Arc<Running>,
    /// Where its record is in the batch.
    at: usize,
    topic: u64,
    bytes: u64,
}

impl Inner {
    /// Adds `event` to `batch`, for `running` to handle once that is on disk: see [`Anew::start`].
    pub(in crate::dispatch) async fn anew_in(&self, running: &Arc<Running>, event: &Event, batch: &mut Batch) -> Anew {
        running.parked.until_loaded().await;
        let now_ms = self.clock.now_ms();
        let header = Header {
            reason: Reason::Retry,
            attempt: 1,
            place: 0,
            topic: topic_of(event),
            parked_ms: self.outlets.journal().age_ms(),
            wait: Duration::ZERO,
            age: Duration::ZERO,
            max_age: running.current().spec.retry.max_age.0,
            why: Arc::from(""),
        };
        let data = header.encode(event);
        let (at, bytes) = (batch.records.len(), data.len() as u64);
        let meta = RecordMeta { time_ms: now_ms, ..RecordMeta::default() };
        batch.records.push((running.parked.stream.clone(), data, meta));
        Anew { running: Arc::clone(running), at, topic: header.topic, bytes }
    }

    /// Has `event` run anew, from disk: its record joins `batch`, so that it is there when what is `done` in the batch is not.
    ///
    /// # Errors
    /// When the disk is in the way; then nothing of the batch is kept.
    pub(in crate::dispatch) async fn park_anew(
        &self,
        running: &Arc<Running>,
        event: &Event,
        mut batch: Batch,
    ) -> Result<(), JournalError> {
        let anew = self.anew_in(running, event, &mut batch).await;
        let committed = self.outlets.journal().commit(batch).await?;
        anew.start(&committed, self.clock.instant());
        Ok(())
    }
}

impl Anew {
    /// Its batch is on disk.
    pub(in crate::dispatch) fn start(self, committed: &Committed, now: Instant) {
        let Self { running, at, topic, bytes } = self;
        let Some(&sequence) = committed.sequences.get(at) else { return };
        let entry = Entry { sequence, due: now, bytes, topic, spilled: false, taken: false };
        let in_order = {
            let mut state = running.parked.lock();
            state.index.insert(sequence, entry);
            let in_order = state.order == Order::Topic && topic != 0;
            if in_order {
                state.lanes.restore(topic, sequence);
            } else {
                state.index.start(sequence);
            }
            running.measure(&state.index);
            in_order
        };
        if in_order {
            running.look(topic, now);
        }
        running.parked.fetches.notify_one();
    }
}

/// They are on disk: their sources hear so.
fn keep(running: &Arc<Running>, written: Vec<(Pending, u64, u64)>, now: Instant) {
    let mut topics = Vec::new();
    {
        let mut state = running.parked.lock();
        for (pending, sequence, bytes) in &written {
            let item = &pending.item;
            let place = item.parked.as_ref().map_or(*sequence, |parked| parked.place);
            let spilled = pending.reason == Reason::Room;
            let entry = Entry {
                sequence: *sequence,
                due: pending.due,
                bytes: *bytes,
                topic: item.topic,
                spilled,
                taken: false,
            };
            state.index.insert(place, entry);
            if state.order == Order::Topic && item.topic != 0 {
                state.lanes.parked(item.topic, place);
                topics.push(item.topic);
            } else {
                state.index.start(place);
            }
            match pending.reason {
                Reason::Room => running.metrics.spilled.inc(),
                Reason::Retry | Reason::Turn => 0,
            };
        }
        running.parked.engage(&state);
        running.measure(&state.index);
    }
    for (Pending { item, .. }, _, _) in written {
        if let Reply::Receipt(receipt) = item.reply {
            receipt.keep();
        }
    }
    for topic in topics {
        running.look(topic, now);
    }
    running.parked.fetches.notify_one();
}

/// The disk did not take them: they, and all that wait to follow them there, stay in memory, in their order.
fn refuse(inner: &Arc<Inner>, running: &Arc<Running>, failed: Vec<Pending>, why: &str, now: Instant) {
    let (all, first) = {
        let mut state = running.parked.lock();
        let mut all = failed;
        all.extend(state.pending.drain(..));
        state.count_room();
        state.refused_until = Some(now + REFUSED_PAUSE);
        (all, !std::mem::replace(&mut state.refused, true))
    };
    if first {
        tracing::error!(
            function = %running.name, events = all.len(), why,
            "events cannot be parked on disk; they are held in memory, and not acknowledged"
        );
    }
    for pending in all {
        hold(inner, running, pending);
    }
    running.parked.engage(&running.parked.lock());
}

/// Keeps in memory what is not on disk. Its source is not told that it is taken care of.
fn hold(inner: &Arc<Inner>, running: &Arc<Running>, pending: Pending) {
    let Pending { item, reason, due, .. } = pending;
    let (ordered, stopped) = {
        let mut state = running.parked.lock();
        let ordered = state.order == Order::Topic && item.topic != 0;
        if ordered {
            state.lanes.not_parked(item.topic);
        }
        (ordered, state.stopped)
    };
    if stopped {
        return drop(item);
    }
    if reason == Reason::Retry {
        let running = Arc::clone(running);
        let again = async move {
            tokio::time::sleep_until(due).await;
            running.run(Item { enqueued: due, ..item });
        };
        inner.runtime.spawn(again);
    } else if ordered {
        let topic = item.topic;
        running.parked.lock().lanes.push_after(item);
        running.look(topic, due);
    } else {
        running.run(item);
    }
}

impl Place {
    /// Where the record with `sequence` is, when it is in the place of another.
    pub(super) fn new(running: &Running, sequence: u64, place: u64) -> Self {
        Self { stream: running.parked.stream.clone(), sequence, place }
    }
}
