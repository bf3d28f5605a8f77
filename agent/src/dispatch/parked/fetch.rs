//! Brings events back from disk when they may run.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Entry, Header, Inner, Place, Reason, Running};
use crate::config::function::Order;
use crate::dispatch::item::{Item, Reply};
use crate::dispatch::order::Turn;
use crate::event::Event;
use crate::journal::{JournalError, Record};
use crate::receipt::Receipt;
use crate::trigger::Delivery;

/// Events that are brought back at once.
const EVENTS_MAX: usize = 64;
/// Records that are read at once when a function starts.
const READ_RECORDS: usize = 256;
const READ_BYTES: usize = 1 << 20;
/// How long the disk is left alone after it gave nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// Learns what is on disk from before.
pub(super) async fn load(inner: &Arc<Inner>, running: &Arc<Running>) {
    if running.parked.lock().loading.is_none() {
        return;
    }
    let found = loop {
        let (inner_too, running_too) = (Arc::clone(inner), Arc::clone(running));
        let found = crate::clock::aside(move || read_all(&inner_too, &running_too)).await;
        match found.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string())) {
            Ok(found) => break found,
            Err(why) => {
                tracing::error!(function = %running.name, why, "parked events cannot be read; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    tracing::info!(function = %running.name, events = found.len(), "parked events are resumed");
    let runs: Vec<_> = {
        let mut state = running.parked.lock();
        for (place, entry) in found {
            state.index.insert(place, entry);
        }
        state.arrange();
        // Before the lock is free: what comes next comes behind those that were held.
        let (held, now) = (state.loading.take().unwrap_or_default(), inner.clock.instant());
        let admitted = |item| running.parked.admit_to(&mut state, item, false, now);
        let runs = held.into_iter().filter_map(admitted).collect();
        running.parked.engage(&state);
        running.measure(&state.index);
        runs
    };
    for (mut item, in_order) in runs {
        item.turn = in_order.then(|| Turn::new(running, item.topic));
        running.run(item);
    }
    running.parked.fetches.notify_one();
    running.parked.writes.notify_one();
}

fn read_all(inner: &Inner, running: &Running) -> Result<Vec<(u64, Entry)>, JournalError> {
    let (now, now_ms) = (inner.clock.instant(), inner.outlets.journal().age_ms());
    let mut found = Vec::new();
    let mut after = 0;
    loop {
        let records = inner.outlets.journal().read(&running.parked.stream, after, READ_RECORDS, READ_BYTES)?;
        let Some(last) = records.last() else { return Ok(found) };
        after = last.sequence;
        for record in records {
            let (sequence, bytes) = (record.sequence, record.bytes());
            let Some((header, _)) = Header::decode(record.data) else {
                tracing::error!(function = %running.name, sequence, "a parked event is not readable; it stays where it is");
                continue;
            };
            let place = header.place_of(sequence);
            let (due, spilled) = (now + header.remaining(now_ms), header.reason == Reason::Room);
            found.push((place, Entry { sequence, due, bytes, topic: header.topic, spilled, taken: false }));
        }
    }
}

pub(super) async fn run(inner: &Weak<Inner>, running: &Weak<Running>, wake: &Notify) {
    loop {
        let next = {
            let (Some(inner), Some(running)) = (inner.upgrade(), running.upgrade()) else { return };
            bring(&inner, &running).await
        };
        match next {
            Some(due) => drop(tokio::time::timeout_at(due, wake.notified()).await),
            None => wake.notified().await,
        }
    }
}

/// Brings back what is due and has room. When to look again; `None`: when there is reason to.
async fn bring(inner: &Arc<Inner>, running: &Arc<Running>) -> Option<Instant> {
    let parked = &running.parked;
    loop {
        if parked.paused.load(std::sync::atomic::Ordering::Acquire) {
            return None;
        }
        let now = inner.clock.instant();
        let next = parked.lock().index.next_due()?;
        if next > now {
            return Some(next);
        }
        if !running.queue.has_room() {
            parked.hungry.store(true, std::sync::atomic::Ordering::Release);
            // A worker that made room in between has not seen it.
            if !running.queue.has_room() {
                return None;
            }
        }
        let taken: Vec<_> = {
            let mut state = parked.lock();
            let taken: Vec<_> = std::iter::from_fn(|| state.index.take(now)).take(EVENTS_MAX).collect();
            if state.order == Order::Topic {
                for (_, entry) in taken.iter().filter(|(_, entry)| entry.topic != 0) {
                    state.lanes.takes(entry.topic);
                }
            }
            taken
        };
        let (journal, stream) = (Arc::clone(inner.outlets.journal()), parked.stream.clone());
        let read = crate::clock::aside(move || {
            let read = |(place, entry): (u64, Entry)| (place, entry, journal.read_one(&stream, entry.sequence));
            taken.into_iter().map(read).collect::<Vec<_>>()
        });
        match read.await {
            Ok(read) => {
                for (place, entry, record) in read {
                    bring_one(inner, running, place, entry, record);
                }
                parked.engage(&parked.lock());
            }
            Err(error) => tracing::error!(function = %running.name, %error, "parked events could not be read"),
        }
    }
}

fn bring_one(
    inner: &Arc<Inner>,
    running: &Arc<Running>,
    place: u64,
    entry: Entry,
    record: Result<Option<Record>, JournalError>,
) {
    let weak = Arc::downgrade(running);
    // Whatever becomes of it from here on, the entry hears.
    let receipt = Receipt::new(move |result| {
        if let Some(running) = weak.upgrade() {
            running.settled(place, entry.sequence, result);
        }
    });
    let ordered = entry.topic != 0 && running.parked.lock().order == Order::Topic;
    let turn = ordered.then(|| Turn::new(running, entry.topic));
    let item = match record {
        Ok(Some(record)) => item_of(inner, record),
        Ok(None) => {
            tracing::error!(function = %running.name, sequence = entry.sequence, "a parked event is lost: its record is gone");
            return receipt.keep();
        }
        Err(error) => {
            tracing::warn!(function = %running.name, %error, "a parked event cannot be read; trying again");
            return receipt.fail(error.to_string());
        }
    };
    let Some(mut item) = item else {
        tracing::error!(
            function = %running.name, sequence = entry.sequence, "a parked event is not readable; it stays where it is"
        );
        return receipt.keep();
    };
    item.reply = Reply::Receipt(receipt);
    item.topic = entry.topic;
    item.turn = turn;
    item.parked = Some(Place::new(running, entry.sequence, place));
    running.run(item);
}

fn item_of(inner: &Inner, record: Record) -> Option<Item> {
    let (header, event) = Header::decode(record.data)?;
    let event = Arc::new(Event::decode(event)?);
    let nobody = Reply::Receipt(Receipt::new(|_| ()));
    let mut item = Item::new(event, Delivery::AtLeastOnce, nobody, inner.clock.instant());
    item.attempt = header.attempt;
    item.age = header.age(inner.outlets.journal().age_ms());
    Some(item)
}
