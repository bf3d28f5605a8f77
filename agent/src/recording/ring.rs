//! A recording while it is written: a folder `FILE.part` of segments, of which the oldest goes when all are too large together.
//! At the end they become FILE. What a kill leaves behind is all there: `cat FILE.part/* > FILE` is the recording.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// What is made of the segments, until it is the file: none of `FILE.part/*`.
const HIDDEN: &str = ".whole";
/// How many parts the budget has: what goes at once is one of them.
const SEGMENTS: u64 = 8;

/// The folder that is there while `file` is recorded.
pub fn part_of(file: &Path) -> PathBuf {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".part");
    folder.into()
}

/// Keeps the newest lines that were written to it. Only its owner may read them: events tell of people.
#[derive(Debug)]
pub struct Ring {
    file: PathBuf,
    folder: PathBuf,
    bytes_max: u64,
    /// The last one is being written.
    segments: VecDeque<Segment>,
    newest: File,
    /// Numbers the segments.
    made: u64,
    kept: Kept,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    events: u64,
    bytes: u64,
}

/// What is in the ring, or was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Events that are there.
    pub events: u64,
    /// Bytes of all lines.
    pub bytes: u64,
    /// Events that made room for newer ones.
    pub dropped: u64,
}

impl Ring {
    /// An empty one that will be `file`, which is not there yet.
    ///
    /// # Errors
    /// When it cannot be made, or is there already, or being written by another.
    pub fn create(file: &Path, bytes_max: u64) -> io::Result<Self> {
        if file.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file is there already"));
        }
        let folder = part_of(file);
        DirBuilder::new().mode(0o700).create(&folder).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let what = format!("`{}` is there already: of a recording that was killed, or runs", folder.display());
                io::Error::new(io::ErrorKind::AlreadyExists, what)
            }
            _ => error,
        })?;
        let (segment, newest) = Segment::create(&folder, 1)?;
        let (file, segments) = (file.to_owned(), VecDeque::from([segment]));
        Ok(Self { file, folder, bytes_max, segments, newest, made: 1, kept: Kept::default() })
    }

    /// Adds a line of so many events, none or one, to which a line break comes.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&mut self, line: &str, events: u64) -> io::Result<()> {
        let is_full = self.segments.back().is_none_or(|newest| newest.bytes >= self.bytes_max / SEGMENTS);
        if is_full && self.kept.bytes > 0 {
            self.made += 1;
            let (segment, newest) = Segment::create(&self.folder, self.made)?;
            self.segments.push_back(segment);
            self.newest = newest;
        }
        let line = format!("{line}\n");
        // Whole, so that a kill leaves whole lines behind.
        self.newest.write_all(line.as_bytes())?;
        let bytes = line.len() as u64;
        if let Some(newest) = self.segments.back_mut() {
            newest.events += events;
            newest.bytes += bytes;
        }
        self.kept.events += events;
        self.kept.bytes += bytes;
        while self.kept.bytes > self.bytes_max && self.segments.len() > 1 {
            let Some(oldest) = self.segments.pop_front() else { break };
            fs::remove_file(&oldest.path)?;
            self.kept.events -= oldest.events;
            self.kept.bytes -= oldest.bytes;
            self.kept.dropped += oldest.events;
        }
        Ok(())
    }

    /// What is in it now.
    pub const fn kept(&self) -> Kept {
        self.kept
    }

    /// Makes the file of it, which is there whole or not at all, and is written over none. That takes the room of all segments once more. Once the
    /// file is there a folder that cannot be removed stays, and is of no use any more.
    ///
    /// # Errors
    /// When the disk, or a file that came meanwhile, is in the way; then the segments stay, and there is no file.
    pub fn finish(self) -> io::Result<Kept> {
        let whole = self.put_together()?;
        rename_to_new(&whole, &self.file).inspect_err(|_| drop(fs::remove_file(&whole)))?;
        let _ = fs::remove_dir_all(&self.folder);
        Ok(self.kept)
    }

    /// A copy of all segments, on disk. They stay until it is the file: so that a kill leaves each line once behind, and not hidden.
    fn put_together(&self) -> io::Result<PathBuf> {
        let path = self.folder.join(HIDDEN);
        let copied = || {
            let mut whole = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            let mut each = self.segments.iter();
            each.try_for_each(|segment| io::copy(&mut File::open(&segment.path)?, &mut whole).map(drop))?;
            whole.sync_all()
        };
        copied().inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok(path)
    }
}

/// Renames a file of the ring's folder, unless there is one of the new name.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems, such as NFS, have only links to do so; the old name goes with its folder.
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(from, to),
        renamed => Ok(renamed?),
    }
}

impl Segment {
    fn create(folder: &Path, number: u64) -> io::Result<(Self, File)> {
        let path = folder.join(format!("{number:010}.jsonl"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((Self { path, events: 0, bytes: 0 }, file))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_newest_lines_stay_within_the_budget() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.jsonl");
        let mut ring = Ring::create(&file, 1_000).unwrap();
        for n in 0..1_000 {
            ring.write(&format!("{n:09}"), 1).unwrap();
            assert!(ring.kept().bytes <= 1_000);
            let on_disk = fs::read_dir(folder.path().join("events.jsonl.part")).unwrap();
            let on_disk: u64 = on_disk.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
            assert_eq!(on_disk, ring.kept().bytes);
        }
        let kept = ring.finish().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let expected: Vec<_> = (kept.dropped..1_000).map(|n| format!("{n:09}")).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert_eq!((kept.events + kept.dropped, kept.bytes), (1_000, text.len() as u64));
        assert!(kept.bytes >= 1_000 - 1_000 / SEGMENTS - 10, "most of the budget is used: {kept:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_that_is_larger_than_the_budget_stays_until_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.jsonl");
        let mut ring = Ring::create(&file, 4).unwrap();
        ring.write("1234567", 1).unwrap();
        ring.write("89", 1).unwrap();
        ring.finish().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "89\n");
    }

    #[test]
    fn what_is_there_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.jsonl");
        let _ring = Ring::create(&file, 1_000).unwrap();
        assert!(Ring::create(&file, 1_000).unwrap_err().to_string().contains("events.jsonl.part"));
        let other = folder.path().join("other.jsonl");
        fs::write(&other, "").unwrap();
        assert!(Ring::create(&other, 1_000).is_err());
    }

    /// What `cat events.jsonl.part/*` has.
    fn left(folder: &Path) -> String {
        let files = fs::read_dir(folder.join("events.jsonl.part")).unwrap().map(|entry| entry.unwrap());
        let mut seen: Vec<_> = files.filter(|file| !file.file_name().as_encoded_bytes().starts_with(b".")).collect();
        seen.sort_by_key(fs::DirEntry::file_name);
        seen.iter().map(|file| fs::read_to_string(file.path()).unwrap()).collect()
    }

    #[test]
    fn a_kill_at_the_end_leaves_each_line_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::create(&folder.path().join("events.jsonl"), 400).unwrap();
        (0..20).for_each(|n| ring.write(&format!("{n:09}"), 1).unwrap());
        let before = left(folder.path());
        assert_eq!(before.lines().count(), 20);
        let whole = ring.put_together().unwrap();
        assert_eq!(fs::read_to_string(whole).unwrap(), before);
        assert_eq!(left(folder.path()), before);
    }

    #[test]
    fn what_cannot_be_removed_fails_no_recording_that_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.jsonl");
        let mut ring = Ring::create(&file, 400).unwrap();
        (0..20).for_each(|n| ring.write(&format!("{n:09}"), 1).unwrap());
        let before = left(folder.path());
        // The system removes no folder by that name.
        ring.folder.push(".");
        let part = ring.folder.clone();
        ring.finish().unwrap();
        assert!(part.exists());
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_written_over() {
        for lines in [1, 20] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("events.jsonl");
            let mut ring = Ring::create(&file, 400).unwrap();
            (0..lines).for_each(|n| ring.write(&format!("{n:09}"), 1).unwrap());
            let before = left(folder.path());
            fs::write(&file, "theirs").unwrap();
            assert_eq!(ring.finish().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!((fs::read_to_string(&file).unwrap(), left(folder.path())), ("theirs".to_owned(), before));
        }
    }
}
