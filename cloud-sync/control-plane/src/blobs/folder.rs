//! Blobs in a folder: `whole/HEX`, and `part/HEX` while they come in.
//!
//! # Promises
//! - A file in `whole/` has all bytes of its digest, even after a power cut: it is moved there when it was synced and its digest was right.
//! - An upload goes on where it was cut.
//! - One upload of a blob at a time; unfinished ones are bounded in number.

use std::collections::HashSet;
use std::io::{self, Read as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use sync_protocol::Digest;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::{BlobError, Blobs, Have, Incoming};
use crate::folder::sync_folder;
use crate::limits;

const PIECE_BYTES: usize = 64 * 1024;

/// Blobs in a folder.
#[derive(Clone, Debug)]
pub struct FolderBlobs {
    whole: PathBuf,
    part: PathBuf,
    uploading: Arc<Mutex<HashSet<Digest>>>,
}

/// Nobody else uploads the same blob as long as this is there.
struct Uploading(Arc<Mutex<HashSet<Digest>>>, Digest);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl FolderBlobs {
    /// Opens the folder, and makes what is missing.
    ///
    /// # Errors
    /// As the file system does.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let (whole, part) = (folder.join("whole"), folder.join("part"));
        std::fs::create_dir_all(&whole)?;
        std::fs::create_dir_all(&part)?;
        Ok(Self { whole, part, uploading: Arc::default() })
    }

    /// The file of one that is whole.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.whole.join(digest.hex())
    }

    fn part(&self, digest: Digest) -> PathBuf {
        self.part.join(digest.hex())
    }

    fn begin(&self, digest: Digest) -> Result<Uploading, BlobError> {
        let mut uploading = self.uploading.lock().unwrap_or_else(PoisonError::into_inner);
        if !uploading.insert(digest) {
            return Err(BlobError::Busy(format!("somebody else uploads {digest} now")));
        }
        Ok(Uploading(self.uploading.clone(), digest))
    }

    /// Writes the piece behind what is there, never more than is missing.
    async fn append(&self, digest: Digest, begins: u64, total: u64, mut piece: Incoming) -> Result<u64, BlobError> {
        let path = self.part(digest);
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).await?;
        let mut have = file.metadata().await?.len();
        // A piece that begins at 0 begins anew: what is there may be damaged, or of a wrong digest.
        if begins == 0 && have > 0 {
            file.set_len(0).await?;
            have = 0;
        }
        if begins != have {
            return Err(BlobError::Gap { begins, have });
        }
        file.seek(SeekFrom::Start(have)).await?;
        let mut failed = None;
        loop {
            // Who is gone without a word must not keep others from uploading the same.
            let bytes = match timeout(limits::UPLOAD_IDLE, piece.next()).await {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(error))) => {
                    failed = Some(error);
                    break;
                }
                Ok(None) => break,
                Err(_) => {
                    failed = Some(io::ErrorKind::TimedOut.into());
                    break;
                }
            };
            have += bytes.len() as u64;
            if have > total {
                drop(file);
                fs::remove_file(&path).await?;
                return Err(BlobError::Length(format!("more than {total} came")));
            }
            file.write_all(&bytes).await?;
        }
        // What is said to be here must be here after a power cut.
        file.flush().await?;
        file.sync_all().await?;
        sync_folder(&path)?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(have),
        }
    }
}

/// The digest of a file's bytes.
///
/// # Errors
/// As the file system does.
pub fn digest_of(path: &Path) -> io::Result<Digest> {
    let (mut file, mut hasher, mut buffer) = (std::fs::File::open(path)?, Sha256::new(), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::finish(hasher)),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Names and times of the files in a folder. Names that are no digest are somebody else's.
async fn files(folder: &Path) -> io::Result<Vec<(Digest, u64)>> {
    let (mut files, mut entries) = (Vec::new(), fs::read_dir(folder).await?);
    while let Some(entry) = entries.next_entry().await? {
        let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
        let (Some(digest), Ok(metadata)) = (digest, entry.metadata().await) else { continue };
        let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        files.push((digest, u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
    }
    Ok(files)
}

async fn remove(path: &Path) -> Result<(), BlobError> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

async fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path).await {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn have(&self, digest: Digest) -> Result<Have, BlobError> {
        if let Some(bytes) = length(&self.path(digest)).await? {
            return Ok(Have::Whole(bytes));
        }
        Ok(Have::Part(length(&self.part(digest)).await?.unwrap_or(0)))
    }

    async fn put(&self, digest: Digest, begins: u64, total: u64, piece: Incoming) -> Result<Have, BlobError> {
        let _uploading = self.begin(digest)?;
        if let Some(bytes) = length(&self.path(digest)).await? {
            return Ok(Have::Whole(bytes));
        }
        if begins == 0 && length(&self.part(digest)).await?.is_none() {
            let unfinished = files(&self.part).await?.len();
            if unfinished >= limits::UPLOADS_MAX {
                return Err(BlobError::Busy(format!("{unfinished} uploads are unfinished, and no more are taken")));
            }
        }
        let have = self.append(digest, begins, total, piece).await?;
        if have < total {
            return Ok(Have::Part(have));
        }
        let path = self.part(digest);
        let hashed = path.clone();
        let found = tokio::task::spawn_blocking(move || digest_of(&hashed)).await.map_err(io::Error::other)??;
        if found != digest {
            remove(&path).await?;
            return Err(BlobError::Digest { wanted: digest, found });
        }
        let whole = self.path(digest);
        fs::rename(&path, &whole).await?;
        sync_folder(&whole)?;
        Ok(Have::Whole(have))
    }

    async fn get(&self, digest: Digest, begins: u64, ends: u64) -> Result<Incoming, BlobError> {
        let mut file = File::open(self.path(digest)).await?;
        file.seek(SeekFrom::Start(begins)).await?;
        let left = ends.saturating_sub(begins);
        let pieces = stream::try_unfold((file, left), |(mut file, left)| async move {
            let room = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            if room == 0 {
                return Ok(None);
            }
            let mut bytes = BytesMut::zeroed(room);
            let n = file.read(&mut bytes).await?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            bytes.truncate(n);
            Ok(Some((bytes.freeze(), (file, left - n as u64))))
        });
        Ok(pieces.into_stream().boxed())
    }

    async fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        Ok(files(&self.whole).await?)
    }

    async fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        remove(&self.path(digest)).await
    }

    async fn remove_unfinished(&self, before_ms: u64) -> Result<(), BlobError> {
        for (digest, changed_ms) in files(&self.part).await? {
            if changed_ms < before_ms
                && let Ok(_uploading) = self.begin(digest)
            {
                remove(&self.part(digest)).await?;
            }
        }
        Ok(())
    }
}
