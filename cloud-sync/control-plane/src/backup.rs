//! A copy of a control plane, and a control plane from a copy.
//!
//! # Promises
//! - A backup is of one moment, complete and checked, or it is not there: it is written beside, synced, and moved.
//! - The control plane may serve meanwhile.
//! - It holds all secrets: its folder is for its owner alone.
//! - What was restored is trusted by gateways as before: the sequences of desired documents go on behind what was signed since.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use sync_protocol::Digest;

use crate::blobs::{FolderBlobs, digest_of};
use crate::clock::Clock;
use crate::folder::{Folder, sync_folder};
use crate::records::{Records as _, SqliteRecords};
use crate::store::sqlite::SqliteStore;
use crate::store::{Registry as _, StoreError};

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no control plane to copy.
    #[error("there is no control plane in {0}")]
    Missing(String),
    /// Something is in the way.
    #[error("{0} is there already")]
    Exists(String),
    /// A blob that a release refers to is missing or damaged.
    #[error("blob {0} is missing or damaged in {1}")]
    Blob(Digest, String),
    /// The rows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Files.
    #[error("{doing}: {source}")]
    Io {
        /// What it was about.
        doing: String,
        /// Why.
        source: io::Error,
    },
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let doing = format!("{doing} {}", path.display());
    move |source| BackupError::Io { doing, source }
}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Copies the control plane in `folder` to `to`, which must not be there.
///
/// # Errors
/// When something is missing, damaged or cannot be written; then `to` is not there.
pub async fn backup(folder: &Folder, to: &Path) -> Result<Copied, BackupError> {
    copy(folder, &Folder::new(to)).await
}

/// Makes a control plane in `folder`, which must not be there, from the backup `from`.
///
/// # Errors
/// As [`backup`].
pub async fn restore(from: &Path, folder: &Folder) -> Result<Copied, BackupError> {
    copy(&Folder::new(from), folder).await
}

async fn copy(from: &Folder, to: &Folder) -> Result<Copied, BackupError> {
    if !from.database().exists() {
        return Err(BackupError::Missing(from.path().display().to_string()));
    }
    if to.path().exists() {
        return Err(BackupError::Exists(to.path().display().to_string()));
    }
    let part = Folder::new(beside(to.path()));
    if part.path().exists() {
        fs::remove_dir_all(part.path()).map_err(failed("remove", part.path()))?;
    }
    part.create().map_err(failed("make", part.path()))?;
    let copied = copy_all(from, &part).await;
    if copied.is_err() {
        // What failed is what is told.
        let _ = fs::remove_dir_all(part.path());
    }
    let copied = copied?;
    fs::rename(part.path(), to.path()).map_err(failed("move", to.path()))?;
    sync_folder(to.path()).map_err(failed("sync", to.path()))?;
    Ok(copied)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

async fn copy_all(from: &Folder, to: &Folder) -> Result<Copied, BackupError> {
    // Rows first: the blobs that they refer to are never removed, so that they are all there afterwards.
    let store = SqliteStore::open(&from.database()).await?;
    let done = store.copy_to(&to.database()).await;
    store.close().await;
    done?;
    let copy = SqliteStore::open(&to.database()).await?;
    let digests = match copy.check().await {
        Ok(()) => copy.blobs().await,
        Err(error) => Err(error),
    };
    // A gateway refuses a sequence below one that it has seen since.
    let digests = match (digests, copy.forget_signed().await) {
        (Ok(digests), Ok(())) => Ok(digests),
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    copy.close().await;
    let digests = digests?;
    sync(&to.database())?;
    if from.records().exists() {
        let records = SqliteRecords::open(&from.records(), Clock::system()).await?;
        records.copy_to(&to.records()).await?;
        sync(&to.records())?;
    }
    copy_files(&from.keys(), &to.keys())?;

    let open = |folder: &Folder| FolderBlobs::open(&folder.blobs()).map_err(failed("open", &folder.blobs()));
    let (source, target) = (open(from)?, open(to)?);
    let shown = from.path().display().to_string();
    let copied = tokio::task::spawn_blocking(move || {
        let mut copied = Copied { blobs: 0, bytes: 0 };
        for digest in digests {
            let (source, target) = (source.path(digest), target.path(digest));
            let bytes = fs::copy(&source, &target).map_err(|_| BackupError::Blob(digest, shown.clone()))?;
            if digest_of(&target).map_err(failed("read", &target))? != digest {
                return Err(BackupError::Blob(digest, shown));
            }
            sync(&target)?;
            copied = Copied { blobs: copied.blobs + 1, bytes: copied.bytes + bytes };
        }
        Ok(copied)
    });
    let copied = copied.await.map_err(|error| failed("copy", from.path())(io::Error::other(error)))??;
    for folder in [to.blobs().join("whole"), to.blobs(), to.keys(), to.path().to_owned()] {
        sync(&folder)?;
    }
    Ok(copied)
}

/// Copies the files of a folder, and those of the folders in it.
fn copy_files(from: &Path, to: &Path) -> Result<(), BackupError> {
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        let entry = entry.map_err(failed("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            DirBuilder::new().mode(0o700).create(&target).map_err(failed("make", &target))?;
            copy_files(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(failed("copy", &source))?;
        }
        sync(&target)?;
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))
}
