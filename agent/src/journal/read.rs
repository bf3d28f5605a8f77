//! Reading what was committed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::MutexGuard;

use super::batch::KeyValue;
use super::begin::stored;
use super::segment::{Fault, Segment};
use super::state::{State, Stream};
use super::writer::Job;
use super::{Journal, JournalError, Record};
use crate::buffer::record::{self, Block, Frame};
use crate::name::{FunctionName, StreamName};

/// Key-values.
impl Journal {
    /// What a key holds, as the next batch will find it: writes that were begun count.
    ///
    /// # Errors
    /// When the disk is in the way, or the value is damaged.
    pub fn key_value_get(&self, function: &FunctionName, bucket: &str, key: &str) -> Result<KeyValue, JournalError> {
        let mut name = record::bucket_key(function, bucket);
        name.extend_from_slice(key.as_bytes());
        if let Some(pending) = self.shared.state().overlay.latest(&name) {
            return Ok(pending.into());
        }
        Ok(stored(&*self.shared.active()?, &name)?.0)
    }

    /// The version of a bucket, which differs after each write to it, and its keys in order.
    ///
    /// # Errors
    /// When the disk is in the way.
    pub fn key_value_keys(&self, function: &FunctionName, bucket: &str) -> Result<(u64, Vec<String>), JournalError> {
        let prefix = record::bucket_key(function, bucket);
        // The version first: when a write comes between, it belongs to the keys of before, and the batch is refused.
        let (version, pending) = {
            let state = self.shared.state();
            let pending = state.overlay.in_bucket(&prefix).filter_map(|(key, pending)| {
                let key = String::from_utf8(key[prefix.len()..].to_vec()).ok()?;
                Some((key, pending.value.is_some()))
            });
            (state.overlay.bucket_version(&prefix), pending.collect::<Vec<_>>())
        };
        let segment = self.shared.active()?;
        let mut keys = BTreeMap::new();
        let visited = segment.each(&prefix, |_, frame| {
            if let Frame::KeyValue { key, value, .. } = frame {
                keys.insert(key, value.is_some());
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|fault| fault.about(&segment.dir))?;
        keys.extend(pending);
        Ok((version, keys.into_iter().filter(|(_, exists)| *exists).map(|(key, _)| key).collect()))
    }
}

/// Where the next records to read are.
struct Place {
    segment: u64,
    first: u64,
    last: u64,
}

/// Records.
impl Journal {
    /// The record at `sequence`; `None` when it is done with, dropped, not on disk yet or was never there. Reads the disk,
    /// so call it where blocking is fine.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn read_one(&self, stream: &StreamName, sequence: u64) -> Result<Option<Record>, JournalError> {
        let is_there = |stream: &Stream| sequence <= stream.index.durable && stream.index.is_live(sequence);
        if !self.certain(stream)?.streams.get(stream).is_some_and(is_there) {
            return Ok(None);
        }
        let records = self.read(stream, sequence - 1, 1, usize::MAX)?;
        Ok(records.into_iter().next().filter(|record| record.sequence == sequence))
    }

    /// Records of `stream` that are on disk, come after sequence `after` and are not done with: up to `records_max` and
    /// about `bytes_max`, at least one when there is one. Reads the disk, so call it where blocking is fine.
    ///
    /// # Errors
    /// When the disk is in the way, or the segment is damaged; the latter is mended behind the scenes, so try again.
    pub fn read(
        &self,
        stream: &StreamName,
        after: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, JournalError> {
        drop(self.certain(stream)?);
        let mut records: Vec<Record> = Vec::new();
        let mut kept_bytes = 0_usize;
        let mut next = after.saturating_add(1);
        let mut gone = None;
        while records.len() < records_max && kept_bytes < bytes_max {
            let Some(place) = self.place(stream, next) else { break };
            let (mut found, mut runs, mut bytes) = (Vec::new(), Vec::new(), kept_bytes);
            let read = self.shared.segment(place.segment).and_then(|segment| {
                let Some(segment) = segment else { return Ok(None) };
                let visit = |block: Block| {
                    block.records.into_iter().filter(|record| record.sequence >= place.first).try_for_each(|record| {
                        if record.sequence > place.last {
                            return ControlFlow::Break(());
                        }
                        bytes += record.data.len();
                        found.push(record);
                        runs.push(block.run);
                        if records.len() + found.len() >= records_max || bytes >= bytes_max {
                            return ControlFlow::Break(());
                        }
                        ControlFlow::Continue(())
                    })
                };
                segment.blocks_from(stream, place.first, visit).map(Some)
            });
            let damaged = match read {
                // Deleted between the look-up and the opening: whatever it held is no longer needed, or elsewhere.
                Ok(None) if gone != Some(place.segment) => {
                    gone = Some(place.segment);
                    continue;
                }
                Ok(damaged) => damaged.is_none_or(|damaged| damaged > 0),
                Err(fault) => {
                    if let Fault::Damaged(why) = &fault {
                        self.report_damage(place.segment, why);
                    }
                    return Err(fault.about(&Segment::dir(&self.shared.dir, place.segment)));
                }
            };
            let full = records.len() + found.len() >= records_max || bytes >= bytes_max;
            let reached = found.last().filter(|_| full).map_or(place.last, |record| record.sequence);
            if damaged || self.misses_any(stream, &place, &found, reached) {
                self.report_damage(place.segment, "records are missing in it");
                let why = format!("records {} to {} of stream `{stream}` are damaged", place.first, place.last);
                return Err(JournalError::Storage { path: Segment::dir(&self.shared.dir, place.segment), why });
            }
            self.tell_times(&mut found, &runs);
            self.leave_out_done(stream, &mut found);
            kept_bytes += found.iter().map(|record| record.data.len()).sum::<usize>();
            records.append(&mut found);
            next = reached.saturating_add(1);
        }
        Ok(records)
    }

    /// The state, when what it says of `stream` is what will be found on disk.
    fn certain(&self, stream: &StreamName) -> Result<MutexGuard<'_, State>, JournalError> {
        let state = self.shared.state();
        if state.streams.get(stream).is_some_and(|stream| stream.in_doubt) {
            return Err(JournalError::repairing(&self.shared.dir));
        }
        Ok(state)
    }

    fn place(&self, stream: &StreamName, next: u64) -> Option<Place> {
        let state = self.shared.state();
        let index = &state.streams.get(stream)?.index;
        let (piece, segment) = index.at(next.max(index.state.floor + 1))?;
        let (first, last) = (piece.first.max(next), piece.last.min(index.durable));
        (first <= last).then_some(Place { segment, first, last })
    }

    /// Whether a record of `place` up to `reached` is still needed and was not found.
    fn misses_any(&self, stream: &StreamName, place: &Place, found: &[Record], reached: u64) -> bool {
        let whole = reached - place.first + 1;
        if found.iter().filter(|record| record.sequence <= reached).count() as u64 == whole {
            return false;
        }
        let state = self.shared.state();
        let Some(index) = state.streams.get(stream).map(|stream| &stream.index) else { return false };
        let mut before = place.first - 1;
        let ends = found.iter().map(|record| record.sequence).chain([reached + 1]);
        ends.into_iter().any(|sequence| index.needs_any_between(std::mem::replace(&mut before, sequence), sequence))
    }

    /// Corrects the times of records that were made before the clock was set, if it has been since.
    fn tell_times(&self, records: &mut [Record], runs: &[u64]) {
        if runs.iter().all(|run| *run == 0) {
            return;
        }
        let state = self.shared.state();
        for (record, run) in records.iter_mut().zip(runs).filter(|(_, run)| **run > 0) {
            if let Some(time_ms) = state.ages.time_of(*run, record.time_ms) {
                record.time_ms = time_ms;
                record.time_unknown = false;
            }
        }
    }

    fn leave_out_done(&self, stream: &StreamName, records: &mut Vec<Record>) {
        let state = self.shared.state();
        if let Some(index) = state.streams.get(stream).map(|stream| &stream.index) {
            records.retain(|record| !index.done_ranges().contains(record.sequence));
        }
    }

    fn report_damage(&self, segment: u64, why: &str) {
        if let Some(jobs) = &self.jobs {
            // A writer that is gone has nothing to mend.
            let _ = jobs.send(Job::Damaged { segment, why: why.to_owned() });
        }
    }
}
