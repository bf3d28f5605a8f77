//! Which records of a stream are still needed, and in which segment they are. Decides only: nothing here touches a disk.
//!
//! Records are known in pieces, neighbours in one segment that came close together, so that a stream of a million records
//! costs kilobytes of memory. What is over a limit goes a piece at a time, always the oldest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::StreamState;
use crate::config::StreamConfig;

/// Neighbouring records in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Lowest sequence that is kept.
    pub first: u64,
    /// Highest sequence.
    pub last: u64,
    /// What its records count against the budget.
    pub bytes: u64,
    /// Time of its first record.
    pub oldest_ms: u64,
    /// Highest time of a record.
    pub newest_ms: u64,
}

impl Piece {
    const fn records(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Forgets records up to `floor`, which is within. Their share of the bytes is estimated; what remains is exact again
    /// when the piece is gone.
    fn trim(&mut self, floor: u64) {
        let kept = self.last - floor;
        self.bytes = self.bytes.saturating_mul(kept) / self.records();
        self.first = floor + 1;
    }
}

/// How large and how long a piece may grow.
#[derive(Clone, Copy, Debug)]
pub struct PieceLimits {
    bytes: u64,
    span_ms: u64,
}

/// A budget is kept to within a sixteenth, and an age to within a sixty-fourth.
impl From<&StreamConfig> for PieceLimits {
    fn from(config: &StreamConfig) -> Self {
        let age_ms = config.max_age.map_or(u64::MAX, |age| u64::try_from(age.0.as_millis()).unwrap_or(u64::MAX));
        Self { bytes: (config.max_bytes.0 / 16).min(64 << 10), span_ms: age_ms / 64 }
    }
}

/// One stream's records.
#[derive(Clone, Debug, Default)]
pub struct StreamIndex {
    /// What is persisted.
    pub state: StreamState,
    /// Highest sequence that is on disk for sure.
    pub durable: u64,
    /// Bytes of all pieces.
    pub bytes: u64,
    pieces: BTreeMap<u64, (Piece, u64)>,
}

impl StreamIndex {
    /// Adds `piece`, just written to `segment`. Joins it to the one before when that stays within `limits`.
    pub fn push(&mut self, piece: Piece, segment: u64, limits: PieceLimits) {
        self.bytes += piece.bytes;
        self.state.newest = self.state.newest.max(piece.last);
        if let Some(mut entry) = self.pieces.last_entry() {
            let (last, of) = entry.get_mut();
            let span_ms = piece.newest_ms.max(last.newest_ms).saturating_sub(last.oldest_ms);
            let fits = last.bytes + piece.bytes <= limits.bytes && span_ms <= limits.span_ms;
            if *of == segment && last.last + 1 == piece.first && fits {
                last.last = piece.last;
                last.bytes += piece.bytes;
                last.newest_ms = last.newest_ms.max(piece.newest_ms);
                return;
            }
        }
        self.pieces.insert(piece.first, (piece, segment));
    }

    /// Adds `piece`, found in `segment` while opening, unless a later segment has the same records. Later segments come
    /// first.
    pub fn found(&mut self, mut piece: Piece, segment: u64) {
        self.state.newest = self.state.newest.max(piece.last);
        if piece.last <= self.state.floor {
            return;
        }
        if piece.first <= self.state.floor {
            piece.trim(self.state.floor);
        }
        while let Some((&first, _)) =
            self.pieces.range(..=piece.last).next_back().filter(|(_, (other, _))| other.last >= piece.first)
        {
            if first <= piece.first {
                return;
            }
            piece.bytes = piece.bytes * (first - piece.first) / piece.records();
            piece.last = first - 1;
        }
        self.bytes += piece.bytes;
        self.pieces.insert(piece.first, (piece, segment));
    }

    /// `piece` of `from` is now in `to`; records of it that were not found again are given up.
    pub fn moved(&mut self, piece: Piece, from: u64, to: u64) {
        if let Some((_, (old, of))) = self.pieces.range_mut(..=piece.last).next_back()
            && *of == from
            && old.first >= piece.first
        {
            *of = to;
        }
    }

    /// Gives up all that is only in `segment`; returns how many records that were.
    pub fn lose(&mut self, segment: u64) -> u64 {
        let mut lost = 0;
        self.pieces.retain(|_, (piece, of)| {
            let keep = *of != segment;
            if !keep {
                lost += piece.records();
                self.bytes -= piece.bytes;
            }
            keep
        });
        self.state.lost += lost;
        lost
    }

    /// Forgets everything up to `floor`; returns how many records that were.
    pub fn forget(&mut self, floor: u64) -> u64 {
        let mut forgotten = 0;
        while let Some(mut entry) = self.pieces.first_entry() {
            let (piece, _) = entry.get_mut();
            if piece.last <= floor {
                forgotten += piece.records();
                self.bytes -= piece.bytes;
                entry.remove();
                continue;
            }
            if piece.first <= floor {
                let (mut piece, segment) = entry.remove();
                let (records, bytes) = (piece.records(), piece.bytes);
                piece.trim(floor);
                forgotten += records - piece.records();
                self.bytes -= bytes - piece.bytes;
                self.pieces.insert(piece.first, (piece, segment));
            }
            break;
        }
        self.state.floor = self.state.floor.max(floor);
        forgotten
    }

    /// The other side has everything up to `up_to`. Whether that was news.
    pub fn ack(&mut self, up_to: u64) -> bool {
        let up_to = up_to.min(self.state.newest);
        if up_to <= self.state.acked {
            return false;
        }
        self.state.acked = up_to;
        self.forget(up_to);
        true
    }

    /// Drops what is too old at `now_ms`. Whether anything was.
    pub fn expire(&mut self, config: &StreamConfig, now_ms: u64) -> bool {
        let Some(max_age) = config.max_age else { return false };
        let before_ms = now_ms.saturating_sub(u64::try_from(max_age.0.as_millis()).unwrap_or(u64::MAX));
        let mut dropped = 0;
        while let Some((piece, _)) = self.pieces.values().next().filter(|(piece, _)| piece.newest_ms < before_ms) {
            dropped += self.forget(piece.last);
        }
        self.state.dropped_by_age += dropped;
        dropped > 0
    }

    /// Drops the oldest until the budget holds. Whether anything was.
    pub fn shrink(&mut self, config: &StreamConfig) -> bool {
        let mut dropped = 0;
        while self.bytes > config.max_bytes.0
            && let Some((piece, _)) = self.pieces.values().next()
        {
            dropped += self.forget(piece.last);
        }
        self.state.dropped_by_bytes += dropped;
        dropped > 0
    }

    /// The piece with the first record from `sequence` on, and its segment.
    pub fn at(&self, sequence: u64) -> Option<(Piece, u64)> {
        let holds = self.pieces.range(..=sequence).next_back().filter(|(_, (piece, _))| piece.last >= sequence);
        holds.or_else(|| self.pieces.range(sequence..).next()).map(|(_, found)| *found)
    }

    /// All pieces and their segments, oldest first.
    pub fn pieces(&self) -> impl Iterator<Item = &(Piece, u64)> {
        self.pieces.values()
    }

    /// Records that are kept.
    pub fn records(&self) -> u64 {
        self.pieces.values().map(|(piece, _)| piece.records()).sum()
    }

    /// Time of the oldest record that is kept.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.pieces.values().next().map(|(piece, _)| piece.oldest_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteSize, Span};

    fn config(max_bytes: u64, max_age: Option<u64>) -> StreamConfig {
        StreamConfig {
            max_bytes: ByteSize(max_bytes),
            max_age: max_age.map(Span::from_secs),
            ..StreamConfig::default()
        }
    }

    fn piece(first: u64, last: u64, time_ms: u64) -> Piece {
        Piece { first, last, bytes: 100 * (last - first + 1), oldest_ms: time_ms, newest_ms: time_ms }
    }

    fn stream(config: &StreamConfig, records: u64) -> StreamIndex {
        let mut stream = StreamIndex::default();
        for sequence in 1..=records {
            stream.push(piece(sequence, sequence, sequence * 1000), 1, config.into());
        }
        stream
    }

    #[test]
    fn neighbours_become_one_piece() {
        let config = config(1 << 20, None);
        let stream = stream(&config, 1000);
        assert_eq!((stream.records(), stream.bytes), (1000, 100_000));
        assert_eq!(stream.pieces().count(), 2, "pieces of 64 KiB");
    }

    #[test]
    fn over_the_budget_the_oldest_go_and_are_counted() {
        let config = config(1600, None);
        let mut stream = stream(&config, 20);
        assert!(stream.shrink(&config));
        assert_eq!((stream.records(), stream.state.dropped_by_bytes, stream.state.floor), (16, 4, 4));
        assert!(!stream.shrink(&config));
    }

    #[test]
    fn what_is_too_old_goes_and_is_counted() {
        let config = config(1 << 20, Some(64));
        let mut stream = stream(&config, 20);
        assert!(!stream.expire(&config, 64_000));
        assert!(stream.expire(&config, 70_500));
        assert!((5..=6).contains(&stream.state.dropped_by_age), "{:?}", stream.state);
        assert_eq!(stream.records() + stream.state.dropped_by_age, 20);
    }

    #[test]
    fn an_ack_frees_what_it_covers_and_nothing_is_freed_twice() {
        let config = config(1 << 20, None);
        let mut stream = stream(&config, 10);
        assert!(stream.ack(4));
        assert!(!stream.ack(4));
        assert!(!stream.ack(3));
        assert_eq!((stream.records(), stream.bytes), (6, 600));
        assert!(stream.ack(99), "no further than what was given out");
        assert_eq!((stream.state.acked, stream.records(), stream.bytes), (10, 0, 0));
        stream.push(piece(11, 11, 0), 1, (&config).into());
        assert_eq!(stream.at(1).unwrap().0.first, 11);
    }

    #[test]
    fn a_record_in_two_segments_is_known_once() {
        let mut stream = StreamIndex::default();
        stream.state.floor = 2;
        stream.found(piece(6, 10, 0), 2);
        stream.found(piece(1, 10, 0), 1);
        stream.found(piece(7, 8, 0), 1);
        let known: Vec<_> = stream.pieces().map(|(piece, segment)| (piece.first, piece.last, *segment)).collect();
        assert_eq!(known, [(3, 5, 1), (6, 10, 2)]);
        assert_eq!((stream.bytes, stream.lose(1), stream.records()), (800, 3, 5));
    }
}
