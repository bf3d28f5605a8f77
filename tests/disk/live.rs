//! What the calls of a mounted disk do: each is counted, may fail, and is written down.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::image::{Image, Ino, Kind, Node, Op, ROOT, new_ino};

const BLOCK_BYTES: u32 = 4096;
/// Size of a disk that nothing was said about.
pub(crate) const CAPACITY_BYTES: usize = 1 << 30;
/// Where the journal is, on a disk that holds all of an agent's state.
const JOURNAL: &str = "/journal";

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// `EIO`. A write may have been done in part; after an `fsync` nobody knows what is on the disk.
    Io,
    /// `ENOSPC`, of calls that take space.
    NoSpace,
    /// Half of a write is done, and the call says so.
    Short,
    /// `EMFILE`, of calls that take a file handle.
    NoHandle,
}

impl Failure {
    /// Whether `call` can fail so.
    pub(crate) fn fits(self, call: Call) -> bool {
        match self {
            Self::Io => true,
            Self::NoSpace => call.writes() && call != Call::Remove,
            Self::Short => call == Call::Write,
            Self::NoHandle => matches!(call, Call::Open | Call::Opendir | Call::Create),
        }
    }
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Call {
    Lookup,
    Getattr,
    Setattr,
    Create,
    Mkdir,
    Open,
    Opendir,
    Read,
    Readdir,
    Write,
    Fsync,
    Rename,
    Remove,
    Statfs,
}

impl Call {
    /// Whether it needs space, or a disk that can be written.
    const fn writes(self) -> bool {
        matches!(
            self,
            Self::Setattr | Self::Create | Self::Mkdir | Self::Write | Self::Fsync | Self::Rename | Self::Remove
        )
    }
}

/// A disk in use.
pub(crate) struct Live {
    pub(crate) image: Image,
    /// What the disk held when `log` began.
    pub(crate) start: Image,
    pub(crate) log: Vec<Op>,
    /// Where in `log` something was synced.
    pub(crate) syncs: Vec<usize>,
    /// All calls since it was inserted.
    pub(crate) calls: Vec<Call>,
    pub(crate) failing: BTreeMap<usize, Failure>,
    /// What failed, for a report.
    pub(crate) failed: Vec<String>,
    /// No call gets through any more: the power is off.
    pub(crate) off: bool,
    /// After how many more syncs that happens by itself.
    pub(crate) syncs_left: Option<usize>,
    /// Whether those of the journal are not counted there.
    pub(crate) beside_journal: bool,
    /// Syncs of anything but the journal.
    pub(crate) syncs_beside_journal: usize,
    pub(crate) read_only: bool,
    pub(crate) capacity: usize,
    pub(crate) delay: Duration,
}

impl Live {
    /// With `image` on it.
    pub(crate) fn new(image: Image) -> Self {
        Self {
            start: image.clone(),
            image,
            log: Vec::new(),
            syncs: Vec::new(),
            calls: Vec::new(),
            failing: BTreeMap::new(),
            failed: Vec::new(),
            off: false,
            syncs_left: None,
            beside_journal: false,
            syncs_beside_journal: 0,
            read_only: false,
            capacity: CAPACITY_BYTES,
            delay: Duration::ZERO,
        }
    }

    fn doing(&mut self, op: Op) {
        if matches!(op, Op::Sync { .. }) {
            self.syncs.push(self.log.len() + 1);
        }
        self.image.apply(&op);
        self.log.push(op);
    }

    /// Counts a call, and says how it fails.
    fn call(&mut self, call: Call, ino: u64, name: &OsStr) -> Result<Option<Failure>, Errno> {
        if self.off {
            return Err(Errno::EIO);
        }
        if self.read_only && call.writes() {
            return Err(Errno::EROFS);
        }
        self.calls.push(call);
        let failure = match self.failing.remove(&self.calls.len()) {
            Some(failure) if failure.fits(call) => Some(failure),
            _ => None,
        };
        if let Some(failure) = failure {
            let place = self.path(ino).unwrap_or_default();
            self.failed.push(format!("{call:?} of {place}/{} ({failure:?})", name.display()));
        }
        match failure {
            Some(Failure::Io) if !matches!(call, Call::Write | Call::Fsync) => Err(Errno::EIO),
            Some(Failure::NoSpace) => Err(Errno::ENOSPC),
            Some(Failure::NoHandle) => Err(Errno::EMFILE),
            other => Ok(other),
        }
    }

    fn path(&self, ino: Ino) -> Option<String> {
        if ino == ROOT {
            return Some(String::new());
        }
        self.image.nodes.iter().find_map(|(parent, node)| {
            let Node::Folder(folder) = node else { return None };
            let (name, _) = folder.now.iter().find(|(_, child)| **child == ino)?;
            Some(format!("{}/{}", self.path(*parent)?, name.display()))
        })
    }

    fn attr(&self, ino: Ino) -> Result<FileAttr, Errno> {
        let (kind, size, perm) = match self.image.nodes.get(&ino).ok_or(Errno::ENOENT)? {
            Node::File(file) => (FileType::RegularFile, file.now.len() as u64, 0o644),
            Node::Folder(_) => (FileType::Directory, 0, 0o755),
            Node::Socket => (FileType::Socket, 0, 0o600),
        };
        let time = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }

    /// Whether `more` bytes fit.
    fn room(&self, more: usize) -> Result<(), Errno> {
        // Adding up all files is only worth it on a disk that is meant to be full.
        let fits = self.capacity >= CAPACITY_BYTES || self.image.bytes() + more <= self.capacity;
        fits.then_some(()).ok_or(Errno::ENOSPC)
    }
}

/// The calls.
impl Live {
    pub(crate) fn lookup(&mut self, parent: Ino, name: &OsStr) -> Result<FileAttr, Errno> {
        self.call(Call::Lookup, parent, name)?;
        self.attr(self.image.child(parent, name).ok_or(Errno::ENOENT)?)
    }

    pub(crate) fn getattr(&mut self, ino: Ino) -> Result<FileAttr, Errno> {
        self.call(Call::Getattr, ino, OsStr::new(""))?;
        self.attr(ino)
    }

    pub(crate) fn setattr(&mut self, ino: Ino, size: Option<u64>) -> Result<FileAttr, Errno> {
        self.call(Call::Setattr, ino, OsStr::new(""))?;
        if let Some(size) = size {
            let bytes = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
            let held = self.image.file(ino).ok_or(Errno::EISDIR)?.now.len();
            self.room(bytes.saturating_sub(held))?;
            self.doing(Op::Resize { ino, bytes });
        }
        self.attr(ino)
    }

    pub(crate) fn open(&mut self, ino: Ino, folder: bool) -> Result<(), Errno> {
        self.call(if folder { Call::Opendir } else { Call::Open }, ino, OsStr::new("")).map(drop)
    }

    pub(crate) fn make(&mut self, parent: Ino, name: &OsStr, kind: Kind) -> Result<FileAttr, Errno> {
        self.call(if kind == Kind::Folder { Call::Mkdir } else { Call::Create }, parent, name)?;
        if self.image.folder(parent).ok_or(Errno::ENOENT)?.now.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.room(1)?;
        let ino = new_ino();
        self.doing(Op::Create { parent, name: name.to_owned(), ino, kind });
        self.attr(ino)
    }

    pub(crate) fn remove(&mut self, parent: Ino, name: &OsStr, folder: bool) -> Result<(), Errno> {
        self.call(Call::Remove, parent, name)?;
        let ino = self.image.child(parent, name).ok_or(Errno::ENOENT)?;
        match self.image.folder(ino) {
            Some(children) if folder && children.now.is_empty() => {}
            Some(_) if folder => return Err(Errno::ENOTEMPTY),
            Some(_) => return Err(Errno::EISDIR),
            None if folder => return Err(Errno::ENOTDIR),
            None => {}
        }
        self.doing(Op::Remove { parent, name: name.to_owned() });
        Ok(())
    }

    pub(crate) fn rename(&mut self, parent: Ino, name: &OsStr, to: Ino, to_name: &OsStr) -> Result<(), Errno> {
        self.call(Call::Rename, parent, name)?;
        self.image.child(parent, name).ok_or(Errno::ENOENT)?;
        self.image.folder(to).ok_or(Errno::ENOENT)?;
        let over = self.image.child(to, to_name).and_then(|ino| self.image.folder(ino));
        if over.is_some_and(|folder| !folder.now.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.doing(Op::Rename { parent, name: name.to_owned(), to, to_name: to_name.to_owned() });
        Ok(())
    }

    pub(crate) fn read(&mut self, ino: Ino, at: u64, bytes: u32) -> Result<Vec<u8>, Errno> {
        self.call(Call::Read, ino, OsStr::new(""))?;
        let content = &self.image.file(ino).ok_or(Errno::EISDIR)?.now;
        let from = usize::try_from(at).map_or(content.len(), |at| at.min(content.len()));
        let to = content.len().min(from + bytes as usize);
        Ok(content[from..to].to_vec())
    }

    /// Writes, and returns how much.
    pub(crate) fn write(&mut self, ino: Ino, at: u64, data: &[u8]) -> Result<u32, Errno> {
        let failure = self.call(Call::Write, ino, OsStr::new(""))?;
        let at = usize::try_from(at).map_err(|_| Errno::EFBIG)?;
        let held = self.image.file(ino).ok_or(Errno::EISDIR)?.now.len();
        self.room((at + data.len()).saturating_sub(held))?;
        let data = match failure {
            Some(Failure::Short) => &data[..data.len() / 2],
            // Half of the calls that fail have done something nevertheless.
            Some(Failure::Io) if self.calls.len().is_multiple_of(2) => &data[..data.len() / 2],
            Some(_) => return Err(Errno::EIO),
            None => data,
        };
        self.doing(Op::Write { ino, at, data: Arc::from(data) });
        match failure {
            Some(Failure::Io) => Err(Errno::EIO),
            _ => u32::try_from(data.len()).map_err(|_| Errno::EFBIG),
        }
    }

    pub(crate) fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        let beside = !self.path(ino).is_some_and(|path| path.starts_with(JOURNAL));
        self.syncs_beside_journal += usize::from(beside);
        if beside || !self.beside_journal {
            self.off |= self.syncs_left == Some(0);
            self.syncs_left = self.syncs_left.and_then(|left| left.checked_sub(1));
        }
        if self.call(Call::Fsync, ino, OsStr::new(""))?.is_some() {
            self.doing(Op::SyncFailed { ino, seed: self.calls.len() as u64 });
            return Err(Errno::EIO);
        }
        self.doing(Op::Sync { ino });
        Ok(())
    }

    /// Number, kind and name of all that is in a folder, by number.
    pub(crate) fn list(&mut self, ino: Ino) -> Result<Vec<(Ino, FileType, OsString)>, Errno> {
        self.call(Call::Readdir, ino, OsStr::new(""))?;
        let folder = self.image.folder(ino).ok_or(Errno::ENOTDIR)?;
        let entries = folder.now.iter().map(|(name, child)| {
            let kind = if self.image.folder(*child).is_some() { FileType::Directory } else { FileType::RegularFile };
            (*child, kind, name.clone())
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(child, ..)| *child);
        Ok(entries)
    }

    /// Blocks in all, and free.
    pub(crate) fn space(&mut self) -> Result<(u64, u64), Errno> {
        self.call(Call::Statfs, ROOT, OsStr::new(""))?;
        let free = self.capacity.saturating_sub(self.image.bytes());
        Ok((self.capacity as u64 / u64::from(BLOCK_BYTES), free as u64 / u64::from(BLOCK_BYTES)))
    }
}
