//! `tail` sources: each line that a file grows by is an event, over rotation and restarts.
//!
//! # Promises
//! - A line is an event once it is whole, in the order of the file. Each is handled at least once: after a restart, or when something
//!   went wrong, it goes on behind the last line that was committed or parked.
//! - A file that is renamed and made anew (logrotate) is read to its end first, and so are those that came in between; one that is
//!   truncated is read from its start.
//! - A file that is not there is waited for.
//!
//! # On disk
//! `sources/NAME` in the state folder: device, inode, offset, and the CRC-32C of up to 256 bytes at the start of the file, since inodes are used
//! again; in decimal, with a line break by which it is known to be whole.

use std::collections::VecDeque;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher as _};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::kept;
use super::lines::{Line, Lines};
use super::source::{Handed, Observed, Outlet};
use crate::config::{keys, words};

/// CloudEvents `type`.
pub const KIND: &str = "tail.line";
/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// How often it is looked at where the system does not tell of changes, as on network file systems.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is remembered how far it was read.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// What tells a file from another one that has its inode.
const HEAD_BYTES: usize = 256;
/// Lines that are not known to be safe.
const WAITING_MAX: usize = 1_000;
/// Endings of rotated files that are no text any more.
const COMPRESSED: [&str; 5] = ["gz", "xz", "zst", "bz2", "lz4"];

/// `tail = { file = "/var/log/syslog", from = "end" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailSource {
    /// The file.
    pub file: PathBuf,
    /// Where it begins when nothing is known of it.
    pub from: From,
}

keys! { TailSource: file = required("\"/var/log/syslog\""), from = or(From::End) }

/// `from`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// With the first line that is there.
    Start,
    /// With the first that comes.
    #[default]
    End,
}

words! { From: "start" = Self::Start, "end" = Self::End }

/// Which file, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    id: (u64, u64),
    offset: u64,
    /// Of what the file begins with, up to the offset.
    head_crc: u32,
}

impl Place {
    async fn read(file: &Path) -> Option<Self> {
        let text = kept::read(file).await.ok()??;
        let mut numbers = text.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let (id, offset) = ((next()?, next()?), next()?);
        Some(Self { id, offset, head_crc: u32::try_from(next()?).ok()? })
    }

    /// Whether the file at `path` is the one, and still has what was read.
    async fn is_in(&self, path: &Path) -> std::io::Result<bool> {
        let mut file = File::open(path).await?;
        Ok(id(&file.metadata().await?) == self.id && self.is_still_in(&mut file).await?)
    }

    /// Whether the file, which is the one, still has what was read.
    async fn is_still_in(&self, file: &mut File) -> std::io::Result<bool> {
        Ok(file.metadata().await?.len() >= self.offset
            && crc32c::crc32c(&head(file, self.offset).await?) == self.head_crc)
    }

    async fn write(&self, file: &Path) -> std::io::Result<()> {
        let Self { id: (device, inode), offset, head_crc } = self;
        kept::write(file, &format!("{device} {inode} {offset} {head_crc}")).await
    }
}

/// A file that is being read.
struct Open {
    file: File,
    path: PathBuf,
    id: (u64, u64),
    read_to: u64,
    /// What it begins with.
    head: Vec<u8>,
    lines: Lines,
}

impl Open {
    async fn at(path: &Path, offset: u64, line_bytes_max: usize) -> std::io::Result<Self> {
        let mut file = File::open(path).await?;
        let id = id(&file.metadata().await?);
        let head = head(&mut file, offset).await?;
        file.seek(SeekFrom::Start(offset)).await?;
        Ok(Self { file, path: path.to_owned(), id, read_to: offset, head, lines: Lines::new(line_bytes_max) })
    }

    /// Reads a chunk; says how many bytes that were.
    async fn read(&mut self) -> std::io::Result<usize> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let bytes = self.file.read(&mut chunk).await?;
        self.lines.add(&chunk[..bytes]);
        self.read_to += bytes as u64;
        let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(bytes);
        self.head.extend_from_slice(&chunk[..missing]);
        Ok(bytes)
    }

    /// Behind the last line that was whole.
    fn place(&self) -> Place {
        let offset = self.read_to - self.lines.pending() as u64;
        let head = usize::try_from(offset).unwrap_or(HEAD_BYTES).min(self.head.len());
        Place { id: self.id, offset, head_crc: crc32c::crc32c(&self.head[..head]) }
    }
}

/// What the file begins with, up to `offset`.
async fn head(file: &mut File, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0)).await?;
    file.take(offset.min(HEAD_BYTES as u64)).read_to_end(&mut head).await?;
    Ok(head)
}

impl TailSource {
    /// Follows the file until the source is stopped.
    pub(crate) async fn run(self, outlet: Outlet) {
        let changed = Arc::new(Notify::new());
        let mut tail = Tail::new(self, outlet).await;
        let mut watcher = None;
        loop {
            if watcher.is_none() {
                watcher = watch(&tail.source.file, &changed);
            }
            let busy = tail.read().await;
            if busy && tail.waiting.len() < WAITING_MAX {
                // Who stops, and what is settled, comes before the next chunk.
                tokio::select! {
                    biased;
                    () = tail.outlet.stopped() => break,
                    () = std::future::ready(()) => {}
                }
            } else {
                let (keep_at, room) = (tail.keep_at, tail.waiting.len() < WAITING_MAX);
                let at_end = tail.at_end.filter(|_| watcher.is_some());
                let outlet = &tail.outlet;
                tokio::select! {
                    () = outlet.stopped() => break,
                    result = settled(&mut tail.waiting) => tail.settle(result).await,
                    () = changed.notified(), if room => {}
                    () = is_other(&tail.source.file, at_end), if room => {}
                    () = sleep_until(keep_at.unwrap_or_else(|| outlet.clock.instant())), if keep_at.is_some() => {
                        tail.keep().await;
                    }
                }
            }
        }
        tail.keep().await;
    }
}

/// Tells `changed` when something happens in the folder of `file`.
fn watch(file: &Path, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let tell = move |event: notify::Result<notify::Event>| {
        // To look is an access too: whoever looked after each would never rest.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(tell).ok()?;
    watcher.watch(file.parent()?, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

/// A file of which nothing more is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AtEnd {
    id: (u64, u64),
    len: u64,
    modified: (i64, i64),
    /// Nobody can set that back, as who copies a file over another one does with the time when it was modified.
    changed: (i64, i64),
}

impl AtEnd {
    fn of(file: &std::fs::Metadata) -> Self {
        let modified = (file.mtime(), file.mtime_nsec());
        Self { id: id(file), len: file.len(), modified, changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// Waits until the file at `path` may be another than it was. One look is one call of the system, so that a file that rests costs little.
async fn is_other(path: &Path, at_end: Option<AtEnd>) {
    loop {
        sleep(LOOK).await;
        let now = fs::metadata(path).await.ok();
        if at_end.is_none() || now.as_ref().map(AtEnd::of) != at_end {
            return;
        }
    }
}

/// How the oldest line went; never, when there is none.
async fn settled(waiting: &mut VecDeque<(Place, Handed)>) -> Result<Place, String> {
    match waiting.front_mut() {
        Some((place, handed)) => handed.settled().await.map(|()| *place).map_err(|why| why.to_string()),
        None => std::future::pending().await,
    }
}

struct Tail {
    source: TailSource,
    outlet: Outlet,
    open: Option<Open>,
    /// How that was when it had been read to its end.
    at_end: Option<AtEnd>,
    /// To be read after that.
    next: VecDeque<PathBuf>,
    waiting: VecDeque<(Place, Handed)>,
    /// Up to here all is safe.
    safe: Option<Place>,
    keep_at: Option<Instant>,
    /// Whether there was a file.
    begun: bool,
}

impl Tail {
    /// Knows what was kept, and has read nothing.
    async fn new(source: TailSource, outlet: Outlet) -> Self {
        Self {
            safe: Place::read(&outlet.state).await,
            open: None,
            at_end: None,
            next: VecDeque::new(),
            waiting: VecDeque::new(),
            keep_at: None,
            begun: false,
            source,
            outlet,
        }
    }

    /// Reads a chunk. Whether there may be more.
    async fn read(&mut self) -> bool {
        match self.try_read().await {
            Ok(more) => {
                self.outlet.well();
                more
            }
            Err(error) => {
                self.outlet.trouble(format!("`{}` cannot be read: {error}", self.source.file.display()));
                false
            }
        }
    }

    async fn try_read(&mut self) -> std::io::Result<bool> {
        self.at_end = None;
        if self.open.is_none() {
            self.begin().await?;
        }
        let Some(open) = &mut self.open else { return Ok(false) };
        if open.read().await? > 0 {
            self.hand_on().await;
            return Ok(true);
        }
        self.at_its_end().await
    }

    /// Makes events of the lines that are whole.
    async fn hand_on(&mut self) {
        let Some(open) = &mut self.open else { return };
        while let Some(line) = open.lines.next() {
            let handed = emit(&self.outlet, &open.path, line).await;
            self.waiting.push_back((open.place(), handed));
        }
    }

    /// Nothing more is in the file: it is the newest, or was followed by another one, or begins anew. Whether there is more to read.
    async fn at_its_end(&mut self) -> std::io::Result<bool> {
        let Some(open) = &mut self.open else { return Ok(false) };
        if let Some(path) = self.next.pop_front() {
            if let Some(line) = open.lines.rest() {
                let handed = emit(&self.outlet, &open.path, line).await;
                self.waiting.push_back((open.place(), handed));
            }
            self.begin_with(&path).await?;
            return Ok(true);
        }
        let (file, place, read_to) = (self.source.file.clone(), open.place(), open.read_to);
        // Opened once: the name may stand for another file a moment later.
        let mut now = match File::open(&file).await {
            Ok(now) => now,
            // It was renamed, and the new one is not there yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let metadata = now.metadata().await?;
        if id(&metadata) != place.id {
            self.next = self.after(place).await?.map_or_else(|| [file].into(), |(_, after)| after);
            return Ok(true);
        }
        if !place.is_still_in(&mut now).await? {
            self.outlet.count("the file was truncated, and is read from its start");
            self.begin_with(&file).await?;
            return Ok(true);
        }
        // It may have grown since then.
        self.at_end = Some(AtEnd::of(&metadata)).filter(|at_end| at_end.len == read_to);
        Ok(false)
    }

    /// Reads the file at `path` from its start.
    async fn begin_with(&mut self, path: &Path) -> std::io::Result<()> {
        self.open_at(path, 0).await
    }

    async fn open_at(&mut self, path: &Path, offset: u64) -> std::io::Result<()> {
        self.open = Some(Open::at(path, offset, self.outlet.line_bytes_max).await?);
        self.begun = true;
        Ok(())
    }

    /// Opens what was read last, where all is safe, or else the file itself.
    async fn begin(&mut self) -> std::io::Result<()> {
        if let Some(safe) = self.safe {
            if let Some((path, after)) = self.after(safe).await? {
                self.next = after;
                return self.open_at(&path, safe.offset).await;
            }
            // Whatever was written since then is in one of these.
            self.outlet.count("the file that was read last is gone: lines may be missing, or come again");
            let kept_at = fs::metadata(&self.outlet.state).await.and_then(|kept| kept.modified());
            let since = kept_at.unwrap_or(SystemTime::UNIX_EPOCH) - 2 * KEEP_EVERY;
            let siblings = self.siblings().await?;
            self.next = siblings.into_iter().filter(|(modified, _)| *modified >= since).map(|(_, path)| path).collect();
            if let Some(path) = self.next.pop_front() {
                return self.begin_with(&path).await;
            }
        }
        let len = match fs::metadata(&self.source.file).await {
            Ok(now) => now.len(),
            Err(error) => {
                // One that comes later is new as a whole.
                self.begun |= error.kind() == std::io::ErrorKind::NotFound;
                return Err(error);
            }
        };
        let is_old = !self.begun && self.source.from == From::End;
        self.open_at(&self.source.file.clone(), if is_old { len } else { 0 }).await?;
        // Without a line, too, it is known after a restart where it began.
        self.safe = self.open.as_ref().map(Open::place);
        self.keep_at = Some(self.outlet.clock.instant());
        Ok(())
    }

    /// Where the file of `place` is, and what was written after it, in its order; nothing when it is gone, or nothing was read of it by
    /// which it could be known.
    async fn after(&self, place: Place) -> std::io::Result<Option<(PathBuf, VecDeque<PathBuf>)>> {
        let mut siblings = self.siblings().await?.into_iter().map(|(_, path)| path);
        while let Some(path) = siblings.next() {
            if place.offset > 0 && place.is_in(&path).await.unwrap_or(false) {
                return Ok(Some((path, siblings.collect())));
            }
        }
        Ok(None)
    }

    /// The file and its rotated siblings, the oldest first, with when they were written.
    async fn siblings(&self) -> std::io::Result<Vec<(SystemTime, PathBuf)>> {
        let (Some(folder), Some(name)) = (self.source.file.parent(), self.source.file.file_name()) else {
            return Ok(Vec::new());
        };
        let (name, mut found) = (name.to_string_lossy().into_owned(), Vec::new());
        let mut entries = fs::read_dir(folder).await?;
        while let Some(entry) = entries.next_entry().await? {
            let (path, other) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_text = path.extension().is_none_or(|ending| !COMPRESSED.iter().any(|known| ending == *known));
            let follows = other.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']));
            if follows
                && is_text
                && let Ok(metadata) = entry.metadata().await
                && metadata.is_file()
            {
                found.push((other == name, metadata.modified()?, path));
            }
        }
        // The file itself is the newest, whatever the clock was when it was written.
        found.sort();
        Ok(found.into_iter().map(|(_, modified, path)| (modified, path)).collect())
    }

    /// The oldest line was settled.
    async fn settle(&mut self, result: Result<Place, String>) {
        match result {
            Ok(place) => {
                self.waiting.pop_front();
                self.safe = Some(place);
                self.keep_at.get_or_insert(self.outlet.clock.instant() + KEEP_EVERY);
            }
            Err(why) => {
                self.outlet.count(&format!("a line could not be handed on, and is read again: {why}"));
                (self.open, self.keep_at) = (None, None);
                self.next.clear();
                self.waiting.clear();
                sleep(KEEP_EVERY).await;
            }
        }
    }

    /// Remembers how far all is safe.
    async fn keep(&mut self) {
        self.keep_at = None;
        if let Some(safe) = self.safe
            && let Err(error) = safe.write(&self.outlet.state).await
        {
            self.outlet.count(&format!("how far it was read cannot be kept, a restart may repeat lines: {error}"));
        }
    }
}

async fn emit(outlet: &Outlet, path: &Path, line: Line) -> Handed {
    match line {
        Line::Whole(data) => {
            let subject = Some(path.to_string_lossy().into());
            outlet.hand_on(Observed { kind: KIND, subject, data, ..Observed::default() }, |_| true).await
        }
        Line::TooLong => {
            outlet.count(&format!("a line is longer than {} bytes, and left out", outlet.line_bytes_max));
            Handed::default()
        }
    }
}

fn id(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::io::Write as _;

    use tokio::time::timeout;

    use super::*;
    use crate::metrics::Metrics;
    use crate::trigger::source::tests::outlet;

    /// What wakes it up is a change, or one look in ten seconds; no look reads anything.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_rests_is_looked_at_and_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app.log");
        fs::write(&file, "one\n").unwrap();
        let (mut outlet, function) = outlet("tail = { source = \"app\" }", &Metrics::new());
        let source = TailSource { file: file.clone(), from: From::Start };
        outlet.line_bytes_max = 100;
        let mut tail = Tail::new(source, outlet).await;
        let mut at_end = async || {
            while tail.read().await {}
            tail.at_end.expect("it was read to its end")
        };
        let rests = async |at_end| timeout(10 * LOOK, is_other(&file, Some(at_end))).await.is_err();
        let read = at_end().await;
        assert!(rests(read).await);

        fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"two\n").unwrap();
        assert!(!rests(read).await, "it has grown");
        let read = at_end().await;
        assert!(rests(read).await);

        // As large, and as old, as the one before; the system tells times apart by some milliseconds.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let other = File::options().write(true).open(&file).unwrap();
        (&other).write_all(b"ONE\nTWO\n").unwrap();
        other.set_times(FileTimes::new().set_modified(modified)).unwrap();
        assert!(!rests(read).await, "it says something else");
        assert_eq!(function.taken().len(), 2);
    }
}
