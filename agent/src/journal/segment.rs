//! One segment: a folder with a file that is only appended to, and an index of it in memory. The only file that touches it.
//!
//! A failed `fdatasync` leaves pages in memory that look written and are not on disk, for this process and the next ones. So
//! whoever opens a segment to go on writes what is not known to be on disk once more.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{JournalError, log};
use crate::buffer::record::{self, Block, Frame, Stamp};
use crate::buffer::retention::Piece;
use crate::name::StreamName;

const FILE: &str = "log";
/// Blocks that are looked up at a time.
const BLOCKS_AT_ONCE: usize = 64;

/// What a segment holds, written when nothing is added to it any more, so that it need not be opened to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) pieces: BTreeMap<StreamName, Vec<Piece>>,
}

/// Why a segment failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The machine's: no space, no permission, too many files. Trying again later may help.
    Machine(String),
    /// The file's: something in it is no longer what was written.
    Damaged(String),
}

impl Fault {
    /// As an error about the segment in `dir`.
    pub(super) fn about(self, dir: &Path) -> JournalError {
        let (Self::Machine(why) | Self::Damaged(why)) = self;
        JournalError::Storage { path: dir.to_owned(), why }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Machine(error.to_string())
    }
}

/// Where a value is in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    bytes: u32,
}

#[derive(Debug, Default)]
struct Index {
    /// Of each stream its blocks: the sequence that a block starts with, in order.
    blocks: BTreeMap<StreamName, Vec<(u64, Place)>>,
    /// Everything else, by its key.
    others: BTreeMap<Vec<u8>, Place>,
    /// Where the next group goes, where the last one began, and up to where all is on disk.
    end: u64,
    last: u64,
    synced: u64,
    /// Values that could not be read when it was opened.
    damaged: u64,
}

impl Index {
    fn add(&mut self, frame: &Frame, place: Place) {
        let Frame::Block(block) = frame else {
            self.others.insert(record::key(frame), place);
            return;
        };
        let first = block.records.first().map_or(0, |record| record.sequence);
        let blocks = self.blocks.entry(block.stream.clone()).or_default();
        match blocks.binary_search_by_key(&first, |(first, _)| *first) {
            Ok(at) => blocks[at].1 = place,
            Err(at) => blocks.insert(at, (first, place)),
        }
    }

    /// Enters all values of a group.
    fn add_group(&mut self, group: &log::Group) {
        let mut rest = group.body.clone();
        while !rest.is_empty() {
            let at = group.end() - rest.len() as u64;
            let Ok((_, frame, taken)) = record::decode(&rest) else {
                self.damaged += 1;
                return;
            };
            self.add(&frame, Place { at, bytes: u32::try_from(taken).unwrap_or(u32::MAX) });
            rest = rest.slice(taken..);
        }
    }
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) dir: PathBuf,
    file: File,
    index: Mutex<Index>,
}

impl Segment {
    /// Folder of segment `id` of the journal in `journal`.
    pub(super) fn dir(journal: &Path, id: u64) -> PathBuf {
        journal.join(format!("{id:010}"))
    }

    /// Makes segment `id`, empty, in place of what an earlier attempt may have left.
    pub(super) fn create(journal: &Path, id: u64) -> Result<Self, Fault> {
        let dir = Self::dir(journal, id);
        Self::remove(&dir)?;
        fs::create_dir(&dir)?;
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(dir.join(FILE))?;
        file.sync_all()?;
        File::open(&dir)?.sync_all()?;
        File::open(journal)?.sync_all()?;
        Ok(Self { id, dir, file, index: Mutex::default() })
    }

    /// Unmakes segment `id`, for good.
    pub(super) fn discard(journal: &Path, id: u64) -> Result<(), Fault> {
        Self::remove(&Self::dir(journal, id))?;
        Ok(File::open(journal)?.sync_all()?)
    }

    fn remove(dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens segment `id` to read it; `None` when there is none.
    pub(super) fn open(journal: &Path, id: u64) -> Result<Option<Self>, Fault> {
        let dir = Self::dir(journal, id);
        let path = dir.join(FILE);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !super::version1::convert(&dir, id, &path)? {
                    return Ok(None);
                }
                OpenOptions::new().read(true).write(true).open(&path)?
            }
            Err(error) => return Err(error.into()),
        };
        let contents = log::read(id, &fs::read(&path)?.into());
        if !contents.holes.is_empty() {
            return Err(Fault::Damaged(format!("its file is damaged in {} places", contents.holes.len())));
        }
        let mut index = Index { end: contents.end, last: contents.end, ..Index::default() };
        index.synced = contents.synced.min(contents.end);
        contents.groups.iter().for_each(|group| index.add_group(group));
        Ok(Some(Self { id, dir, file, index: Mutex::new(index) }))
    }

    /// Prepares it for more: what is torn at its end goes, and all the rest is brought to disk.
    pub(super) fn go_on(&self) -> Result<(), Fault> {
        let mut index = self.index();
        let mut doubtful = vec![0; usize::try_from(index.end - index.synced).unwrap_or(0)];
        self.file.read_exact_at(&mut doubtful, index.synced)?;
        self.file.set_len(index.end)?;
        self.file.write_all_at(&doubtful, index.synced)?;
        self.file.sync_data()?;
        index.synced = index.end;
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all of `values` or, after a crash, none. Not on disk before [`Segment::sync`].
    pub(super) fn apply(&self, values: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Fault> {
        let mut index = self.index();
        let (at, synced) = (index.end, index.synced);
        let bytes = Bytes::from(log::encode(self.id, at, synced, &values));
        index.last = at;
        drop(index);
        if let Err(error) = self.file.write_all_at(&bytes, at) {
            self.take_back();
            return Err(error.into());
        }
        let mut index = self.index();
        let group = log::Group { at, synced, body: bytes.slice(log::HEADER_BYTES..) };
        index.end = group.end();
        index.add_group(&group);
        Ok(())
    }

    /// Takes back the group that was written last, which whoever asked for it is told is not kept. It is not used any more
    /// before it was opened again.
    pub(super) fn take_back(&self) {
        let index = self.index();
        // What a disk that fails keeps nevertheless is found again, and is then kept after all.
        if let Err(error) = self.file.set_len(index.last) {
            tracing::warn!(segment = %self.dir.display(), %error, "a failed commit could not be taken back");
        }
    }

    /// Brings everything that was written to the disk itself.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        let end = self.index().end;
        self.file.sync_data()?;
        let mut index = self.index();
        index.synced = index.synced.max(end);
        Ok(())
    }

    fn read(&self, place: Place) -> Result<Bytes, Fault> {
        let mut bytes = vec![0; place.bytes as usize];
        match self.file.read_exact_at(&mut bytes, place.at) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Fault::Damaged("its file is shorter than it was".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The value under `key`.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let place = self.index().others.get(key).copied();
        place.map(|place| self.read(place)).transpose()
    }

    /// Calls `visit` with all intact values whose keys start with `prefix`, in order, until it breaks; with those of blocks
    /// too when `prefix` is empty. Returns how many values were damaged.
    pub(super) fn each(
        &self,
        prefix: &[u8],
        mut visit: impl FnMut(Stamp, Frame) -> ControlFlow<()>,
    ) -> Result<u64, Fault> {
        let (mut places, mut damaged): (Vec<Place>, u64) = {
            let index = self.index();
            let from = (Bound::Included(prefix), Bound::Unbounded);
            let others = index.others.range::<[u8], _>(from).take_while(|(key, _)| key.starts_with(prefix));
            (others.map(|(_, place)| *place).collect(), if prefix.is_empty() { index.damaged } else { 0 })
        };
        if prefix.is_empty() {
            places.extend(self.index().blocks.values().flatten().map(|(_, place)| *place));
        }
        for place in places {
            match record::decode(&self.read(place)?) {
                Ok((stamp, frame, _)) => {
                    if visit(stamp, frame).is_break() {
                        break;
                    }
                }
                Err(_) => damaged += 1,
            }
        }
        Ok(damaged)
    }
}

/// Reading across the records of one stream.
impl Segment {
    /// Calls `visit` with the blocks of `stream` from the one that may hold `sequence` on, in order, until it breaks.
    /// Returns how many values were damaged.
    pub(super) fn blocks_from(
        &self,
        stream: &StreamName,
        sequence: u64,
        mut visit: impl FnMut(Block) -> ControlFlow<()>,
    ) -> Result<u64, Fault> {
        let mut damaged = 0;
        // The block that holds `sequence` may start before it.
        let mut next = {
            let index = self.index();
            let blocks = index.blocks.get(stream).map(Vec::as_slice).unwrap_or_default();
            let at = blocks.partition_point(|(first, _)| *first <= sequence);
            blocks.get(at.saturating_sub(1)).map_or(sequence, |(first, _)| *first)
        };
        loop {
            let blocks: Vec<(u64, Place)> = {
                let index = self.index();
                let blocks = index.blocks.get(stream).map(Vec::as_slice).unwrap_or_default();
                let at = blocks.partition_point(|(first, _)| *first < next);
                blocks[at..].iter().take(BLOCKS_AT_ONCE).copied().collect()
            };
            let Some((last, _)) = blocks.last() else { return Ok(damaged) };
            next = last + 1;
            for (_, place) in blocks {
                let Ok((_, Frame::Block(block), _)) = record::decode(&self.read(place)?) else {
                    damaged += 1;
                    continue;
                };
                if visit(block).is_break() {
                    return Ok(damaged);
                }
            }
        }
    }
}

/// What can be found in the folder of segment `id`, which is damaged: all that is intact, and of what is not, value by value.
///
/// # Errors
/// When its file is there and cannot be read.
pub(super) fn salvage(dir: &Path, id: u64) -> io::Result<Vec<(Stamp, Frame)>> {
    let contents = match fs::read(dir.join(FILE)) {
        Ok(bytes) => log::read(id, &bytes.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let parts = contents.groups.iter().map(|group| &group.body).chain(&contents.holes);
    Ok(parts.flat_map(record::scan).collect())
}

const SUMMARY: &str = "summary";

impl Summary {
    /// Keeps it beside the log. It is only a shortcut, so a crash may lose it.
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
