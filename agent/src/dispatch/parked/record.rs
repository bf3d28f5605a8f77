//! A parked event as bytes: how it waits, then the event itself.
//!
//! ```text
//! format u8 | reason u8 | attempt u32 | place u64 | topic u64 | parked u64 | wait u64 | age u64 | max age u64 | why: length u32, text | event
//! ```
//! Integers are little-endian, times are in milliseconds.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::event::Event;

const FORMAT: u8 = 1;
/// Longest `why` that is kept.
const WHY_BYTES_MAX: usize = 1 << 10;

/// Why an event waits on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dispatch) enum Reason {
    /// For another attempt.
    Retry,
    /// For room in memory.
    Room,
    /// Behind an earlier event of its topic.
    Turn,
}

/// How an event waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dispatch) struct Header {
    pub(super) reason: Reason,
    /// The attempt that it waits for; 1 when it has not run.
    pub(super) attempt: u32,
    /// Where it stands among the parked ones: the sequence of its first record. 0 when this is the first.
    pub(super) place: u64,
    /// A hash of its topic; 0 when it has none.
    pub(super) topic: u64,
    /// When it was written, by the journal's own clock: setting the wall clock makes no event older.
    pub(super) parked_ms: u64,
    /// How long it waits from then on.
    pub(super) wait: Duration,
    /// How long ago it had first come, then.
    pub(super) age: Duration,
    /// After how long it is given up on.
    pub(super) max_age: Duration,
    /// How its last attempt ended.
    pub(super) why: Arc<str>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Header {
    pub(super) fn encode(&self, event: &Event) -> Bytes {
        let event = event.encode();
        let mut cut = self.why.len().min(WHY_BYTES_MAX);
        while !self.why.is_char_boundary(cut) {
            cut -= 1;
        }
        let why = &self.why.as_bytes()[..cut];
        let mut out = BytesMut::with_capacity(64 + why.len() + event.len());
        out.put_u8(FORMAT);
        out.put_u8(self.reason as u8);
        out.put_u32_le(self.attempt);
        for number in
            [self.place, self.topic, self.parked_ms, millis(self.wait), millis(self.age), millis(self.max_age)]
        {
            out.put_u64_le(number);
        }
        out.put_u32_le(u32::try_from(why.len()).unwrap_or(0));
        out.put_slice(why);
        out.put_slice(&event);
        out.freeze()
    }

    /// What [`Header::encode`] wrote: how it waits, and the event's own bytes.
    pub(in crate::dispatch) fn decode(mut bytes: Bytes) -> Option<(Self, Bytes)> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let reason = match bytes.try_get_u8().ok()? {
            0 => Reason::Retry,
            1 => Reason::Room,
            2 => Reason::Turn,
            _ => return None,
        };
        let attempt = bytes.try_get_u32_le().ok()?;
        let (place, topic) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
        let parked_ms = bytes.try_get_u64_le().ok()?;
        let mut span = || bytes.try_get_u64_le().ok().map(Duration::from_millis);
        let (wait, age, max_age) = (span()?, span()?, span()?);
        let length = usize::try_from(bytes.try_get_u32_le().ok()?).ok().filter(|length| *length <= bytes.len())?;
        let why = std::str::from_utf8(&bytes.split_to(length)).ok()?.into();
        Some((Self { reason, attempt, place, topic, parked_ms, wait, age, max_age, why }, bytes))
    }

    /// Its place, when its record is the one with `sequence`.
    pub(in crate::dispatch) fn place_of(&self, sequence: u64) -> u64 {
        if self.place == 0 { sequence } else { self.place }
    }

    /// Whether it is to be given up on at `now_ms`.
    pub(in crate::dispatch) fn is_too_old(&self, now_ms: u64) -> bool {
        self.age(now_ms) > self.max_age
    }

    /// Attempts that were made.
    pub(in crate::dispatch) fn attempts(&self) -> u32 {
        self.attempt.saturating_sub(1)
    }

    /// Why it waits, in words.
    pub(in crate::dispatch) fn why(&self) -> &str {
        if self.why.is_empty() { "it had not run yet" } else { &self.why }
    }

    /// How much of the wait is left at `now_ms`.
    pub(super) fn remaining(&self, now_ms: u64) -> Duration {
        let waited = Duration::from_millis(now_ms.saturating_sub(self.parked_ms));
        self.wait.saturating_sub(waited)
    }

    /// How long ago the event first came, at `now_ms`.
    pub(super) fn age(&self, now_ms: u64) -> Duration {
        self.age.saturating_add(Duration::from_millis(now_ms.saturating_sub(self.parked_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            reason: Reason::Retry,
            attempt: 3,
            place: 17,
            topic: u64::MAX,
            parked_ms: 1_000_000,
            wait: Duration::from_secs(4),
            age: Duration::from_secs(9),
            max_age: Duration::from_secs(3600),
            why: "asked for another attempt: ä".into(),
        }
    }

    #[test]
    fn a_parked_event_comes_back_whole() {
        let event = Event { id: "1".into(), data: Bytes::from_static(b"{}"), ..Event::default() };
        for reason in [Reason::Retry, Reason::Room, Reason::Turn] {
            let header = Header { reason, ..header() };
            let (decoded, rest) = Header::decode(header.encode(&event)).unwrap();
            assert_eq!((decoded, Event::decode(rest)), (header, Some(event.clone())));
        }
    }

    #[test]
    fn damaged_bytes_are_no_parked_event() {
        let whole = header().encode(&Event::default());
        for cut in 0..whole.len() {
            let event = Header::decode(whole.slice(..cut)).and_then(|(_, rest)| Event::decode(rest));
            assert_eq!(event, None, "cut at {cut}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let header = Header { why: "ä".repeat(WHY_BYTES_MAX).into(), ..header() };
        let (decoded, _) = Header::decode(header.encode(&Event::default())).unwrap();
        assert_eq!(decoded.why.len(), WHY_BYTES_MAX);
    }

    #[track_caller]
    fn check(now_ms: u64, remaining_ms: u64, age_ms: u64) {
        let header = header();
        assert_eq!(millis(header.remaining(now_ms)), remaining_ms, "remaining at {now_ms}");
        assert_eq!(millis(header.age(now_ms)), age_ms, "age at {now_ms}");
    }

    #[test]
    fn no_clock_makes_a_wait_longer_than_it_was() {
        check(1_000_000, 4_000, 9_000);
        check(1_001_500, 2_500, 10_500);
        check(1_004_001, 0, 13_001);
        // Set back by an hour, or never set.
        check(1_000_000 - 3_600, 4_000, 9_000);
        check(0, 4_000, 9_000);
        // Set forward by years: due, and old, but it gets the attempt that it waited for.
        check(u64::MAX, 0, u64::MAX - 1_000_000 + 9_000);
    }
}
