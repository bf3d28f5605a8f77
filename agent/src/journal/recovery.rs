//! Opening: finds what is on disk, sets aside what cannot be opened, and hands back what the writer goes on with.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::JournalError;
use super::group::{sort_out, state_frames, value};
use super::reserve::explain;
use super::salvage::whole_commits;
use super::segment::{Fault, Segment, Summary};
use super::state::Damage;
use crate::buffer::age::ClockState;
use crate::buffer::ranges::Ranges;
use crate::buffer::record::{self, Block, Frame, Stamp, StreamState};
use crate::buffer::retention::{Piece, PieceLimits, StreamIndex};
use crate::config::StreamConfig;
use crate::name::{FunctionName, StreamName};

/// Folders that were set aside and are kept for a person to look at; older ones are deleted.
const SET_ASIDE_MAX: usize = 3;
/// Sequences that are left out when some may have been given out that nobody remembers.
const SEQUENCE_GAP: u64 = 1 << 20;
/// A new segment is filled in steps of this size.
const STEP_BYTES: usize = 1 << 20;

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) streams: BTreeMap<StreamName, StreamIndex>,
    pub(super) active: Arc<Segment>,
    /// Bytes that were written to each segment.
    pub(super) segments: BTreeMap<u64, u64>,
    pub(super) key_value_bytes: BTreeMap<FunctionName, u64>,
    pub(super) revision: u64,
    /// The highest version of a key-value.
    pub(super) version: u64,
    /// What was known of the time, and the highest age of a record.
    pub(super) clock: ClockState,
    pub(super) seen_age_ms: u64,
    pub(super) damage: Damage,
}

/// The last commit that was on disk for sure. Not synced itself: after a power cut it may tell of an earlier one, never of
/// a later one than what is on disk, unless the segment was damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) segment: u64,
    pub(super) revision: u64,
    /// Highest sequence of any stream.
    pub(super) newest: u64,
}

impl Mark {
    pub(super) const FILE: &str = "mark";

    const BYTES: usize = 28;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.segment.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.revision.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.newest.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn read(journal: &Path) -> Option<Self> {
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let bytes = fs::read(journal.join(Self::FILE)).ok().filter(|bytes| bytes.len() == Self::BYTES)?;
        let mark =
            Self { segment: number(&bytes[..8]), revision: number(&bytes[8..16]), newest: number(&bytes[16..24]) };
        (mark.encode() == *bytes).then_some(mark)
    }
}

/// All values of one segment, the newest of each name.
#[derive(Default)]
struct Content {
    head: bool,
    revision: u64,
    version: u64,
    done: BTreeMap<StreamName, Ranges>,
    clock: (u64, ClockState),
    seen_age_ms: u64,
    seen_run: u64,
    streams: BTreeMap<StreamName, (u64, StreamState)>,
    key_values: BTreeMap<Vec<u8>, (u64, Frame)>,
    blocks: BTreeMap<(StreamName, u64), Block>,
    pieces: BTreeMap<StreamName, Vec<Piece>>,
    written: u64,
    damaged: u64,
}

impl Content {
    fn add(&mut self, revision: u64, frame: Frame, keep_data: bool) {
        self.revision = self.revision.max(revision);
        match frame {
            Frame::Head => self.head = true,
            Frame::Stream(name, state) => {
                let kept = self.streams.entry(name).or_default();
                if revision >= kept.0 {
                    *kept = (revision, state);
                }
            }
            Frame::Block(block) => {
                let piece = piece_of(&block);
                self.seen_age_ms = self.seen_age_ms.max(piece.newest_age_ms);
                self.seen_run = self.seen_run.max(block.run);
                self.written += piece.bytes;
                self.pieces.entry(block.stream.clone()).or_default().push(piece);
                if keep_data {
                    self.blocks.insert((block.stream.clone(), piece.first), block);
                }
            }
            Frame::Clock(clock) => {
                if revision >= self.clock.0 {
                    self.clock = (revision, clock);
                }
            }
            Frame::Done(name, ranges) => {
                let done = self.done.entry(name).or_default();
                ranges.iter().for_each(|(first, last)| done.insert(first, last));
            }
            frame @ Frame::KeyValue { .. } => {
                let key = record::key(&frame);
                if let Frame::KeyValue { version, .. } = &frame {
                    self.version = self.version.max(*version);
                }
                let newer = self.key_values.get(&key).is_none_or(|(kept, _)| revision >= *kept);
                if newer {
                    self.key_values.insert(key, (revision, frame));
                }
            }
        }
    }

    fn of(segment: &Segment) -> Result<Self, Fault> {
        let mut content = Self::default();
        content.damaged = segment.each(&[], |stamp, frame| {
            content.add(stamp.revision, frame, false);
            ControlFlow::Continue(())
        })?;
        Ok(content)
    }

    fn merge(&mut self, other: Self) {
        self.revision = self.revision.max(other.revision);
        for (name, (revision, state)) in other.streams {
            self.add(revision, Frame::Stream(name, state), false);
        }
        for (_, (revision, frame)) in other.key_values {
            self.add(revision, frame, false);
        }
        for (name, ranges) in other.done {
            self.add(0, Frame::Done(name, ranges), false);
        }
        let (revision, clock) = other.clock;
        self.add(revision, Frame::Clock(clock), false);
        self.seen_age_ms = self.seen_age_ms.max(other.seen_age_ms);
        self.seen_run = self.seen_run.max(other.seen_run);
        self.blocks.extend(other.blocks);
    }
}

/// What the index knows about `block`.
pub(super) fn piece_of(block: &Block) -> Piece {
    let first = block.records.first().map_or(0, |record| record.sequence);
    Piece {
        first,
        last: block.records.last().map_or(first, |record| record.sequence),
        records: block.records.len() as u64,
        bytes: block.records.iter().map(record::Record::bytes).sum(),
        oldest_ms: block.records.first().map_or(0, |record| record.time_ms),
        oldest_age_ms: block.age_ms,
        newest_age_ms: block.age_ms,
    }
}

/// Bytes that a key-value counts against its function's limit.
pub(super) fn key_value_bytes(bucket: &str, key: &str, value: &[u8]) -> u64 {
    (bucket.len() + key.len() + value.len()) as u64
}

/// Opens the journal in `dir`, whose lock is held.
pub(super) fn open(
    dir: &Path,
    config: &BTreeMap<StreamName, StreamConfig>,
    now_ms: u64,
) -> Result<Opened, JournalError> {
    let mut ids = segment_ids(dir)?;
    let next = ids.last().map_or(1, |id| id + 1);
    let (mark, marked) = Mark::read(dir).map_or((Mark::default(), false), |mark| (mark, true));
    let mut damage = Damage::default();
    let mut salvaged = Content::default();
    let mut newest = None;
    // Set aside at the end, when what was brought out of them is on disk elsewhere.
    let mut broken: Vec<(PathBuf, String)> = Vec::new();

    // 1. The newest segment that opens and has its head is the one to go on with. One without was still being filled from
    //    the one before when the agent stopped, unless the mark says that it had been in use.
    while let Some(id) = ids.pop() {
        let segment_dir = Segment::dir(dir, id);
        let opened = Segment::open(dir, id)
            .and_then(|segment| segment.map(|segment| Ok((Content::of(&segment)?, segment))).transpose());
        match opened {
            Ok(None) => {}
            Ok(Some((content, segment))) if content.head => {
                newest = Some((segment, content));
                break;
            }
            Ok(Some(_)) if mark.segment != id => super::writer::delete(&segment_dir),
            Err(fault @ Fault::Machine(_)) => return Err(fault.about(&segment_dir)),
            Ok(Some(_)) => {
                salvaged.merge(salvage_into(&segment_dir, id, mark.revision)?);
                broken.push((segment_dir, "it lost its beginning".to_owned()));
            }
            Err(Fault::Damaged(why)) => {
                salvaged.merge(salvage_into(&segment_dir, id, mark.revision)?);
                broken.push((segment_dir, why));
            }
        }
    }

    // 2. What it holds, with what was salvaged from later ones over it.
    let rescued = !broken.is_empty();
    let (mut known, active) = match newest {
        Some((segment, content)) => (content, Some(segment)),
        None => (Content::default(), None),
    };
    let (active_pieces, written) = (std::mem::take(&mut known.pieces), known.written);
    damage.values += known.damaged;
    known.merge(salvaged);

    // 3. Numbers that may have been given out are not given out again.
    let forgotten = mark.revision.saturating_sub(known.revision);
    damage.commits += forgotten;
    let unsure = rescued || forgotten > 0;
    let mut revision = known.revision.max(mark.revision);

    // 4. The index: states first, then the pieces of later segments before those of earlier ones.
    let mut streams: BTreeMap<StreamName, StreamIndex> = BTreeMap::new();
    for (name, (_, state)) in &known.streams {
        streams.entry(name.clone()).or_default().state = *state;
    }
    for (name, ranges) in &known.done {
        streams.entry(name.clone()).or_default().was_done(ranges.iter());
    }
    let mut segments = BTreeMap::new();
    let mut sealed = ids;
    let active = match active {
        Some(segment) if !rescued => {
            place(&mut streams, config, active_pieces, segment.id);
            segments.insert(segment.id, written);
            segment.go_on().map_err(|fault| fault.about(&segment.dir))?;
            Some(segment)
        }
        // A later one was set aside: this one goes on as it was then, sealed.
        Some(segment) => {
            sealed.push(segment.id);
            None
        }
        None => None,
    };
    let mut orphans: Vec<Block> = known.blocks.into_values().collect();
    let mut sealed_pieces = Vec::new();
    for id in sealed.into_iter().rev() {
        match pieces_of_sealed(dir, id) {
            Ok(summary) => sealed_pieces.push((id, summary)),
            Err(fault @ Fault::Machine(_)) => return Err(fault.about(&Segment::dir(dir, id))),
            Err(Fault::Damaged(why)) => {
                let segment_dir = Segment::dir(dir, id);
                orphans.extend(salvage_into(&segment_dir, id, mark.revision)?.blocks.into_values());
                broken.push((segment_dir, why));
            }
        }
    }

    // 5. A new segment, when there is none to go on with. It gets the orphans.
    for block in &orphans {
        let newest = &mut streams.entry(block.stream.clone()).or_default().state.newest;
        *newest = (*newest).max(piece_of(block).last);
    }
    for (_, summary) in &sealed_pieces {
        for (name, pieces) in &summary.pieces {
            let newest = &mut streams.entry(name.clone()).or_default().state.newest;
            *newest = pieces.iter().map(|piece| piece.last).max().unwrap_or(0).max(*newest);
        }
    }
    if unsure {
        for name in config.keys() {
            streams.entry(name.clone()).or_default();
        }
        // When even the mark is gone: more milliseconds than records have passed since 1970.
        let least = if marked { mark.newest } else { now_ms };
        streams.values_mut().for_each(|stream| stream.state.newest = stream.state.newest.max(least) + SEQUENCE_GAP);
    }
    let mut clock = known.clock.1.clone();
    clock.run = clock.run.max(known.seen_run);
    let known_of = streams.iter().flat_map(|(name, index)| state_frames(name, index));
    let states: Vec<_> = std::iter::once(Frame::Clock(clock.clone())).chain(known_of).collect();
    let active = match active {
        Some(segment) if unsure => {
            // Told once: the next opening finds what the mark says.
            revision += 1;
            let values = states.iter().map(|frame| value(alone(revision), frame));
            let written = segment.apply(values.collect()).and_then(|()| segment.sync());
            written.map_err(|fault| fault.about(&segment.dir))?;
            segment
        }
        Some(segment) => segment,
        None => {
            revision += 1;
            let key_values = known.key_values.values().map(|(_, frame)| frame.clone());
            let segment = begin(dir, next, revision, states.into_iter().chain(key_values))?;
            segments.insert(next, 0);
            segment
        }
    };
    let orphans = needed_of(&streams, orphans);
    let has_orphans = !orphans.is_empty();
    revision += u64::from(has_orphans);
    for block in orphans {
        let stream = streams.entry(block.stream.clone()).or_default();
        let piece = piece_of(&block);
        active.apply(vec![value(alone(revision), &Frame::Block(block))]).map_err(|fault| fault.about(&active.dir))?;
        stream.found(piece, active.id);
        *segments.entry(active.id).or_default() += piece.bytes;
        damage.salvaged += piece.records;
    }
    if has_orphans {
        active.sync().map_err(|fault| fault.about(&active.dir))?;
    }
    for (segment_dir, why) in broken {
        damage.set_aside(&segment_dir, &why, now_ms);
    }
    for (id, summary) in sealed_pieces {
        segments.insert(id, summary.pieces.values().flatten().map(|piece| piece.bytes).sum());
        for (name, pieces) in summary.pieces {
            let stream = streams.entry(name).or_default();
            pieces.into_iter().for_each(|piece| stream.found(piece, id));
        }
    }
    for stream in streams.values_mut() {
        stream.written = stream.written.max(stream.state.floor);
        stream.durable = stream.written;
    }

    let mut bytes_of: BTreeMap<FunctionName, u64> = BTreeMap::new();
    for (_, frame) in known.key_values.values() {
        if let Frame::KeyValue { function, bucket, key, value: Some(value), .. } = frame {
            *bytes_of.entry(function.clone()).or_default() += key_value_bytes(bucket, key, value);
        }
    }
    Ok(Opened {
        streams,
        active: Arc::new(active),
        segments,
        key_value_bytes: bytes_of,
        revision,
        version: known.version,
        clock,
        seen_age_ms: known.seen_age_ms,
        damage,
    })
}

/// What is still needed of `orphans` and not in the index yet, each record once.
fn needed_of(streams: &BTreeMap<StreamName, StreamIndex>, orphans: Vec<Block>) -> Vec<Block> {
    sort_out(orphans, |stream, sequence| streams.get(stream).is_some_and(|index| index.lacks(sequence)))
}

/// A value that stands for itself.
fn alone(revision: u64) -> Stamp {
    Stamp { revision, ..Stamp::default() }
}

/// Puts the pieces of the active segment into the index, joined as they would have been when written.
fn place(
    streams: &mut BTreeMap<StreamName, StreamIndex>,
    config: &BTreeMap<StreamName, StreamConfig>,
    pieces: BTreeMap<StreamName, Vec<Piece>>,
    segment: u64,
) {
    for (name, pieces) in pieces {
        let limits = PieceLimits::from(config.get(&name).unwrap_or(&StreamConfig::default()));
        let mut joined = StreamIndex::default();
        for piece in pieces {
            joined.push(piece, segment, limits);
        }
        let stream = streams.entry(name).or_default();
        joined.pieces().for_each(|(piece, _)| stream.found(*piece, segment));
    }
}

/// Makes segment `id` with `frames` in it; its head comes last, so that a crash on the way leaves none.
pub(super) fn begin(
    dir: &Path,
    id: u64,
    revision: u64,
    frames: impl Iterator<Item = Frame>,
) -> Result<Segment, JournalError> {
    let segment_dir = Segment::dir(dir, id);
    let filled = || {
        let segment = Segment::create(dir, id)?;
        let (mut values, mut bytes) = (Vec::new(), 0);
        for frame in frames {
            let (key, value) = value(alone(revision), &frame);
            bytes += value.len();
            values.push((key, value));
            if bytes >= STEP_BYTES {
                segment.apply(std::mem::take(&mut values))?;
                bytes = 0;
            }
        }
        values.push(value(alone(revision), &Frame::Head));
        segment.apply(values)?;
        segment.sync()?;
        Ok(segment)
    };
    filled().map_err(|fault: Fault| {
        let (Fault::Machine(why) | Fault::Damaged(why)) = fault;
        JournalError::Storage { why: explain(dir, why), path: segment_dir }
    })
}

fn salvage_into(segment_dir: &Path, id: u64, synced: u64) -> Result<Content, JournalError> {
    let mut content = Content::default();
    let found = whole_commits(segment_dir, id, synced);
    for (stamp, frame) in found.map_err(|source| JournalError::io("read", segment_dir, source))? {
        content.add(stamp.revision, frame, true);
    }
    Ok(content)
}

fn pieces_of_sealed(dir: &Path, id: u64) -> Result<Summary, Fault> {
    let segment_dir = Segment::dir(dir, id);
    if let Some(summary) = Summary::read(&segment_dir) {
        return Ok(summary);
    }
    let segment = Segment::open(dir, id)?;
    let content = segment.map(|segment| Content::of(&segment)).transpose()?.unwrap_or_default();
    Ok(Summary { pieces: content.pieces })
}

/// The folders of segments, in order. Those that were being deleted are.
fn segment_ids(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let unreadable = |source| JournalError::io("read", dir, source);
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(DELETED) {
            // What is left of it takes space, and nothing else. The keeper of a journal that was just closed may be at it too.
            super::writer::delete(&dir.join(name));
        } else if name.len() == 10
            && let Ok(id) = name.parse()
        {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Ending of a folder that is being deleted.
pub(super) const DELETED: &str = ".deleted";

impl Damage {
    /// Moves the folder of a segment out of the way, and says so.
    pub(super) fn set_aside(&mut self, segment_dir: &Path, why: &str, now_ms: u64) {
        self.set_aside += 1;
        let aside = segment_dir.with_extension(format!("broken-{}", now_ms / 1000));
        match fs::rename(segment_dir, &aside) {
            Ok(()) => {
                tracing::error!(folder = %aside.display(), why, "a segment of the journal is damaged and was set aside")
            }
            Err(error) => {
                tracing::error!(folder = %segment_dir.display(), why, %error, "a damaged segment could not be set aside");
            }
        }
        if let Some(journal) = segment_dir.parent() {
            forget_older(journal);
        }
    }
}

fn forget_older(journal: &Path) {
    let entries = fs::read_dir(journal).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut aside: Vec<_> = entries.filter(|path| path.to_string_lossy().contains(".broken-")).collect();
    aside.sort();
    for path in aside.iter().rev().skip(SET_ASIDE_MAX) {
        if let Err(error) = fs::remove_dir_all(path) {
            tracing::warn!(folder = %path.display(), %error, "could not delete an old damaged segment");
        }
    }
}
