//! One segment: a folder with a sled database. The only file that calls sled.
//!
//! sled's `flush` ends in `sync_file_range`, which a power cut can undo, so [`Segment::sync`] follows it with an
//! `fdatasync` of our own. sled may also panic on a damaged file; a panic becomes an error here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::JournalError;
use crate::buffer::record::{self, Frame};
use crate::buffer::retention::Piece;
use crate::name::StreamName;

/// sled's page cache, of each open segment: appends touch the last pages only, and reads go through once.
const CACHE_BYTES: u64 = 2 << 20;
/// sled moves values beyond a quarter of its own segments (512 KiB) to files, and groups up to 17 of our values.
const INLINE_BYTES_MAX: usize = 7 << 10;

/// What a segment holds, written when nothing is added to it any more, so that it need not be opened to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) pieces: BTreeMap<StreamName, Vec<Piece>>,
}

/// Why a database failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The machine's: no space, no permission, too many files. Trying again later may help.
    Machine(String),
    /// The file's: what is in it cannot be trusted to sled any more.
    Damaged(String),
}

impl Fault {
    /// As an error about the segment in `dir`.
    pub(super) fn about(self, dir: &Path) -> JournalError {
        let (Self::Machine(why) | Self::Damaged(why)) = self;
        JournalError::Storage { path: dir.to_owned(), why }
    }
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => Self::Machine(error.to_string()),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Machine(error.to_string())
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Fault::Damaged(format!("the database panicked: {text}")))
    })
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) dir: PathBuf,
    db: sled::Db,
    file: File,
    /// Whether something may have gone to a file of its own.
    has_files: AtomicBool,
}

impl Segment {
    /// Folder of segment `id` of the journal in `journal`.
    pub(super) fn dir(journal: &Path, id: u64) -> PathBuf {
        journal.join(format!("{id:010}"))
    }

    /// Opens segment `id`, or makes it.
    pub(super) fn open(journal: &Path, id: u64) -> Result<Self, Fault> {
        let dir = Self::dir(journal, id);
        let new = !dir.exists();
        let db = guarded(|| {
            let config = sled::Config::new().path(&dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            Ok(config.open()?)
        })?;
        let file = File::open(dir.join("db"))?;
        if new {
            file.sync_all()?;
            File::open(dir.join("conf"))?.sync_all()?;
            File::open(&dir)?.sync_all()?;
            File::open(journal)?.sync_all()?;
        }
        let has_files = fs::read_dir(dir.join("blobs"))?.next().is_some();
        Ok(Self { id, dir, db, file, has_files: AtomicBool::new(has_files) })
    }

    /// Writes all of `values` or, after a crash, none. Not on disk before [`Segment::sync`].
    pub(super) fn apply(&self, values: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Fault> {
        let mut batch = sled::Batch::default();
        for (key, value) in values {
            if value.len() > INLINE_BYTES_MAX {
                self.has_files.store(true, Ordering::Relaxed);
            }
            batch.insert(key, value);
        }
        guarded(|| Ok(self.db.apply_batch(batch)?))
    }

    /// Brings everything that was written to the disk itself.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        guarded(|| Ok(self.db.flush()?))?;
        if self.has_files.load(Ordering::Relaxed) {
            self.sync_files()?;
        }
        Ok(self.file.sync_data()?)
    }

    /// sled writes large pages to files of their own and never syncs those.
    fn sync_files(&self) -> io::Result<()> {
        let blobs = self.dir.join("blobs");
        for entry in fs::read_dir(&blobs)? {
            match File::open(entry?.path()) {
                Ok(file) => file.sync_data()?,
                // A page that was rewritten meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        File::open(&blobs)?.sync_all()
    }

    /// The value under `key`.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        guarded(|| Ok(self.db.get(key)?.map(|value| Bytes::copy_from_slice(&value))))
    }

    /// Calls `visit` with all intact values from `from` on whose keys start with `prefix`, in order, until it breaks.
    /// Returns how many values were damaged.
    pub(super) fn each(
        &self,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(u64, Frame) -> ControlFlow<()>,
    ) -> Result<u64, Fault> {
        guarded(|| {
            let mut damaged = 0;
            for entry in self.db.range(from..) {
                let (key, value) = entry?;
                if !key.starts_with(prefix) {
                    break;
                }
                match record::decode(&Bytes::copy_from_slice(&value)) {
                    Ok((revision, frame, _)) => {
                        if visit(revision, frame).is_break() {
                            break;
                        }
                    }
                    Err(_) => damaged += 1,
                }
            }
            Ok(damaged)
        })
    }
}

/// Reading across the records of one stream.
impl Segment {
    /// Calls `visit` with the records of `stream` from `sequence` on, in order, until it breaks. Returns how many values
    /// were damaged.
    pub(super) fn records_from(
        &self,
        stream: &StreamName,
        sequence: u64,
        mut visit: impl FnMut(record::Record) -> ControlFlow<()>,
    ) -> Result<u64, Fault> {
        guarded(|| {
            let prefix = record::block_key(stream, 0);
            let prefix = &prefix[..prefix.len() - size_of::<u64>()];
            // The block that holds `sequence` may start before it.
            let before = self.db.get_lt(record::block_key(stream, sequence.saturating_add(1)))?;
            let from = before.map_or_else(|| prefix.to_vec(), |(key, _)| key.to_vec());
            let from = if from.starts_with(prefix) { from } else { prefix.to_vec() };
            self.each(prefix, &from, |_, frame| {
                let Frame::Block(block) = frame else { return ControlFlow::Continue(()) };
                block.records.into_iter().filter(|record| record.sequence >= sequence).try_for_each(&mut visit)
            })
        })
    }
}

/// What is in a folder whose database cannot be opened, read without sled.
pub(super) fn salvage(dir: &Path) -> Vec<(u64, Frame)> {
    let blobs = fs::read_dir(dir.join("blobs")).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = blobs.chain([dir.join("db")]);
    files.filter_map(|path| fs::read(path).ok()).flat_map(|bytes| record::scan(&bytes.into())).collect()
}

const SUMMARY: &str = "summary";

impl Summary {
    /// Keeps it beside the database. It is only a shortcut, so a crash may lose it.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let mut bytes = format!("{:08x}\n", crc32c::crc32c(&json)).into_bytes();
        bytes.extend(json);
        let new = dir.join("summary.new");
        fs::write(&new, bytes)?;
        File::open(&new)?.sync_all()?;
        fs::rename(new, dir.join(SUMMARY))
    }

    /// What was kept, if it is intact.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let bytes = fs::read(dir.join(SUMMARY)).ok()?;
        let (crc, json) = bytes.split_at_checked(9)?;
        let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.trim_end(), 16).ok()?;
        if crc32c::crc32c(json) != crc {
            return None;
        }
        serde_json::from_slice(json).ok()
    }
}
