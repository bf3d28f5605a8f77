//! Which files were dealt with: a table in memory, and on disk the lines that make it, so that one more file costs one more line.
//!
//! # On disk
//! `sources/NAME` in the state folder. Each line is a CRC-32C in hexadecimal, a space, and JSON: first the folder, then `["a.csv",[1790000000000000000,12]]`
//! (modified in Unix nanoseconds, size) or `["a.csv",null]` for one that is gone. Lines are appended, and synced, once a second; when more than half
//! of them say what others say better, the file is written anew. Reading ends at the first line that is damaged: what it told comes again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Metadata;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::trigger::kept;

/// How often what was dealt with is brought to disk.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How soon that is tried again.
const KEEP_AGAIN: Duration = Duration::from_secs(10);
/// Lines that may be there beside twice those that are needed.
const SPARE_LINES: usize = 1_000;

/// By what a change of a file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Unix time in nanoseconds.
    pub(super) modified_ns: i64,
    pub(super) size: u64,
}

impl Stamp {
    /// That of a file; nothing for what is none.
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        metadata.is_file().then_some(Self { modified_ns, size: metadata.len() })
    }
}

/// Path below the folder, and how the file was when it was dealt with.
pub(super) type Known = BTreeMap<Arc<str>, Stamp>;

pub(super) struct Seen {
    file: PathBuf,
    folder: String,
    known: Arc<Known>,
    /// Lines that are not on disk yet.
    lines: String,
    /// Lines there and here.
    count: usize,
    keep_at: Option<Instant>,
    /// Whether the file has to be written as a whole.
    anew: bool,
    /// Whether nothing was ever known of the folder.
    is_new: bool,
}

impl Seen {
    /// What `file` knows of `folder`.
    ///
    /// # Errors
    /// When it cannot be read; then everything in the folder comes again.
    pub(super) async fn read(file: &Path, folder: &Path) -> (Self, io::Result<()>) {
        let folder = folder.to_string_lossy().into_owned();
        let mut seen = Self {
            file: file.to_owned(),
            folder,
            known: Arc::default(),
            lines: String::new(),
            count: 0,
            keep_at: None,
            anew: true,
            is_new: false,
        };
        let text = match fs::read(file).await {
            Ok(text) => text,
            Err(error) => {
                seen.is_new = error.kind() == io::ErrorKind::NotFound;
                return (seen, if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
            }
        };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        match lines.next().and_then(value::<String>) {
            Some(folder) if folder == seen.folder => {}
            Some(_) => {
                seen.is_new = true;
                return (seen, Ok(()));
            }
            None => return (seen, Err(io::ErrorKind::InvalidData.into())),
        }
        let mut known = Known::new();
        seen.anew = false;
        for line in lines {
            let Some((path, stamp)) = value::<(String, Option<(i64, u64)>)>(line) else {
                seen.anew = true;
                break;
            };
            seen.count += 1;
            match stamp {
                Some((modified_ns, size)) => drop(known.insert(path.into(), Stamp { modified_ns, size })),
                None => drop(known.remove(path.as_str())),
            }
        }
        seen.known = Arc::new(known);
        (seen, Ok(()))
    }

    /// All that is known; who holds it for long makes the next note dear.
    pub(super) fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// Whether a file is known that is in the folder of that name.
    pub(super) fn knows_some_in(&self, name: &str) -> bool {
        let start = format!("{name}/");
        let mut behind = self.known.range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
        behind.next().is_some_and(|(first, _)| first.starts_with(&start))
    }

    /// Whether nothing was ever known of the folder.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }

    /// From now on something is.
    pub(super) fn begin(&mut self, now: Instant) {
        self.is_new = false;
        self.keep_at.get_or_insert(now);
    }

    /// Forgets the files that are not `wanted` any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        if !self.known.keys().all(|path| wanted(path)) {
            Arc::make_mut(&mut self.known).retain(|path, _| wanted(path));
            self.anew = true;
        }
    }

    /// The file was dealt with as it was then, or that it was gone.
    pub(super) fn note(&mut self, path: &Arc<str>, stamp: Option<Stamp>, now: Instant) {
        let known = Arc::make_mut(&mut self.known);
        match stamp {
            Some(stamp) => drop(known.insert(Arc::clone(path), stamp)),
            None => drop(known.remove(path)),
        }
        add(&mut self.lines, &(path, stamp.map(|stamp| (stamp.modified_ns, stamp.size))));
        self.count += 1;
        self.keep_at.get_or_insert(now + KEEP_EVERY);
    }

    /// When [`Seen::keep`] should be called.
    pub(super) const fn keep_at(&self) -> Option<Instant> {
        self.keep_at
    }

    /// Brings to disk what was noted.
    ///
    /// # Errors
    /// When that is not possible; it is tried again, with all of it.
    pub(super) async fn keep(&mut self, now: Instant) -> io::Result<()> {
        if self.keep_at.is_none() {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.lines);
        // Until it is done: when it is broken off, all of it is written the next time.
        let anew = std::mem::replace(&mut self.anew, true) || self.count > 2 * self.known.len() + SPARE_LINES;
        let kept = if anew { self.write().await } else { self.append(&lines).await };
        self.anew = kept.is_err();
        self.keep_at = kept.is_err().then_some(now + KEEP_AGAIN);
        kept
    }

    async fn append(&self, lines: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(&self.file).await?;
        file.write_all(lines.as_bytes()).await?;
        file.sync_data().await
    }

    async fn write(&mut self) -> io::Result<()> {
        let mut text = String::new();
        add(&mut text, &self.folder);
        for (path, stamp) in &*self.known {
            add(&mut text, &(path, Some((stamp.modified_ns, stamp.size))));
        }
        self.count = self.known.len();
        kept::write(&self.file, text.trim_end_matches('\n')).await
    }
}

/// Adds `value` as a line.
fn add(text: &mut String, value: &impl Serialize) {
    // Strings and numbers always have a form in JSON, and a `String` takes all that is written to it.
    let json = serde_json::to_string(value).unwrap_or_default();
    let _ = writeln!(text, "{:08x} {json}", crc32c::crc32c(json.as_bytes()));
}

/// What a line holds, when it is whole.
fn value<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (crc, json) = line.strip_suffix(b"\n")?.split_at_checked(9)?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.trim_end(), 16).ok()?;
    if crc == crc32c::crc32c(json) { serde_json::from_slice(json).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn stamp(size: u64) -> Option<Stamp> {
        Some(Stamp { modified_ns: 1_790_000_000_000_000_000, size })
    }

    async fn read(file: &Path) -> Seen {
        let (seen, read) = Seen::read(file, Path::new("/data/inbox")).await;
        read.unwrap();
        seen
    }

    fn names(seen: &Seen) -> Vec<(&str, u64)> {
        seen.known().iter().map(|(path, stamp)| (&**path, stamp.size)).collect()
    }

    #[tokio::test]
    async fn what_was_noted_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (file, now) = (folder.path().join("sources/inbox"), Clock::system().instant());
        let mut seen = read(&file).await;
        assert!(seen.is_new());
        seen.begin(now);
        seen.keep(now).await.unwrap();
        for (path, stamp) in
            [("a", stamp(1)), ("new\nline", stamp(2)), ("a", stamp(3)), ("gone", stamp(4)), ("gone", None)]
        {
            seen.note(&path.into(), stamp, now);
            seen.keep(now).await.unwrap();
        }
        let again = read(&file).await;
        assert!(!again.is_new());
        assert_eq!(names(&again), [("a", 3), ("new\nline", 2)]);
        let (other, _) = Seen::read(&file, Path::new("/data/other")).await;
        assert!(other.is_new() && other.known().is_empty(), "another folder has other files");
    }

    #[tokio::test]
    async fn a_torn_end_costs_its_own_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        let (file, now) = (folder.path().join("inbox"), Clock::system().instant());
        let mut seen = read(&file).await;
        seen.begin(now);
        seen.note(&"a".into(), stamp(1), now);
        seen.note(&"b".into(), stamp(2), now);
        seen.keep(now).await.unwrap();
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        let mut torn = read(&file).await;
        assert_eq!(names(&torn), [("a", 1)]);
        torn.note(&"c".into(), stamp(3), now);
        torn.keep(now).await.unwrap();
        assert_eq!(names(&read(&file).await), [("a", 1), ("c", 3)]);
    }

    #[tokio::test]
    async fn the_file_stays_small_however_often_files_change() {
        let folder = tempfile::tempdir().unwrap();
        let (file, now) = (folder.path().join("inbox"), Clock::system().instant());
        let mut seen = read(&file).await;
        seen.begin(now);
        for n in 0..5_000 {
            seen.note(&"a".into(), stamp(n), now);
            if n % 100 == 0 {
                seen.keep(now).await.unwrap();
            }
        }
        seen.keep(now).await.unwrap();
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines < 1_200, "{lines} lines for one file");
        assert_eq!(names(&read(&file).await), [("a", 4_999)]);
    }
}
