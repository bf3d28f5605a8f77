//! What a workload asked the journal to keep, when it was told that it is kept, and whether a journal that was opened later
//! still has it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tidegate::invocation::KeyValueWrite;
use tidegate::journal::{Batch, Journal, JournalError, KeyValueRead, Record, RecordMeta};
use tidegate::name::{FunctionName, StreamName};

/// The streams of a workload. The last one's durability is a time.
pub(crate) const STREAMS: [&str; 3] = ["first", "second", "lazy"];
pub(crate) const LAZY: usize = 2;
const BUCKET: &str = "b";

pub(crate) fn stream(index: usize) -> StreamName {
    StreamName::parse(STREAMS[index]).unwrap()
}

pub(crate) fn function() -> FunctionName {
    FunctionName::parse("mean").unwrap()
}

/// One batch: which streams it appends to, with how many bytes each, and which keys it writes or deletes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commit {
    pub(crate) records: Vec<(usize, usize)>,
    pub(crate) keys: Vec<(u8, bool)>,
    /// Records that it is done with, by stream and sequence. It has a record of its own then, which tells that it is there.
    pub(crate) done: Vec<(usize, u64, Place)>,
    pub(crate) reads: Vec<KeyValueRead>,
    /// From which moment on it may be there.
    pub(crate) asked_at: usize,
    /// What it read had changed: it must never be there.
    pub(crate) refused: bool,
    /// From which moment on nothing may lose it.
    pub(crate) durable_at: Option<usize>,
    /// It was refused: it may be there, or not.
    pub(crate) failed: bool,
}

/// Everything that was asked for, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) commits: Vec<Commit>,
    /// For each stream: up to which record the other side has everything, and when that was said.
    pub(crate) acks: Vec<(usize, Place, usize)>,
    /// Highest sequence that is known to have been given out, for each stream, and when it was durable.
    pub(crate) given: Vec<(usize, u64, usize)>,
}

/// A record: commit, and which of its records.
pub(crate) type Place = (usize, usize);

/// What the record at `place` holds: its place, and bytes that no other record has.
fn content((commit, n): Place, bytes: usize) -> Bytes {
    let mut text = format!("{commit} {n} ");
    let mut state = (commit as u32).wrapping_mul(2_654_435_761) ^ n as u32;
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        text.push(char::from(b'a' + (state % 26) as u8));
    }
    text.into()
}

fn place(record: &Record) -> Option<Place> {
    let text = std::str::from_utf8(&record.data).ok()?;
    let mut words = text.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// A value names its commit, and is as long as that says.
fn value(commit: usize) -> Bytes {
    format!("{commit} {}", "v".repeat(commit * 37 % 500)).into()
}

fn commit_of(value: &[u8]) -> Option<usize> {
    std::str::from_utf8(value).ok()?.split(' ').next()?.parse().ok()
}

impl Ledger {
    /// The batch of `commit`, which it enters.
    pub(crate) fn enter(&mut self, commit: Commit) -> Batch {
        let number = self.commits.len();
        let records = commit.records.iter().enumerate().map(|(n, (index, bytes))| {
            let meta = RecordMeta { time_ms: 1, trace_parent: None };
            (stream(*index), content((number, n), *bytes), meta)
        });
        let key_values = commit.keys.iter().map(|(key, exists)| {
            let value = exists.then(|| value(number));
            (function(), KeyValueWrite { bucket: BUCKET.into(), key: format!("key {key}"), value })
        });
        let batch = Batch {
            records: records.collect(),
            key_values: key_values.collect(),
            done: commit.done.iter().map(|(index, sequence, _)| (stream(*index), *sequence)).collect(),
            reads: commit.reads.clone(),
        };
        self.commits.push(commit);
        batch
    }

    /// What was entered of `index`, up to and with `place`, may be gone.
    pub(crate) fn ack(&mut self, index: usize, place: Place, moment: usize) {
        self.acks.push((index, place, moment));
    }

    /// Whether `journal`, opened on what a cut at `moment` left, has all that it must and nothing else.
    pub(crate) fn check(&self, journal: &Journal, moment: usize) -> Result<Found, String> {
        let mut present: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut found = Found::default();
        for (index, name) in STREAMS.into_iter().enumerate() {
            let records = read_all(journal, index)?;
            let mut before = (0, 0);
            let mut last = 0;
            for record in &records {
                let at = place(record).ok_or_else(|| format!("{}: invented {record:?}", name))?;
                let asked = self.commits.get(at.0).and_then(|commit| commit.records.get(at.1));
                let Some((_, bytes)) = asked.filter(|(of, _)| *of == index) else {
                    return Err(format!("{}: record {at:?} was never appended to it", name));
                };
                if record.data != content(at, *bytes) {
                    return Err(format!("{}: record {at:?} is not what was appended", name));
                }
                if record.sequence <= last || (last > 0 && at <= before) {
                    let (stream, sequence) = (name, record.sequence);
                    return Err(format!(
                        "{stream}: {at:?} with sequence {sequence} comes behind {before:?} with {last}"
                    ));
                }
                (before, last) = (at, record.sequence);
                present.entry(at.0).or_default().insert(at.1);
            }
            found.newest.push(newest(journal, index).max(last));
            found.records.push(records.iter().filter_map(|record| Some((record.sequence, place(record)?))).collect());
        }
        for (index, sequence, at) in &self.given {
            if *at <= moment && found.newest[*index] < *sequence {
                let (stream, newest) = (STREAMS[*index], found.newest[*index]);
                return Err(format!("{stream}: sequence {sequence} was given out, and {newest} is the newest"));
            }
        }
        for (number, commit) in self.commits.iter().enumerate().filter(|(number, _)| present.contains_key(number)) {
            if commit.refused {
                return Err(format!("batch {number} was refused, and is there"));
            }
            let there = |at: &Place| present.get(&at.0).is_some_and(|there| there.contains(&at.1));
            if let Some((index, sequence, at)) = commit.done.iter().find(|(.., at)| there(at)) {
                let stream = STREAMS[*index];
                return Err(format!("{stream}: batch {number} was done with {sequence} {at:?}, which is there"));
            }
        }
        let may_be_gone = |index: usize, at: Place| self.may_be_gone(index, at, moment, &present);
        // All of a batch, or nothing; and all of it when it was acknowledged.
        for (number, commit) in self.commits.iter().enumerate() {
            let durable = commit.durable_at.is_some_and(|at| at <= moment);
            let there = present.get(&number);
            for (n, (index, _)) in commit.records.iter().enumerate() {
                if there.is_some_and(|there| there.contains(&n)) || may_be_gone(*index, (number, n)) {
                    continue;
                }
                if durable {
                    return Err(format!("{}: record {:?} was acknowledged and is lost", STREAMS[*index], (number, n)));
                }
                if there.is_some() {
                    return Err(format!("batch {number} is there in part: record {n} is not"));
                }
            }
        }
        self.check_keys(journal, moment, &present)?;
        Ok(found)
    }

    /// Whether a record may be missing at `moment`: it was acknowledged, or a batch that may be there was done with it.
    fn may_be_gone(&self, index: usize, at: Place, moment: usize, present: &BTreeMap<usize, BTreeSet<usize>>) -> bool {
        let acked = |index: usize, at: Place| {
            self.acks.iter().any(|(of, up_to, when)| *of == index && at <= *up_to && *when <= moment)
        };
        let by = |at: Place| {
            let asked = self.commits.iter().enumerate().filter(move |(_, commit)| commit.asked_at <= moment);
            asked.filter(move |(_, commit)| commit.done.iter().any(|(.., done)| *done == at))
        };
        // Its own record tells whether it is there, unless that has gone, too.
        let may_be_there = |(number, commit): (usize, &Commit)| {
            let own = commit.records.first().map(|(index, _)| *index);
            present.contains_key(&number)
                || own.is_none_or(|index| acked(index, (number, 0)))
                || by((number, 0)).next().is_some()
        };
        acked(index, at) || by(at).any(may_be_there)
    }

    /// As it stands after a cut at `moment` that left `found`: what is there is durable, and what is not never was.
    pub(crate) fn survived(&self, moment: usize, found: &Found) -> Self {
        let mut ledger = self.clone();
        let present: BTreeSet<usize> = found.records.iter().flatten().map(|(_, at)| at.0).collect();
        ledger.acks.retain(|(.., when)| *when <= moment);
        ledger.acks.iter_mut().for_each(|(.., when)| *when = 0);
        for (number, commit) in ledger.commits.iter_mut().enumerate() {
            let durable = commit.durable_at.is_some_and(|at| at <= moment) || present.contains(&number);
            (commit.durable_at, commit.failed) = (durable.then_some(0), !durable);
            commit.asked_at = 0;
        }
        let newest = found.records.iter().map(|records| records.last().map_or(0, |(sequence, _)| *sequence));
        ledger.given = newest.enumerate().map(|(index, newest)| (index, newest, 0)).collect();
        ledger
    }

    fn check_keys(
        &self,
        journal: &Journal,
        moment: usize,
        present: &BTreeMap<usize, BTreeSet<usize>>,
    ) -> Result<(), String> {
        let keys: BTreeSet<u8> = self.commits.iter().flat_map(|commit| &commit.keys).map(|(key, _)| *key).collect();
        for key in keys {
            let name = format!("key {key}");
            let read = get(journal, &name)?;
            // The writes of this key that may be the one that is seen: not before the last one that is durable, and not
            // before one whose batch is there.
            let mut may = vec![None];
            for (number, commit) in self.commits.iter().enumerate() {
                let written = commit.keys.iter().rev().find(|(of, _)| *of == key);
                let Some((_, exists)) = written.filter(|_| !commit.refused) else { continue };
                if commit.durable_at.is_some_and(|at| at <= moment) || present.contains_key(&number) {
                    may.clear();
                }
                may.push(exists.then(|| value(number)));
            }
            if !may.contains(&read) {
                let commit = |value: &Option<Bytes>| value.as_deref().and_then(commit_of);
                let (read, may) = (commit(&read), may.iter().map(commit).collect::<Vec<_>>());
                return Err(format!("{name} is of batch {read:?}, and not of one of {may:?}"));
            }
            // What is seen belongs to a batch that is there as a whole.
            if let Some(read) = read
                && let Some(number) = commit_of(&read)
                && let Some(commit) = self.commits.get(number)
                && !present.contains_key(&number)
                && let records = commit.records.iter().enumerate()
                && let mut gone = records.map(|(n, (index, _))| self.may_be_gone(*index, (number, n), moment, present))
                && gone.any(|gone| !gone)
            {
                return Err(format!("{name} is of batch {number}, whose records are not there"));
            }
        }
        Ok(())
    }
}

/// What a journal has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Highest sequence of each stream.
    pub(crate) newest: Vec<u64>,
    /// Sequence and place of all records of each stream.
    pub(crate) records: Vec<Vec<(u64, Place)>>,
}

fn newest(journal: &Journal, index: usize) -> u64 {
    let name = stream(index);
    journal.status().into_iter().find(|status| status.name == name).map_or(0, |status| status.newest_sequence)
}

/// All records of a stream.
fn read_all(journal: &Journal, index: usize) -> Result<Vec<Record>, String> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let after = records.last().map_or(0, |record| record.sequence);
        let more = patiently(STREAMS[index], || journal.read(&stream(index), after, 1000, 1 << 20))?;
        if more.is_empty() {
            return Ok(records);
        }
        records.extend(more);
    }
}

fn get(journal: &Journal, key: &str) -> Result<Option<Bytes>, String> {
    patiently(key, || journal.key_value_get(&function(), BUCKET, key)).map(|read| read.value)
}

/// What an invocation that reads `key` now remembers of it.
pub(crate) fn read(journal: &Journal, key: u8) -> Result<KeyValueRead, String> {
    let (function, key) = (function(), format!("key {key}"));
    let version = patiently(&key, || journal.key_value_get(&function, BUCKET, &key))?.version;
    Ok(KeyValueRead { function, bucket: BUCKET.to_owned(), key: Some(key), version })
}

/// Asks again while something is being mended behind the scenes.
fn patiently<T>(what: &str, mut ask: impl FnMut() -> Result<T, JournalError>) -> Result<T, String> {
    let mut answer = ask();
    for _ in 0..200 {
        if answer.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        answer = ask();
    }
    answer.map_err(|error| format!("{what} cannot be read: {error}"))
}
