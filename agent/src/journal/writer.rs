//! The thread that writes. Whatever waits when it looks becomes one group: one database transaction, one sync.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::group::{Done, Group, plan_key_values};
use super::keeper::{Keeper, Task};
use super::recovery::{self, Mark, piece_of};
use super::segment::{Fault, Segment, Summary, salvage};
use super::{Batch, Damage, JournalError, Shared, State};
use crate::buffer::record::{self, Block, Frame, Record};
use crate::buffer::retention::{Piece, PieceLimits};
use crate::config::{Durability, StreamConfig, WhenFull};
use crate::name::StreamName;
use crate::units::ByteSize;

/// A segment is full when this was written to it: small enough to be read at a start, large enough that a new one is rare.
const SEGMENT_BYTES: u64 = 4 << 20;
/// A group takes no more once it has this.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Latest sync after an acknowledgement.
const ACK_SYNC: Duration = Duration::from_secs(1);
/// How often ages are looked at, and how soon a journal that failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// A sealed segment with less than this part of it still needed is copied forward.
const SPARSE: u64 = 2;

/// What the writer is asked for.
pub(super) enum Job {
    Commit {
        batch: Batch,
        done: Done,
        _permit: OwnedSemaphorePermit,
    },
    Ack {
        stream: StreamName,
        up_to: u64,
        done: Done,
    },
    /// Records of a sparse segment, on their way to the active one.
    Carry {
        from: u64,
        piece: Piece,
        blocks: Vec<Block>,
    },
    /// The keeper is through with a segment.
    Carried {
        from: u64,
    },
    /// A reader found a segment damaged.
    Damaged {
        segment: u64,
        why: String,
    },
    /// Settings changed.
    Look,
    /// No more will come; whoever waits is told when all is on disk.
    Close(Option<Done>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Arc<Segment>>,
    keeper: Keeper,
    revision: u64,
    mark: Option<File>,
    /// When what was written and not synced must be.
    sync_by: Option<Instant>,
    /// When to try again to open a journal that failed.
    repair_at: Option<Instant>,
    carrying: Option<u64>,
    freed: bool,
    closing: Option<Done>,
}

impl Writer {
    pub(super) fn start(
        shared: Arc<Shared>,
        revision: u64,
        jobs: &Sender<Job>,
        queue: Receiver<Job>,
    ) -> Result<JoinHandle<()>, JournalError> {
        let failed = |source| JournalError::io("start a thread for", &shared.dir, source);
        let keeper = Keeper::start(Arc::clone(&shared), jobs.clone()).map_err(failed)?;
        let active = shared.active()?;
        let mut writer = Self {
            active: Some(active),
            keeper,
            revision,
            mark: None,
            sync_by: None,
            repair_at: None,
            carrying: None,
            freed: true,
            closing: None,
            shared: Arc::clone(&shared),
        };
        let run = move || writer.run(&queue);
        thread::Builder::new().name("journal".to_owned()).spawn(run).map_err(failed)
    }

    fn run(&mut self, queue: &Receiver<Job>) {
        let mut open = true;
        while open {
            let first = match self.wait() {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => queue.recv_timeout(wait),
            };
            let mut group = Group::default();
            match first {
                Ok(job) => {
                    open = self.take(job, &mut group);
                    while open
                        && group.bytes < GROUP_BYTES_MAX
                        && let Ok(job) = queue.try_recv()
                    {
                        open = self.take(job, &mut group);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            self.retain(&mut group);
            self.write(group);
            if !open || self.sync_by.is_some_and(|by| by <= self.shared.clock.instant()) {
                self.sync_now();
            }
            self.reclaim();
        }
        *self.shared.active.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long it may sleep when nothing is asked for.
    fn wait(&self) -> Option<Duration> {
        let now = self.shared.clock.instant();
        let until_sync = self.sync_by.map(|by| by.saturating_duration_since(now));
        let ages = {
            let state = self.shared.state();
            let ages = |(name, stream): (&StreamName, &super::Stream)| {
                stream.index.bytes > 0 && state.config.get(name).is_some_and(|config| config.max_age.is_some())
            };
            state.streams.iter().any(ages)
        };
        let until_tick = (ages || self.freed).then_some(TICK);
        [until_sync, until_tick].into_iter().flatten().min()
    }

    /// Adds `job` to `group`. False when it was the last one.
    fn take(&mut self, job: Job, group: &mut Group) -> bool {
        match job {
            Job::Commit { batch, done, .. } => {
                group.bytes += batch.bytes();
                match self.plan(batch, group) {
                    Ok(Duration::ZERO) => group.synced.push(done),
                    Ok(_) => group.written.push(done),
                    Err(error) => answer(done, Err(error)),
                }
            }
            Job::Ack { stream, up_to, done } => {
                let mut state = self.shared.state();
                if state.streams.get_mut(&stream).is_some_and(|stream| stream.index.ack(up_to)) {
                    group.touched.insert(stream, ());
                    group.sync_within(ACK_SYNC);
                    self.freed = true;
                }
                group.written.push(done);
            }
            Job::Carry { from, piece, blocks } => {
                if let Some(stream) = blocks.first().map(|block| block.stream.clone()) {
                    group.bytes += usize::try_from(piece.bytes).unwrap_or(usize::MAX);
                    group.blocks.extend(blocks);
                    group.carried.push((stream, piece, from));
                    group.sync_within(ACK_SYNC);
                }
            }
            Job::Carried { from } => {
                self.carrying = self.carrying.filter(|carrying| *carrying != from);
                self.freed = true;
            }
            Job::Damaged { segment, why } => self.mend(segment, &why),
            Job::Look => {}
            Job::Close(done) => {
                self.closing = done;
                return false;
            }
        }
        true
    }

    /// Checks one batch against all limits, then adds all of it to `group`. Returns how soon it must be on disk.
    fn plan(&mut self, batch: Batch, group: &mut Group) -> Result<Duration, JournalError> {
        self.repair()?;
        let active = self.active.clone().ok_or(JournalError::Closed)?;
        let limits = Arc::clone(&self.shared.limits);
        let mut state = self.shared.state();

        let mut appended: HashMap<&StreamName, u64> = HashMap::new();
        let mut within = Duration::MAX;
        for (name, data, _) in &batch.records {
            let config = state.config.get(name).ok_or_else(|| JournalError::UnknownStream(name.clone()))?;
            let bytes = data.len() as u64;
            let max = ByteSize(limits.record_bytes_max.0.min(config.max_bytes.0));
            if bytes > max.0 {
                return Err(JournalError::RecordTooLarge { stream: name.clone(), bytes, max });
            }
            let sum = appended.entry(name).or_default();
            *sum += bytes;
            let used = state.streams.get(name).map_or(0, |stream| stream.index.bytes);
            if config.when_full == WhenFull::Reject && used + *sum > config.max_bytes.0 {
                return Err(JournalError::Full { stream: name.clone(), max: config.max_bytes });
            }
            within = within.min(match config.durability {
                Durability::Each => Duration::ZERO,
                Durability::Every(span) => span.0,
            });
        }
        let key_values = plan_key_values(&active, &state, &limits, batch.key_values, group)?;
        if !key_values.is_empty() {
            within = Duration::ZERO;
        }

        for (function, key, bytes, change, frame) in key_values {
            group.key_values.insert(key, (bytes, frame));
            let total = state.key_value_bytes.entry(function).or_default();
            *total = total.saturating_add_signed(change);
        }
        for (name, data, meta) in batch.records {
            let limits = PieceLimits::from(&state.config[&name]);
            let index = &mut state.streams.entry(name.clone()).or_default().index;
            let sequence = index.state.newest + 1;
            let record = Record { sequence, time_ms: meta.time_ms, trace_parent: meta.trace_parent, data };
            let (bytes, time_ms) = (record.bytes(), record.time_ms);
            let piece = Piece { first: sequence, last: sequence, bytes, oldest_ms: time_ms, newest_ms: time_ms };
            index.push(piece, active.id, limits);
            group.push(&name, record);
        }
        group.commits += 1;
        group.sync_within(within);
        Ok(within)
    }

    /// Drops what is over a limit.
    fn retain(&mut self, group: &mut Group) {
        let now_ms = self.shared.clock.now_ms();
        let mut state = self.shared.state();
        let State { config, streams, .. } = &mut *state;
        let default = StreamConfig::default();
        for (name, stream) in streams {
            let config = config.get(name).unwrap_or(&default);
            if stream.index.expire(config, now_ms) | stream.index.shrink(config) {
                group.touched.insert(name.clone(), ());
                group.sync_within(ACK_SYNC);
                self.freed = true;
            }
        }
    }

    /// Writes the group and, if somebody waits for it, syncs it.
    fn write(&mut self, mut group: Group) {
        if group.is_empty() {
            group.written.into_iter().chain(group.synced).for_each(|done| answer(done, Ok(())));
            return;
        }
        let result = self.write_values(&mut group);
        if let Err(error) = &result {
            tracing::error!(%error, "the journal could not be written");
        } else {
            self.shared.commits.fetch_add(group.commits, Ordering::Relaxed);
        }
        group.written.into_iter().for_each(|done| answer(done, result.clone()));
        let result = match (result, group.sync_within) {
            (Ok(()), Some(Duration::ZERO)) => self.sync(),
            (Ok(()), Some(within)) => {
                let by = self.shared.clock.instant() + within;
                self.sync_by = Some(self.sync_by.map_or(by, |earlier| earlier.min(by)));
                Ok(())
            }
            (result, _) => result,
        };
        group.synced.into_iter().for_each(|done| answer(done, result.clone()));
    }

    fn write_values(&mut self, group: &mut Group) -> Result<(), JournalError> {
        self.repair()?;
        let active = self.active.clone().ok_or(JournalError::Closed)?;
        self.revision += 1;
        let revision = self.revision;
        let mut values = Vec::new();
        let mut written = 0;
        for block in std::mem::take(&mut group.blocks) {
            written += piece_of(&block).bytes;
            let frame = Frame::Block(block);
            values.push((record::key(&frame), record::encode(revision, &frame)));
        }
        for (key, (bytes, frame)) in std::mem::take(&mut group.key_values) {
            written += bytes;
            values.push((key, record::encode(revision, &frame)));
        }
        let mut state = self.shared.state();
        for name in group.touched.keys() {
            if let Some(stream) = state.streams.get(name) {
                let frame = Frame::Stream(name.clone(), stream.index.state);
                values.push((record::key(&frame), record::encode(revision, &frame)));
            }
        }
        *state.segments.entry(active.id).or_default() += written;
        drop(state);
        active.apply(values).map_err(|fault| self.failed(fault, &active))?;

        let mut state = self.shared.state();
        for (name, piece, from) in group.carried.drain(..) {
            if let Some(stream) = state.streams.get_mut(&name) {
                stream.index.moved(piece, from, active.id);
            }
        }
        Ok(())
    }

    fn sync_now(&mut self) {
        let result = self.sync();
        if let Err(error) = &result {
            tracing::error!(%error, "the journal could not be synced");
        }
        if let Some(done) = self.closing.take() {
            answer(done, result);
        }
    }

    /// Brings everything written so far to disk, and tells those who wait for records.
    fn sync(&mut self) -> Result<(), JournalError> {
        let Some(active) = self.active.clone() else { return Ok(()) };
        self.sync_by = None;
        active.sync().map_err(|fault| self.failed(fault, &active))?;
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.put_mark(active.id);
        let mut state = self.shared.state();
        for stream in state.streams.values_mut() {
            if stream.index.durable != stream.index.state.newest {
                stream.index.durable = stream.index.state.newest;
                stream.durable.send_replace(stream.index.durable);
            }
        }
        drop(state);
        self.rotate_when_full(&active)
    }

    fn put_mark(&mut self, segment: u64) {
        let newest = self.shared.state().streams.values().map(|stream| stream.index.state.newest).max().unwrap_or(0);
        let bytes = Mark { segment, revision: self.revision, newest }.encode();
        let path = self.shared.dir.join(Mark::FILE);
        let opened = self
            .mark
            .take()
            .map_or_else(|| OpenOptions::new().create(true).truncate(false).write(true).open(&path), Ok);
        match opened.and_then(|file| file.write_all_at(&bytes, 0).map(|()| file)) {
            Ok(file) => self.mark = Some(file),
            // Without it damage at the end of the journal would go unnoticed, and nothing else.
            Err(error) => tracing::warn!(file = %path.display(), %error, "could not be written"),
        }
    }

    /// Begins a new segment when enough was written to this one: at least twice what must be copied.
    fn rotate_when_full(&mut self, active: &Arc<Segment>) -> Result<(), JournalError> {
        let (full, states) = {
            let state = self.shared.state();
            let copied: u64 = state.key_value_bytes.values().sum();
            let written = state.segments.get(&active.id).copied().unwrap_or(0);
            let states: Vec<_> =
                state.streams.iter().map(|(name, stream)| Frame::Stream(name.clone(), stream.index.state)).collect();
            (written >= SEGMENT_BYTES.max(2 * copied), states)
        };
        if !full {
            return Ok(());
        }
        let mut key_values = Vec::new();
        let visited = active.each(b"k", b"k", |_, frame| {
            if matches!(frame, Frame::KeyValue { value: Some(_), .. }) {
                key_values.push(frame);
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|fault| self.failed(fault, active))?;
        self.revision += 1;
        let next =
            recovery::begin(&self.shared.dir, active.id + 1, self.revision, states.into_iter().chain(key_values))?;
        self.put_mark(next.id);

        let mut state = self.shared.state();
        let mut summary = Summary::default();
        for (name, stream) in &state.streams {
            let pieces: Vec<Piece> =
                stream.index.pieces().filter(|(_, segment)| *segment == active.id).map(|(piece, _)| *piece).collect();
            if !pieces.is_empty() {
                summary.pieces.insert(name.clone(), pieces);
            }
        }
        state.segments.insert(next.id, 0);
        drop(state);
        if let Err(error) = summary.write(&active.dir) {
            // It is read instead of the whole segment; without it the next start takes longer.
            tracing::warn!(segment = %active.dir.display(), %error, "its summary could not be written");
        }
        self.use_segment(Some(Arc::new(next)));
        self.freed = true;
        Ok(())
    }

    fn use_segment(&mut self, segment: Option<Arc<Segment>>) {
        self.shared.active.write().unwrap_or_else(PoisonError::into_inner).clone_from(&segment);
        self.active = segment;
    }

    /// Gives back segments that nobody needs, and has the keeper empty one that few need.
    fn reclaim(&mut self) {
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

    /// Notes that the active segment failed; it is opened anew before the next write.
    fn failed(&mut self, fault: Fault, segment: &Segment) -> JournalError {
        self.sync_by = None;
        self.repair_at.get_or_insert_with(|| self.shared.clock.instant());
        fault.about(&segment.dir)
    }

    /// Opens the journal anew if it failed, at most once a tick.
    fn repair(&mut self) -> Result<(), JournalError> {
        let Some(at) = self.repair_at else { return Ok(()) };
        let now = self.shared.clock.instant();
        let busy = || JournalError::Storage { path: self.shared.dir.clone(), why: "it is being repaired".to_owned() };
        if now < at {
            return Err(busy());
        }
        self.repair_at = Some(now + TICK);
        self.use_segment(None);
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let config = self.shared.state().config.clone();
        let opened = recovery::open(&self.shared.dir, &config, self.shared.clock.now_ms())?;
        self.revision = opened.revision.max(self.revision);
        let active = Arc::clone(&opened.active);
        let mut state = self.shared.state();
        let known: BTreeMap<StreamName, (u64, u64)> = state
            .streams
            .iter()
            .map(|(name, stream)| (name.clone(), (stream.index.records(), stream.index.durable)))
            .collect();
        state.adopt(opened);
        for (name, (records, durable)) in known {
            if let Some(stream) = state.streams.get_mut(&name) {
                stream.index.state.lost += records.saturating_sub(stream.index.records());
                // Whoever waits for records has seen up to there.
                stream.index.state.newest = stream.index.state.newest.max(durable);
            }
        }
        drop(state);
        self.use_segment(Some(active));
        self.repair_at = None;
        tracing::warn!(journal = %self.shared.dir.display(), "the journal was opened anew after a failure");
        Ok(())
    }

    /// Sets a damaged segment aside and brings what can be read of it into the active one.
    fn mend(&mut self, segment: u64, why: &str) {
        if self.active.as_ref().is_none_or(|active| active.id == segment) {
            self.repair_at.get_or_insert_with(|| self.shared.clock.instant());
            return;
        }
        if self.shared.state().segments.remove(&segment).is_none() {
            return;
        }
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).retain(|reader| reader.id != segment);
        let dir = Segment::dir(&self.shared.dir, segment);
        let salvaged = salvage(&dir);
        let mut damage = Damage::default();
        damage.set_aside(&dir, why, self.shared.clock.now_ms());
        let Some(active) = self.active.clone() else { return };
        let mut group = Group::default();
        let mut state = self.shared.state();
        let names: Vec<StreamName> = state.streams.keys().cloned().collect();
        for name in names {
            if let Some(stream) = state.streams.get_mut(&name)
                && stream.index.lose(segment) > 0
            {
                group.touched.insert(name, ());
            }
        }
        for (_, frame) in salvaged {
            let Frame::Block(mut block) = frame else { continue };
            let index = &mut state.streams.entry(block.stream.clone()).or_default().index;
            let floor = index.state.floor;
            block.records.retain(|record| record.sequence > floor);
            if block.records.is_empty() {
                continue;
            }
            let before = index.records();
            index.found(piece_of(&block), active.id);
            let found = index.records() - before;
            if found > 0 {
                index.state.lost = index.state.lost.saturating_sub(found);
                damage.salvaged += found;
                group.blocks.push(block);
            }
        }
        state.damage.add(damage);
        drop(state);
        group.sync_within(Duration::ZERO);
        self.write(group);
    }
}

fn answer(done: Done, result: Result<(), JournalError>) {
    // Whoever asked may have stopped waiting.
    let _ = done.send(result);
}

/// Deletes a folder, off the writer's thread.
pub(super) fn delete(path: &PathBuf) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(folder = %path.display(), %error, "an empty segment could not be deleted");
    }
}
