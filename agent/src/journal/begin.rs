//! Gives a batch its place: checks it against all limits and against what it read, gives out sequences and versions, and makes
//! its key-values visible. All of that under one lock, so that batches have one order.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;

use super::batch::{Batch, Committed, KeyValueRead};
use super::recovery::key_value_bytes;
use super::segment::{Fault, Segment};
use super::state::{Shared, State};
use super::{DEAD_LETTERS, JournalError, KeyValue};
use crate::buffer::age::Moment;
use crate::buffer::record::{self, Frame, KEY_BYTES_MAX, Record};
use crate::config::{Durability, WhenFull};
use crate::invocation::KeyValueWrite;
use crate::limits::Limits;
use crate::name::{FunctionName, StreamName};
use crate::units::ByteSize;

/// Latest sync of what nobody waits for: acknowledgements, and records that are done with.
pub(super) const LAZY_SYNC: Duration = Duration::from_secs(1);

/// A batch that has its place, for the writer.
pub(super) struct Begun {
    pub(super) records: Vec<(StreamName, Record)>,
    pub(super) moment: Moment,
    /// Each with its key in the segment and its version.
    pub(super) key_values: Vec<(Vec<u8>, u64, Frame)>,
    pub(super) done: Vec<(StreamName, u64)>,
    /// What it read that was not on disk yet, with the versions that must get there.
    pub(super) depends: Vec<(KeyValueRead, Vec<u64>)>,
    /// How soon it must be on disk.
    pub(super) within: Duration,
    pub(super) bytes: usize,
}

impl Begun {
    /// Keys and versions of what it writes.
    pub(super) fn writes(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.key_values.iter().map(|(key, version, _)| (key.as_slice(), *version))
    }
}

/// A key-value write that is within all limits.
struct Planned {
    function: FunctionName,
    bucket: Vec<u8>,
    key: Vec<u8>,
    bytes: u64,
    /// By how much it changes the function's total.
    change: i64,
    write: KeyValueWrite,
}

/// Checks `batch`; nothing has changed when that fails. `None` when there is nothing to write and nothing to wait for.
pub(super) fn begin(
    shared: &Shared,
    state: &mut State,
    batch: Batch,
) -> Result<(Option<Begun>, Committed), JournalError> {
    let bytes = batch.bytes();
    let depends = check_reads(shared, state, batch.reads)?;
    let mut within = check_records(state, &shared.limits, &batch.records)?;
    let key_values = plan_key_values(shared, state, batch.key_values)?;
    let writes = !(batch.records.is_empty() && key_values.is_empty() && batch.done.is_empty());
    if !writes && depends.is_empty() {
        return Ok((None, Committed::default()));
    }
    if !key_values.is_empty() || !depends.is_empty() {
        within = Duration::ZERO;
    }
    if batch.records.is_empty() || !batch.done.is_empty() {
        within = within.min(LAZY_SYNC);
    }

    let moment = state.ages.look(shared.reading());
    if !batch.records.is_empty() {
        state.ages.used(moment);
    }
    let mut committed = Committed::default();
    let mut records = Vec::with_capacity(batch.records.len());
    for (name, data, meta) in batch.records {
        let stream = state.streams.entry(name.clone()).or_default();
        stream.index.state.newest += 1;
        let sequence = stream.index.state.newest;
        let time_unknown = moment.run > 0;
        let time_ms = if time_unknown { moment.since_start_ms } else { meta.time_ms };
        let record = Record { sequence, time_ms, time_unknown, trace_parent: meta.trace_parent, data };
        stream.begun += 1;
        stream.begun_bytes += record.bytes();
        committed.sequences.push(sequence);
        records.push((name, record));
    }
    let key_values = key_values.into_iter().map(|planned| {
        let Planned {
            function,
            bucket,
            key,
            bytes,
            change,
            write: KeyValueWrite { bucket: name, key: key_name, value },
        } = planned;
        let version = state.overlay.write(bucket, key.clone(), value.clone(), bytes);
        let total = state.key_value_bytes.entry(function.clone()).or_default();
        *total = total.saturating_add_signed(change);
        (key, version, Frame::KeyValue { function, bucket: name, key: key_name, value, version })
    });
    let key_values = key_values.collect();
    state.begun += 1;
    Ok((Some(Begun { records, moment, key_values, done: batch.done, depends, within, bytes }), committed))
}

/// Whether everything that was read is still so. Returns what of it is not on disk yet.
fn check_reads(
    shared: &Shared,
    state: &State,
    reads: Vec<KeyValueRead>,
) -> Result<Vec<(KeyValueRead, Vec<u64>)>, JournalError> {
    let mut depends = Vec::new();
    for read in reads {
        let mut name = record::bucket_key(&read.function, &read.bucket);
        let (version, pending) = match &read.key {
            None => {
                let pending: Vec<u64> = state.overlay.in_bucket(&name).map(|(_, pending)| pending.version).collect();
                (state.overlay.bucket_version(&name), pending)
            }
            Some(key) => {
                name.extend_from_slice(key.as_bytes());
                match state.overlay.latest(&name) {
                    Some(pending) => (pending.version, vec![pending.version]),
                    None => (stored(&*shared.active()?, &name)?.0.version, Vec::new()),
                }
            }
        };
        if version != read.version {
            return Err(JournalError::conflict(read));
        }
        if !pending.is_empty() {
            depends.push((read, pending));
        }
    }
    Ok(depends)
}

/// Checks records against their streams' limits. Returns how soon they must be on disk.
fn check_records(
    state: &State,
    limits: &Limits,
    records: &[(StreamName, Bytes, super::RecordMeta)],
) -> Result<Duration, JournalError> {
    let mut appended: HashMap<&StreamName, u64> = HashMap::new();
    let mut within = Duration::MAX;
    for (name, data, _) in records {
        let config = state.config_of(name).ok_or_else(|| JournalError::UnknownStream(name.clone()))?;
        let bytes = data.len() as u64;
        let whole_events = name.is_own() || name.as_str() == DEAD_LETTERS;
        let record_max = if whole_events { limits.kept_bytes_max } else { limits.record_bytes_max };
        let max = ByteSize(record_max.0.min(config.max_bytes.0));
        if bytes > max.0 {
            return Err(JournalError::RecordTooLarge { stream: name.clone(), bytes, max });
        }
        let sum = appended.entry(name).or_default();
        *sum += bytes;
        let used = state.streams.get(name).map_or(0, super::state::Stream::bytes);
        if config.when_full == WhenFull::Reject && used + *sum > config.max_bytes.0 {
            return Err(JournalError::Full { stream: name.clone(), max: config.max_bytes });
        }
        within = within.min(match config.durability {
            Durability::Each => Duration::ZERO,
            Durability::Every(span) => span.0,
        });
    }
    Ok(within)
}

/// Checks key-value writes against their limits.
fn plan_key_values(
    shared: &Shared,
    state: &State,
    writes: Vec<(FunctionName, KeyValueWrite)>,
) -> Result<Vec<Planned>, JournalError> {
    if writes.is_empty() {
        return Ok(Vec::new());
    }
    let (limits, active) = (&shared.limits, shared.active()?);
    let mut planned: Vec<Planned> = Vec::new();
    for (function, write) in writes {
        let too_large = |bytes: usize, max: ByteSize| JournalError::KeyValueTooLarge {
            function: function.clone(),
            key: write.key.chars().take(64).collect(),
            bytes: bytes as u64,
            max,
        };
        let value_bytes = write.value.as_ref().map_or(0, Bytes::len);
        if value_bytes as u64 > limits.value_bytes_max.0 {
            return Err(too_large(value_bytes, limits.value_bytes_max));
        }
        if write.bucket.len() + write.key.len() > KEY_BYTES_MAX {
            return Err(too_large(write.bucket.len() + write.key.len(), ByteSize(KEY_BYTES_MAX as u64)));
        }
        let bytes = write.value.as_ref().map_or(0, |value| key_value_bytes(&write.bucket, &write.key, value));
        let bucket = record::bucket_key(&function, &write.bucket);
        let key = [&bucket, write.key.as_bytes()].concat();
        let earlier = planned.iter().rev().find(|other| other.key == key).map(|other| other.bytes);
        let earlier = earlier.or_else(|| state.overlay.latest(&key).map(|pending| pending.bytes));
        let before = match earlier {
            Some(bytes) => bytes,
            None => stored(&active, &key)?.1,
        };
        let change = bytes.cast_signed() - before.cast_signed();
        let changes: i64 = planned.iter().filter(|other| other.function == function).map(|other| other.change).sum();
        let total = state.key_value_bytes.get(&function).copied().unwrap_or(0).saturating_add_signed(changes + change);
        if change > 0 && total > limits.key_value_bytes_max.0 {
            return Err(JournalError::KeyValuesFull { function, bytes: total, max: limits.key_value_bytes_max });
        }
        planned.push(Planned { function, bucket, key, bytes, change, write });
    }
    Ok(planned)
}

/// What is on disk under `key`, and what that counts against its function's limit.
pub(super) fn stored(segment: &Segment, key: &[u8]) -> Result<(KeyValue, u64), JournalError> {
    read(segment, key).map_err(|fault| fault.about(&segment.dir))
}

fn read(segment: &Segment, key: &[u8]) -> Result<(KeyValue, u64), Fault> {
    let Some(bytes) = segment.get(key)? else { return Ok(Default::default()) };
    match record::decode(&bytes) {
        Ok((_, Frame::KeyValue { bucket, key, value, version, .. }, _)) => {
            let bytes = value.as_ref().map_or(0, |value| key_value_bytes(&bucket, &key, value));
            Ok((KeyValue { version, value }, bytes))
        }
        Ok(_) => Ok(Default::default()),
        Err(error) => Err(Fault::Damaged(format!("a key-value: {error}"))),
    }
}

/// Adds what key-values on their way change to what those on disk count.
pub(super) fn add_pending_bytes(state: &mut State, active: &Segment) -> Result<(), Fault> {
    let mut changes: BTreeMap<FunctionName, i64> = BTreeMap::new();
    for (key, pending) in state.overlay.keys() {
        let Some(function) = record::function_of(key) else { continue };
        let change = pending.bytes.cast_signed() - read(active, key)?.1.cast_signed();
        *changes.entry(function).or_default() += change;
    }
    for (function, change) in changes {
        let total = state.key_value_bytes.entry(function).or_default();
        *total = total.saturating_add_signed(change);
    }
    Ok(())
}

/// Takes writes that will never be on disk back out of what is visible and of what their functions count.
pub(super) fn drop_writes(state: &mut State, active: Option<&Segment>, begun: &Begun) {
    let bytes_of = |state: &State, key: &[u8]| match (state.overlay.latest(key), active) {
        (Some(pending), _) => pending.bytes,
        (None, Some(active)) => read(active, key).map_or(0, |(_, bytes)| bytes),
        (None, None) => 0,
    };
    let before: Vec<u64> = begun.writes().map(|(key, _)| bytes_of(state, key)).collect();
    state.overlay.dropped(begun.writes());
    // When the journal is to be opened anew, everything is counted then.
    if active.is_none() {
        return;
    }
    let mut seen: Vec<&[u8]> = Vec::new();
    for ((key, _), before) in begun.writes().zip(before) {
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let change = bytes_of(state, key).cast_signed() - before.cast_signed();
        if let Some(total) = record::function_of(key).and_then(|function| state.key_value_bytes.get_mut(&function)) {
            *total = total.saturating_add_signed(change);
        }
    }
}
