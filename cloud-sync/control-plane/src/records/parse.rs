//! Reads what gateways send: lines of JSON, compressed. See docs/reference/uplink-http.md.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use sync_protocol::limits::RECORDS_BYTES_MAX;
use sync_protocol::name::StreamName;

use super::{Data, Incoming};

/// Most memory that a body may ask of the decoder: 8 MiB, as a power of two.
const WINDOW_LOG_MAX: u32 = 23;

/// Records of one stream, in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Which.
    pub stream: StreamName,
    /// At least one.
    pub records: Vec<Incoming>,
}

/// The first line that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Wrong {
    /// Counts from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Why nothing of a body can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Over [`RECORDS_BYTES_MAX`].
    #[error("the body is more than {RECORDS_BYTES_MAX} bytes when decompressed")]
    TooLarge,
    /// Not zstd.
    #[error("the body is not zstd: {0}")]
    Compression(String),
}

#[derive(Deserialize)]
struct Line<'a> {
    stream: StreamName,
    sequence: u64,
    time_ms: Option<u64>,
    #[serde(default)]
    time_unknown: bool,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

/// `null` is a record like any other.
fn present<'de, D: Deserializer<'de>>(data: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(data).map(Some)
}

/// Reads a body: the lines before the first that is wrong, and that one.
///
/// # Errors
/// When it is too large or not zstd.
pub fn parse(body: &[u8], compressed: bool) -> Result<(Option<Batch>, Option<Wrong>), ParseError> {
    let plain = if compressed { decompress(body)? } else { body.to_vec() };
    let mut batch: Option<Batch> = None;
    for (n, line) in plain.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (stream, record) = match read(line) {
            Ok(read) => read,
            Err(why) => return Ok((batch, Some(Wrong { line: n + 1, why }))),
        };
        match &mut batch {
            None => batch = Some(Batch { stream, records: vec![record] }),
            Some(batch) if batch.stream == stream => batch.records.push(record),
            Some(first) => {
                let why = format!("it is of stream `{stream}`, those before it are of `{}`", first.stream);
                return Ok((batch, Some(Wrong { line: n + 1, why })));
            }
        }
    }
    Ok((batch, None))
}

fn decompress(body: &[u8]) -> Result<Vec<u8>, ParseError> {
    let failed = |error: std::io::Error| ParseError::Compression(error.to_string());
    let mut plain = Vec::new();
    let mut decoder = zstd::Decoder::with_buffer(body).map_err(failed)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(failed)?;
    // One byte more than allowed, so that a bomb costs no more memory than an honest body.
    decoder.take(RECORDS_BYTES_MAX as u64 + 1).read_to_end(&mut plain).map_err(failed)?;
    if plain.len() > RECORDS_BYTES_MAX { Err(ParseError::TooLarge) } else { Ok(plain) }
}

fn read(line: &[u8]) -> Result<(StreamName, Incoming), String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let data = match (line.data, line.data_base64) {
        (Some(json), None) => Data::Json(json.get().to_owned()),
        (None, Some(encoded)) => {
            Data::Bytes(STANDARD.decode(encoded).map_err(|error| format!("`data_base64`: {error}"))?)
        }
        _ => return Err("it needs either `data` or `data_base64`".to_owned()),
    };
    let largest = i64::MAX.unsigned_abs();
    if line.sequence > largest || line.time_ms.is_some_and(|time_ms| time_ms > largest) {
        return Err("a number in it is too large".to_owned());
    }
    let time_ms = line.time_ms.filter(|_| !line.time_unknown);
    Ok((line.stream, Incoming { sequence: line.sequence, time_ms, data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(lines: &str) -> (Option<Batch>, Option<Wrong>) {
        parse(&zstd::encode_all(lines.as_bytes(), 1).unwrap(), true).unwrap()
    }

    #[test]
    fn a_record_is_kept_exactly_as_it_was_appended() {
        let line = r#"{"id":"hall-3/readings/7","gateway":"hall-3","stream":"readings","sequence":7,"time_ms":99,"replayed":true,"data":{"celsius": 20.50}}"#;
        let (batch, wrong) = parsed(&format!("{line}\n"));
        let expected =
            Incoming { sequence: 7, time_ms: Some(99), data: Data::Json(r#"{"celsius": 20.50}"#.to_owned()) };
        assert_eq!((batch.unwrap().records, wrong), (vec![expected], None));
    }

    #[test]
    fn a_record_that_is_no_json_and_one_without_a_clock_are_taken() {
        let (batch, _) = parsed(
            "{\"stream\":\"a\",\"sequence\":1,\"time_ms\":5,\"time_unknown\":true,\"data_base64\":\"/wA=\"}\n{\"stream\":\"a\",\"sequence\":2,\"data\":null}",
        );
        let records = batch.unwrap().records;
        assert_eq!((records[0].time_ms, &records[0].data), (None, &Data::Bytes(vec![0xff, 0])));
        assert_eq!(records[1].data, Data::Json("null".to_owned()));
    }

    #[test]
    fn what_comes_before_a_wrong_line_is_taken() {
        for wrong in ["{", "{\"stream\":\"b\",\"sequence\":2,\"data\":1}", "{\"stream\":\"a\",\"sequence\":2}"] {
            let (batch, found) = parsed(&format!("{{\"stream\":\"a\",\"sequence\":1,\"data\":1}}\n{wrong}\n"));
            assert_eq!((batch.unwrap().records.len(), found.unwrap().line), (1, 2), "{wrong}");
        }
    }

    #[test]
    fn a_bomb_is_refused_without_being_unpacked() {
        let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 1).unwrap();
        assert!(bomb.len() < 100_000);
        assert_eq!(parse(&bomb, true), Err(ParseError::TooLarge));
        assert!(matches!(parse(b"no zstd", true), Err(ParseError::Compression(_))));
    }
}
