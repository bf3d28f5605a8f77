//! What the writer, the keeper and all readers share.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

use super::overlay::Overlay;
use super::recovery::{self, Opened};
use super::segment::{Fault, Segment};
use super::{JournalError, begin};
use crate::buffer::age::{Ages, Reading};
use crate::buffer::record::Record;
use crate::buffer::retention::StreamIndex;
use crate::clock::Clock;
use crate::config::StreamConfig;
use crate::limits::Limits;
use crate::name::{FunctionName, StreamName};

/// Sealed segments that are open for reading at the same time.
const READERS_MAX: usize = 2;

pub(super) fn read_clock(clock: &Clock) -> Reading {
    Reading { wall_ms: clock.now_ms(), steady_ms: clock.steady_ms(), plausible: clock.is_plausible() }
}

/// What was found damaged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damage {
    pub(super) set_aside: u64,
    pub(super) salvaged: u64,
    pub(super) values: u64,
    pub(super) commits: u64,
}

impl Damage {
    pub(super) fn add(&mut self, other: Self) {
        self.set_aside += other.set_aside;
        self.salvaged += other.salvaged;
        self.values += other.values;
        self.commits += other.commits;
    }
}

pub(super) struct Stream {
    pub(super) index: StreamIndex,
    pub(super) durable: watch::Sender<u64>,
    /// Records that were begun and are not written yet, and their bytes.
    pub(super) begun: u64,
    pub(super) begun_bytes: u64,
    /// A batch that was done with records of it failed: until the journal is opened anew the index leaves out too many.
    pub(super) in_doubt: bool,
}

impl Default for Stream {
    fn default() -> Self {
        let (index, durable) = (StreamIndex::default(), watch::channel(0).0);
        Self { index, durable, begun: 0, begun_bytes: 0, in_doubt: false }
    }
}

impl Stream {
    pub(super) fn records(&self) -> u64 {
        self.index.records() + self.begun
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.index.bytes + self.begun_bytes
    }

    /// `record`, which was being written, failed and waits for another try.
    pub(super) fn begun_again(&mut self, record: &Record) {
        self.begun += 1;
        self.begun_bytes += record.bytes();
    }

    /// `record`, which was begun, is being written, or was given up.
    pub(super) fn no_longer_begun(&mut self, record: &Record) {
        self.begun -= 1;
        self.begun_bytes -= record.bytes();
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) config: BTreeMap<StreamName, StreamConfig>,
    /// Settings of the agent's own streams.
    pub(super) own: BTreeMap<StreamName, StreamConfig>,
    /// Budget of all streams and key-values together.
    pub(super) bytes_max: u64,
    pub(super) streams: BTreeMap<StreamName, Stream>,
    /// Bytes that were written to each segment.
    pub(super) segments: BTreeMap<u64, u64>,
    /// What the key-values of each function add up to, with those on their way.
    pub(super) key_value_bytes: BTreeMap<FunctionName, u64>,
    pub(super) overlay: Overlay,
    /// Batches that were begun and did not reach the writer yet.
    pub(super) begun: u64,
    pub(super) damage: Damage,
    pub(super) ages: Ages,
}

impl State {
    /// Settings of `stream`, if it has any.
    pub(super) fn config_of(&self, stream: &StreamName) -> Option<&StreamConfig> {
        self.config.get(stream).or_else(|| self.own.get(stream))
    }

    /// Goes on with what is on disk. What was given out stays given out, and what is on its way stays on its way.
    ///
    /// # Errors
    /// When the values of keys that are on their way cannot be read.
    pub(super) fn adopt(&mut self, opened: Opened, now: Reading) -> Result<(), Fault> {
        let mut streams = opened.streams;
        for (name, stream) in &mut self.streams {
            let known = std::mem::take(&mut stream.index);
            stream.index = streams.remove(name).unwrap_or_default();
            stream.in_doubt = false;
            let records = stream.index.records();
            let state = &mut stream.index.state;
            state.newest = state.newest.max(known.state.newest);
            state.lost = state.lost.max(known.state.lost) + known.durable_records().saturating_sub(records);
        }
        self.streams.extend(streams.into_iter().map(|(name, index)| (name, Stream { index, ..Stream::default() })));
        for stream in self.streams.values() {
            stream.durable.send_if_modified(|durable| {
                let news = *durable < stream.index.durable;
                *durable = stream.index.durable.max(*durable);
                news
            });
        }
        self.segments = opened.segments;
        if self.ages.state().run == 0 {
            self.ages = Ages::start(opened.clock, opened.seen_age_ms, now);
        }
        self.key_value_bytes = opened.key_value_bytes;
        self.overlay.start_after(opened.version.max(opened.revision));
        self.damage.add(opened.damage);
        begin::add_pending_bytes(self, &opened.active)
    }
}

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) limits: Arc<Limits>,
    pub(super) clock: Clock,
    pub(super) state: Mutex<State>,
    /// The segment that is written; none while it is being repaired.
    pub(super) active: RwLock<Option<Arc<Segment>>>,
    /// Sealed segments that are being read, the latest last.
    pub(super) readers: Mutex<Vec<Arc<Segment>>>,
    pub(super) commits: AtomicU64,
    pub(super) syncs: AtomicU64,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reading(&self) -> Reading {
        read_clock(&self.clock)
    }

    pub(super) fn active(&self) -> Result<Arc<Segment>, JournalError> {
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner).clone();
        active.ok_or_else(|| JournalError::repairing(&self.dir))
    }

    pub(super) fn set_active(&self, segment: Option<Arc<Segment>>) {
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = segment;
    }

    /// Segment `id`, opened if it is not. `None` when it is gone.
    pub(super) fn segment(&self, id: u64) -> Result<Option<Arc<Segment>>, Fault> {
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
        let Some(segment) = Segment::open(&self.dir, id)? else { return Ok(None) };
        if readers.len() >= READERS_MAX {
            readers.remove(0);
        }
        let segment = Arc::new(segment);
        readers.push(Arc::clone(&segment));
        Ok(Some(segment))
    }

    /// Takes a sealed segment out of use. Its folder gets a name under which nobody opens it.
    pub(super) fn retire(&self, id: u64) -> io::Result<PathBuf> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|segment| segment.id != id);
        let dir = Segment::dir(&self.dir, id);
        let deleted = self.dir.join(format!("{id:010}{}", recovery::DELETED));
        fs::rename(dir, &deleted)?;
        Ok(deleted)
    }
}
