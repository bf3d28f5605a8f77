//! What can be in the way of keeping something.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::KeyValueRead;
use crate::name::{FunctionName, StreamName};
use crate::units::ByteSize;

/// Why the journal refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// Another agent has it.
    #[error("journal `{}` is in use by another agent\nhint: stop that one, or give this one its own `gateway.state_dir`", .0.display())]
    Locked(PathBuf),
    /// Made by a newer agent, or not a journal.
    #[error("journal `{}` has format `{found}`, and this agent knows up to {}\nhint: run the agent that made it, or move the folder away", .path.display(), super::folder::FORMAT_VERSION)]
    Format {
        /// Its folder.
        path: PathBuf,
        /// What its `format` file says.
        found: String,
    },
    /// A file or folder of it could not be used.
    #[error("could not {what} `{}`: {source}\nhint: its disk must be writable by the agent's user, and have room", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// A segment failed.
    #[error("could not write or read segment `{}`: {why}", .path.display())]
    Storage {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it, or what the system said.
        why: String,
    },
    /// Not in the config.
    #[error("there is no stream `{0}`\nhint: add `[stream.{0}]` to gateway.toml, then run `tidegate reload`")]
    UnknownStream(StreamName),
    /// `when_full = "reject"`, and it is.
    #[error(
        "stream `{stream}` is full: `max_bytes` = {max}\nhint: restore its uplink, raise `max_bytes`, or set `when_full = \"drop-oldest\"`"
    )]
    Full {
        /// Which stream.
        stream: StreamName,
        /// Its budget.
        max: ByteSize,
    },
    /// Larger than any record may be, or than its stream's whole budget.
    #[error("a record of {bytes} bytes is too large for stream `{stream}`, which takes up to {max}")]
    RecordTooLarge {
        /// Which stream.
        stream: StreamName,
        /// The record's size.
        bytes: u64,
        /// The smaller one of the two limits.
        max: ByteSize,
    },
    /// One key-value of a function is too large.
    #[error("function `{function}`: key `{key}` would have {bytes} bytes, and {max} is the most")]
    KeyValueTooLarge {
        /// Whose.
        function: FunctionName,
        /// Which key.
        key: String,
        /// Size of the value, or of bucket and key.
        bytes: u64,
        /// The limit that was in force.
        max: ByteSize,
    },
    /// All key-values of a function together are too large.
    #[error(
        "function `{function}` would have {bytes} bytes of key-values, and {max} is the most\nhint: let it delete what it no longer needs"
    )]
    KeyValuesFull {
        /// Whose.
        function: FunctionName,
        /// What they would add up to.
        bytes: u64,
        /// The limit that was in force.
        max: ByteSize,
    },
    /// What an invocation read has been changed since, or never got to disk: it has to run again.
    #[error("function `{function}` read {} of bucket `{bucket}`, which was changed meanwhile\nhint: run it again", .key.as_ref().map_or_else(|| "the keys".to_owned(), |key| format!("key `{key}`")))]
    Conflict {
        /// Whose.
        function: FunctionName,
        /// In which of its buckets.
        bucket: String,
        /// Which key; `None` when it listed the bucket's keys.
        key: Option<String>,
    },
    /// The agent is stopping.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    /// Whether something that was read has changed: running the handler again may help, waiting does not.
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether a limit is in the way: it goes when records leave or are dropped.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::KeyValuesFull { .. })
    }

    /// Whether the disk is in the way: trying again later may help.
    pub const fn is_disk(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Storage { .. })
    }

    pub(super) fn conflict(read: KeyValueRead) -> Self {
        let KeyValueRead { function, bucket, key, .. } = read;
        Self::Conflict { function, bucket, key }
    }

    /// It failed, and is not opened anew yet.
    pub(super) fn repairing(journal: &Path) -> Self {
        Self::Storage { path: journal.to_owned(), why: "it is being repaired".to_owned() }
    }

    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source: Arc::new(source) }
    }
}
