//! The thread that writes. Whatever waits when it looks becomes one group: one group in the log, one sync.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::JournalError;
use super::begin::{Begun, LAZY_SYNC, drop_writes};
use super::group::{Done, Group, done_frames, state_frames};
use super::held::Held;
use super::keeper::Keeper;
use super::recovery::{self, Mark};
use super::repair::Owed;
use super::reserve::Reserve;
use super::segment::{Segment, Summary};
use super::state::{Shared, State, Stream};
use crate::buffer::record::{self, Block, Frame, Stamp};
use crate::buffer::retention::{Piece, PieceLimits};
use crate::config::StreamConfig;
use crate::name::StreamName;

/// A group takes no more once it has this.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// How soon a new segment is tried again.
const ROTATE_AGAIN: Duration = Duration::from_secs(10);
/// How often the time is noted while something is written.
const NOTE_MS: u64 = 10_000;
/// How often ages are looked at, and how soon a journal that failed is tried again.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// What the writer is asked for.
pub(super) enum Job {
    Commit {
        begun: Begun,
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
    pub(super) shared: Arc<Shared>,
    pub(super) active: Option<Arc<Segment>>,
    pub(super) keeper: Keeper,
    pub(super) revision: u64,
    /// The last revision that is on disk for sure.
    pub(super) synced: u64,
    pub(super) held: Held,
    pub(super) reserve: Reserve,
    /// What was answered and is not on disk for sure: it is written again when the journal had to be opened anew.
    pub(super) owed: Owed,
    /// What is to be written next of that.
    pub(super) again: Group,
    /// Segments that a reader found damaged.
    damaged: Vec<(u64, String)>,
    /// When the time was noted last, by the journal's own clock.
    noted_ms: Option<u64>,
    mark: Option<File>,
    /// When what was written and not synced must be.
    pub(super) sync_by: Option<Instant>,
    /// When to try again to begin a segment, if that failed.
    rotate_at: Option<Instant>,
    /// When to try again to open a journal that failed.
    pub(super) repair_at: Option<Instant>,
    pub(super) carrying: Option<u64>,
    pub(super) freed: bool,
    closing: Option<Done>,
}

impl Writer {
    /// Starts the writer and its keeper, which ends after it.
    pub(super) fn start(
        shared: Arc<Shared>,
        revision: u64,
        jobs: &Sender<Job>,
        queue: Receiver<Job>,
    ) -> Result<[JoinHandle<()>; 2], JournalError> {
        let failed = |source| JournalError::io("start a thread for", &shared.dir, source);
        let (keeper, keeper_thread) = Keeper::start(Arc::clone(&shared), jobs.clone()).map_err(failed)?;
        let active = shared.active()?;
        let mut writer = Self {
            active: Some(active),
            keeper,
            revision,
            synced: revision,
            held: Held::default(),
            reserve: Reserve::of(&shared.dir, shared.clock.instant()),
            owed: Owed::default(),
            again: Group::default(),
            damaged: Vec::new(),
            rotate_at: None,
            noted_ms: None,
            mark: None,
            sync_by: None,
            repair_at: None,
            carrying: None,
            freed: true,
            closing: None,
            shared: Arc::clone(&shared),
        };
        let run = move || writer.run(&queue);
        Ok([shared.clock.thread("journal", run).map_err(failed)?, keeper_thread])
    }

    fn run(&mut self, queue: &Receiver<Job>) {
        let mut open = true;
        while open {
            let first = self.shared.clock.receive(queue, self.wait());
            self.reserve.take_in_time(self.shared.clock.instant());
            let mut group = std::mem::take(&mut self.again);
            match first {
                Ok(job) => {
                    open = self.take(job, &mut group);
                    while open
                        && group.bytes < GROUP_BYTES_MAX
                        && !self.is_held_due()
                        && let Ok(job) = queue.try_recv()
                    {
                        open = self.take(job, &mut group);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.repair_in_time(),
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if !open || self.is_held_due() {
                self.write_held(&mut group);
            }
            self.retain(&mut group);
            self.write(group);
            // Not before: what is being put together has its place in the active segment already.
            for (segment, why) in std::mem::take(&mut self.damaged) {
                self.mend(segment, &why);
            }
            if !open || self.sync_by.is_some_and(|by| by <= self.shared.clock.instant()) {
                self.sync_now();
            }
            self.reclaim();
        }
        self.shared.set_active(None);
    }

    fn is_held_due(&self) -> bool {
        self.held.is_due(self.shared.clock.instant(), self.shared.limits.held_bytes_max.0)
    }

    /// How long it may sleep when nothing is asked for.
    fn wait(&self) -> Option<Duration> {
        let now = self.shared.clock.instant();
        let until_sync = self.sync_by.map(|by| by.saturating_duration_since(now));
        let until_held = self.held.by().map(|by| by.saturating_duration_since(now));
        let until_room = self.reserve.look_at().map(|at| at.saturating_duration_since(now));
        let until_again = (!self.again.is_empty()).then_some(TICK);
        let until_repair = self.repair_at.map(|at| at.saturating_duration_since(now));
        let (ages, waiting) = {
            let state = self.shared.state();
            let ages = |(name, stream): (&StreamName, &Stream)| {
                stream.index.bytes > 0 && state.config_of(name).is_some_and(|config| config.max_age.is_some())
            };
            (state.streams.iter().any(ages), state.ages.is_waiting())
        };
        let until_tick = (ages || self.freed || waiting).then_some(TICK);
        [until_sync, until_held, until_repair, until_tick, until_room, until_again].into_iter().flatten().min()
    }

    /// Adds `job` to `group`. False when it was the last one.
    fn take(&mut self, job: Job, group: &mut Group) -> bool {
        match job {
            Job::Commit { begun, done, .. } => self.take_batch(begun, done, group),
            Job::Ack { stream, up_to, done } => {
                let mut state = self.shared.state();
                if state.streams.get_mut(&stream).is_some_and(|stream| stream.index.ack(up_to)) {
                    group.acked.insert(stream.clone(), up_to);
                    group.touched.insert(stream);
                    group.sync_within(LAZY_SYNC);
                    self.freed = true;
                }
                group.written.push(done);
            }
            Job::Carry { from, piece, blocks } => {
                if let Some(stream) = blocks.first().map(|block| block.stream.clone()) {
                    group.bytes += usize::try_from(piece.bytes).unwrap_or(usize::MAX);
                    group.blocks.extend(blocks);
                    group.carried.push((stream, piece, from));
                    group.sync_within(LAZY_SYNC);
                }
            }
            Job::Carried { from } => {
                self.carrying = self.carrying.filter(|carrying| *carrying != from);
                self.freed = true;
            }
            Job::Damaged { segment, why } => self.damaged.push((segment, why)),
            Job::Look => {}
            Job::Close(done) => {
                self.closing = done;
                return false;
            }
        }
        true
    }

    /// Adds a batch to `group`, unless something that it read never got to disk, or holds it until it is due.
    fn take_batch(&mut self, mut begun: Begun, done: Done, group: &mut Group) {
        let usable = self.usable(!begun.records.is_empty() || !begun.key_values.is_empty());
        let mut state = self.shared.state();
        state.begun -= 1;
        let failed = begun.depends.iter().position(|(_, versions)| state.overlay.any_failed(versions));
        let usable = match failed {
            Some(at) => Err(JournalError::conflict(begun.depends.swap_remove(at).0)),
            None => usable,
        };
        if usable.is_err() {
            drop_writes(&mut state, self.active.as_deref(), &begun);
            for (name, record) in &begun.records {
                state.streams.entry(name.clone()).or_default().no_longer_begun(record);
            }
        }
        if state.begun == 0 {
            state.overlay.forget_failed();
        }
        drop(state);
        match usable {
            Err(error) => answer(done, Err(error)),
            Ok(_) if Held::takes(&begun) => {
                let by = self.shared.clock.instant() + begun.within;
                self.held.push(begun, by);
                answer(done, Ok(()));
            }
            Ok(active) => {
                if self.held.precedes(&begun) {
                    self.write_held(group);
                }
                self.place(&mut begun, &active, group);
                group.push(begun, done);
            }
        }
    }

    /// Adds all that was held to `group`, unless the journal cannot be written.
    fn write_held(&mut self, group: &mut Group) {
        if self.held.is_empty() {
            return;
        }
        let Ok(active) = self.repair().and_then(|()| self.active.clone().ok_or(JournalError::Closed)) else {
            self.held.wait_until(self.shared.clock.instant() + TICK);
            return;
        };
        for mut begun in self.held.take() {
            self.place(&mut begun, &active, group);
            for (stream, record) in &begun.records {
                group.push_record(stream, record.clone(), begun.moment);
            }
            group.commits += 1;
            group.held.push(begun);
        }
        group.sync_within(Duration::ZERO);
    }

    /// Puts the records of a batch into the index, and takes what it is done with out of it.
    fn place(&mut self, begun: &mut Begun, active: &Segment, group: &mut Group) {
        let mut state = self.shared.state();
        let State { config, own, streams, .. } = &mut *state;
        let default = StreamConfig::default();
        let age_ms = begun.moment.age_ms;
        begun.records.retain(|(name, record)| {
            let limits = PieceLimits::from(config.get(name).or_else(|| own.get(name)).unwrap_or(&default));
            let stream = streams.entry(name.clone()).or_default();
            stream.no_longer_begun(record);
            let sequence = record.sequence;
            // An earlier try may have got it to disk, though not for sure.
            let is_new = !stream.index.is_live(sequence);
            if is_new {
                let piece = Piece {
                    first: sequence,
                    last: sequence,
                    records: 1,
                    bytes: record.bytes(),
                    oldest_ms: record.time_ms,
                    oldest_age_ms: age_ms,
                    newest_age_ms: age_ms,
                };
                stream.index.push(piece, active.id, limits);
            }
            is_new
        });
        for (name, sequence) in begun.done.drain(..) {
            let news = streams.get_mut(&name).map(|stream| stream.index.done([sequence])).unwrap_or_default();
            if !news.is_empty() {
                let ranges = group.done.entry(name).or_default();
                news.iter().for_each(|(first, last)| ranges.insert(first, last));
                self.freed = true;
            }
        }
    }

    /// Writes the group and, if somebody waits for it, syncs it.
    pub(super) fn write(&mut self, mut group: Group) {
        if group.is_empty() {
            group.written.into_iter().chain(group.synced).for_each(|done| answer(done, Ok(())));
            return;
        }
        let result = self.write_values(&mut group);
        match &result {
            Ok(()) => drop(self.shared.commits.fetch_add(group.commits, Ordering::Relaxed)),
            Err(error) => {
                self.shared.state().overlay.dropped(group.writes());
                tracing::error!(%error, "the journal could not be written");
            }
        }
        let result = match (result, group.sync_within) {
            (Ok(()), Some(Duration::ZERO)) => {
                let active = self.active.clone();
                let synced = self.sync();
                if synced.is_err()
                    && let Some(active) = active
                {
                    // All who are in it are told that it is not kept.
                    active.take_back();
                }
                synced
            }
            (Ok(()), Some(within)) => {
                let by = self.shared.clock.instant() + within;
                self.sync_by = Some(self.sync_by.map_or(by, |earlier| earlier.min(by)));
                Ok(())
            }
            (result, _) => result,
        };
        match &result {
            Ok(()) => self.shared.state().overlay.landed(group.writes()),
            Err(_) => {
                let mut state = self.shared.state();
                state.overlay.dropped(group.writes());
                for name in group.done.keys() {
                    state.streams.entry(name.clone()).or_default().in_doubt = true;
                }
            }
        }
        std::mem::take(&mut group.written).into_iter().for_each(|done| answer(done, result.clone()));
        match (&result, self.sync_by) {
            (Err(_), _) => self.hold_again(std::mem::take(&mut group.held)),
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => self.owed.add(&group),
        }
        group.synced.into_iter().for_each(|done| answer(done, result.clone()));
    }

    fn write_values(&mut self, group: &mut Group) -> Result<(), JournalError> {
        self.repair()?;
        let active = self.active.clone().ok_or(JournalError::Closed)?;
        self.revision += 1;
        let mut state = self.shared.state();
        let mut frames: Vec<Frame> = std::mem::take(&mut group.blocks).into_iter().map(Frame::Block).collect();
        frames.extend(std::mem::take(&mut group.key_values).into_values());
        frames.extend(group.done.iter().flat_map(|(name, ranges)| done_frames(name, ranges)));
        for name in &group.touched {
            frames.extend(state.streams.get(name).map(|stream| Frame::Stream(name.clone(), stream.index.state)));
        }
        let clock = state.ages.state();
        if group.clock || self.noted_ms.is_none_or(|noted_ms| clock.age_ms >= noted_ms + NOTE_MS) {
            self.noted_ms = Some(clock.age_ms);
            frames.push(Frame::Clock(clock.clone()));
        }
        let values = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let stamp = Stamp { revision: self.revision, values, synced: self.synced };
        let values: Vec<_> = frames.iter().map(|frame| (record::key(frame), record::encode(stamp, frame))).collect();
        *state.segments.entry(active.id).or_default() +=
            values.iter().map(|(_, value)| value.len() as u64).sum::<u64>();
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

    /// What was answered already waits for another try.
    fn hold_again(&mut self, batches: Vec<Begun>) {
        let mut state = self.shared.state();
        for (name, record) in batches.iter().flat_map(|begun| &begun.records) {
            state.streams.entry(name.clone()).or_default().begun_again(record);
        }
        drop(state);
        self.held.put_back(batches, self.shared.clock.instant() + TICK);
    }

    pub(super) fn sync_now(&mut self) {
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
        if let Err(fault) = active.sync() {
            return Err(self.failed(fault, &active));
        }
        self.synced = self.revision;
        self.owed = Owed::default();
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.put_mark(active.id);
        let mut state = self.shared.state();
        for stream in state.streams.values_mut() {
            if stream.index.durable != stream.index.written {
                stream.index.durable = stream.index.written;
                stream.durable.send_replace(stream.index.durable);
            }
        }
        drop(state);
        // What was written is on disk, so this fails nothing.
        let now = self.shared.clock.instant();
        if self.rotate_at.is_none_or(|at| at <= now) {
            self.rotate_at = None;
            if let Err(error) = self.rotate_when_full(&active) {
                self.rotate_at = Some(now + ROTATE_AGAIN);
                self.reserve.release_if_full(now);
                tracing::error!(%error, "no new segment could be begun");
            }
        }
        Ok(())
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
        let states: Vec<Frame> = {
            let state = self.shared.state();
            let copied: u64 = state.key_value_bytes.values().sum();
            let written = state.segments.get(&active.id).copied().unwrap_or(0);
            if written < self.shared.limits.segment_bytes.0.max(2 * copied) {
                return Ok(());
            }
            let clock = Frame::Clock(state.ages.state().clone());
            let known_of = state.streams.iter().flat_map(|(name, stream)| state_frames(name, &stream.index));
            std::iter::once(clock).chain(known_of).collect()
        };
        let mut key_values = Vec::new();
        let visited = active.each(b"k", |_, frame| {
            if matches!(frame, Frame::KeyValue { value: Some(_), .. }) {
                key_values.push(frame);
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|fault| fault.about(&active.dir))?;
        self.revision += 1;
        let frames = states.into_iter().chain(key_values);
        let next = match recovery::begin(&self.shared.dir, active.id + 1, self.revision, frames) {
            Ok(next) => next,
            Err(error) => {
                // Left behind it could pass for the successor, and what still goes into this one would not be looked for.
                if let Err(fault) = Segment::discard(&self.shared.dir, active.id + 1) {
                    return Err(self.failed(fault, active));
                }
                return Err(error);
            }
        };
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

    pub(super) fn use_segment(&mut self, segment: Option<Arc<Segment>>) {
        self.shared.set_active(segment.clone());
        self.active = segment;
    }
}

pub(super) fn answer(done: Done, result: Result<(), JournalError>) {
    // Whoever asked may have stopped waiting.
    let _ = done.send(result);
}

/// Deletes a folder, off the writer's thread.
pub(super) fn delete(path: &PathBuf) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %path.display(), %error, "an empty segment could not be deleted");
    }
}
