//! Events on disk of functions that are not in service: they wait until the function is back, and no longer than it said.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Inner;
use super::dead_letter::DeadLetter;
use super::parked::Header;
use crate::event::Event;
use crate::journal::{Batch, Journal, JournalError, Record, RecordMeta};
use crate::name::{FunctionName, Own, StreamName};
use crate::trigger::window;

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
        for what in [Own::Parked, Own::Window] {
            for (function, _) in inner.orphans(what) {
                if let Err(error) = give_up(&inner, &function, what).await {
                    tracing::warn!(%function, %error, "events of a function that is gone could not be looked at");
                }
            }
        }
    }
}

/// Makes dead letters of what `function` has of `what` and is too old.
pub(super) async fn give_up(inner: &Arc<Inner>, function: &FunctionName, what: Own) -> Result<(), JournalError> {
    let removed = inner.removed().get(function).map(Arc::clone);
    // What it still runs is not given up on.
    if removed.as_ref().is_some_and(|running| !running.is_idle()) {
        return Ok(());
    }
    let stream = StreamName::own(what, function.as_str());
    let mut after = 0;
    loop {
        let records = read(inner.outlets.journal(), &stream, after).await?;
        let Some(last) = records.last() else { return Ok(()) };
        after = last.sequence;
        let given_up = match what {
            Own::Window => windowed(inner, function, records),
            _ => parked(inner, function, records),
        };
        if given_up.is_empty() {
            continue;
        }
        let (mut batch, mut places) = (Batch::default(), Vec::new());
        for GivenUp { letter, records } in given_up {
            let meta = RecordMeta { time_ms: inner.clock.now_ms(), ..RecordMeta::default() };
            batch.records.push((inner.outlets.dead_letters(), letter.encode(), meta));
            batch.done.extend(records.iter().map(|(_, sequence)| (stream.clone(), *sequence)));
            places.extend(records);
        }
        let events = batch.records.len();
        inner.outlets.journal().commit(batch).await?;
        if what == Own::Parked
            && let Some(running) = &removed
        {
            running.parked.forget(&places);
        }
        inner.metrics.function(function).dead_letters.inc_by(events as u64);
        tracing::warn!(%function, events, "events of a function that is gone are too old, and now dead letters");
    }
}

/// What is given up on, and the places and sequences of its records.
struct GivenUp {
    letter: DeadLetter,
    records: Vec<(u64, u64)>,
}

fn parked(inner: &Inner, function: &FunctionName, records: Vec<Record>) -> Vec<GivenUp> {
    let age_ms = inner.outlets.journal().age_ms();
    let given_up = records.into_iter().filter_map(|record| {
        let sequence = record.sequence;
        let (header, event) = Header::decode(record.data)?;
        let event = Event::decode(event).filter(|_| header.is_too_old(age_ms))?;
        let letter = DeadLetter::of_unclaimed(function, &event, header.why(), header.attempts());
        Some(GivenUp { letter, records: vec![(header.place_of(sequence), sequence)] })
    });
    given_up.collect()
}

/// Those that wait for their windows: as windows, so that the function that is back gets what it knows.
fn windowed(inner: &Inner, function: &FunctionName, records: Vec<Record>) -> Vec<GivenUp> {
    let age_ms = inner.outlets.journal().age_ms().saturating_sub(inner.limits.windowed_age_max.millis());
    let windows = window::overdue(function, records, age_ms, (&inner.limits, inner.clock.now_ms()));
    let given_up = windows.into_iter().map(|(event, sequences)| {
        let letter = DeadLetter::of_unclaimed(function, &event, "its events waited for their window", 0);
        GivenUp { letter, records: sequences.into_iter().map(|sequence| (sequence, sequence)).collect() }
    });
    given_up.collect()
}

async fn read(journal: &Arc<Journal>, stream: &StreamName, after: u64) -> Result<Vec<Record>, JournalError> {
    let (journal, stream) = (Arc::clone(journal), stream.clone());
    let read = crate::clock::aside(move || journal.read(&stream, after, EVENTS_MAX, BYTES_MAX));
    read.await.map_err(|_| JournalError::Closed)?
}
