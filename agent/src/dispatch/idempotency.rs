//! `idempotency = { key = ["topic", "/seq"], window = "10m" }`: an event with a key that was dealt with is not run again.
//!
//! # Promises
//! - A key counts as dealt with when the effects of its event are safe, in the same commit; never because of a failure.
//! - Two events with one key never run at the same time: the second waits until it is known how the first ended.
//! - What was dealt with is known after a restart, and for `window` after.
//!
//! # On disk
//! The stream `~seen.FUNCTION`, whose records are the keys; `max_age` is the window.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::Running;
use super::item::Item;
use crate::clock::Clock;
use crate::config::function::IdempotencyConfig;
use crate::config::{StreamConfig, WhenFull};
use crate::event::{Event, Opened};
use crate::journal::{Batch, Journal, RecordMeta};
use crate::limits::Limits;
use crate::name::{FunctionName, Own, StreamName};
use crate::units::ByteSize;

/// What a record of one key counts against its stream's budget, and as much again for what comes between two looks at the age.
const RECORD_BYTES: u64 = 80;
/// Records that are read at once.
const READ_RECORDS: usize = 4_096;

/// A hash of all parts of the key.
pub(super) type Key = [u8; 16];

/// The key of `event`.
///
/// # Errors
/// With the part that it does not have.
pub(super) fn key_of(config: &IdempotencyConfig, event: &Event) -> Result<Key, String> {
    let mut hash = Sha256::new();
    let event = Opened::new(event);
    for part in &config.key {
        let found = event.part(part);
        let found =
            found.map_err(|error| format!("`idempotency.key` needs `{part}`, and the payload is no JSON: {error}"))?;
        let found = found.ok_or_else(|| format!("`idempotency.key` needs `{part}`, which the event does not have"))?;
        hash.update((found.len() as u64).to_le_bytes());
        hash.update(&found);
    }
    let digest = hash.finalize();
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    Ok(key)
}

enum Known {
    /// Its event runs; these wait for it.
    InFlight(Vec<Item>),
    Done,
}

#[derive(Default)]
struct Keys {
    known: HashMap<Key, Known>,
    /// In the order in which they were dealt with.
    done: VecDeque<(Key, Instant)>,
}

impl Keys {
    /// `key` was dealt with at `at`.
    fn finish(&mut self, key: Key, at: Instant, keys_max: usize) -> Vec<Item> {
        let waiting = match self.known.insert(key, Known::Done) {
            Some(Known::InFlight(waiting)) => waiting,
            _ => Vec::new(),
        };
        self.done.push_back((key, at));
        while self.done.len() > keys_max {
            self.forget_oldest();
        }
        waiting
    }

    fn expire(&mut self, now: Instant, window: Duration) {
        while self.done.front().is_some_and(|(_, at)| now.duration_since(*at) >= window) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((key, _)) = self.done.pop_front()
            && matches!(self.known.get(&key), Some(Known::Done))
        {
            self.known.remove(&key);
        }
    }
}

/// What is known of the keys of one function.
pub(super) struct Seen {
    stream: StreamName,
    keys: Mutex<Keys>,
    keys_max: usize,
    loaded: OnceCell<()>,
}

/// What becomes of an event with a key.
pub(super) enum Claimed {
    /// It is to run; the claim makes others wait.
    Runs(Item),
    /// It was taken aside until it is known how another one ends.
    Waits,
    /// It was dealt with before.
    Duplicate(Item),
}

impl Seen {
    pub(super) fn new(function: &FunctionName, limits: &Limits) -> Self {
        let stream = StreamName::own(Own::Seen, function.as_str());
        Self { stream, keys: Mutex::default(), keys_max: limits.seen_keys_max, loaded: OnceCell::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the journal keep the keys for `window`.
    pub(super) fn configure(&self, journal: &Journal, config: &IdempotencyConfig) {
        let max_bytes = ByteSize(self.keys_max as u64 * RECORD_BYTES);
        let max_age = Some(config.window);
        let config = StreamConfig { max_bytes, max_age, when_full: WhenFull::DropOldest, ..StreamConfig::default() };
        journal.own_stream(self.stream.clone(), config);
    }

    /// Reads what was dealt with before this start; once, before the first event.
    ///
    /// # Errors
    /// When the disk is in the way; then nothing can be known, and nothing may run.
    pub(super) async fn load(&self, journal: &Arc<Journal>, clock: &Clock) -> Result<(), String> {
        let load = async {
            let (from, stream, keys_max) = (Arc::clone(journal), self.stream.clone(), self.keys_max);
            let read = crate::clock::aside(move || read(&from, &stream, keys_max));
            let records = read.await.map_err(|error| error.to_string())??;
            let (now, now_ms) = (clock.instant(), journal.age_ms());
            let mut keys = self.lock();
            for (key, done_ms) in records {
                let age = Duration::from_millis(now_ms.saturating_sub(done_ms));
                keys.finish(key, now.checked_sub(age).unwrap_or(now), self.keys_max);
            }
            Ok::<(), String>(())
        };
        self.loaded.get_or_try_init(|| load).await.map(|&()| ())
    }

    /// Sees whether an event with `key` is to run, `at` this time: also by the journal's own clock, in milliseconds.
    pub(super) fn claim(
        &self,
        running: &Arc<Running>,
        mut item: Item,
        key: Key,
        window: Duration,
        at: (Instant, u64),
    ) -> Claimed {
        let mut keys = self.lock();
        keys.expire(at.0, window);
        match keys.known.get_mut(&key) {
            Some(Known::Done) => Claimed::Duplicate(item),
            Some(Known::InFlight(waiting)) => {
                waiting.push(item);
                Claimed::Waits
            }
            None => {
                keys.known.insert(key, Known::InFlight(Vec::new()));
                drop(keys);
                item.claim = Some(Claim { running: Arc::clone(running), key, at, succeeded: false });
                Claimed::Runs(item)
            }
        }
    }
}

/// A key, and when it was dealt with by the journal's own clock: setting the wall clock ends no window.
fn decode(data: &[u8]) -> Option<(Key, u64)> {
    let (key, done_ms) = data.split_at_checked(size_of::<Key>())?;
    Some((key.try_into().ok()?, u64::from_le_bytes(done_ms.try_into().ok()?)))
}

fn read(journal: &Journal, stream: &StreamName, keys_max: usize) -> Result<Vec<(Key, u64)>, String> {
    let mut found = VecDeque::new();
    let mut after = 0;
    loop {
        let records = journal.read(stream, after, READ_RECORDS, usize::MAX).map_err(|error| error.to_string())?;
        let Some(last) = records.last() else { return Ok(found.into()) };
        after = last.sequence;
        for record in records {
            found.extend(decode(&record.data));
        }
        while found.len() > keys_max {
            found.pop_front();
        }
    }
}

/// The right to run the event with a key. When it goes, those that wait hear how it ended.
pub(super) struct Claim {
    running: Arc<Running>,
    key: Key,
    at: (Instant, u64),
    succeeded: bool,
}

impl Claim {
    /// Marks the key as dealt with, together with the effects of its event.
    pub(super) fn mark_in(&self, batch: &mut Batch) {
        let data = [&self.key[..], &self.at.1.to_le_bytes()].concat();
        batch.records.push((self.running.seen.stream.clone(), Bytes::from(data), RecordMeta::default()));
    }

    /// The mark, and all effects, are safe.
    pub(super) fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let seen = &self.running.seen;
        let waiting = {
            let mut keys = seen.lock();
            if self.succeeded {
                keys.finish(self.key, self.at.0, seen.keys_max)
            } else {
                match keys.known.remove(&self.key) {
                    Some(Known::InFlight(waiting)) => waiting,
                    _ => Vec::new(),
                }
            }
        };
        // Each claims anew: duplicates now, or the next of them runs.
        for item in waiting {
            self.running.run(item);
        }
    }
}
