//! How far a stream has come: what was sent, what is under way, what has arrived. No I/O.
//!
//! `in-order` has one cursor. `live-first` has two: one for what came on this connection, one for what had to wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::journal::Record;

/// One place in the stream, and the records behind it that were read already.
#[derive(Debug)]
struct Cursor {
    /// Up to here everything was sent, or need not be.
    sent: u64,
    /// Up to here everything was read.
    read: u64,
    ahead: VecDeque<Record>,
}

impl Cursor {
    fn at(sequence: u64) -> Self {
        Self { sent: sequence, read: sequence, ahead: VecDeque::new() }
    }

    /// Nothing is left of what was read: what came after the last record need not be sent.
    fn skip(&mut self) {
        if self.ahead.is_empty() {
            self.sent = self.read;
        }
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// What comes on this connection; with `in-order`, everything.
    Live,
    /// What had to wait (`live-first`).
    Backlog,
}

/// What the journal is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// All up to here has arrived.
    pub(super) up_to: Option<u64>,
    /// These too, though not all before them.
    pub(super) done: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Progress {
    live_first: bool,
    live: Cursor,
    backlog: Cursor,
    /// The backlog ends here: what was there when the connection was made.
    backlog_end: u64,
    /// Up to here records were kept waiting, or may have been sent before.
    replayed_to: u64,
    /// Sent, without an answer; with their bytes.
    under_way: BTreeMap<u64, usize>,
    bytes: usize,
    /// Arrived; the journal does not know yet.
    arrived: BTreeSet<u64>,
    /// As `arrived`, and it is being told.
    telling: BTreeSet<u64>,
    /// The journal knows, but what is being read at the moment may be older than that.
    done: BTreeSet<u64>,
    /// Refused; to be sent again.
    refused: BTreeSet<u64>,
    /// Neither sent nor given up: they stay where they are.
    left: BTreeSet<u64>,
    told: u64,
}

impl Progress {
    /// Starts behind `floor`, up to which nothing is to be sent.
    pub(super) fn new(live_first: bool, floor: u64) -> Self {
        Self {
            live_first,
            live: Cursor::at(floor),
            backlog: Cursor::at(floor),
            backlog_end: 0,
            replayed_to: 0,
            under_way: BTreeMap::new(),
            bytes: 0,
            arrived: BTreeSet::new(),
            telling: BTreeSet::new(),
            done: BTreeSet::new(),
            refused: BTreeSet::new(),
            left: BTreeSet::new(),
            told: floor,
        }
    }

    /// A connection was made; records up to `seen` were there before.
    pub(super) fn connected(&mut self, seen: u64) {
        if self.live_first {
            if self.backlog.sent >= self.backlog_end {
                self.backlog = Cursor::at(self.live.sent.min(seen));
            }
            self.backlog_end = self.backlog_end.max(seen);
            if self.live.sent < seen {
                self.live = Cursor::at(seen);
            }
        }
        self.replayed_to = self.replayed_to.max(seen);
    }

    /// What was read ahead, up to `floor`, need not be sent any more.
    pub(super) fn forget(&mut self, floor: u64) {
        for cursor in [&mut self.live, &mut self.backlog] {
            while let Some(record) = cursor.ahead.pop_front_if(|record| record.sequence <= floor) {
                cursor.sent = record.sequence;
                cursor.skip();
            }
        }
    }

    fn cursor(&mut self, which: Which) -> &mut Cursor {
        match which {
            Which::Live => &mut self.live,
            Which::Backlog => &mut self.backlog,
        }
    }

    fn end(&self, which: Which, known: u64) -> u64 {
        match which {
            Which::Live => known,
            Which::Backlog => self.backlog_end.min(known),
        }
    }

    /// Both, the more urgent first.
    pub(super) fn cursors(&self) -> impl Iterator<Item = Which> + use<> {
        [Which::Live, Which::Backlog].into_iter().take(if self.live_first { 2 } else { 1 })
    }

    /// Which cursor has records up to `open_to` that were not sent yet, read or not.
    pub(super) fn unsent(&self, open_to: u64) -> Option<Which> {
        self.cursors().find(|which| {
            let cursor = if *which == Which::Live { &self.live } else { &self.backlog };
            cursor.sent < self.end(*which, open_to)
        })
    }

    /// What to read next of a stream whose newest record is `known`: behind which sequence. Nothing while `ahead_max` records
    /// are ahead already.
    pub(super) fn reads(&self, known: u64, ahead_max: usize) -> Option<(Which, u64)> {
        self.cursors().find_map(|which| {
            let cursor = if which == Which::Live { &self.live } else { &self.backlog };
            (cursor.ahead.len() < ahead_max && cursor.read < self.end(which, known)).then_some((which, cursor.read))
        })
    }

    /// A read begins: what the journal knows by now it leaves out.
    pub(super) fn reading(&mut self) {
        self.done.clear();
    }

    /// What was read behind `after`, when the newest record was `known`.
    pub(super) fn read(&mut self, which: Which, after: u64, known: u64, records: Vec<Record>) {
        let end = self.end(which, known);
        let Self { under_way, arrived, telling, done, left, .. } = self;
        let is_dealt_with = |sequence: &u64| {
            under_way.contains_key(sequence)
                || arrived.contains(sequence)
                || telling.contains(sequence)
                || done.contains(sequence)
                || left.contains(sequence)
        };
        let through = records.last().map_or(end, |record| record.sequence.min(end));
        let wanted: Vec<Record> =
            records.into_iter().filter(|record| record.sequence <= end && !is_dealt_with(&record.sequence)).collect();
        let cursor = self.cursor(which);
        // It may have gone back meanwhile.
        if cursor.read == after {
            cursor.read = through;
            cursor.ahead.extend(wanted);
            cursor.skip();
        }
    }

    /// The next record of a cursor.
    pub(super) fn peek(&self, which: Which) -> Option<&Record> {
        match which {
            Which::Live => self.live.ahead.front(),
            Which::Backlog => self.backlog.ahead.front(),
        }
    }

    /// Takes it to be sent. Whether it was kept waiting, or may have been sent before.
    pub(super) fn take(&mut self, which: Which) -> Option<(Record, bool)> {
        let cursor = self.cursor(which);
        let record = cursor.ahead.pop_front()?;
        cursor.sent = record.sequence;
        cursor.skip();
        let bytes = record.data.len();
        self.bytes += bytes;
        self.under_way.insert(record.sequence, bytes);
        let replayed = record.sequence <= self.replayed_to;
        Some((record, replayed))
    }

    /// Records without an answer.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Their payload bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The other side has it. False when that is no news.
    pub(super) fn arrived(&mut self, sequence: u64) -> bool {
        let news = self.answered(sequence);
        if news {
            self.arrived.insert(sequence);
        }
        news
    }

    /// The other side does not take it now: it is to be sent again.
    pub(super) fn refused(&mut self, sequence: u64) {
        if self.answered(sequence) {
            self.refused.insert(sequence);
        }
    }

    /// It is done with in the journal already: kept elsewhere.
    pub(super) fn moved(&mut self, sequence: u64) {
        if self.answered(sequence) {
            self.done.insert(sequence);
        }
    }

    /// It stays where it is, unsent.
    pub(super) fn leave(&mut self, sequence: u64) {
        if self.answered(sequence) {
            self.left.insert(sequence);
        }
    }

    fn answered(&mut self, sequence: u64) -> bool {
        let bytes = self.under_way.remove(&sequence);
        self.bytes -= bytes.unwrap_or(0);
        bytes.is_some()
    }

    /// Goes back to what was refused. What is under way or has arrived is not sent again.
    pub(super) fn go_back(&mut self) {
        let Some(last) = self.refused.last().copied() else { return };
        self.replayed_to = self.replayed_to.max(last);
        for sequence in std::mem::take(&mut self.refused) {
            let is_backlog = self.live_first && sequence <= self.backlog_end;
            let cursor = self.cursor(if is_backlog { Which::Backlog } else { Which::Live });
            if cursor.sent >= sequence {
                *cursor = Cursor::at(sequence - 1);
            }
        }
    }

    /// Whether there is something that the journal does not know yet.
    pub(super) fn has_news(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// What the journal does not know yet; it is being told until [`Progress::told`] or [`Progress::not_told`].
    pub(super) fn tell(&mut self) -> Option<News> {
        if self.arrived.is_empty() || !self.telling.is_empty() {
            return None;
        }
        let backlog_is_open = self.live_first && self.backlog.sent < self.backlog_end;
        let position = if backlog_is_open { self.backlog.sent.min(self.live.sent) } else { self.live.sent };
        let open = [self.under_way.keys().next(), self.refused.first(), self.left.first()].into_iter().flatten().min();
        let floor = open.map_or(position, |first| position.min(first - 1));
        self.telling = std::mem::take(&mut self.arrived);
        let up_to = (floor > self.told).then_some(floor);
        let done = self.telling.range(floor + 1..).copied().collect();
        Some(News { up_to, done })
    }

    /// The journal knows.
    pub(super) fn told(&mut self, news: &News) {
        self.told = self.told.max(news.up_to.unwrap_or(0));
        self.done.append(&mut self.telling);
    }

    /// The journal could not be told; it is tried again with the next.
    pub(super) fn not_told(&mut self) {
        self.arrived.append(&mut self.telling);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn records(range: std::ops::RangeInclusive<u64>) -> Vec<Record> {
        range
            .map(|sequence| Record {
                sequence,
                time_ms: 1,
                time_unknown: false,
                trace_parent: None,
                data: Bytes::from_static(b"1"),
            })
            .collect()
    }

    /// Reads and sends all that `which` has, of a stream of `known` records that are all there.
    fn send_all(progress: &mut Progress, which: Which, known: u64) -> Vec<(u64, bool)> {
        let mut sent = Vec::new();
        while let Some((read, after)) = progress.reads(known, 1).filter(|(read, _)| *read == which) {
            progress.read(read, after, known, records(after + 1..=known));
            while let Some((record, replayed)) = progress.take(which) {
                sent.push((record.sequence, replayed));
            }
        }
        sent
    }

    #[test]
    fn in_order_means_from_the_oldest() {
        let mut progress = Progress::new(false, 2);
        progress.connected(4);
        assert_eq!(send_all(&mut progress, Which::Live, 6), [(3, true), (4, true), (5, false), (6, false)]);
        for sequence in [3, 4, 6] {
            assert!(progress.arrived(sequence));
        }
        let news = progress.tell().unwrap();
        assert_eq!(news, News { up_to: Some(4), done: vec![6] });
        progress.told(&news);
        assert!(progress.arrived(5));
        assert!(!progress.arrived(5), "the second answer is no news");
        assert_eq!(progress.tell(), Some(News { up_to: Some(6), done: vec![] }));
    }

    #[test]
    fn what_a_limit_has_dropped_is_not_sent_though_it_was_read() {
        let mut progress = Progress::new(false, 0);
        progress.read(Which::Live, 0, 5, records(1..=5));
        progress.forget(3);
        assert_eq!(progress.take(Which::Live).unwrap().0.sequence, 4);
        progress.forget(9);
        assert!(progress.take(Which::Live).is_none());
        assert_eq!(progress.reads(6, 1), Some((Which::Live, 5)));
    }

    #[test]
    fn live_first_sends_what_is_new_before_what_had_to_wait() {
        let mut progress = Progress::new(true, 0);
        progress.connected(3);
        assert_eq!(send_all(&mut progress, Which::Live, 5), [(4, false), (5, false)]);
        assert!(progress.arrived(4));
        assert_eq!(progress.tell(), Some(News { up_to: None, done: vec![4] }));
        progress.not_told();
        assert_eq!(send_all(&mut progress, Which::Backlog, 5), [(1, true), (2, true), (3, true)]);
        for sequence in [1, 2, 3] {
            progress.arrived(sequence);
        }
        assert_eq!(progress.tell(), Some(News { up_to: Some(4), done: vec![] }));
    }

    #[test]
    fn a_second_outage_makes_backlog_of_what_came_in_it() {
        let mut progress = Progress::new(true, 0);
        progress.connected(3);
        assert_eq!(send_all(&mut progress, Which::Live, 5), [(4, false), (5, false)]);
        assert!(progress.arrived(5));
        // 6 and 7 come while the link is down; 4 is still under way, 5 has arrived.
        progress.connected(7);
        assert_eq!(send_all(&mut progress, Which::Live, 8), [(8, false)]);
        let backlog = send_all(&mut progress, Which::Backlog, 8);
        assert_eq!(backlog, [(1, true), (2, true), (3, true), (6, true), (7, true)]);
    }

    #[test]
    fn what_was_refused_is_sent_again_and_nothing_else() {
        for live_first in [false, true] {
            let mut progress = Progress::new(live_first, 0);
            assert_eq!(send_all(&mut progress, Which::Live, 4).len(), 4);
            progress.refused(2);
            progress.arrived(3);
            assert_eq!(progress.tell().unwrap().up_to, None);
            progress.go_back();
            assert_eq!(send_all(&mut progress, Which::Live, 4), [(2, true)], "1 and 4 are under way, 3 has arrived");
        }
    }

    /// A read that began before the journal was told still finds what has arrived since.
    #[test]
    fn what_was_read_too_early_is_not_sent_again() {
        let mut progress = Progress::new(false, 0);
        assert_eq!(send_all(&mut progress, Which::Live, 3).len(), 3);
        progress.refused(1);
        progress.go_back();
        progress.reading();
        let (which, after) = progress.reads(3, 1).unwrap();
        for sequence in [2, 3] {
            progress.arrived(sequence);
        }
        let news = progress.tell().unwrap();
        progress.told(&news);
        progress.read(which, after, 3, records(1..=3));
        assert_eq!(progress.take(which).unwrap().0.sequence, 1);
        assert!(progress.take(which).is_none());
    }

    #[test]
    fn what_stays_holds_the_floor_and_nobody_behind_it() {
        let mut progress = Progress::new(false, 0);
        send_all(&mut progress, Which::Live, 3);
        progress.leave(1);
        progress.arrived(2);
        progress.moved(3);
        assert_eq!(progress.tell(), Some(News { up_to: None, done: vec![2] }));
        assert_eq!(progress.under_way(), 0);
        assert_eq!(progress.bytes(), 0);
    }
}
