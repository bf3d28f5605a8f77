//! What is in the folder now, and being told when that changes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, RemoveKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::FileSource;
use super::seen::{Known, Stamp};

/// Paths that were told of and not looked at yet; beyond, all of the folder is looked at.
const TOLD_MAX: usize = 10_000;

/// What the system tells of the folder.
#[derive(Debug, Default)]
pub(super) struct Told {
    paths: Mutex<BTreeSet<PathBuf>>,
    everything: AtomicBool,
    /// That there is something.
    pub(super) news: Notify,
}

impl Told {
    /// The paths where something happened.
    pub(super) fn take(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut *self.paths.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it is not known where.
    pub(super) fn takes_everything(&self) -> bool {
        self.everything.swap(false, Ordering::Relaxed)
    }

    fn look_everywhere(&self) {
        self.everything.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    pub(super) fn hear(&self, event: notify::Result<Event>) {
        let Ok(event) = event else { return self.look_everywhere() };
        match event.kind {
            // Reading a file is no news; ours least of all.
            EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => return,
            EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder | RemoveKind::Other) => {
                return self.look_everywhere();
            }
            _ if event.need_rescan() => return self.look_everywhere(),
            _ => {}
        }
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.extend(event.paths);
        if paths.len() > TOLD_MAX {
            paths.clear();
            drop(paths);
            return self.look_everywhere();
        }
        drop(paths);
        self.news.notify_one();
    }
}

/// What tells of one folder, for as long as that one is in its place.
pub(super) struct Watch {
    folder: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Watch {
    fn new(source: &FileSource, folder: (u64, u64), told: &Arc<Told>) -> notify::Result<Self> {
        let told = Arc::clone(told);
        // A symbolic link could lead anywhere.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(move |event| told.hear(event), config)?;
        let mode = if source.recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        watcher.watch(&source.folder, mode)?;
        Ok(Self { folder, _watcher: watcher })
    }
}

/// What is otherwise than it is known.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// With how it is now; nothing for what is gone.
    pub(super) differing: Vec<(String, Option<Stamp>)>,
    /// What could not be looked at, or not be taken.
    pub(super) trouble: Option<String>,
}

/// Sees to it that `watch` is there, then looks at the folder; what happens from then on is told. At most `files_max` files are taken, those that
/// are known included.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn look(
    source: &FileSource,
    known: &Known,
    files_max: usize,
    told: &Arc<Told>,
    watch: &mut Option<Watch>,
) -> io::Result<Found> {
    let metadata = fs::metadata(&source.folder)?;
    let id = (metadata.dev(), metadata.ino());
    let mut found = Found::default();
    if watch.as_ref().is_none_or(|watch| watch.folder != id) {
        *watch = None;
        match Watch::new(source, id, told) {
            Ok(new) => *watch = Some(new),
            Err(error) => found.trouble = Some(format!("changes are not told, so they are looked for: {error}")),
        }
    }
    found.walk(source, known, files_max)?;
    Ok(found)
}

impl Found {
    fn walk(&mut self, source: &FileSource, known: &Known, files_max: usize) -> io::Result<()> {
        let (mut folders, mut still_there, mut taken) = (vec![source.folder.clone()], 0, known.len());
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if folder == source.folder => return Err(error),
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.trouble = Some(format!("`{}` cannot be read: {error}", folder.display()));
                    continue;
                }
            };
            for entry in entries {
                let (path, metadata) = match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                    Ok(entry) => entry,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        self.trouble = Some(format!("`{}` cannot be read: {error}", folder.display()));
                        continue;
                    }
                };
                let Some(name) = source.name_of(&path) else {
                    self.trouble = Some(format!("the name of `{}` is no UTF-8, and it is left out", path.display()));
                    continue;
                };
                if metadata.is_dir() {
                    if source.recursive && !source.is_excluded(name) {
                        folders.push(path);
                    }
                    continue;
                }
                let (Some(stamp), true) = (Stamp::of(&metadata), source.is_for(name)) else { continue };
                match known.get(name) {
                    Some(before) => {
                        still_there += 1;
                        if *before != stamp {
                            self.differing.push((name.to_owned(), Some(stamp)));
                        }
                    }
                    None if !source.is_for_size(stamp.size) => {}
                    None if taken < files_max => {
                        taken += 1;
                        self.differing.push((name.to_owned(), Some(stamp)));
                    }
                    None => {
                        self.trouble = Some(format!(
                            "there are more than {files_max} files: the others come when some of them go"
                        ));
                    }
                }
            }
        }
        if still_there < known.len() {
            let gone = known.keys().filter(|name| is_gone(&source.folder.join(&***name)));
            self.differing.extend(gone.map(|name| (name.to_string(), None)));
        }
        Ok(())
    }
}

fn is_gone(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) => !metadata.is_file(),
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    fn source(folder: &Path, more: &str) -> FileSource {
        toml::from_str(&format!("folder = {folder:?}\n{more}")).unwrap()
    }

    fn write(folder: &Path, names: &[&str]) {
        for name in names {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "12345").unwrap();
        }
    }

    /// The names of what a look finds, `-` before those that are gone.
    fn names(source: &FileSource, known: &Known, files_max: usize) -> (Vec<String>, Option<String>) {
        let mut found = Found::default();
        found.walk(source, known, files_max).unwrap();
        let name = |(name, stamp): (String, Option<Stamp>)| if stamp.is_some() { name } else { format!("-{name}") };
        let mut names: Vec<_> = found.differing.into_iter().map(name).collect();
        names.sort_unstable();
        (names, found.trouble)
    }

    #[track_caller]
    fn check(folder: &Path, more: &str, expected: &[&str]) {
        let (found, trouble) = names(&source(folder, more), &Known::new(), 100);
        assert_eq!(
            (found.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), trouble),
            (expected, None),
            "{more}"
        );
    }

    #[test]
    fn only_files_that_are_asked_for_count() {
        let outside = tempfile::tempdir().unwrap();
        write(outside.path(), &["secret.csv"]);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, &["a.csv", "b.tmp", ".c.csv", "sub/d.csv", ".git/e.csv", "sub/raw/f.csv"]);
        std::os::unix::fs::symlink(outside.path().join("secret.csv"), folder.join("link.csv")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.join("out")).unwrap();
        check(folder, "", &["a.csv", "b.tmp"]);
        check(folder, "exclude = []", &[".c.csv", "a.csv", "b.tmp"]);
        check(folder, "recursive = true", &["a.csv", "b.tmp", "sub/d.csv", "sub/raw/f.csv"]);
        check(folder, "recursive = true\nexclude = [\".*\", \"raw\"]\ninclude = [\"*.csv\"]", &["a.csv", "sub/d.csv"]);
        check(folder, "recursive = true\ninclude = [\"sub/*\"]", &["sub/d.csv"]);
        check(folder, "min_size = \"6 B\"", &[]);
        check(folder, "max_size = \"5 B\"", &["a.csv", "b.tmp"]);
    }

    #[test]
    fn what_is_known_counts_when_it_differs_or_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &["same", "new", "changed"]);
        let stamp = Stamp::of(&fs::metadata(folder.path().join("same")).unwrap()).unwrap();
        let known = Known::from([
            ("same".into(), stamp),
            ("changed".into(), Stamp { size: 4, ..stamp }),
            ("gone".into(), stamp),
        ]);
        let (found, _) = names(&source(folder.path(), ""), &known, 100);
        assert_eq!(found, ["-gone", "changed", "new"]);
    }

    #[test]
    fn a_folder_with_more_files_than_are_known_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<_> = (0..20).map(|n| n.to_string()).collect();
        write(folder.path(), &all.iter().map(String::as_str).collect::<Vec<_>>());
        let (found, trouble) = names(&source(folder.path(), ""), &Known::new(), 15);
        assert_eq!(found.len(), 15);
        assert!(trouble.unwrap().contains("more than 15 files"));
        assert!(Limits::default().source_files_max >= 10_000);
    }

    #[test]
    fn what_is_told_is_bounded_and_what_overflows_is_looked_for() {
        let told = Told::default();
        let change = |n: usize| Event::new(EventKind::Create(CreateKind::File)).add_path(format!("/inbox/{n}").into());
        for n in 0..TOLD_MAX {
            told.hear(Ok(change(n)));
            told.hear(Ok(change(n)));
        }
        assert!(!told.takes_everything());
        told.hear(Ok(change(TOLD_MAX)));
        assert!(told.takes_everything() && told.take().is_empty());
        told.hear(Ok(Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)));
        assert!(told.takes_everything(), "the queue of the kernel was full");
        told.hear(Ok(Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any))).add_path("/inbox/1".into())));
        assert!(told.take().is_empty(), "reading is no news");
    }
}
