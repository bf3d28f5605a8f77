//! Opening: finds what is on disk, sets aside what cannot be opened, and hands back what the writer goes on with.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::segment::{Fault, Segment, Summary, salvage};
use super::{Damage, JournalError};
use crate::buffer::record::{self, Block, Frame, StreamState};
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
    pub(super) damage: Damage,
}

/// The last commit that was on disk for sure. Not synced itself: after a power cut it may tell of an earlier one, never of
/// a later one than what is on disk, unless the database was damaged.
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
                self.written += piece.bytes;
                self.pieces.entry(block.stream.clone()).or_default().push(piece);
                if keep_data {
                    self.blocks.insert((block.stream.clone(), piece.first), block);
                }
            }
            frame @ Frame::KeyValue { .. } => {
                let key = record::key(&frame);
                let newer = self.key_values.get(&key).is_none_or(|(kept, _)| revision >= *kept);
                if newer {
                    self.key_values.insert(key, (revision, frame));
                }
            }
        }
    }

    fn of(segment: &Segment) -> Result<Self, Fault> {
        let mut content = Self::default();
        content.damaged = segment.each(&[], &[], |revision, frame| {
            content.add(revision, frame, false);
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
        self.blocks.extend(other.blocks);
    }
}

/// What the index knows about `block`.
pub(super) fn piece_of(block: &Block) -> Piece {
    let first = block.records.first().map_or(0, |record| record.sequence);
    Piece {
        first,
        last: block.records.last().map_or(first, |record| record.sequence),
        bytes: block.records.iter().map(record::Record::bytes).sum(),
        oldest_ms: block.records.first().map_or(0, |record| record.time_ms),
        newest_ms: block.records.iter().map(|record| record.time_ms).max().unwrap_or(0),
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

    // 1. The newest segment that opens and has its head is the one to go on with. One without was still being filled from
    //    the one before when the agent stopped, unless the mark says that it had been in use.
    while let Some(id) = ids.pop() {
        let segment_dir = Segment::dir(dir, id);
        match Segment::open(dir, id).and_then(|segment| Ok((Content::of(&segment)?, segment))) {
            Ok((content, segment)) if content.head => {
                newest = Some((segment, content));
                break;
            }
            Ok(_) if mark.segment != id => remove(&segment_dir)?,
            Err(fault @ Fault::Machine(_)) => return Err(fault.about(&segment_dir)),
            Ok((_, segment)) => {
                drop(segment);
                salvaged.merge(salvage_into(&segment_dir));
                damage.set_aside(&segment_dir, "it lost its beginning", now_ms);
            }
            Err(Fault::Damaged(why)) => {
                salvaged.merge(salvage_into(&segment_dir));
                damage.set_aside(&segment_dir, &why, now_ms);
            }
        }
    }

    // 2. What it holds, with what was salvaged from later ones over it.
    let rescued = damage.set_aside > 0;
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
    let mut segments = BTreeMap::new();
    let mut sealed = ids;
    let active = match active {
        Some(segment) if !rescued => {
            place(&mut streams, config, active_pieces, segment.id);
            segments.insert(segment.id, written);
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
                orphans.extend(salvage_into(&segment_dir).blocks.into_values());
                damage.set_aside(&segment_dir, &why, now_ms);
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
    let states: Vec<_> = streams.iter().map(|(name, index)| Frame::Stream(name.clone(), index.state)).collect();
    let active = match active {
        Some(segment) if unsure => {
            // Told once: the next opening finds what the mark says.
            revision += 1;
            let values = states.iter().map(|frame| (record::key(frame), record::encode(revision, frame)));
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
    let has_orphans = !orphans.is_empty();
    revision += u64::from(has_orphans);
    for block in orphans {
        let stream = streams.entry(block.stream.clone()).or_default();
        let records: Vec<_> = block.records.into_iter().filter(|record| record.sequence > stream.state.floor).collect();
        if records.is_empty() {
            continue;
        }
        let block = Block { stream: block.stream, records };
        let (piece, frame) = (piece_of(&block), Frame::Block(block));
        let value = (record::key(&frame), record::encode(revision, &frame));
        active.apply(vec![value]).map_err(|fault| fault.about(&active.dir))?;
        stream.found(piece, active.id);
        *segments.entry(active.id).or_default() += piece.bytes;
        damage.salvaged += piece.last - piece.first + 1;
    }
    if has_orphans {
        active.sync().map_err(|fault| fault.about(&active.dir))?;
    }
    for (id, summary) in sealed_pieces {
        segments.insert(id, summary.pieces.values().flatten().map(|piece| piece.bytes).sum());
        for (name, pieces) in summary.pieces {
            let stream = streams.entry(name).or_default();
            pieces.into_iter().for_each(|piece| stream.found(piece, id));
        }
    }
    streams.values_mut().for_each(|stream| stream.durable = stream.state.newest);

    let mut bytes_of: BTreeMap<FunctionName, u64> = BTreeMap::new();
    for (_, frame) in known.key_values.values() {
        if let Frame::KeyValue { function, bucket, key, value: Some(value) } = frame {
            *bytes_of.entry(function.clone()).or_default() += key_value_bytes(bucket, key, value);
        }
    }
    Ok(Opened { streams, active: Arc::new(active), segments, key_value_bytes: bytes_of, revision, damage })
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
        let stream = streams.entry(name).or_default();
        let floor = stream.state.floor;
        for piece in pieces {
            stream.push(piece, segment, limits);
        }
        stream.forget(floor);
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
        let segment = Segment::open(dir, id)?;
        let (mut values, mut bytes) = (Vec::new(), 0);
        for frame in frames {
            let value = record::encode(revision, &frame);
            bytes += value.len();
            values.push((record::key(&frame), value));
            if bytes >= STEP_BYTES {
                segment.apply(std::mem::take(&mut values))?;
                bytes = 0;
            }
        }
        values.push((record::key(&Frame::Head), record::encode(revision, &Frame::Head)));
        segment.apply(values)?;
        segment.sync()?;
        Ok(segment)
    };
    filled().map_err(|fault: Fault| fault.about(&segment_dir))
}

fn salvage_into(segment_dir: &Path) -> Content {
    let mut content = Content::default();
    for (revision, frame) in salvage(segment_dir) {
        content.add(revision, frame, true);
    }
    content
}

fn pieces_of_sealed(dir: &Path, id: u64) -> Result<Summary, Fault> {
    let segment_dir = Segment::dir(dir, id);
    if let Some(summary) = Summary::read(&segment_dir) {
        return Ok(summary);
    }
    let content = Content::of(&Segment::open(dir, id)?)?;
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
            remove(&dir.join(name))?;
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

fn remove(path: &Path) -> Result<(), JournalError> {
    fs::remove_dir_all(path).map_err(|source| JournalError::io("delete", path, source))
}

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
