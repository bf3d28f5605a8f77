//! Records that gateways deliver: each exactly once, however often it is sent.
//!
//! # Promises
//! - A record that was acknowledged is on disk, and survives a power cut: the answer comes after the commit.
//! - A record is known by gateway, stream and sequence; sent again it changes nothing.
//! - Which gateway it is from, its certificate says, not the record.
//! - When a gateway's journal was replaced, its sequences begin anew. A record with a known sequence and other content opens a new epoch of its
//!   stream, and is kept.
//! - What is older than the retention, or over its bytes, goes, oldest arrivals first.

mod parse;
mod sqlite;

use std::path::Path;

use async_trait::async_trait;
use sync_protocol::name::{GatewayName, StreamName};

pub use self::parse::{Batch, ParseError, Wrong, parse};
pub use self::sqlite::SqliteRecords;
use crate::store::Result;

/// A record as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its number in the stream.
    pub sequence: u64,
    /// Unix time at which it was made; `None`: the gateway's clock was not set.
    pub time_ms: Option<u64>,
    /// What it is.
    pub data: Data,
}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// JSON, exactly as it was appended.
    Json(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl Data {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// A record that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Counts arrivals over all gateways: what comes later has a higher one, also when it was made earlier.
    pub id: u64,
    /// Whose.
    pub gateway: GatewayName,
    /// Of which stream.
    pub stream: StreamName,
    /// Counts the journals that the stream's records came from.
    pub epoch: u64,
    /// Its number in the stream.
    pub sequence: u64,
    /// Unix time at which it was made, or at which it came when that is not known.
    pub time_ms: u64,
    /// Whether the gateway's clock was not set.
    pub time_unknown: bool,
    /// Unix time at which it came.
    pub received_ms: u64,
    /// What it holds.
    pub data: Data,
}

/// Which records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Of one gateway.
    pub gateway: Option<GatewayName>,
    /// Of streams of this name.
    pub stream: Option<StreamName>,
    /// Made at this Unix time or later.
    pub from_ms: Option<u64>,
    /// Made before this Unix time.
    pub to_ms: Option<u64>,
    /// Arrived after that one.
    pub after: u64,
    /// How many at most.
    pub limit: u64,
}

/// How long, and how many bytes of records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Since they came, in milliseconds.
    pub age_ms_max: u64,
    /// Of all of them, with what the database needs around them.
    pub bytes_max: u64,
}

/// Where records are kept.
#[async_trait]
pub trait Records: Send + Sync + std::fmt::Debug {
    /// Keeps a batch; on disk when it returns.
    async fn keep(&self, gateway: &GatewayName, batch: Batch) -> Result<()>;
    /// Those that match, in the order in which they came.
    async fn page(&self, query: &Query) -> Result<Vec<Kept>>;
    /// Lets go of what is over the retention; answers how many went.
    async fn expire(&self, retention: Retention, now_ms: u64) -> Result<u64>;
    /// Writes a copy of all of them to `path`, as they are at one moment; others go on meanwhile. There must be no such file yet.
    async fn copy_to(&self, path: &Path) -> Result<()>;
    /// How many bytes they take.
    async fn bytes(&self) -> Result<u64>;
}
