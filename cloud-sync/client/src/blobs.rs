//! Blobs on disk, by their SHA-256.
//!
//! `HEX` is whole, synced, and came to its digest when it was written. `HEX.part` is what has come of one so far over the line, `HEX.copy` from a
//! stick. What another process has left is read again before it grows, so the digest is always that of what is on disk.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock, PoisonError};

use sha2::{Digest as _, Sha256};
use sync_protocol::{Blob, Digest};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::SessionError;
use crate::files;
use crate::limits::WRITE_BYTES;

/// Why a blob is not there.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The disk has no room for it.
    #[error("blob {digest} needs {needed} bytes of disk, and {free} are free in {folder}", folder = folder.display())]
    DiskFull {
        /// Which.
        digest: Digest,
        /// Bytes that are missing of it, and what is left alone.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// More bytes than were signed.
    #[error("blob {digest} has more than the {bytes} bytes that were signed for")]
    TooLong {
        /// Which.
        digest: Digest,
        /// How many it should have.
        bytes: u64,
    },
    /// Fewer bytes.
    #[error("blob {digest} ended after {have} of {bytes} bytes")]
    TooShort {
        /// Which.
        digest: Digest,
        /// How many came.
        have: u64,
        /// How many it should have.
        bytes: u64,
    },
    /// All bytes, but others.
    #[error("what came as blob {expected} has the digest {found}")]
    Digest {
        /// Which.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// It came slower than is worth waiting for.
    #[error("blob {digest} comes too slowly: {bytes} bytes in {secs} s")]
    TooSlow {
        /// Which.
        digest: Digest,
        /// What came.
        bytes: u64,
        /// In how long.
        secs: u64,
    },
    /// The control plane does not give it.
    #[error("cannot fetch blob {digest}: {source}")]
    Session {
        /// Which.
        digest: Digest,
        /// Why not.
        source: SessionError,
    },
}

impl BlobError {
    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::DiskFull { .. } => Some("free some space, or deploy less"),
            Self::Digest { .. } | Self::TooLong { .. } => {
                Some("something between the publisher and this gateway changes what it carries")
            }
            _ => None,
        }
    }

    /// Whether trying again, with what has come so far, may help.
    pub(crate) const fn may_pass(&self) -> bool {
        matches!(self, Self::TooSlow { .. } | Self::TooShort { .. } | Self::Session { .. })
    }

    /// Whether somebody sent something else than what was signed.
    pub(crate) const fn is_wrong(&self) -> bool {
        matches!(self, Self::Digest { .. } | Self::TooLong { .. })
    }
}

/// The folder of blobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    folder: Arc<Path>,
    /// Free bytes that are left alone.
    spare: u64,
    /// One of each way is written at a time, also while nobody waits for it any more.
    writing: [Arc<Mutex<()>>; 2],
    /// How far the last download was, so that a line which is cut often has not all of it read again each time.
    cut: Arc<Lock<Option<Progress>>>,
}

/// How a blob comes here. A stick does not wait for a slow line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Line,
    Stick,
}

impl Way {
    const ALL: [Self; 2] = [Self::Line, Self::Stick];

    const fn extension(self) -> &'static str {
        match self {
            Self::Line => "part",
            Self::Stick => "copy",
        }
    }
}

/// What was written of a blob.
#[derive(Clone, Debug)]
struct Progress {
    digest: Digest,
    have: u64,
    hasher: Sha256,
}

impl BlobStore {
    /// Makes the folder if need be. `spare` bytes of its disk are left free.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path, spare: u64) -> Result<Self, BlobError> {
        files::create_folder(folder).map_err(|source| file("write", folder, source))?;
        Ok(Self { folder: folder.into(), spare, writing: Default::default(), cut: Arc::default() })
    }

    /// The file of a blob that is whole.
    pub fn get(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.path(digest)).filter(|path| path.is_file())
    }

    /// Bytes of these that are not here yet, those of parts taken off.
    pub fn missing_bytes(&self, blobs: &[Blob]) -> u64 {
        let blobs: BTreeSet<_> = blobs.iter().collect();
        let missing = blobs.into_iter().filter(|blob| self.get(&blob.digest).is_none());
        missing.map(|blob| blob.bytes - self.part_bytes(&blob.digest).min(blob.bytes)).sum()
    }

    /// Takes a blob from elsewhere: a stick.
    ///
    /// # Errors
    /// When it is not what was signed, or there is no room.
    pub async fn put(&self, blob: Blob, mut from: impl Read + Send + 'static) -> Result<PathBuf, BlobError> {
        if let Some(path) = self.get(&blob.digest) {
            return Ok(path);
        }
        let mut part = self.begin(blob, Way::Stick).await?;
        blocking(move || {
            part.restart()?;
            let mut buffer = vec![0; WRITE_BYTES];
            loop {
                match from.read(&mut buffer).map_err(|source| file("read", &part.path, source))? {
                    0 => return part.finish(),
                    count => part.write(&buffer[..count])?,
                }
            }
        })
        .await
    }

    /// Removes a blob that is not what it was: it can be fetched again.
    pub fn remove(&self, digest: &Digest) {
        // One that cannot be removed is found to be wrong again.
        drop(fs::remove_file(self.path(digest)));
    }

    /// Removes every blob, and part of one, that is not of `needed`; says how many bytes that freed. Waits for nobody: what is being written stays.
    ///
    /// # Errors
    /// When the folder cannot be read, or a file not be removed.
    pub async fn keep_only(&self, needed: BTreeSet<Digest>) -> Result<u64, BlobError> {
        let store = self.clone();
        blocking(move || {
            let folder = &store.folder;
            let idle = Way::ALL.map(|way| Arc::clone(&store.writing[way as usize]).try_lock_owned());
            let busy: Vec<_> =
                Way::ALL.iter().zip(&idle).filter(|(_, idle)| idle.is_err()).map(|(way, _)| way.extension()).collect();
            let needed: BTreeSet<String> = needed.iter().map(Digest::hex).collect();
            let mut freed = 0;
            for entry in fs::read_dir(folder).map_err(|source| file("read", folder, source))? {
                let entry = entry.map_err(|source| file("read", folder, source))?;
                let path = entry.path();
                let part = |part: Option<&OsStr>| part.and_then(OsStr::to_str).unwrap_or_default().to_owned();
                if needed.contains(&part(path.file_stem())) || busy.contains(&part(path.extension()).as_str()) {
                    continue;
                }
                let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
                fs::remove_file(&path).map_err(|source| file("write", &path, source))?;
                freed += bytes;
            }
            Ok(freed)
        })
        .await
    }

    /// Goes on with what has come so far of `blob`.
    pub(crate) async fn begin(&self, blob: Blob, way: Way) -> Result<Part, BlobError> {
        let (store, writing) = (self.clone(), Arc::clone(&self.writing[way as usize]).lock_owned().await);
        blocking(move || Part::open(store, blob, way, writing)).await
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn part_path(&self, digest: &Digest, way: Way) -> PathBuf {
        self.path(digest).with_extension(way.extension())
    }

    fn part_bytes(&self, digest: &Digest) -> u64 {
        self.part_path(digest, Way::Line).metadata().map_or(0, |metadata| metadata.len())
    }

    /// Says so before anything is fetched that has no room.
    fn check_room(&self, digest: Digest, missing: u64) -> Result<(), BlobError> {
        let free = rustix::fs::statvfs(&*self.folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        match free {
            Ok(free) if free < missing.saturating_add(self.spare) => Err(BlobError::DiskFull {
                digest,
                needed: missing.saturating_add(self.spare),
                free,
                folder: self.folder.to_path_buf(),
            }),
            _ => Ok(()),
        }
    }
}

/// A blob on its way.
#[derive(Debug)]
pub(crate) struct Part {
    store: BlobStore,
    blob: Blob,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    have: u64,
    way: Way,
    _writing: OwnedMutexGuard<()>,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.way == Way::Line {
            let progress = Progress { digest: self.blob.digest, have: self.have, hasher: self.hasher.clone() };
            *self.store.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
        }
    }
}

impl Part {
    fn open(store: BlobStore, blob: Blob, way: Way, writing: OwnedMutexGuard<()>) -> Result<Self, BlobError> {
        let path = store.part_path(&blob.digest, way);
        let there = path.metadata().map_or(0, |metadata| metadata.len());
        store.check_room(blob.digest, blob.bytes - there.min(blob.bytes))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| self::file("write", &path, source))?;
        let (hasher, have) = (Sha256::new(), 0);
        let mut part = Self { store, blob, path, file, hasher, have, way, _writing: writing };
        if !part.go_on(there)? {
            part.read_again()?;
        }
        Ok(part)
    }

    /// Goes on behind what this process has written itself.
    fn go_on(&mut self, there: u64) -> Result<bool, BlobError> {
        let cut = self.store.cut.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fits = |cut: &Progress| self.way == Way::Line && cut.digest == self.blob.digest && cut.have == there;
        let Some(cut) = cut.filter(fits) else { return Ok(false) };
        self.file.seek(SeekFrom::Start(there)).map_err(|source| file("read", &self.path, source))?;
        (self.hasher, self.have) = (cut.hasher, cut.have);
        Ok(true)
    }

    /// Takes what a cut or a kill has left, as far as it can be of use.
    fn read_again(&mut self) -> Result<(), BlobError> {
        let mut buffer = vec![0; WRITE_BYTES];
        loop {
            match self.file.read(&mut buffer).map_err(|source| file("read", &self.path, source))? {
                0 if self.have <= self.blob.bytes => return Ok(()),
                0 => return self.restart(),
                count => {
                    self.hasher.update(&buffer[..count]);
                    self.have += count as u64;
                }
            }
        }
    }

    pub(crate) const fn blob(&self) -> &Blob {
        &self.blob
    }

    /// Bytes so far.
    pub(crate) const fn have(&self) -> u64 {
        self.have
    }

    /// Throws away what has come so far.
    pub(crate) fn restart(&mut self) -> Result<(), BlobError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| file("write", &self.path, source))?;
        (self.hasher, self.have) = (Sha256::new(), 0);
        Ok(())
    }

    /// Takes the next bytes. What would be too much is not written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let Blob { digest, bytes: max } = self.blob;
        if self.have + bytes.len() as u64 > max {
            return Err(BlobError::TooLong { digest, bytes: max });
        }
        if let Err(source) = self.file.write_all(bytes) {
            // What was written of it is cut off, so that the digest stays that of what is on disk.
            let back = self.file.set_len(self.have).and_then(|()| self.file.seek(SeekFrom::Start(self.have)));
            drop(back);
            if files::is_full(&source) {
                self.store.check_room(digest, max - self.have)?;
                return Err(BlobError::DiskFull {
                    digest,
                    needed: max - self.have,
                    free: 0,
                    folder: self.store.folder.to_path_buf(),
                });
            }
            return Err(file("write", &self.path, source));
        }
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Gives it its name, if it is what was signed. If it is something else, nothing of it stays.
    pub(crate) fn finish(mut self) -> Result<PathBuf, BlobError> {
        let Blob { digest, bytes } = self.blob;
        if self.have < bytes {
            return Err(BlobError::TooShort { digest, have: self.have, bytes });
        }
        let found = Digest::finish(self.hasher.clone());
        if found != digest {
            self.restart()?;
            return Err(BlobError::Digest { expected: digest, found });
        }
        let path = self.store.path(&digest);
        let named = self.file.sync_all().and_then(|()| fs::rename(&self.path, &path));
        named.and_then(|()| files::sync_folder_of(&path)).map_err(|source| file("write", &path, source))?;
        Ok(path)
    }
}

/// Runs what waits for the disk where that holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(file("write", Path::new("blobs"), io::Error::other(error))),
    }
}

fn file(what: &'static str, path: &Path, source: io::Error) -> BlobError {
    BlobError::File { what, path: path.to_owned(), source }
}
