//! What the journal writes, as bytes that explain themselves.
//!
//! Every value carries a magic number, a format version, its length and a CRC32C, and repeats the name that it is stored
//! under. So a value that was damaged is never taken for a good one, and values can be found again in a file whose
//! database can no longer be opened ([`scan`]).
//!
//! ```text
//! A7 54 47 | version u8 | body bytes u32 | CRC32C of the body u32 | body: kind u8, revision u64, …
//! ```
//! Integers are little-endian. `revision` counts commits: of two values with the same name the higher one is the newer.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use crate::name::{FunctionName, StreamName};

const MAGIC: [u8; 3] = [0xA7, b'T', b'G'];
/// Version of the layout below.
pub const VERSION: u8 = 1;
const HEADER_BYTES: usize = 12;

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in its stream, from 1; never used twice.
    pub sequence: u64,
    /// Unix time in milliseconds of what it tells.
    pub time_ms: u64,
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

/// Time, two lengths.
const RECORD_OVERHEAD_BYTES: usize = 8 + 1 + 4;

/// Neighbours of one stream that were committed together: one value of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Whose.
    pub stream: StreamName,
    /// In order, without a gap; never empty.
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
}

/// One value of the database.
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
    },
    /// All that an earlier segment handed on is in this one.
    Head,
}

const BLOCK: u8 = 1;
const STREAM: u8 = 2;
const KEY_VALUE: u8 = 3;
const HEAD: u8 = 4;

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16_le(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(text.as_bytes());
}

/// Longest bucket or key, in bytes: what [`encode`] can hold, less a margin.
pub const KEY_BYTES_MAX: usize = 1024;

/// Bytes of `frame` as of `revision`. Bodies stay far under 4 GiB: limits bound what enters a commit.
pub fn encode(revision: u64, frame: &Frame) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    match frame {
        Frame::Block(block) => {
            out.put_u8(BLOCK);
            out.put_u64_le(revision);
            put_text(&mut out, block.stream.as_str());
            out.put_u64_le(block.records.first().map_or(0, |record| record.sequence));
            out.put_u32_le(length(block.records.len()));
            for record in &block.records {
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
            out.put_u8(STREAM);
            out.put_u64_le(revision);
            put_text(&mut out, stream.as_str());
            for number in
                [state.newest, state.acked, state.floor, state.dropped_by_age, state.dropped_by_bytes, state.lost]
            {
                out.put_u64_le(number);
            }
        }
        Frame::KeyValue { function, bucket, key, value } => {
            out.put_u8(KEY_VALUE);
            out.put_u64_le(revision);
            put_text(&mut out, function.as_str());
            put_text(&mut out, bucket);
            put_text(&mut out, key);
            out.put_u8(u8::from(value.is_some()));
            out.put_slice(value.as_deref().unwrap_or_default());
        }
        Frame::Head => {
            out.put_u8(HEAD);
            out.put_u64_le(revision);
        }
    }
    let crc = crc32c::crc32c(&out[HEADER_BYTES..]);
    let body_bytes = length(out.len() - HEADER_BYTES);
    out[..3].copy_from_slice(&MAGIC);
    out[3] = VERSION;
    out[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
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

/// Reads the value at the start of `bytes`: its revision, itself, and how many bytes it took. Shares `bytes`' memory.
///
/// # Errors
/// When it is not ours, too new or damaged.
pub fn decode(bytes: &Bytes) -> Result<(u64, Frame, usize), FrameError> {
    if bytes.len() < HEADER_BYTES || bytes[..3] != MAGIC {
        return Err(FrameError::Foreign);
    }
    if bytes[3] != VERSION {
        return Err(FrameError::Version(bytes[3]));
    }
    let mut header = bytes.slice(4..HEADER_BYTES);
    let body_bytes = usize::try_from(header.get_u32_le()).map_err(|_| FrameError::Damaged)?;
    let crc = header.get_u32_le();
    let end = HEADER_BYTES.checked_add(body_bytes).filter(|end| *end <= bytes.len()).ok_or(FrameError::Damaged)?;
    let body = bytes.slice(HEADER_BYTES..end);
    if crc32c::crc32c(&body) != crc {
        return Err(FrameError::Damaged);
    }
    let (revision, frame) = decode_body(body).ok_or(FrameError::Damaged)?;
    Ok((revision, frame, end))
}

fn decode_body(mut body: Bytes) -> Option<(u64, Frame)> {
    let kind = body.try_get_u8().ok()?;
    let revision = body.try_get_u64_le().ok()?;
    let frame = match kind {
        BLOCK => {
            let stream = StreamName::parse(&take_text(&mut body)?).ok()?;
            let first = body.try_get_u64_le().ok()?;
            let count = body.try_get_u32_le().ok()?;
            let mut records = Vec::new();
            for sequence in first..first.checked_add(u64::from(count))? {
                let time_ms = body.try_get_u64_le().ok()?;
                let trace_bytes = usize::from(body.try_get_u8().ok()?);
                let data_bytes = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
                let trace = take(&mut body, trace_bytes)?;
                let trace = std::str::from_utf8(&trace).ok()?;
                let trace_parent = (!trace.is_empty()).then(|| Arc::from(trace));
                records.push(Record { sequence, time_ms, trace_parent, data: take(&mut body, data_bytes)? });
            }
            Frame::Block(Block { stream, records })
        }
        STREAM => {
            let stream = StreamName::parse(&take_text(&mut body)?).ok()?;
            let mut number = || body.try_get_u64_le().ok();
            let state = StreamState {
                newest: number()?,
                acked: number()?,
                floor: number()?,
                dropped_by_age: number()?,
                dropped_by_bytes: number()?,
                lost: number()?,
            };
            Frame::Stream(stream, state)
        }
        KEY_VALUE => {
            let function = FunctionName::parse(&take_text(&mut body)?).ok()?;
            let bucket = take_text(&mut body)?;
            let key = take_text(&mut body)?;
            let exists = body.try_get_u8().ok()? == 1;
            Frame::KeyValue { function, bucket, key, value: exists.then_some(body) }
        }
        HEAD => Frame::Head,
        _ => return None,
    };
    Some((revision, frame))
}

fn take(body: &mut Bytes, bytes: usize) -> Option<Bytes> {
    (bytes <= body.len()).then(|| body.split_to(bytes))
}

fn take_text(body: &mut Bytes) -> Option<String> {
    let bytes = usize::from(body.try_get_u16_le().ok()?);
    String::from_utf8(take(body, bytes)?.to_vec()).ok()
}

/// All intact values in `bytes`, wherever they begin: for a file whose database can no longer be opened.
pub fn scan(bytes: &Bytes) -> Vec<(u64, Frame)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + HEADER_BYTES <= bytes.len() {
        match decode(&bytes.slice(at..)) {
            Ok((revision, frame, taken)) => {
                found.push((revision, frame));
                at += taken;
            }
            Err(_) => at += 1,
        }
    }
    found
}

/// Where the database keeps `frame`. Records of a stream are neighbours, in order; so are the keys of a bucket.
pub fn key(frame: &Frame) -> Vec<u8> {
    match frame {
        Frame::Block(block) => block_key(&block.stream, block.records.first().map_or(0, |record| record.sequence)),
        Frame::Stream(stream, _) => named(b's', stream.as_str()),
        Frame::KeyValue { function, bucket, key, .. } => {
            let mut bytes = bucket_key(function, bucket);
            bytes.put_slice(key.as_bytes());
            bytes
        }
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

fn named(kind: u8, name: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    put_text(&mut bytes, name);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let stream = StreamName::parse("readings").unwrap();
        let record = |sequence, data: &'static [u8]| Record {
            sequence,
            time_ms: 1_700_000_000_000,
            trace_parent: (sequence == 7).then(|| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            data: Bytes::from_static(data),
        };
        vec![
            Frame::Block(Block { stream: stream.clone(), records: vec![record(7, b"{}"), record(8, b"")] }),
            Frame::Stream(
                stream,
                StreamState { newest: 8, acked: 3, floor: 4, dropped_by_age: 1, ..Default::default() },
            ),
            Frame::KeyValue {
                function: FunctionName::parse("mean").unwrap(),
                bucket: "minutes".into(),
                key: "12:01".into(),
                value: Some(Bytes::from_static(b"20.5")),
            },
            Frame::KeyValue {
                function: FunctionName::parse("mean").unwrap(),
                bucket: String::new(),
                key: String::new(),
                value: None,
            },
            Frame::Head,
        ]
    }

    #[test]
    fn a_value_reads_back_as_it_was_written() {
        for frame in frames() {
            let bytes = Bytes::from(encode(9, &frame));
            assert_eq!(decode(&bytes), Ok((9, frame, bytes.len())));
        }
    }

    #[test]
    fn a_damaged_value_is_never_taken_for_a_good_one() {
        for frame in frames() {
            let bytes = encode(9, &frame);
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
            file.extend(encode(1, &frame));
            file.extend(b"\xA7TG\x01 rubbish");
        }
        let found: Vec<Frame> = scan(&file.into()).into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(found, frames());
    }
}
