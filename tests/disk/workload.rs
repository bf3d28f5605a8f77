//! A seeded day in the life of a journal: commits alone and together, acknowledgements, reading, changes of segment, stops.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tidegate::clock::Clock;
use tidegate::config::{Durability, StreamConfig};
use tidegate::journal::{Journal, JournalConfig, JournalError};
use tidegate::limits::Limits;
use tidegate::units::{ByteSize, Span};

use crate::disk::Disk;
use crate::ledger::{Commit, Found, LAZY, Ledger, STREAMS, read, stream};

/// What "1s" is to these workloads.
const LAZY_WITHIN: Duration = Duration::from_millis(15);

/// A process that another thread is just starting holds this one's files, with their locks, until it is another program.
const LOCKED: Duration = Duration::from_secs(5);

/// Opens the journal in `dir`, with segments so small that they change every few commits.
pub(crate) fn open(dir: &Path) -> Result<Journal, JournalError> {
    let streams = (0..STREAMS.len()).map(|index| {
        let durability = if index == LAZY { Durability::Every(Span(LAZY_WITHIN)) } else { Durability::Each };
        (stream(index), StreamConfig { durability, ..StreamConfig::default() })
    });
    let limits = Limits { segment_bytes: ByteSize(24 << 10), ..Limits::default() };
    let config = JournalConfig { streams: BTreeMap::from_iter(streams), limits: Arc::new(limits) };
    let until = Instant::now() + LOCKED;
    loop {
        match Journal::open(&dir.join("journal"), config.clone(), Clock::system()) {
            Err(JournalError::Locked(_)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            opened => return opened,
        }
    }
}

/// One run on a disk, which goes on in the same ledger after each opening.
pub(crate) struct Workload<'a> {
    disk: &'a Disk,
    rng: Rng,
    pub(crate) ledger: Ledger,
    /// Whether each commit must succeed.
    strict: bool,
}

impl<'a> Workload<'a> {
    pub(crate) fn new(disk: &'a Disk, seed: u64) -> Self {
        Self { disk, rng: Rng::with_seed(seed), ledger: Ledger::default(), strict: true }
    }

    /// The life after a cut at `moment` that left `found`, of which nothing may go any more.
    pub(crate) fn after(disk: &'a Disk, seed: u64, ledger: &Ledger, moment: usize, found: &Found) -> Self {
        Self { ledger: ledger.survived(moment, found), ..Self::new(disk, seed) }
    }

    /// On a disk whose calls fail.
    pub(crate) fn lenient(disk: &'a Disk, seed: u64) -> Self {
        Self { strict: false, ..Self::new(disk, seed) }
    }

    /// Does `steps` steps on `journal`.
    pub(crate) async fn run(&mut self, mut journal: Journal, steps: usize) -> Result<Journal, String> {
        for _ in 0..steps {
            match self.rng.u8(..20) {
                0..9 => self.commit(&journal).await?,
                9..12 => self.settle(&journal).await?,
                12 => self.decide(&journal).await?,
                13..16 => self.ack(&journal).await?,
                16 => tokio::time::sleep(2 * LAZY_WITHIN).await,
                17 | 18 => drop(self.ledger.check(&journal, usize::MAX)?),
                _ => {
                    self.close(journal).await?;
                    journal = self.reopen()?;
                }
            }
            self.note_lazy(&journal);
        }
        Ok(journal)
    }

    /// Opens the journal; twice on a disk of which a call may have failed.
    pub(crate) fn reopen(&self) -> Result<Journal, String> {
        let opened = open(self.disk.path());
        let opened = if self.strict { opened } else { opened.or_else(|_| open(self.disk.path())) };
        opened.map_err(|error| format!("it does not open: {error}"))
    }

    /// One commit, and what came of it.
    pub(crate) async fn try_commit(&mut self, journal: &Journal) -> Result<(), JournalError> {
        self.try_this(journal, Commit { records: vec![(0, 100)], ..Commit::default() }).await
    }

    async fn try_this(&mut self, journal: &Journal, commit: Commit) -> Result<(), JournalError> {
        let asked_at = self.disk.moment();
        let batch = self.ledger.enter(Commit { asked_at, ..commit });
        let result = journal.commit(batch).await.map(drop);
        if let Some(commit) = self.ledger.commits.last_mut() {
            (commit.durable_at, commit.failed) = (result.is_ok().then(|| self.disk.moment()), result.is_err());
        }
        result
    }

    /// Waits until commits are kept again, on a disk that was mended.
    pub(crate) async fn works_again(&mut self, journal: &Journal) -> Result<(), String> {
        for _ in 0..100 {
            let first = self.ledger.commits.len();
            self.commit(journal).await?;
            if self.ledger.commits[first..].iter().all(|commit| !commit.failed) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err("it takes no more commits".to_owned())
    }

    pub(crate) async fn close(&mut self, journal: Journal) -> Result<(), String> {
        match journal.close().await {
            Ok(()) => {
                let moment = self.disk.moment();
                for commit in self.ledger.commits.iter_mut().filter(|commit| !commit.failed) {
                    commit.durable_at.get_or_insert(moment);
                }
                Ok(())
            }
            Err(error) if self.strict => Err(format!("it does not close: {error}")),
            Err(_) => Ok(()),
        }
    }

    async fn commit(&mut self, journal: &Journal) -> Result<(), String> {
        let first = self.ledger.commits.len();
        let together = if self.rng.bool() { 1 } else { self.rng.usize(2..8) };
        let mut begun = Vec::new();
        for _ in 0..together {
            let commit = Commit { asked_at: self.disk.moment(), ..self.draw() };
            begun.push(journal.begin(self.ledger.enter(commit)).await);
        }
        let mut results = Vec::new();
        for begun in begun {
            results.push(match begun {
                Ok(begun) => begun.durable().await,
                Err(error) => Err(error),
            });
        }
        let moment = self.disk.moment();
        for (commit, result) in self.ledger.commits[first..].iter_mut().zip(results) {
            match result {
                Ok(_) if commit.records.iter().any(|(index, _)| *index != LAZY) || !commit.keys.is_empty() => {
                    commit.durable_at = Some(moment);
                }
                Ok(_) => {}
                Err(error) if self.strict => return Err(format!("a commit failed: {error}")),
                Err(_) => commit.failed = true,
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Commit {
        let rng = &mut self.rng;
        let records = (0..rng.usize(..4)).map(|_| {
            let bytes = if rng.u8(..30) == 0 { rng.usize(4_000..20_000) } else { rng.usize(20..900) };
            (rng.usize(..STREAMS.len()), bytes)
        });
        let records: Vec<_> = records.collect();
        let keys = if records.is_empty() { 1..3 } else { 0..3 };
        let keys = (0..rng.usize(keys)).map(|_| (rng.u8(..12), rng.u8(..6) > 0)).collect();
        Commit { records, keys, ..Commit::default() }
    }

    /// Ends a record in the commit that appends another, as an event on disk ends with what came of it.
    async fn settle(&mut self, journal: &Journal) -> Result<(), String> {
        let found = self.ledger.check(journal, usize::MAX)?;
        let index = self.rng.usize(..STREAMS.len());
        let Some((sequence, place)) = self.rng.choice(&found.records[index]).copied() else { return Ok(()) };
        let records = vec![(self.rng.usize(..LAZY), self.rng.usize(20..900))];
        let commit = Commit { records, done: vec![(index, sequence, place)], ..Commit::default() };
        match self.try_this(journal, commit).await {
            Err(error) if self.strict => Err(format!("a commit that is done with a record failed: {error}")),
            _ => Ok(()),
        }
    }

    /// Commits what was decided by a key, half of the times after that was written by another.
    async fn decide(&mut self, journal: &Journal) -> Result<(), String> {
        let key = self.rng.u8(..12);
        let reads = vec![read(journal, key)?];
        let write = || Commit { records: vec![(0, 50)], keys: vec![(key, true)], ..Commit::default() };
        let has_changed = self.rng.bool() && self.try_this(journal, write()).await.is_ok();
        match (self.try_this(journal, Commit { reads, ..write() }).await, has_changed) {
            (Err(JournalError::Conflict { .. }), true) => {
                if let Some(commit) = self.ledger.commits.last_mut() {
                    commit.refused = true;
                }
                Ok(())
            }
            (Ok(()), true) => Err(format!("key {key} had changed, and what was decided by it was kept")),
            (Err(error), _) if self.strict => Err(format!("a commit that read a key failed: {error}")),
            _ => Ok(()),
        }
    }

    async fn ack(&mut self, journal: &Journal) -> Result<(), String> {
        let found = self.ledger.check(journal, usize::MAX)?;
        let index = self.rng.usize(..STREAMS.len());
        let records = &found.records[index];
        if records.is_empty() {
            return Ok(());
        }
        // Mostly nearly all of it, so that segments become free; now and then a part.
        let at = if self.rng.bool() { records.len() - 1 } else { self.rng.usize(..records.len()) };
        let (sequence, place) = records[at];
        self.ledger.ack(index, place, self.disk.moment());
        match journal.ack(&stream(index), sequence).await {
            Err(error) if self.strict => Err(format!("an acknowledgement failed: {error}")),
            _ => Ok(()),
        }
    }

    /// Notes what readers have been shown: it is durable.
    fn note_lazy(&mut self, journal: &Journal) {
        for index in 0..STREAMS.len() {
            let newest = *journal.subscribe(&stream(index)).borrow();
            if newest > 0 {
                self.ledger.given.push((index, newest, self.disk.moment()));
            }
        }
    }
}
