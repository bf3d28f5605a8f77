//! The bytes, by their digest. `folder.rs` is the one place that is there; an object store can take its place.

mod folder;

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use sync_protocol::Digest;

pub use self::folder::{FolderBlobs, digest_of};

/// Bytes as they come in.
pub type Incoming = BoxStream<'static, io::Result<Bytes>>;

/// Why bytes were not taken or given.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The piece does not begin where what is there ends.
    #[error("the piece begins at byte {begins}, and {have} bytes are here")]
    Gap {
        /// Where it begins.
        begins: u64,
        /// Where it would have to.
        have: u64,
    },
    /// Its whole length was said otherwise before, or more bytes came than were said.
    #[error("the bytes are not as many as was said: {0}")]
    Length(String),
    /// The whole is another blob.
    #[error("the bytes are {found}, not {wanted}")]
    Digest {
        /// What was said.
        wanted: Digest,
        /// What they are.
        found: Digest,
    },
    /// Somebody else uploads it now, or too many uploads are unfinished.
    #[error("{0}")]
    Busy(String),
    /// The disk or the connection failed.
    #[error("the bytes could not be moved: {0}")]
    Io(#[from] io::Error),
}

/// How much of a blob is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Have {
    /// All; how many bytes.
    Whole(u64),
    /// The first so many, of an unfinished upload.
    Part(u64),
}

/// What keeps blobs. One that is whole never changes.
#[async_trait]
pub trait Blobs: Send + Sync + std::fmt::Debug {
    /// How much of it is here.
    async fn have(&self, digest: Digest) -> Result<Have, BlobError>;
    /// Takes the piece that begins at byte `begins` of `total`. What came before a failure stays, and is whole once the last piece is on disk and
    /// its digest is right.
    async fn put(&self, digest: Digest, begins: u64, total: u64, piece: Incoming) -> Result<Have, BlobError>;
    /// The bytes from `begins` to before `ends`.
    async fn get(&self, digest: Digest, begins: u64, ends: u64) -> Result<Incoming, BlobError>;
    /// All that are whole, and when they came (Unix time in milliseconds).
    async fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError>;
    /// Removes one.
    async fn remove(&self, digest: Digest) -> Result<(), BlobError>;
    /// Removes unfinished uploads that nothing came for since `before_ms`.
    async fn remove_unfinished(&self, before_ms: u64) -> Result<(), BlobError>;
}
