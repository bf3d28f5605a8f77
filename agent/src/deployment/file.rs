//! A deployment file: a `.tar` of `deployment.json`, which holds all that is needed to verify it, and `blobs/HEX`. It is the same
//! deployment that the control plane would send, and taken by the same checks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sync_client::{Accepted, BlobStore, Cloud, TrustError};
use sync_protocol::desired::DeploymentRef;
use sync_protocol::limits::ANSWER_BYTES_MAX;
use sync_protocol::{Blob, DesiredAnswer, Digest, Release, VerifiedDeployment};
use tokio::runtime::Handle;

use super::book::blobs_of;
use super::native::Native;

/// The first entry.
const ANSWER: &str = "deployment.json";
/// Folder of the others.
const BLOBS: &str = "blobs/";
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that may wait for the disk.
const CHUNKS_MAX: usize = 4;

/// What `POST /v1/apply` answers: it was verified and all of it is here; `GET /v1/deployment` says how it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Which deployment.
    pub deployment: DeploymentRef,
    /// Bytes that were taken from the file.
    pub bytes: u64,
}

/// Why a deployment file was not taken. What runs goes on as it did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It is no deployment file.
    #[error("this is no deployment file: {0}")]
    Malformed(String),
    /// It is not to be trusted, or not for this gateway.
    #[error("the deployment is refused: {why}")]
    Refused {
        /// Why.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// This gateway cannot take it now.
    #[error("the deployment cannot be taken: {0}")]
    Unable(String),
}

/// What files are taken with.
pub(super) struct Source {
    pub(super) cloud: Cloud,
    pub(super) native: Native,
    pub(super) follows: bool,
    pub(super) now_ms: Option<u64>,
    pub(super) running: Option<DeploymentRef>,
}

impl Source {
    /// Verifies, takes the bytes that are missing, and only then remembers it.
    pub(super) async fn take(
        self,
        archive: Box<dyn Read + Send>,
        pinned: &Mutex<BTreeSet<Digest>>,
    ) -> Result<(Accepted, Applied), ApplyError> {
        let handle = Handle::current();
        // Nothing is thrown away meanwhile that the file may bring.
        let pin = |blobs: &[Blob]| {
            pinned.lock().unwrap_or_else(PoisonError::into_inner).extend(blobs.iter().map(|blob| blob.digest));
        };
        let (head, archive) = blocking(move || head(archive)).await?;
        let answer = head;
        let verified = self.check(&answer)?;
        let blobs: Vec<Blob> = blobs_of(&verified).collect();
        let wanted = self.native.and_bundles(&verified);
        pin(&wanted);
        let store = self.cloud.blobs().clone();
        let bytes = blocking(move || unpack(archive, &store, &wanted, &handle)).await?;
        let missing = self.cloud.blobs().missing_bytes(&blobs);
        if missing > 0 && !self.follows {
            return Err(ApplyError::Refused {
                why: format!("{missing} bytes of it are neither in the file nor on this gateway"),
                hint: Some("export it again, with everything that it runs".to_owned()),
            });
        }
        let (cloud, now_ms, running) = (self.cloud, self.now_ms, self.running);
        let accepted = blocking(move || {
            let name = cloud.name();
            cloud.trust().accept(&name, answer, now_ms, running.as_ref()).map_err(|error| refused(&error))
        });
        Ok((accepted.await?, Applied { deployment: verified.reference(), bytes }))
    }

    /// The same checks as for the control plane's answer, nothing remembered yet.
    fn check(&self, answer: &DesiredAnswer) -> Result<VerifiedDeployment, ApplyError> {
        let checked = self.cloud.trust().check(&self.cloud.name(), answer, self.now_ms, self.running.as_ref());
        checked
            .map_err(|error| refused(&error))?
            .ok_or_else(|| ApplyError::Malformed(format!("`{ANSWER}` names no deployment")))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApplyError> + Send + 'static,
) -> Result<T, ApplyError> {
    crate::clock::aside(work).await.unwrap_or_else(|_| Err(ApplyError::Unable("the agent is stopping".to_owned())))
}

fn refused(error: &TrustError) -> ApplyError {
    match error {
        TrustError::Refused(refused) => {
            ApplyError::Refused { why: refused.to_string(), hint: Some(refused.hint().to_owned()) }
        }
        TrustError::NoRoot => ApplyError::Refused {
            why: error.to_string(),
            hint: Some("add `[cloud]` with `root = \"root.json\"` to gateway.toml, or a `claim_token_file`".to_owned()),
        },
        _ => ApplyError::Unable(error.to_string()),
    }
}

/// The archive behind its first entry.
type Rest = tar::Archive<Box<dyn Read + Send>>;

/// Reads the first entry.
fn head(archive: Box<dyn Read + Send>) -> Result<(DesiredAnswer, Box<dyn Read + Send>), ApplyError> {
    let mut reader = archive;
    let mut block = [0; 512];
    let malformed = |why: &str| ApplyError::Malformed(why.to_owned());
    reader.read_exact(&mut block).map_err(|_| malformed("it is shorter than the header of a .tar"))?;
    let header = tar::Header::from_byte_slice(&block);
    let name = header.path().map(|path| path.display().to_string()).unwrap_or_default();
    if name.trim_start_matches("./") != ANSWER {
        return Err(ApplyError::Malformed(format!("its first entry is not `{ANSWER}`")));
    }
    let size = header.entry_size().map_err(|error| ApplyError::Malformed(error.to_string()))?;
    let size = usize::try_from(size).ok().filter(|size| *size <= ANSWER_BYTES_MAX);
    let size =
        size.ok_or_else(|| ApplyError::Malformed(format!("`{ANSWER}` has more than {ANSWER_BYTES_MAX} bytes")))?;
    let mut json = vec![0; size.next_multiple_of(512)];
    reader.read_exact(&mut json).map_err(|error| ApplyError::Malformed(format!("`{ANSWER}` is cut off: {error}")))?;
    let answer = DesiredAnswer::parse(&json[..size]);
    Ok((answer.map_err(|error| ApplyError::Malformed(format!("`{ANSWER}`: {error}")))?, reader))
}

/// Takes the blobs that are wanted and not here; says how many bytes that were. What nobody signed for is not even written.
fn unpack(rest: Box<dyn Read + Send>, store: &BlobStore, wanted: &[Blob], handle: &Handle) -> Result<u64, ApplyError> {
    let malformed = |error: io::Error| ApplyError::Malformed(error.to_string());
    let wanted: BTreeMap<String, Blob> = wanted.iter().map(|blob| (blob.digest.hex(), *blob)).collect();
    let (mut archive, mut taken): (Rest, u64) = (tar::Archive::new(rest), 0);
    for entry in archive.entries().map_err(malformed)? {
        let mut entry = entry.map_err(malformed)?;
        let name = entry.path().map_err(malformed)?.display().to_string();
        let hex = name.trim_start_matches("./").strip_prefix(BLOBS);
        let Some(blob) = hex.and_then(|hex| wanted.get(hex)).filter(|blob| store.get(&blob.digest).is_none()) else {
            continue;
        };
        let (chunks, pipe) = sync_channel(CHUNKS_MAX);
        let put = handle.spawn({
            let (store, blob) = (store.clone(), *blob);
            async move { store.put(blob, Pipe { chunks: pipe, at: Vec::new() }).await }
        });
        let sent = send(&mut entry, &chunks);
        drop(chunks);
        let put = handle.block_on(put).map_err(|_| ApplyError::Unable("the agent is stopping".to_owned()))?;
        sent.map_err(malformed)?;
        put.map_err(|error| match error.hint() {
            hint @ Some(_) => ApplyError::Refused { why: error.to_string(), hint: hint.map(str::to_owned) },
            None => ApplyError::Unable(error.to_string()),
        })?;
        taken += blob.bytes;
    }
    Ok(taken)
}

/// Takes a file as one whose releases were verified: what came of it is here, and nothing else is. For [`crate::parsers`].
pub(crate) fn check(bytes: &[u8], folder: &Path) {
    let Ok((answer, rest)) = head(Box::new(io::Cursor::new(bytes.to_vec()))) else { return };
    let releases = answer.releases.iter().filter_map(|release| release.unverified::<Release>().ok());
    let wanted: BTreeSet<Blob> = releases.map(|release| release.blob).collect();
    let wanted: Vec<Blob> = wanted.into_iter().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (Ok(runtime), Ok(store)) = (runtime, BlobStore::open(folder, 0)) else { return };
    let taken = unpack(rest, &store, &wanted, runtime.handle());
    let here = wanted.iter().filter(|blob| store.get(&blob.digest).is_some()).map(|blob| blob.bytes);
    if let Ok(taken) = taken {
        assert_eq!(taken, here.sum::<u64>(), "what was taken is not what is here");
    }
}

/// Hands `entry` on. Who does not want more says so by going away.
fn send(entry: &mut impl Read, chunks: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        match entry.read(&mut chunk)? {
            0 => return Ok(()),
            bytes => {
                chunk.truncate(bytes);
                if chunks.send(Ok(chunk)).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Bytes that another thread reads.
#[derive(Debug)]
struct Pipe {
    chunks: Receiver<io::Result<Vec<u8>>>,
    at: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at.is_empty() {
            match self.chunks.recv() {
                Ok(chunk) => self.at = chunk?,
                Err(_) => return Ok(0),
            }
        }
        let bytes = self.at.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&self.at[..bytes]);
        self.at.drain(..bytes);
        Ok(bytes)
    }
}
