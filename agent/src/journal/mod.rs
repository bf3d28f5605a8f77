//! Everything that an invocation wants kept, on disk together or not at all: records of streams and key-values.
//!
//! # Promises
//! - A record is on disk when its commit returns, and survives a kill and a power cut: `a_record_is_on_disk_when_commit_returns`,
//!   `a_killed_agent_loses_nothing_that_was_committed`. Records of a stream with `durability = "30s"` wait in memory for up to
//!   that time, bounded, and in their places: `what_waits_keeps_its_place_before_what_does_not`.
//! - A batch is kept whole or not at all: `a_batch_is_kept_whole_or_not_at_all`; salvage brings out no half of one:
//!   `half_a_commit_is_never_brought_out`.
//! - A batch that was decided by a value that changed is refused: `a_batch_whose_reads_have_changed_is_refused`.
//! - A sequence is never used twice: `a_sequence_is_never_used_twice`.
//! - A record is kept until it is acknowledged, done with or over a limit; each that a limit cost is counted by its cause:
//!   `what_was_acknowledged_goes_and_the_rest_stays`, `a_record_that_is_done_with_goes_whatever_comes_before_it`,
//!   `all_streams_together_stay_within_their_budget_and_the_least_important_pays`.
//! - The disk holds at most three times the budgets and 16 MiB: `the_disk_holds_at_most_three_times_the_budgets_and_16_mib`.
//! - Setting the clock neither expires a record nor keeps it: `a_clock_that_is_set_expires_nothing_and_keeps_nothing_for_ever`.
//! - A key-value outlives the segments: `a_key_value_outlives_the_segments`.
//! - A disk that is full loses nothing: `a_full_disk_loses_nothing_and_the_journal_goes_on_when_there_is_room`.
//! - Damage never stops the agent: `damage_never_stops_the_agent`.
//! - A journal of version 1 goes on: `a_journal_of_version_1_goes_on`.
//!
//! # Layout
//! ```text
//! lock  format  mark  reserve
//! 0000000007/               a segment: `log`, and `summary` once nothing is added any more
//! 0000000006.broken-17…/    set aside
//! ```
//! A log is only appended to: what is committed together is one group with a checksum, whole or not there (`log.rs`).
//! One segment is written at a time. When it is full, its successor begins with the state of all streams, what is done with
//! above their floors, and all key-values, so that only records are ever looked for in the older ones. Each value carries its
//! own checksum, and how many values its commit had ([`buffer::record`](crate::buffer::record)).
//!
//! # Write
//! `begin` gives a batch its place under one lock: sequences, versions, and whether what it read still holds. What is begun is
//! visible to reads of key-values at once. One thread writes; whatever waits for it shares one group and one
//! `fdatasync`. When the disk refuses, what waited fails, what was decided by it fails as a conflict, what was answered
//! already is written again, and the journal is opened anew: that brings to disk what an `fdatasync` that failed may have
//! left out. When the disk is full, the reserve is given away, so that acknowledgements
//! still get through, and nothing is appended until there is room.
//!
//! # Read
//! The index in memory knows which pieces of a stream are in which segment, and what of them is done with. Sealed segments are
//! opened when somebody reads from them, two at a time. Opening the journal reads the newest segment, cuts off what a power
//! cut tore at its end, and reads the summaries of the others. One that is damaged is set aside, and what is intact of it goes
//! into a new segment.
//! When the last commits may be missing, sequences continue after a gap.
//!
//! # Delete
//! What is over a limit goes a piece at a time, the oldest first; ages are counted by a clock of the journal's own
//! ([`buffer::age`](crate::buffer::age)). A segment goes as a whole when nothing of it is needed; what little is left in one
//! is copied forward, without what is done with.

mod batch;
mod begin;
mod error;
mod folder;
mod group;
mod held;
mod keeper;
mod log;
mod overlay;
mod read;
mod recovery;
mod repair;
mod reserve;
mod retain;
mod salvage;
mod segment;
mod state;
mod status;
mod version1;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, oneshot, watch};

pub use self::batch::{Batch, Committed, Committing, KeyValue, KeyValueRead, RecordMeta};
pub use self::error::JournalError;
pub(crate) use self::log::check as check_log;
use self::state::{Shared, State};
pub use self::status::{JournalStatus, StreamStatus};
use self::writer::{Job, Writer};
pub use crate::buffer::record::Record;
use crate::clock::Clock;
use crate::config::StreamConfig;
use crate::limits::Limits;
use crate::name::StreamName;
use crate::units::ByteSize;

/// The stream of events that were given up on; always there.
pub const DEAD_LETTERS: &str = "dead-letters";
/// Budget of the dead letters when gateway.toml has no `[stream.dead-letters]`.
pub const DEAD_LETTER_BYTES: ByteSize = ByteSize::mib(16);
/// What may wait for the writer, in KiB.
const WAITING_KIB_MAX: u32 = 8 << 10;

/// What the journal is opened with.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// The streams; dead letters are added when they are not there.
    pub streams: BTreeMap<StreamName, StreamConfig>,
    /// Bounds on records and key-values.
    pub limits: Arc<Limits>,
}

/// The journal. Its writer thread ends, with everything on disk, when it is dropped.
pub struct Journal {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    waiting: Arc<Semaphore>,
    /// The writer, and the keeper behind it.
    threads: Option<[JoinHandle<()>; 2]>,
    _lock: File,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in `dir`, or makes it.
    ///
    /// # Errors
    /// When another agent uses it, a newer one made it, or the machine does not let us. Damage is no error.
    pub fn open(dir: &Path, config: JournalConfig, clock: Clock) -> Result<Self, JournalError> {
        folder::make(dir)?;
        let lock = folder::lock(dir)?;
        folder::check_format(dir)?;
        let streams = with_dead_letters(config.streams);
        let opened = recovery::open(dir, &streams, clock.now_ms())?;
        let (active, revision) = (Arc::clone(&opened.active), opened.revision);
        let bytes_max = config.limits.buffer_bytes_max.0;
        let mut state = State { config: streams, bytes_max, ..State::default() };
        state.adopt(opened, state::read_clock(&clock)).map_err(|fault| fault.about(&active.dir))?;
        if let Some(unset) = (!clock.is_plausible()).then(|| clock.now_ms()) {
            tracing::warn!(unix_ms = unset, "the clock is not set: until it is, the times of records are not known");
        }
        if state.damage.values + state.damage.commits > 0 {
            let (values, commits) = (state.damage.values, state.damage.commits);
            tracing::error!(journal = %dir.display(), values, commits, "parts of the journal are damaged or missing");
        }
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            limits: config.limits,
            clock,
            state: Mutex::new(state),
            active: RwLock::new(Some(active)),
            readers: Mutex::default(),
            commits: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        });
        let (jobs, queue) = mpsc::channel();
        let threads = Writer::start(Arc::clone(&shared), revision, &jobs, queue)?;
        let waiting = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
        Ok(Self { shared, jobs: Some(jobs), waiting, threads: Some(threads), _lock: lock })
    }

    /// Fixes the place of `batch`: checks its limits and what it read, gives out its sequences, and makes its key-values
    /// visible to later reads. Then it is on its way to disk. Waits while too much else is.
    ///
    /// # Errors
    /// When a limit is in the way, or the disk is, or what it read has changed; then nothing of the batch is kept.
    pub async fn begin(&self, batch: Batch) -> Result<Committing, JournalError> {
        if batch.is_empty() {
            return Ok(Committing { committed: Committed::default(), answer: None });
        }
        let kib = u32::try_from(batch.bytes() / 1024 + 1).unwrap_or(u32::MAX).min(WAITING_KIB_MAX);
        let permit = Arc::clone(&self.waiting).acquire_many_owned(kib).await.map_err(|_| JournalError::Closed)?;
        let jobs = self.jobs.as_ref().ok_or(JournalError::Closed)?;
        let mut state = self.shared.state();
        let (begun, committed) = begin::begin(&self.shared, &mut state, batch)?;
        let Some(begun) = begun else { return Ok(Committing { committed, answer: None }) };
        let (done, answer) = oneshot::channel();
        // Under the lock still: batches reach the writer in the order of their places.
        jobs.send(Job::Commit { begun, done, _permit: permit }).map_err(|_| JournalError::Closed)?;
        Ok(Committing { committed, answer: Some(answer) })
    }

    /// Keeps `batch`. On disk when this returns, unless all of its streams have a durability that waits.
    ///
    /// # Errors
    /// As [`Journal::begin`] and [`Committing::durable`].
    pub async fn commit(&self, batch: Batch) -> Result<Committed, JournalError> {
        self.begin(batch).await?.durable().await
    }

    /// The other side has all records of `stream` up to `up_to`: they may go. A crash within a second may forget it.
    ///
    /// # Errors
    /// When the disk is in the way; then the records stay.
    pub async fn ack(&self, stream: &StreamName, up_to: u64) -> Result<(), JournalError> {
        self.ask(|done| Job::Ack { stream: stream.clone(), up_to, done }).await
    }

    /// Brings all that was committed to disk, and takes nothing more.
    ///
    /// # Errors
    /// When the disk is in the way, or it was closed before.
    pub async fn close(&self) -> Result<(), JournalError> {
        self.ask(|done| Job::Close(Some(done))).await
    }

    async fn ask(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<(), JournalError>>) -> Job,
    ) -> Result<(), JournalError> {
        let (done, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(JournalError::Closed)?;
        jobs.send(job(done)).map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?
    }

    /// Tells the newest sequence of `stream` that is on disk, whenever it changes.
    pub fn subscribe(&self, stream: &StreamName) -> watch::Receiver<u64> {
        self.shared.state().streams.entry(stream.clone()).or_default().durable.subscribe()
    }

    /// Highest sequence of `stream` that need not be read again: acknowledged, or dropped.
    pub fn floor(&self, stream: &StreamName) -> u64 {
        self.shared.state().streams.get(stream).map_or(0, |stream| stream.index.state.floor)
    }

    /// What the journal's own clock says, in milliseconds: setting the wall clock does not move it, and the time in which the
    /// agent was off counts as far as the wall clock can be believed.
    pub fn age_ms(&self) -> u64 {
        self.shared.state().ages.look(self.shared.reading()).age_ms
    }

    /// Whether records can be appended to `stream`.
    pub fn has_stream(&self, stream: &str) -> bool {
        self.shared.state().config.contains_key(stream)
    }

    /// Replaces the streams' settings, and the budget of all together. Records of a stream that is no longer there stay until
    /// they are acknowledged or over the default limits.
    pub fn configure(&self, streams: BTreeMap<StreamName, StreamConfig>, buffer_bytes: ByteSize) {
        let mut state = self.shared.state();
        state.config = with_dead_letters(streams);
        state.bytes_max = buffer_bytes.0;
        drop(state);
        if let Some(jobs) = &self.jobs {
            // Only wakes the writer, so that new limits hold at once.
            let _ = jobs.send(Job::Look);
        }
    }

    /// Settings of one of the agent's own streams, from now on. [`Journal::configure`] leaves those alone.
    pub fn own_stream(&self, name: StreamName, config: StreamConfig) {
        self.shared.state().own.insert(name, config);
        if let Some(jobs) = &self.jobs {
            // Only wakes the writer.
            let _ = jobs.send(Job::Look);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(jobs) = self.jobs.take() {
            // A writer that is gone needs no telling.
            let _ = jobs.send(Job::Close(None));
        }
        for thread in self.threads.take().into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!("a thread of the journal panicked");
            }
        }
    }
}

fn with_dead_letters(mut streams: BTreeMap<StreamName, StreamConfig>) -> BTreeMap<StreamName, StreamConfig> {
    if !streams.contains_key(DEAD_LETTERS)
        && let Ok(name) = StreamName::parse(DEAD_LETTERS)
    {
        streams.insert(name, StreamConfig { max_bytes: DEAD_LETTER_BYTES, ..StreamConfig::default() });
    }
    streams
}
