//! What the journal writes, as bytes that explain themselves.
//!
//! Every value carries a magic number, a format version, its length and a CRC32C, and repeats the name that it is stored
//! under. So a value that was damaged is never taken for a good one, and values can be found again in a file that is
//! damaged ([`scan`]).
//!
//! ```text
//! A7 54 47 | version u8 | body bytes u32 | CRC32C of version and body u32 | body: kind u8, stamp, …
//! ```
//! Integers are little-endian. The [`Stamp`] tells which commit a value belongs to, and whether all of it is there.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::age::ClockState;
use super::ranges::Ranges;
use crate::name::{FunctionName, StreamName};

const MAGIC: [u8; 3] = [0xA7, b'T', b'G'];
/// Version of the layout below. Version 1 had the revision for a stamp, no ages and gaps in blocks, no versions of
/// key-values, nothing done with and no clock.
pub const VERSION: u8 = 2;
/// No value is shorter.
pub const HEADER_BYTES: usize = 12;

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in its stream, from 1; never used twice.
    pub sequence: u64,
    /// Unix time in milliseconds of what it tells.
    pub time_ms: u64,
    /// The clock was not set yet, and what `time_ms` says is not to be believed.
    pub time_unknown: bool,
    /// W3C `traceparent` of the invocation that made it.
    pub trace_parent: Option<Arc<str>>,
    /// The payload.
    pub data: Bytes,
}

impl Record {
    /// What it counts against the stream's budget: the payload and what is kept beside it.
    pub fn bytes(&self) -> u64 {
        let trace = self.trace_parent.as_ref().map_or(0, |text| text.len());
        (RECORD_OVERHEAD_BYTES + trace + self.data.len()) as u64
    }
}

/// Gap, time, two lengths.
const RECORD_OVERHEAD_BYTES: usize = 1 + 8 + 1 + 4;

/// Which commit a value is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Counts commits: of two values with the same name the higher one is the newer.
    pub revision: u64,
    /// Values that its commit has; 0 when each of them stands for itself.
    pub values: u32,
    /// The last revision that was on disk for sure.
    pub synced: u64,
}

/// Neighbours of one stream that were committed together: one value of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Whose.
    pub stream: StreamName,
    /// When it was kept, by the journal's own clock.
    pub age_ms: u64,
    /// 0, or the run whose clock was not set: then the times of its records count from the start of that run.
    pub run: u64,
    /// In order; never empty. Records that were done with when they were copied are left out.
    pub records: Vec<Record>,
}

/// What is kept of a stream beside its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Highest sequence that was given out.
    pub newest: u64,
    /// Highest sequence that the other side confirmed.
    pub acked: u64,
    /// Highest sequence that is no longer kept, for whichever reason.
    pub floor: u64,
    /// Records that `max_age` cost.
    pub dropped_by_age: u64,
    /// Records that `max_bytes` cost.
    pub dropped_by_bytes: u64,
    /// Records that could not be read back.
    pub lost: u64,
    /// Records that the budget of all streams together cost.
    pub dropped_by_buffer: u64,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Records.
    Block(Block),
    /// A stream's state.
    Stream(StreamName, StreamState),
    /// A key-value; `None` when it was deleted.
    KeyValue {
        /// Whose.
        function: FunctionName,
        /// In which of its buckets.
        bucket: String,
        /// The key.
        key: String,
        /// The value.
        value: Option<Bytes>,
        /// Differs after each write.
        version: u64,
    },
    /// Records that are done with, though earlier ones of their stream are not.
    Done(StreamName, Ranges),
    /// What is known of the time.
    Clock(ClockState),
    /// All that an earlier segment handed on is in this one.
    Head,
}

const BLOCK: u8 = 1;
const STREAM: u8 = 2;
const KEY_VALUE: u8 = 3;
const HEAD: u8 = 4;
const DONE: u8 = 5;
const CLOCK: u8 = 6;

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16_le(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(text.as_bytes());
}

/// Longest bucket or key, in bytes: what [`encode`] can hold, less a margin.
pub const KEY_BYTES_MAX: usize = 1024;

/// Bytes of `frame`. Bodies stay far under 4 GiB: limits bound what enters a commit.
pub fn encode(stamp: Stamp, frame: &Frame) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    out.put_u8(match frame {
        Frame::Block(_) => BLOCK,
        Frame::Stream(..) => STREAM,
        Frame::KeyValue { .. } => KEY_VALUE,
        Frame::Done(..) => DONE,
        Frame::Clock(_) => CLOCK,
        Frame::Head => HEAD,
    });
    out.put_u64_le(stamp.revision);
    out.put_u32_le(stamp.values);
    out.put_u64_le(stamp.synced);
    match frame {
        Frame::Block(block) => {
            put_text(&mut out, block.stream.as_str());
            out.put_u64_le(block.age_ms);
            out.put_u64_le(block.run);
            out.put_u64_le(block.records.first().map_or(0, |record| record.sequence));
            out.put_u32_le(length(block.records.len()));
            let mut next = block.records.first().map_or(0, |record| record.sequence);
            for record in &block.records {
                put_varint(&mut out, record.sequence.saturating_sub(next));
                next = record.sequence + 1;
                let trace = record.trace_parent.as_deref().unwrap_or_default();
                let trace = if trace.len() <= usize::from(u8::MAX) { trace } else { "" };
                out.put_u64_le(record.time_ms);
                out.put_u8(u8::try_from(trace.len()).unwrap_or(0));
                out.put_u32_le(length(record.data.len()));
                out.put_slice(trace.as_bytes());
                out.put_slice(&record.data);
            }
        }
        Frame::Stream(stream, state) => {
            put_text(&mut out, stream.as_str());
            for number in [
                state.newest,
                state.acked,
                state.floor,
                state.dropped_by_age,
                state.dropped_by_bytes,
                state.lost,
                state.dropped_by_buffer,
            ] {
                out.put_u64_le(number);
            }
        }
        Frame::KeyValue { function, bucket, key, value, version } => {
            put_text(&mut out, function.as_str());
            put_text(&mut out, bucket);
            put_text(&mut out, key);
            out.put_u64_le(*version);
            out.put_u8(u8::from(value.is_some()));
            out.put_slice(value.as_deref().unwrap_or_default());
        }
        Frame::Done(stream, ranges) => {
            put_text(&mut out, stream.as_str());
            let mut next = 0;
            for (first, last) in ranges.iter() {
                put_varint(&mut out, first - next);
                put_varint(&mut out, last - first);
                next = last;
            }
        }
        Frame::Clock(clock) => {
            for number in [clock.run, clock.age_ms, clock.wall_ms, clock.wall_age_ms] {
                out.put_u64_le(number);
            }
            for (run, start_ms) in &clock.runs {
                out.put_u64_le(*run);
                out.put_u64_le(*start_ms);
            }
        }
        Frame::Head => {}
    }
    let crc = checksum(VERSION, &out[HEADER_BYTES..]);
    let body_bytes = length(out.len() - HEADER_BYTES);
    out[..3].copy_from_slice(&MAGIC);
    out[3] = VERSION;
    out[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Seven bits a byte, the low ones first.
fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8((number & 0x7f) as u8);
}

fn take_varint(body: &mut Bytes) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = body.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// CRC32C of the body, in version 1; now of the version and the body, so that one is never taken for the other.
fn checksum(version: u8, body: &[u8]) -> u32 {
    if version == 1 { crc32c::crc32c(body) } else { crc32c::crc32c_append(crc32c::crc32c(&[version]), body) }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Why a value cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not written by us.
    #[error("it does not start with the journal's magic number")]
    Foreign,
    /// Written by a newer agent.
    #[error("it has format version {0}, newer than this agent's {VERSION}")]
    Version(u8),
    /// Cut short, or a bit flipped.
    #[error("its checksum does not match")]
    Damaged,
}

/// Reads the value at the start of `bytes`: its stamp, itself, and how many bytes it took. Shares `bytes`' memory.
///
/// # Errors
/// When it is not ours, too new or damaged.
pub fn decode(bytes: &Bytes) -> Result<(Stamp, Frame, usize), FrameError> {
    if bytes.len() < HEADER_BYTES || bytes[..3] != MAGIC {
        return Err(FrameError::Foreign);
    }
    let version = bytes[3];
    if !(1..=VERSION).contains(&version) {
        return Err(FrameError::Version(version));
    }
    let mut header = bytes.slice(4..HEADER_BYTES);
    let body_bytes = usize::try_from(header.get_u32_le()).map_err(|_| FrameError::Damaged)?;
    let crc = header.get_u32_le();
    let end = HEADER_BYTES.checked_add(body_bytes).filter(|end| *end <= bytes.len()).ok_or(FrameError::Damaged)?;
    let body = bytes.slice(HEADER_BYTES..end);
    if checksum(version, &body) != crc {
        return Err(FrameError::Damaged);
    }
    let (stamp, frame) = decode_body(version, body).ok_or(FrameError::Damaged)?;
    Ok((stamp, frame, end))
}

fn decode_body(layout: u8, mut body: Bytes) -> Option<(Stamp, Frame)> {
    let kind = body.try_get_u8().ok()?;
    let mut stamp = Stamp { revision: body.try_get_u64_le().ok()?, ..Stamp::default() };
    if layout > 1 {
        stamp.values = body.try_get_u32_le().ok()?;
        stamp.synced = body.try_get_u64_le().ok()?;
    }
    let frame = match kind {
        BLOCK => {
            let stream = StreamName::parse_stored(&take_text(&mut body)?).ok()?;
            let mut age_ms = if layout == 1 { 0 } else { body.try_get_u64_le().ok()? };
            let run = if layout == 1 { 0 } else { body.try_get_u64_le().ok()? };
            let first = body.try_get_u64_le().ok()?;
            let count = body.try_get_u32_le().ok()?;
            let mut records = Vec::new();
            let mut next = first;
            for _ in 0..count {
                let gap = if layout == 1 { 0 } else { take_varint(&mut body)? };
                let sequence = next.checked_add(gap)?;
                next = sequence.checked_add(1)?;
                let time_ms = body.try_get_u64_le().ok()?;
                let trace_bytes = usize::from(body.try_get_u8().ok()?);
                let data_bytes = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
                let trace = take(&mut body, trace_bytes)?;
                let trace = std::str::from_utf8(&trace).ok()?;
                let trace_parent = (!trace.is_empty()).then(|| Arc::from(trace));
                let data = take(&mut body, data_bytes)?;
                records.push(Record { sequence, time_ms, time_unknown: run > 0, trace_parent, data });
                if layout == 1 {
                    age_ms = age_ms.max(time_ms);
                }
            }
            Frame::Block(Block { stream, age_ms, run, records })
        }
        STREAM => {
            let stream = StreamName::parse_stored(&take_text(&mut body)?).ok()?;
            let mut number = || body.try_get_u64_le().ok();
            let state = StreamState {
                newest: number()?,
                acked: number()?,
                floor: number()?,
                dropped_by_age: number()?,
                dropped_by_bytes: number()?,
                lost: number()?,
                dropped_by_buffer: if layout == 1 { 0 } else { number()? },
            };
            Frame::Stream(stream, state)
        }
        KEY_VALUE => {
            let function = FunctionName::parse(&take_text(&mut body)?).ok()?;
            let bucket = take_text(&mut body)?;
            let key = take_text(&mut body)?;
            // Commits were counted before writes were, and a version need only differ.
            let version = if layout == 1 { stamp.revision } else { body.try_get_u64_le().ok()? };
            let exists = body.try_get_u8().ok()? == 1;
            Frame::KeyValue { function, bucket, key, value: exists.then_some(body), version }
        }
        DONE => {
            let stream = StreamName::parse_stored(&take_text(&mut body)?).ok()?;
            let (mut ranges, mut next) = (Ranges::default(), 0_u64);
            while !body.is_empty() {
                let first = next.checked_add(take_varint(&mut body)?)?;
                next = first.checked_add(take_varint(&mut body)?)?;
                ranges.insert(first, next);
            }
            Frame::Done(stream, ranges)
        }
        CLOCK => {
            let mut clock = ClockState {
                run: body.try_get_u64_le().ok()?,
                age_ms: body.try_get_u64_le().ok()?,
                wall_ms: body.try_get_u64_le().ok()?,
                wall_age_ms: body.try_get_u64_le().ok()?,
                ..ClockState::default()
            };
            while !body.is_empty() {
                clock.runs.insert(body.try_get_u64_le().ok()?, body.try_get_u64_le().ok()?);
            }
            Frame::Clock(clock)
        }
        HEAD => Frame::Head,
        _ => return None,
    };
    Some((stamp, frame))
}

fn take(body: &mut Bytes, bytes: usize) -> Option<Bytes> {
    (bytes <= body.len()).then(|| body.split_to(bytes))
}

fn take_text(body: &mut Bytes) -> Option<String> {
    let bytes = usize::from(body.try_get_u16_le().ok()?);
    String::from_utf8(take(body, bytes)?.to_vec()).ok()
}

/// All intact values in `bytes`, wherever they begin: for a file that is damaged.
pub fn scan(bytes: &Bytes) -> Vec<(Stamp, Frame)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + HEADER_BYTES <= bytes.len() {
        match decode(&bytes.slice(at..)) {
            Ok((stamp, frame, taken)) => {
                found.push((stamp, frame));
                at += taken;
            }
            Err(_) => at += 1,
        }
    }
    found
}

/// What a segment keeps `frame` under. Records of a stream are neighbours, in order; so are the keys of a bucket.
pub fn key(frame: &Frame) -> Vec<u8> {
    match frame {
        Frame::Block(block) => block_key(&block.stream, block.records.first().map_or(0, |record| record.sequence)),
        Frame::Stream(stream, _) => named(b's', stream.as_str()),
        Frame::KeyValue { function, bucket, key, .. } => {
            let mut bytes = bucket_key(function, bucket);
            bytes.put_slice(key.as_bytes());
            bytes
        }
        // No record is done with twice, so the first of them is a name.
        Frame::Done(stream, ranges) => {
            let mut bytes = named(b'd', stream.as_str());
            bytes.put_u64(ranges.iter().next().map_or(0, |(first, _)| first));
            bytes
        }
        Frame::Clock(_) => b"c".to_vec(),
        Frame::Head => b"h".to_vec(),
    }
}

/// Key of the block that starts at `first`.
pub fn block_key(stream: &StreamName, first: u64) -> Vec<u8> {
    let mut bytes = named(b'r', stream.as_str());
    bytes.put_u64(first);
    bytes
}

/// What all keys of a bucket start with.
pub fn bucket_key(function: &FunctionName, bucket: &str) -> Vec<u8> {
    let mut bytes = named(b'k', function.as_str());
    put_text(&mut bytes, bucket);
    bytes
}

/// Whose key-value is kept under `key`.
pub fn function_of(key: &[u8]) -> Option<FunctionName> {
    let mut key = Bytes::copy_from_slice(key.strip_prefix(b"k")?);
    FunctionName::parse(&take_text(&mut key)?).ok()
}

fn named(kind: u8, name: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    put_text(&mut bytes, name);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Own;

    const STAMP: Stamp = Stamp { revision: 9, values: 7, synced: 8 };

    fn frames() -> Vec<Frame> {
        let mut ranges = Ranges::default();
        for (first, last) in [(3, 3), (5, 1_000_000), (u64::MAX - 1, u64::MAX - 1)] {
            ranges.insert(first, last);
        }
        let stream = StreamName::parse("readings").unwrap();
        let record = |sequence, data: &'static [u8]| Record {
            sequence,
            time_ms: 1_700_000_000_000,
            time_unknown: true,
            trace_parent: (sequence == 7).then(|| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            data: Bytes::from_static(data),
        };
        vec![
            Frame::Block(Block {
                stream: stream.clone(),
                age_ms: 70,
                run: 3,
                records: vec![record(7, b"{}"), record(8, b""), record(900, b"1")],
            }),
            Frame::Stream(
                stream,
                StreamState { newest: 8, acked: 3, floor: 4, dropped_by_age: 1, ..Default::default() },
            ),
            Frame::KeyValue {
                function: FunctionName::parse("mean").unwrap(),
                bucket: "minutes".into(),
                key: "12:01".into(),
                value: Some(Bytes::from_static(b"20.5")),
                version: 77,
            },
            Frame::KeyValue {
                function: FunctionName::parse("mean").unwrap(),
                bucket: String::new(),
                key: String::new(),
                value: None,
                version: 0,
            },
            Frame::Clock(ClockState { run: 3, age_ms: 70, wall_ms: 9, wall_age_ms: 8, runs: [(1, 5), (2, 7)].into() }),
            Frame::Done(StreamName::own(Own::Parked, "mean"), ranges),
            Frame::Head,
        ]
    }

    #[test]
    fn a_value_reads_back_as_it_was_written() {
        for frame in frames() {
            let bytes = Bytes::from(encode(STAMP, &frame));
            assert_eq!(decode(&bytes), Ok((STAMP, frame, bytes.len())));
        }
    }

    #[test]
    fn a_damaged_value_is_never_taken_for_a_good_one() {
        for frame in frames() {
            let bytes = encode(STAMP, &frame);
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x10;
                assert!(decode(&flipped.into()).is_err(), "byte {at} of {frame:?}");
                assert!(decode(&bytes[..at].to_vec().into()).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn intact_values_are_found_between_rubbish() {
        let mut file = vec![0xA7; 100];
        for frame in frames() {
            file.extend(encode(STAMP, &frame));
            file.extend(b"\xA7TG\x01 rubbish");
        }
        let found: Vec<Frame> = scan(&file.into()).into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(found, frames());
    }
}
