//! What the writer no longer keeps: records over a limit, and segments of which nothing is needed.

use std::collections::BTreeMap;

use super::DEAD_LETTERS;
use super::begin::LAZY_SYNC;
use super::group::Group;
use super::keeper::Task;
use super::state::{State, Stream};
use super::writer::Writer;
use crate::config::StreamConfig;
use crate::name::StreamName;

/// A sealed segment with less than this part of it still needed is copied forward.
const SPARSE: u64 = 2;

impl Writer {
    /// Drops what is over a limit: first of each stream, then of all together. Of the latter the records of the lowest priority go
    /// first, the oldest of them before the others; dead letters and what the agent keeps for itself go last.
    pub(super) fn retain(&mut self, group: &mut Group) {
        let mut state = self.shared.state();
        let now_ms = state.ages.look(self.shared.reading()).age_ms;
        if state.ages.take_news() {
            group.clock = true;
            group.sync_within(LAZY_SYNC);
        }
        let State { config, own, streams, key_value_bytes, bytes_max, .. } = &mut *state;
        let default = StreamConfig::default();
        let mut ranks: BTreeMap<StreamName, (bool, bool, u8)> = BTreeMap::new();
        for (name, stream) in streams.iter_mut() {
            // One of the agent's own that nobody has set up yet is not ours to cut.
            let default = (!name.is_own()).then_some(&default);
            let Some(config) = config.get(name).or_else(|| own.get(name)).or(default) else { continue };
            ranks.insert(name.clone(), (name.is_own(), name.as_str() == DEAD_LETTERS, config.priority));
            if stream.index.expire(config, now_ms) | stream.index.shrink(config) {
                group.touched.insert(name.clone());
            }
        }
        let values: u64 = key_value_bytes.values().sum();
        let mut used = values + streams.values().map(Stream::bytes).sum::<u64>();
        while used > *bytes_max {
            let with_records = streams.iter_mut().filter(|(_, stream)| stream.index.bytes > 0);
            let least = with_records.min_by_key(|(name, stream)| {
                let rank = ranks.get(*name).copied().unwrap_or((true, true, u8::MAX));
                (rank, stream.index.pieces().next().map_or(0, |(piece, _)| piece.oldest_age_ms))
            });
            let Some((name, stream)) = least else { break };
            used -= stream.index.drop_first().min(used);
            group.touched.insert(name.clone());
        }
        if !group.touched.is_empty() {
            group.sync_within(LAZY_SYNC);
            self.freed = true;
        }
    }

    /// Gives back segments that nobody needs, and has the keeper empty one that few need.
    pub(super) fn reclaim(&mut self) {
        let Some(active) = self.active.clone() else { return };
        if !std::mem::take(&mut self.freed) {
            return;
        }
        let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
        let mut state = self.shared.state();
        for (piece, segment) in state.streams.values().flat_map(|stream| stream.index.pieces()) {
            *needed.entry(*segment).or_default() += piece.bytes;
        }
        let sealed: Vec<(u64, u64)> =
            state.segments.iter().filter(|(id, _)| **id != active.id).map(|(id, written)| (*id, *written)).collect();
        let mut sparse = None;
        let mut gone = Vec::new();
        for (id, written) in sealed {
            match needed.get(&id) {
                None => gone.push(id),
                Some(needed) if needed * SPARSE < written => sparse = sparse.or(Some(id)),
                Some(_) => {}
            }
        }
        // Acknowledgements must be on disk before what they cover goes, or the records would count as lost after a crash.
        if gone.is_empty() && sparse.is_none() {
            return;
        }
        if self.sync_by.is_some() {
            drop(state);
            self.freed = true;
            self.sync_now();
            if self.sync_by.is_none() && self.active.as_ref().is_some_and(|now| now.id == active.id) {
                self.reclaim();
            }
            return;
        }
        state.segments.retain(|id, _| !gone.contains(id));
        let carry = sparse.filter(|_| self.carrying.is_none()).map(|from| {
            let streams = state.streams.iter();
            let pieces = streams.flat_map(|(name, stream)| {
                stream.index.pieces().filter(|(_, segment)| *segment == from).map(|(piece, _)| (name.clone(), *piece))
            });
            Task::Carry { from, pieces: pieces.collect() }
        });
        drop(state);
        for id in gone {
            match self.shared.retire(id) {
                Ok(path) => self.keeper.ask(Task::Delete(path)),
                Err(error) => tracing::warn!(segment = id, %error, "an empty segment could not be deleted"),
            }
        }
        if let Some(Task::Carry { from, pieces }) = carry {
            self.carrying = Some(from);
            self.keeper.ask(Task::Carry { from, pieces });
        }
    }
}
