//! Everything that an invocation wants kept, on disk together or not at all: records of streams and key-values.
//!
//! # Promises
//! - A record is on disk when `commit` returns, and survives a kill and a power cut. A stream with `durability = "1s"`
//!   may lose what came within that time.
//! - A batch is kept whole or not at all.
//! - A sequence is never used twice, whatever was acknowledged, dropped or lost before.
//! - A record is kept until it is acknowledged or over a limit that the stream's owner set; each that a limit cost is
//!   counted.
//! - A stream stays within its budget.
//! - A key-value outlives the segments.
//! - Damage never stops the agent: what cannot be read is set aside and reported, the rest goes on.
//! - Two agents cannot share a journal.
//!
//! Each is the name of a test in `tests/journal.rs`.
//!
//! # On disk
//! ```text
//! lock  format  mark
//! 0000000007/               a segment: one sled database, and `summary` once nothing is added any more
//! 0000000006.broken-17…/    set aside
//! ```
//! One segment is written at a time. When it is full, its successor begins with the state of all streams and with all
//! key-values, so that only records are ever looked for in the older ones; those go as a whole when none of their records
//! is needed, and what little is left in one is copied forward. Each value carries its own checksum
//! ([`buffer::record`](crate::buffer::record)).
//!
//! # Writing
//! One thread writes. Whatever waits for it shares one database transaction and one `fdatasync`.
//!
//! # Recovery
//! Opening reads the newest segment; the older ones are opened when somebody reads from them. A database that does not
//! open is set aside, and what can still be found in its files goes into a new segment. When the last commits may be
//! missing, sequences continue after a gap.

mod error;
mod folder;
mod group;
mod keeper;
mod recovery;
mod segment;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot, watch};

pub use self::error::JournalError;
use self::segment::{Fault, Segment};
use self::writer::{Job, Writer};
pub use crate::buffer::record::Record;
use crate::buffer::record::{self, Frame};
use crate::buffer::retention::StreamIndex;
use crate::clock::Clock;
use crate::config::StreamConfig;
use crate::invocation::KeyValueWrite;
use crate::limits::Limits;
use crate::name::{FunctionName, StreamName};
use crate::units::ByteSize;

/// The stream of events that were given up on; always there.
pub const DEAD_LETTERS: &str = "dead-letters";
/// Budget of the dead letters when gateway.toml has no `[stream.dead-letters]`.
pub const DEAD_LETTER_BYTES: ByteSize = ByteSize::mib(16);
/// Sealed segments that are open for reading at the same time.
const READERS_MAX: usize = 2;
/// What may wait for the writer, in KiB.
const WAITING_KIB_MAX: u32 = 8 << 10;

/// What one invocation wants kept: all of it, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Records to append, in order.
    pub records: Vec<(StreamName, Bytes, RecordMeta)>,
    /// Key-value writes, in order.
    pub key_values: Vec<(FunctionName, KeyValueWrite)>,
}

impl Batch {
    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.key_values.is_empty()
    }

    fn bytes(&self) -> usize {
        let records = self.records.iter().map(|(_, data, _)| data.len() + 64);
        let values =
            self.key_values.iter().map(|(_, write)| write.key.len() + write.value.as_ref().map_or(0, Bytes::len) + 64);
        records.chain(values).sum()
    }
}

/// What is kept beside a record's payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordMeta {
    /// Unix time in milliseconds of what the record tells.
    pub time_ms: u64,
    /// W3C `traceparent` of the invocation that made it.
    pub trace_parent: Option<Arc<str>>,
}

/// What the journal is opened with.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// The streams; dead letters are added when they are not there.
    pub streams: BTreeMap<StreamName, StreamConfig>,
    /// Bounds on records and key-values.
    pub limits: Arc<Limits>,
}

/// How one stream is doing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StreamStatus {
    /// Which.
    pub name: StreamName,
    /// Records that are kept.
    pub records: u64,
    /// What they count against the budget.
    pub bytes: u64,
    /// Unix time in milliseconds of the oldest of them.
    pub oldest_ms: Option<u64>,
    /// Highest sequence that was given out.
    pub newest_sequence: u64,
    /// Highest sequence that the other side confirmed.
    pub acked_sequence: u64,
    /// Records that `max_age` cost, ever.
    pub dropped_by_age: u64,
    /// Records that `max_bytes` cost, ever.
    pub dropped_by_bytes: u64,
    /// Records that damage cost, ever, as far as it is known.
    pub lost: u64,
}

/// How the journal is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct JournalStatus {
    /// Batches that were committed since the start.
    pub commits: u64,
    /// `fdatasync`s since the start, each for one or more batches.
    pub syncs: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Segments that were set aside since the start.
    pub set_aside: u64,
    /// Records that were brought out of those.
    pub salvaged: u64,
    /// Values whose checksum did not match.
    pub damaged_values: u64,
    /// Commits that are known to be missing.
    pub lost_commits: u64,
}

/// What was found damaged.
#[derive(Clone, Copy, Debug, Default)]
struct Damage {
    set_aside: u64,
    salvaged: u64,
    values: u64,
    commits: u64,
}

impl Damage {
    fn add(&mut self, other: Self) {
        self.set_aside += other.set_aside;
        self.salvaged += other.salvaged;
        self.values += other.values;
        self.commits += other.commits;
    }
}

struct Stream {
    index: StreamIndex,
    durable: watch::Sender<u64>,
}

impl Default for Stream {
    fn default() -> Self {
        Self { index: StreamIndex::default(), durable: watch::channel(0).0 }
    }
}

#[derive(Default)]
struct State {
    config: BTreeMap<StreamName, StreamConfig>,
    streams: BTreeMap<StreamName, Stream>,
    /// Bytes that were written to each segment.
    segments: BTreeMap<u64, u64>,
    key_value_bytes: BTreeMap<FunctionName, u64>,
    damage: Damage,
}

impl State {
    fn adopt(&mut self, opened: recovery::Opened) {
        for stream in self.streams.values_mut() {
            stream.index = StreamIndex::default();
        }
        for (name, index) in opened.streams {
            let stream = self.streams.entry(name).or_default();
            stream.durable.send_replace(index.durable);
            stream.index = index;
        }
        self.segments = opened.segments;
        self.key_value_bytes = opened.key_value_bytes;
        self.damage.add(opened.damage);
    }
}

/// What the writer, the keeper and all readers share.
struct Shared {
    dir: PathBuf,
    limits: Arc<Limits>,
    clock: Clock,
    state: Mutex<State>,
    /// The segment that is written; none while it is being repaired.
    active: RwLock<Option<Arc<Segment>>>,
    /// Sealed segments that are being read, the latest last.
    readers: Mutex<Vec<Arc<Segment>>>,
    commits: AtomicU64,
    syncs: AtomicU64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> Result<Arc<Segment>, JournalError> {
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner).clone();
        active.ok_or_else(|| JournalError::Storage { path: self.dir.clone(), why: "it is being repaired".to_owned() })
    }

    /// Segment `id`, opened if it is not. `None` when it is gone.
    fn segment(&self, id: u64) -> Result<Option<Arc<Segment>>, Fault> {
        if let Ok(active) = self.active()
            && active.id == id
        {
            return Ok(Some(active));
        }
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = readers.iter().position(|segment| segment.id == id) {
            let segment = readers.remove(at);
            readers.push(Arc::clone(&segment));
            return Ok(Some(segment));
        }
        if !Segment::dir(&self.dir, id).exists() {
            return Ok(None);
        }
        if readers.len() >= READERS_MAX {
            readers.remove(0);
        }
        let segment = Arc::new(Segment::open(&self.dir, id)?);
        readers.push(Arc::clone(&segment));
        Ok(Some(segment))
    }

    /// Takes a sealed segment out of use. Its folder gets a name under which nobody opens it.
    fn retire(&self, id: u64) -> io::Result<PathBuf> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|segment| segment.id != id);
        let dir = Segment::dir(&self.dir, id);
        let deleted = self.dir.join(format!("{id:010}{}", recovery::DELETED));
        fs::rename(dir, &deleted)?;
        Ok(deleted)
    }
}

/// The journal. Its writer thread ends, with everything on disk, when it is dropped.
pub struct Journal {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    waiting: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
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
        fs::create_dir_all(dir).map_err(|source| JournalError::io("create", dir, source))?;
        let lock = folder::lock(dir)?;
        folder::check_format(dir)?;
        let streams = with_dead_letters(config.streams);
        let opened = recovery::open(dir, &streams, clock.now_ms())?;
        let (active, revision) = (Arc::clone(&opened.active), opened.revision);
        let mut state = State { config: streams, ..State::default() };
        state.adopt(opened);
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
        let writer = Writer::start(Arc::clone(&shared), revision, &jobs, queue)?;
        let waiting = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
        Ok(Self { shared, jobs: Some(jobs), waiting, writer: Some(writer), _lock: lock })
    }

    /// Keeps `batch`. On disk when this returns, unless all of its streams have a durability that waits.
    ///
    /// # Errors
    /// When a limit is in the way, or the disk is; then nothing of the batch is kept.
    pub async fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        if batch.is_empty() {
            return Ok(());
        }
        let kib = u32::try_from(batch.bytes() / 1024 + 1).unwrap_or(u32::MAX).min(WAITING_KIB_MAX);
        let permit = Arc::clone(&self.waiting).acquire_many_owned(kib).await.map_err(|_| JournalError::Closed)?;
        self.ask(|done| Job::Commit { batch, done, _permit: permit }).await
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

    /// The value of a key.
    ///
    /// # Errors
    /// When the disk is in the way, or the value is damaged.
    pub fn key_value_get(
        &self,
        function: &FunctionName,
        bucket: &str,
        key: &str,
    ) -> Result<Option<Bytes>, JournalError> {
        let segment = self.shared.active()?;
        let mut name = record::bucket_key(function, bucket);
        name.extend_from_slice(key.as_bytes());
        let Some(bytes) = segment.get(&name).map_err(|fault| fault.about(&segment.dir))? else { return Ok(None) };
        match record::decode(&bytes) {
            Ok((_, Frame::KeyValue { value, .. }, _)) => Ok(value),
            Ok(_) => Ok(None),
            Err(error) => {
                let why = format!("value of key `{key}` of function `{function}`: {error}");
                Err(JournalError::Storage { path: segment.dir.clone(), why })
            }
        }
    }

    /// The keys of a bucket, in order.
    ///
    /// # Errors
    /// When the disk is in the way.
    pub fn key_value_keys(&self, function: &FunctionName, bucket: &str) -> Result<Vec<String>, JournalError> {
        let segment = self.shared.active()?;
        let prefix = record::bucket_key(function, bucket);
        let mut keys = Vec::new();
        let visited = segment.each(&prefix, &prefix, |_, frame| {
            if let Frame::KeyValue { key, value: Some(_), .. } = frame {
                keys.push(key);
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|fault| fault.about(&segment.dir))?;
        Ok(keys)
    }

    /// Records of `stream` that are on disk and come after sequence `after`: up to `records_max` and about `bytes_max`, at
    /// least one when there is one. Reads the disk, so call it where blocking is fine.
    ///
    /// # Errors
    /// When the disk is in the way, or the segment is damaged; the latter is mended behind the scenes, so try again.
    pub fn read(
        &self,
        stream: &StreamName,
        after: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, JournalError> {
        let mut records = Vec::new();
        let mut bytes = 0_usize;
        let mut next = after.saturating_add(1);
        let mut gone = None;
        while records.len() < records_max && bytes < bytes_max {
            let place = {
                let state = self.shared.state();
                let index = state.streams.get(stream).map(|stream| &stream.index);
                index.and_then(|index| {
                    let (piece, segment) = index.at(next.max(index.state.floor + 1))?;
                    let last = piece.last.min(index.durable);
                    (piece.first <= index.durable).then_some((piece.first.max(next), last, segment))
                })
            };
            let Some((first, last, id)) = place else { break };
            if first > last {
                break;
            }
            let (mut reached, mut hole) = (first, false);
            let read = self.shared.segment(id).and_then(|segment| {
                let Some(segment) = segment else { return Ok(None) };
                segment
                    .records_from(stream, first, |record| {
                        if record.sequence > last
                            || records.len() >= records_max
                            || (bytes >= bytes_max && !records.is_empty())
                        {
                            return ControlFlow::Break(());
                        }
                        if record.sequence != reached {
                            hole = true;
                            return ControlFlow::Break(());
                        }
                        reached = record.sequence + 1;
                        bytes += record.data.len();
                        records.push(record);
                        ControlFlow::Continue(())
                    })
                    .map(Some)
            });
            match read {
                // Deleted between the look-up and the opening: whatever it held is no longer needed, or elsewhere.
                Ok(None) if gone != Some(id) => gone = Some(id),
                Ok(Some(0)) if !hole && (reached > last || records.len() >= records_max || bytes >= bytes_max) => {
                    next = reached;
                }
                Ok(_) => {
                    self.report_damage(id, "records are missing in it");
                    let why = format!("records {first} to {last} of stream `{stream}` are damaged");
                    return Err(JournalError::Storage { path: Segment::dir(&self.shared.dir, id), why });
                }
                Err(fault) => {
                    if let Fault::Damaged(why) = &fault {
                        self.report_damage(id, why);
                    }
                    return Err(fault.about(&Segment::dir(&self.shared.dir, id)));
                }
            }
        }
        Ok(records)
    }

    fn report_damage(&self, segment: u64, why: &str) {
        if let Some(jobs) = &self.jobs {
            // A writer that is gone has nothing to mend.
            let _ = jobs.send(Job::Damaged { segment, why: why.to_owned() });
        }
    }

    /// Tells the newest sequence of `stream` that is on disk, whenever it changes.
    pub fn subscribe(&self, stream: &StreamName) -> watch::Receiver<u64> {
        self.shared.state().streams.entry(stream.clone()).or_default().durable.subscribe()
    }

    /// Highest sequence of `stream` that need not be read again: acknowledged, or dropped.
    pub fn floor(&self, stream: &StreamName) -> u64 {
        self.shared.state().streams.get(stream).map_or(0, |stream| stream.index.state.floor)
    }

    /// Whether records can be appended to `stream`.
    pub fn has_stream(&self, stream: &str) -> bool {
        self.shared.state().config.contains_key(stream)
    }

    /// Replaces the streams' settings. Records of a stream that is no longer there stay until they are acknowledged or over
    /// the default limits.
    pub fn configure(&self, streams: BTreeMap<StreamName, StreamConfig>) {
        self.shared.state().config = with_dead_letters(streams);
        if let Some(jobs) = &self.jobs {
            // Only wakes the writer, so that new limits hold at once.
            let _ = jobs.send(Job::Look);
        }
    }

    /// How each stream is doing, those without settings but with records too.
    pub fn status(&self) -> Vec<StreamStatus> {
        let state = self.shared.state();
        let empty = StreamIndex::default();
        let names: BTreeSet<&StreamName> = state.config.keys().chain(state.streams.keys()).collect();
        let status = names.into_iter().map(|name| {
            let index = state.streams.get(name).map_or(&empty, |stream| &stream.index);
            StreamStatus {
                name: name.clone(),
                records: index.records(),
                bytes: index.bytes,
                oldest_ms: index.oldest_ms(),
                newest_sequence: index.state.newest,
                acked_sequence: index.state.acked,
                dropped_by_age: index.state.dropped_by_age,
                dropped_by_bytes: index.state.dropped_by_bytes,
                lost: index.state.lost,
            }
        });
        status.collect()
    }

    /// How the journal itself is doing.
    pub fn journal_status(&self) -> JournalStatus {
        let state = self.shared.state();
        JournalStatus {
            commits: self.shared.commits.load(Ordering::Relaxed),
            syncs: self.shared.syncs.load(Ordering::Relaxed),
            segments: state.segments.len() as u64,
            set_aside: state.damage.set_aside,
            salvaged: state.damage.salvaged,
            damaged_values: state.damage.values,
            lost_commits: state.damage.commits,
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(jobs) = self.jobs.take() {
            // A writer that is gone needs no telling.
            let _ = jobs.send(Job::Close(None));
        }
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the journal's writer panicked");
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
