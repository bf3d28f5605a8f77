//! What the writer does about failures and damage.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::JournalError;
use super::begin::LAZY_SYNC;
use super::group::{Group, sort_out};
use super::recovery::{self, piece_of};
use super::reserve::explain;
use super::salvage::whole_commits;
use super::segment::{Fault, Segment};
use super::state::{Damage, State};
use super::writer::{TICK, Writer};
use crate::buffer::ranges::Ranges;
use crate::buffer::record::Frame;
use crate::name::StreamName;

/// Acknowledgements, and records that are done with, that were answered before they were on disk for sure.
#[derive(Default)]
pub(super) struct Owed {
    acked: BTreeMap<StreamName, u64>,
    done: BTreeMap<StreamName, Ranges>,
}

impl Owed {
    pub(super) fn add(&mut self, group: &Group) {
        self.acked.extend(group.acked.iter().map(|(name, up_to)| (name.clone(), *up_to)));
        for (name, ranges) in &group.done {
            let done = self.done.entry(name.clone()).or_default();
            ranges.iter().for_each(|(first, last)| done.insert(first, last));
        }
    }

    /// Does it again on what was found on disk.
    fn settle(self, state: &mut State, group: &mut Group) {
        for (name, up_to) in self.acked {
            if state.streams.get_mut(&name).is_some_and(|stream| stream.index.ack(up_to)) {
                group.touched.insert(name);
            }
        }
        for (name, ranges) in self.done {
            let Some(stream) = state.streams.get_mut(&name) else { continue };
            let news = stream.index.done(ranges.iter().flat_map(|(first, last)| first..=last));
            if !news.is_empty() {
                group.done.insert(name, news);
            }
        }
        group.sync_within(LAZY_SYNC);
    }
}

impl Writer {
    /// Notes that the active segment failed, and takes it away: what is in memory of it may not be on disk. It is opened
    /// anew before the next write.
    pub(super) fn failed(&mut self, fault: Fault, segment: &Segment) -> JournalError {
        self.sync_by = None;
        self.use_segment(None);
        let now = self.shared.clock.instant();
        self.repair_at.get_or_insert(now);
        let (Fault::Machine(why) | Fault::Damaged(why)) = fault;
        let why = explain(&segment.dir, why);
        self.reserve.release_if_full(now);
        JournalError::Storage { path: segment.dir.clone(), why }
    }

    /// Opens the journal anew if that is due, so that reads go on when nothing is written.
    pub(super) fn repair_in_time(&mut self) {
        if self.repair_at.is_some_and(|at| at <= self.shared.clock.instant())
            && let Err(error) = self.repair()
        {
            tracing::error!(%error, "the journal could not be opened anew");
        }
    }

    /// The segment to write to. With `adds`, what is to be written takes more space, for which there must be room.
    pub(super) fn usable(&mut self, adds: bool) -> Result<Arc<Segment>, JournalError> {
        self.repair()?;
        if let Some(why) = self.reserve.refusal().filter(|_| adds) {
            return Err(JournalError::Storage { path: self.shared.dir.clone(), why });
        }
        self.active.clone().ok_or(JournalError::Closed)
    }

    /// Opens the journal anew if it failed, at most once a tick.
    pub(super) fn repair(&mut self) -> Result<(), JournalError> {
        let Some(at) = self.repair_at else { return Ok(()) };
        let now = self.shared.clock.instant();
        if now < at {
            return Err(JournalError::repairing(&self.shared.dir));
        }
        self.repair_at = Some(now + TICK);
        self.use_segment(None);
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut config = self.shared.state().config.clone();
        config.extend(self.shared.state().own.clone());
        let opened = recovery::open(&self.shared.dir, &config, self.shared.clock.now_ms());
        let opened = opened.inspect_err(|_| {
            self.reserve.release_if_full(now);
        })?;
        self.revision = opened.revision.max(self.revision);
        let active = Arc::clone(&opened.active);
        let adopted = self.shared.state().adopt(opened, self.shared.reading());
        adopted.map_err(|fault| fault.about(&active.dir))?;
        self.use_segment(Some(active));
        self.repair_at = None;
        std::mem::take(&mut self.owed).settle(&mut self.shared.state(), &mut self.again);
        tracing::warn!(journal = %self.shared.dir.display(), "the journal was opened anew after a failure");
        Ok(())
    }

    /// Sets a damaged segment aside and brings what can be read of it into the active one.
    pub(super) fn mend(&mut self, segment: u64, why: &str) {
        if self.active.as_ref().is_none_or(|active| active.id == segment) {
            self.repair_at.get_or_insert_with(|| self.shared.clock.instant());
            return;
        }
        if !self.shared.state().segments.contains_key(&segment) {
            return;
        }
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).retain(|reader| reader.id != segment);
        let dir = Segment::dir(&self.shared.dir, segment);
        let salvaged = match whole_commits(&dir, segment, self.synced) {
            Ok(salvaged) => salvaged,
            Err(error) => {
                tracing::error!(folder = %dir.display(), %error, "a damaged segment could not be read");
                return;
            }
        };
        let mut damage = Damage::default();
        let Some(active) = self.active.clone() else { return };
        let mut group = Group::default();
        let mut state = self.shared.state();
        state.segments.remove(&segment);
        let names: Vec<StreamName> = state.streams.keys().cloned().collect();
        for name in names {
            if let Some(stream) = state.streams.get_mut(&name)
                && stream.index.lose(segment) > 0
            {
                group.touched.insert(name);
            }
        }
        let blocks = salvaged.into_iter().filter_map(|(_, frame)| match frame {
            Frame::Block(block) => Some(block),
            _ => None,
        });
        let needed = sort_out(blocks.collect(), |stream, sequence| {
            state.streams.get(stream).is_some_and(|stream| stream.index.lacks(sequence))
        });
        for block in needed {
            let index = &mut state.streams.entry(block.stream.clone()).or_default().index;
            index.found(piece_of(&block), active.id);
            let found = block.records.len() as u64;
            index.state.lost = index.state.lost.saturating_sub(found);
            damage.salvaged += found;
            group.blocks.push(block);
        }
        drop(state);
        group.sync_within(Duration::ZERO);
        self.write(group);
        // Only now: what was brought out of it is on disk elsewhere. If that failed, the next opening finds it as it was.
        if self.repair_at.is_none() {
            damage.set_aside(&dir, why, self.shared.clock.now_ms());
        }
        self.shared.state().damage.add(damage);
    }
}
