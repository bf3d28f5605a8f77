//! Events on disk of functions that are not in service: they wait until the function is back, and no longer than it said.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Inner;
use super::dead_letter::DeadLetter;
use super::parked::Header;
use crate::event::Event;
use crate::journal::{Batch, Journal, JournalError, Record, RecordMeta};
use crate::name::{FunctionName, Own, StreamName};

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(60);
/// Events that are given up on in one commit.
const EVENTS_MAX: usize = 64;
const BYTES_MAX: usize = 1 << 20;

/// Gives up on those that are too old, as long as the dispatcher lives.
pub(super) async fn watch(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(inner) = inner.upgrade() else { return };
        for (function, _) in inner.orphans() {
            if let Err(error) = give_up(&inner, &function).await {
                tracing::warn!(%function, %error, "events of a function that is gone could not be looked at");
            }
        }
    }
}

/// Makes dead letters of the events of `function` that are too old.
pub(super) async fn give_up(inner: &Arc<Inner>, function: &FunctionName) -> Result<(), JournalError> {
    let removed = inner.removed().get(function).map(Arc::clone);
    // What it still runs is not given up on.
    if removed.as_ref().is_some_and(|running| !running.is_idle()) {
        return Ok(());
    }
    let stream = StreamName::own(Own::Parked, function.as_str());
    let mut after = 0;
    loop {
        let records = read(inner.outlets.journal(), &stream, after).await?;
        let Some(last) = records.last() else { return Ok(()) };
        after = last.sequence;
        let (now_ms, age_ms) = (inner.clock.now_ms(), inner.outlets.journal().age_ms());
        let (mut batch, mut places) = (Batch::default(), Vec::new());
        for record in records {
            let sequence = record.sequence;
            let Some((header, event)) = Header::decode(record.data) else { continue };
            let Some(event) = Event::decode(event).filter(|_| header.is_too_old(age_ms)) else { continue };
            let meta = RecordMeta { time_ms: now_ms, ..RecordMeta::default() };
            let letter = DeadLetter::of_parked(function, &event, &header).encode();
            batch.records.push((inner.outlets.dead_letters(), letter, meta));
            batch.done.push((stream.clone(), sequence));
            places.push((header.place_of(sequence), sequence));
        }
        if places.is_empty() {
            continue;
        }
        inner.outlets.journal().commit(batch).await?;
        if let Some(running) = &removed {
            running.parked.forget(&places);
        }
        let events = places.len();
        inner.metrics.function(function).dead_letters.inc_by(events as u64);
        tracing::warn!(%function, events, "events of a function that is gone are too old, and now dead letters");
    }
}

async fn read(journal: &Arc<Journal>, stream: &StreamName, after: u64) -> Result<Vec<Record>, JournalError> {
    let (journal, stream) = (Arc::clone(journal), stream.clone());
    let read = crate::clock::aside(move || journal.read(&stream, after, EVENTS_MAX, BYTES_MAX));
    read.await.map_err(|_| JournalError::Closed)?
}
