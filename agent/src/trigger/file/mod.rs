//! `file` sources: files that appear in a folder, change or go are events, once they have settled.
//!
//! # Promises
//! - An event comes when a file was left alone for `settle`, and describes it as it is then: with its size and its SHA-256.
//! - Each file that stays is handled at least once, over restarts and kills, and also when it came while the agent was off or when the system
//!   could not tell of it. One that was handled comes again only when it has changed.
//! - A folder that is not there is waited for.
//! - What is kept of a folder is bounded: `source_files_max` files.
//!
//! # On disk
//! See [`seen`].

mod follow;
mod look;
mod seen;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::pattern::Pattern;
use super::source::Outlet;
use crate::config::{Document, join, keys, words};
use crate::name::SourceName;
use crate::units::{ByteSize, Span};

/// `file = { folder = "/data/inbox", include = ["*.csv"] }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// The folder.
    pub folder: PathBuf,
    /// Whether the folders in it count too.
    pub recursive: bool,
    /// Which files; all unless said.
    pub include: Vec<Pattern>,
    /// Which of them not, nor what is in folders of these names.
    pub exclude: Vec<Pattern>,
    /// The smallest that counts.
    pub min_size: ByteSize,
    /// The largest that counts.
    pub max_size: Option<ByteSize>,
    /// For how long a file must have been left alone.
    pub settle: Span,
    /// What is an event.
    pub on: Vec<Change>,
    /// Which files count as new when nothing is known of the folder.
    pub from: From,
}

keys! { FileSource:
    folder = required("\"/data/inbox\""),
    recursive = or(false),
    include = or(Vec::new()),
    exclude = or(vec![Pattern::hidden()]),
    min_size = or(ByteSize(0)),
    max_size = optional(),
    settle = or(Span::from_secs(2)),
    on = or(vec![Change::Created, Change::Changed]),
    from = or(From::Start),
}

/// What can happen to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It was not there before.
    Created,
    /// It was, with another content.
    Changed,
    /// It is gone.
    Removed,
}

words! { Change: "created" = Self::Created, "changed" = Self::Changed, "removed" = Self::Removed }

impl Change {
    /// CloudEvents `type`.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Created => "file.created",
            Self::Changed => "file.changed",
            Self::Removed => "file.removed",
        }
    }
}

/// `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// All that are there.
    Start,
    /// Those that come.
    Now,
}

words! { From: "start" = Self::Start, "now" = Self::Now }

/// `file = { source = "inbox", event_shape = "s3" }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileTrigger {
    /// Which `[source.NAME]`.
    pub source: SourceName,
    /// What the payload looks like.
    pub event_shape: FileShape,
}

keys! { FileTrigger: source = required("\"inbox\""), event_shape = or(FileShape::Native) }

/// `event_shape` of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileShape {
    /// Ours.
    Native,
    /// The notification of an S3 bucket.
    S3,
}

words! { FileShape: "native" = Self::Native, "s3" = Self::S3 }

/// Where a function finds the folder of the source `name` that it may read.
pub fn mounted_at(name: &str) -> String {
    format!("/mnt/{name}")
}

impl FileSource {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        if self.on.is_empty() {
            let hint = "write for example `on = [\"created\"]`, or remove it";
            document.refuse(&join(path, "on"), "without a change there would be no events", hint);
        }
        if let Some(max) = self.max_size.filter(|max| *max < self.min_size) {
            let what = format!("{max} is less than `min_size`, {}: no file could match", self.min_size);
            document.refuse(&join(path, "max_size"), what, "write a larger one, or remove one of the two");
        }
    }

    /// Makes events until the source is stopped.
    pub(crate) async fn run(self, outlet: Outlet) {
        follow::run(self, outlet).await;
    }

    /// A path below the folder, with `/` between its names; nothing for the folder itself, for what is outside of it, and for what is no UTF-8.
    fn name_of<'a>(&self, path: &'a Path) -> Option<&'a str> {
        path.strip_prefix(&self.folder).ok()?.to_str().filter(|name| !name.is_empty())
    }

    /// Whether it, or a folder that it is in, is left out.
    fn is_excluded(&self, name: &str) -> bool {
        let folders = name.match_indices('/').map(|(end, _)| &name[..end]);
        folders.chain([name]).any(|part| self.exclude.iter().any(|pattern| pattern.matches(part)))
    }

    fn is_for(&self, name: &str) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|pattern| pattern.matches(name));
        included && (self.recursive || !name.contains('/')) && !self.is_excluded(name)
    }

    fn is_for_size(&self, size: u64) -> bool {
        size >= self.min_size.0 && self.max_size.is_none_or(|max| size <= max.0)
    }
}
