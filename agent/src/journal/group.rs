//! What is written together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::sync::oneshot;

use super::JournalError;
use super::begin::Begun;
use crate::buffer::age::Moment;
use crate::buffer::ranges::Ranges;
use crate::buffer::record::{self, Block, Frame, Record, Stamp};
use crate::buffer::retention::{Piece, StreamIndex};
use crate::name::StreamName;

/// Records that are stored as one value, so that a page of them stays inline.
const BLOCK_BYTES_MAX: u64 = 6 << 10;
/// Ranges in one value, for the same reason.
const RANGES_MAX: usize = 300;

/// Records in one value are kept no further apart than this.
const SPAN_MS_MAX: u64 = 60_000;

/// Where the answer to a job goes.
pub(super) type Done = oneshot::Sender<Result<(), JournalError>>;

/// What a group will write, in the order in which it was asked for.
#[derive(Default)]
pub(super) struct Group {
    pub(super) blocks: Vec<Block>,
    /// The block that each stream's next record goes to, and its bytes.
    filling: BTreeMap<StreamName, (usize, u64)>,
    /// The last write of each key, and all versions.
    pub(super) key_values: HashMap<Vec<u8>, Frame>,
    pub(super) versions: Vec<(Vec<u8>, u64)>,
    /// Records that are done with.
    pub(super) done: BTreeMap<StreamName, Ranges>,
    /// Streams whose state changed.
    pub(super) touched: BTreeSet<StreamName>,
    /// Those to answer when written, and those to answer when synced.
    pub(super) written: Vec<Done>,
    pub(super) synced: Vec<Done>,
    pub(super) commits: u64,
    pub(super) sync_within: Option<Duration>,
    pub(super) carried: Vec<(StreamName, Piece, u64)>,
    /// How far streams were acknowledged.
    pub(super) acked: BTreeMap<StreamName, u64>,
    /// Batches that were answered already: when this fails, they wait for another try.
    pub(super) held: Vec<Begun>,
    /// Whether to note the time.
    pub(super) clock: bool,
    pub(super) bytes: usize,
}

impl Group {
    pub(super) fn sync_within(&mut self, within: Duration) {
        self.sync_within = Some(self.sync_within.map_or(within, |earlier| earlier.min(within)));
    }

    /// Adds a batch whose records are in the index already.
    pub(super) fn push(&mut self, begun: Begun, done: Done) {
        self.bytes += begun.bytes;
        self.commits += 1;
        self.sync_within(begun.within);
        let answer_when = if begun.within.is_zero() { &mut self.synced } else { &mut self.written };
        answer_when.push(done);
        for (stream, record) in begun.records {
            self.push_record(&stream, record, begun.moment);
        }
        for (key, version, frame) in begun.key_values {
            self.versions.push((key.clone(), version));
            self.key_values.insert(key, frame);
        }
    }

    /// Adds a record that is in the index already.
    pub(super) fn push_record(&mut self, stream: &StreamName, record: Record, moment: Moment) {
        let record_bytes = record.bytes();
        if let Some((at, bytes)) = self.filling.get_mut(stream)
            && *bytes + record_bytes <= BLOCK_BYTES_MAX
            && self.blocks[*at].run == moment.run
        {
            *bytes += record_bytes;
            self.blocks[*at].records.push(record);
            return;
        }
        self.filling.insert(stream.clone(), (self.blocks.len(), record_bytes));
        let Moment { age_ms, run, .. } = moment;
        self.blocks.push(Block { stream: stream.clone(), age_ms, run, records: vec![record] });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
            && self.key_values.is_empty()
            && self.done.is_empty()
            && self.touched.is_empty()
            && !self.clock
    }

    /// Keys and versions of its key-values.
    pub(super) fn writes(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.versions.iter().map(|(key, version)| (key.as_slice(), *version))
    }
}

/// Records of one stream as values of a bounded size, each with the age and the run of the block that it is from. With
/// `joined`, what is missing between them is done with.
pub(super) fn blocks_of(
    stream: &StreamName,
    records: impl IntoIterator<Item = (u64, u64, Record)>,
    joined: bool,
) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut bytes = 0;
    for (age_ms, run, record) in records {
        bytes += record.bytes();
        let fits = |block: &Block| {
            let follows = block.records.last().is_some_and(|before| before.sequence + 1 == record.sequence);
            let alike = block.run == run && age_ms.abs_diff(block.age_ms) <= SPAN_MS_MAX;
            bytes <= BLOCK_BYTES_MAX && alike && (joined || follows)
        };
        match blocks.last_mut().filter(|block| fits(block)) {
            Some(block) => block.records.push(record),
            None => {
                bytes = record.bytes();
                blocks.push(Block { stream: stream.clone(), age_ms, run, records: vec![record] });
            }
        }
    }
    blocks
}

/// The records of `blocks` that `needed` says, each once, in order, by stream.
pub(super) fn sort_out(blocks: Vec<Block>, needed: impl Fn(&StreamName, u64) -> bool) -> Vec<Block> {
    let mut records: BTreeMap<StreamName, BTreeMap<u64, (u64, u64, Record)>> = BTreeMap::new();
    for Block { stream, age_ms, run, records: found } in blocks {
        let found = found.into_iter().filter(|record| needed(&stream, record.sequence));
        let found: Vec<_> = found.map(|record| (record.sequence, (age_ms, run, record))).collect();
        records.entry(stream).or_default().extend(found);
    }
    records.into_iter().flat_map(|(stream, records)| blocks_of(&stream, records.into_values(), false)).collect()
}

/// All that must be known of a stream at the start of a segment.
pub(super) fn state_frames(name: &StreamName, index: &StreamIndex) -> Vec<Frame> {
    let mut frames = vec![Frame::Stream(name.clone(), index.state)];
    frames.extend(done_frames(name, index.done_ranges()));
    frames
}

/// `ranges` of `name` as values of a bounded size.
pub(super) fn done_frames(name: &StreamName, ranges: &Ranges) -> Vec<Frame> {
    let all: Vec<(u64, u64)> = ranges.iter().collect();
    let frames = all.chunks(RANGES_MAX).map(|some| {
        let mut ranges = Ranges::default();
        some.iter().for_each(|(first, last)| ranges.insert(*first, *last));
        Frame::Done(name.clone(), ranges)
    });
    frames.collect()
}

/// A value and what a segment keeps it under.
pub(super) fn value(stamp: Stamp, frame: &Frame) -> (Vec<u8>, Vec<u8>) {
    (record::key(frame), record::encode(stamp, frame))
}
