//! Which records of a stream are still needed, and in which segment they are. Decides only: nothing here touches a disk.
//!
//! Records are known in pieces, neighbours in one segment that came close together, so that a stream of a million records
//! costs kilobytes of memory. What is over a limit goes a piece at a time, always the oldest. A record can also be done
//! with on its own: then it stays in its piece, marked, until nothing of the piece is needed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ranges::Ranges;
use super::record::StreamState;
use crate::config::StreamConfig;

/// Neighbouring records in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Lowest sequence that is kept.
    pub first: u64,
    /// Highest sequence.
    pub last: u64,
    /// Records that are still needed.
    pub records: u64,
    /// What those count against the budget. When some are done with, their share is estimated; it is exact again when the
    /// piece is gone.
    pub bytes: u64,
    /// Unix time in milliseconds of its first record.
    pub oldest_ms: u64,
    /// When its first record was kept, by the journal's own clock.
    pub oldest_age_ms: u64,
    /// When its last one was.
    pub newest_age_ms: u64,
}

impl Piece {
    const fn span(&self) -> u64 {
        self.last - self.first + 1
    }

    /// As many records as this are left of it.
    fn keep(&mut self, records: u64) {
        self.bytes = self.bytes.saturating_mul(records).checked_div(self.records).unwrap_or(0);
        self.records = records;
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
    /// Highest sequence that was written.
    pub written: u64,
    /// Highest sequence that is on disk for sure.
    pub durable: u64,
    /// Bytes of all pieces.
    pub bytes: u64,
    pieces: BTreeMap<u64, (Piece, u64)>,
    /// Records above the floor that are done with.
    done: Ranges,
}

impl StreamIndex {
    /// Adds `piece`, just written to `segment`. Joins it to the one before when that stays within `limits`.
    pub fn push(&mut self, piece: Piece, segment: u64, limits: PieceLimits) {
        self.bytes += piece.bytes;
        self.written = self.written.max(piece.last);
        self.state.newest = self.state.newest.max(piece.last);
        if let Some(mut entry) = self.pieces.last_entry() {
            let (last, of) = entry.get_mut();
            let span_ms = piece.newest_age_ms.max(last.newest_age_ms).saturating_sub(last.oldest_age_ms);
            let fits = last.bytes + piece.bytes <= limits.bytes && span_ms <= limits.span_ms;
            if *of == segment && last.last + 1 == piece.first && fits {
                last.last = piece.last;
                last.records += piece.records;
                last.bytes += piece.bytes;
                last.newest_age_ms = last.newest_age_ms.max(piece.newest_age_ms);
                return;
            }
        }
        self.pieces.insert(piece.first, (piece, segment));
    }

    /// Adds what later segments do not have of `piece`, found in `segment` while opening. Later segments come first, and
    /// what is done with was told before.
    pub fn found(&mut self, piece: Piece, segment: u64) {
        self.written = self.written.max(piece.last);
        self.state.newest = self.state.newest.max(piece.last);
        let mut end = piece.last;
        let mut parts = Vec::new();
        let start = piece.first.max(self.state.floor + 1);
        for (&first, (other, _)) in
            self.pieces.range(..=piece.last).rev().take_while(|(_, (other, _))| other.last >= start)
        {
            parts.push((other.last + 1, end));
            end = first - 1;
        }
        parts.push((start, end));
        for (first, last) in parts.into_iter().filter(|(first, last)| first <= last) {
            let mut part = Piece { first, last, ..piece };
            part.keep((part.span() - self.done.count(first, last)).min(piece.records));
            if part.records > 0 {
                self.bytes += part.bytes;
                self.pieces.insert(first, (part, segment));
            }
        }
    }

    /// `piece` of `from` is now in `to`.
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
                lost += piece.records;
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
        while let Some((first, (mut piece, segment))) = self.pieces.pop_first() {
            if first > floor {
                self.pieces.insert(first, (piece, segment));
                break;
            }
            let (records, bytes) = (piece.records, piece.bytes);
            let live = piece.last.saturating_sub(floor);
            piece.keep(live.saturating_sub(self.done.count(floor + 1, piece.last)).min(records));
            forgotten += records - piece.records;
            self.bytes -= bytes - piece.bytes;
            if piece.records > 0 {
                piece.first = floor + 1;
                self.pieces.insert(piece.first, (piece, segment));
                break;
            }
            self.bytes -= piece.bytes;
        }
        self.state.floor = self.state.floor.max(floor);
        self.settle();
        forgotten
    }

    /// These records are done with. Returns those that were still needed, as ranges.
    pub fn done(&mut self, sequences: impl IntoIterator<Item = u64>) -> Ranges {
        let mut news = Ranges::default();
        for sequence in sequences {
            if !self.is_live(sequence) {
                continue;
            }
            self.done.insert(sequence, sequence);
            news.insert(sequence, sequence);
            let Some((&first, (piece, _))) = self.pieces.range_mut(..=sequence).next_back() else { continue };
            let bytes = piece.bytes;
            piece.keep(piece.records.saturating_sub(1));
            self.bytes -= bytes - piece.bytes;
            if piece.records == 0 {
                self.bytes -= piece.bytes;
                self.pieces.remove(&first);
            }
        }
        if !news.is_empty() {
            self.settle();
        }
        news
    }

    /// What was done with in an earlier run; told before any piece is.
    pub fn was_done(&mut self, ranges: impl IntoIterator<Item = (u64, u64)>) {
        for (first, last) in ranges {
            if last > self.state.floor {
                self.done.insert(first.max(self.state.floor + 1), last);
            }
        }
    }

    /// Records above the floor that are done with.
    pub fn done_ranges(&self) -> &Ranges {
        &self.done
    }

    /// Moves the floor up over what is done with.
    fn settle(&mut self) {
        while let Some(entry) = self.pieces.first_entry() {
            let first = *entry.key();
            self.state.floor = self.state.floor.max(first - 1);
            let Some(end) = self.done.end_of(first) else { break };
            let (mut piece, segment) = entry.remove();
            self.state.floor = end.min(piece.last);
            if end < piece.last {
                piece.first = end + 1;
                self.pieces.insert(piece.first, (piece, segment));
                break;
            }
            self.bytes -= piece.bytes;
        }
        if self.pieces.is_empty() {
            self.state.floor = self.state.floor.max(self.written);
        }
        self.done.forget(self.state.floor);
    }

    /// Whether the record at `sequence` is written and still needed.
    pub fn is_live(&self, sequence: u64) -> bool {
        let piece = self.pieces.range(..=sequence).next_back();
        piece.is_some_and(|(_, (piece, _))| piece.last >= sequence) && !self.done.contains(sequence)
    }

    /// Whether the record at `sequence`, if there is one, is still needed and in no piece.
    pub fn lacks(&self, sequence: u64) -> bool {
        sequence > self.state.floor && !self.is_live(sequence) && !self.done.contains(sequence)
    }

    /// Whether any record between `after` and `before`, without those two, is still needed.
    pub fn needs_any_between(&self, after: u64, before: u64) -> bool {
        if before <= after + 1 {
            return false;
        }
        self.pieces.range(..before).rev().map(|(_, (piece, _))| piece).take_while(|piece| piece.last > after).any(
            |piece| {
                let (first, last) = (piece.first.max(after + 1), piece.last.min(before - 1));
                last - first + 1 > self.done.count(first, last)
            },
        )
    }

    /// The other side has everything up to `up_to`. Whether that was news.
    pub fn ack(&mut self, up_to: u64) -> bool {
        let up_to = up_to.min(self.written);
        if up_to <= self.state.acked {
            return false;
        }
        self.state.acked = up_to;
        self.forget(up_to);
        true
    }

    /// Drops what is too old when the journal's own clock says `now_ms`. Whether anything was.
    pub fn expire(&mut self, config: &StreamConfig, now_ms: u64) -> bool {
        let Some(max_age) = config.max_age else { return false };
        let before_ms = now_ms.saturating_sub(u64::try_from(max_age.0.as_millis()).unwrap_or(u64::MAX));
        let mut dropped = 0;
        while let Some((piece, _)) = self.pieces.values().next().filter(|(piece, _)| piece.newest_age_ms < before_ms) {
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

    /// Drops the oldest records because all streams together are over their budget. Returns their bytes.
    pub fn drop_first(&mut self) -> u64 {
        let Some((piece, _)) = self.pieces.values().next().copied() else { return 0 };
        self.state.dropped_by_buffer += self.forget(piece.last);
        piece.bytes
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
        self.pieces.values().map(|(piece, _)| piece.records).sum()
    }

    /// Records that are kept and on disk for sure.
    pub fn durable_records(&self) -> u64 {
        let durable = self.pieces.range(..=self.durable).map(|(_, (piece, _))| {
            let unsure = piece.last.saturating_sub(self.durable).min(piece.span());
            piece.records.saturating_sub(unsure)
        });
        durable.sum()
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
        let records = last - first + 1;
        Piece {
            first,
            last,
            records,
            bytes: 100 * records,
            oldest_ms: time_ms,
            oldest_age_ms: time_ms,
            newest_age_ms: time_ms,
        }
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
        stream.found(piece(9, 12, 0), 1);
        let known: Vec<_> = stream.pieces().map(|(piece, segment)| (piece.first, piece.last, *segment)).collect();
        assert_eq!(known, [(3, 5, 1), (6, 10, 2), (11, 12, 1)]);
        assert_eq!((stream.bytes, stream.lose(1), stream.records()), (1000, 5, 5));
    }

    #[test]
    fn records_are_done_with_one_by_one_and_the_floor_follows() {
        let config = config(1 << 20, None);
        let mut stream = stream(&config, 10);
        let news = stream.done([3, 5, 4, 3, 99]);
        assert_eq!(news.iter().collect::<Vec<_>>(), [(3, 5)]);
        assert_eq!((stream.records(), stream.bytes, stream.state.floor), (7, 700, 0));
        assert!(stream.done([4]).is_empty(), "nothing is done with twice");
        assert!(!stream.is_live(4) && stream.is_live(6) && !stream.is_live(11));
        assert!(!stream.needs_any_between(2, 6) && stream.needs_any_between(2, 7));
        stream.done([1]);
        assert_eq!((stream.state.floor, stream.at(1).unwrap().0.first), (1, 2));
        stream.done([2]);
        assert_eq!((stream.state.floor, stream.at(1).unwrap().0.first, stream.done_ranges().is_empty()), (5, 6, true));
        stream.done(6..=10);
        assert_eq!((stream.records(), stream.bytes, stream.state.floor), (0, 0, 10));
    }

    #[test]
    fn what_was_done_with_is_left_out_when_it_is_found_again() {
        let mut stream = StreamIndex::default();
        stream.state.floor = 1;
        stream.was_done([(4, 5), (7, 10)]);
        stream.found(piece(7, 10, 0), 2);
        stream.found(piece(1, 6, 0), 1);
        assert_eq!((stream.records(), stream.bytes), (3, 300));
        assert_eq!(stream.pieces().map(|(piece, _)| (piece.first, piece.last)).collect::<Vec<_>>(), [(2, 6)]);
        assert_eq!((stream.forget(4), stream.records(), stream.state.floor), (2, 1, 5));
        stream.done([6]);
        assert_eq!((stream.bytes, stream.state.floor), (0, 10));
    }
}
