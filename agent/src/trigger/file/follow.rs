//! From a change of the folder to an event that was dealt with: told or found, waiting to settle, handed on, kept.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::fs;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::look::{self, Told, Watch};
use super::seen::{Known, Seen, Stamp};
use super::{Change, FileShape, FileSource, From, mounted_at};
use crate::config::TriggerKind;
use crate::trigger::shape::s3;
use crate::trigger::source::{Handed, Observed, Outlet};

/// How often all of it is looked at, for what the system does not tell: network file systems, another disk that is mounted there.
const LOOK: Duration = Duration::from_secs(10);
/// How often a folder that is not there is looked for.
const LOOK_FOR: Duration = Duration::from_secs(2);
/// Looking takes at most this share of the time when nothing was told, and when something was.
const LOOK_SHARE: u32 = 100;
const LOOK_SHARE_TOLD: u32 = 20;
/// How soon what is told is heard, so that who writes all the time is looked at now and then only.
const HEAR: Duration = Duration::from_millis(100);
/// Files that were handed on and are not known to be safe.
const WAITING_MAX: usize = 1_000;
/// How long they may take when the source is stopped; what is not known to be safe comes again.
const WAITING_PATIENCE: Duration = Duration::from_secs(1);
/// How soon a file that could not be read, or handed on, is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// After how long a file system that does not answer is a trouble.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// What is read of a file at once.
const CHUNK_BYTES: usize = 256 << 10;

pub(super) async fn run(source: FileSource, outlet: Outlet) {
    let (mut seen, read) = Seen::read(&outlet.state, &source.folder).await;
    if let Err(error) = read {
        outlet.count(&format!("what was handled is not known, and comes again: {error}"));
    }
    seen.retain(|name| source.is_for(name));
    let mut folder = Folder::new(source, &outlet, seen);
    tokio::select! {
        () = outlet.stopped() => {}
        () = folder.follow() => {}
    }
    let _ = timeout(WAITING_PATIENCE, folder.settle_rest()).await;
    folder.keep().await;
}

/// A file that is not left alone yet.
struct Settling {
    /// How it was when it was looked at last; nothing when it was gone.
    stamp: Option<Stamp>,
    until: Instant,
}

/// A file that was handed on.
struct Waiting {
    name: Arc<str>,
    stamp: Option<Stamp>,
    handed: Handed,
}

struct Folder<'a> {
    source: Arc<FileSource>,
    outlet: &'a Outlet,
    seen: Seen,
    settling: HashMap<Arc<str>, Settling>,
    /// Each of them once, by a time that is not later than its own.
    due: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    /// As they were handed on last.
    handed: HashMap<Arc<str>, Option<Stamp>>,
    waiting: VecDeque<Waiting>,
    told: Arc<Told>,
    watch: Option<Watch>,
    /// When all of it is looked at next, when it was last, and how long that took.
    look_at: Instant,
    looked_at: Instant,
    look_took: Duration,
    /// When what is told is heard next.
    hear_at: Instant,
}

impl<'a> Folder<'a> {
    fn new(source: FileSource, outlet: &'a Outlet, seen: Seen) -> Self {
        let now = outlet.clock.instant();
        Self {
            source: Arc::new(source),
            outlet,
            seen,
            settling: HashMap::new(),
            due: BinaryHeap::new(),
            handed: HashMap::new(),
            waiting: VecDeque::new(),
            told: Arc::default(),
            watch: None,
            look_at: now,
            looked_at: now,
            look_took: Duration::ZERO,
            hear_at: now,
        }
    }

    async fn follow(&mut self) {
        loop {
            let (now, has_room) = (self.outlet.clock.instant(), self.waiting.len() < WAITING_MAX);
            let due = self.due.peek().filter(|_| has_room).map(|Reverse((at, _))| *at);
            let next = [due, self.seen.keep_at()].into_iter().flatten().fold(self.look_at, Instant::min);
            let (hear_at, told) = (self.hear_at, Arc::clone(&self.told));
            tokio::select! {
                biased;
                result = settled(&mut self.waiting) => self.settle(result),
                () = until(now, hear_at, told.news.notified()) => self.hear().await,
                () = until(now, next, std::future::ready(())) => self.act().await,
            }
        }
    }

    /// Does what is due. Files come last: they may be many, and due for long.
    async fn act(&mut self) {
        let now = self.outlet.clock.instant();
        if self.seen.keep_at().is_some_and(|at| at <= now) {
            self.keep().await;
        } else if self.look_at <= now {
            self.look().await;
        } else if let Some(Reverse((_, name))) = self.due.pop() {
            self.look_again(name).await;
        }
    }

    /// Looks where something was told.
    async fn hear(&mut self) {
        let mut everything = self.told.takes_everything();
        for path in self.told.take() {
            let Some(name) = self.source.name_of(&path) else {
                everything = true;
                continue;
            };
            let is_for = self.source.is_for(name);
            let may_be_folder = self.source.recursive && !self.source.is_excluded(name);
            if !is_for && !may_be_folder {
                continue;
            }
            let Ok(metadata) = self.metadata(name).await else {
                everything = true;
                continue;
            };
            // One that came has all that is in it, and one that went had.
            everything |= may_be_folder
                && match &metadata {
                    Some(metadata) => metadata.is_dir(),
                    None => !is_for || self.knows_some_in(name),
                };
            if is_for {
                self.arm(name, metadata.as_ref().and_then(Stamp::of));
            }
        }
        let now = self.outlet.clock.instant();
        self.hear_at = now + HEAR;
        if everything {
            // A folder that is new is watched from a moment later on.
            let soon = (now + HEAR).max(self.looked_at + self.look_took * LOOK_SHARE_TOLD);
            self.look_at = self.look_at.min(soon);
        }
    }

    /// Looks at all of the folder.
    async fn look(&mut self) {
        let began = self.outlet.clock.instant();
        let (source, known, told) = (Arc::clone(&self.source), self.known(), Arc::clone(&self.told));
        let (mut watch, files_max) = (self.watch.take(), self.outlet.files_max);
        let looked = tokio::task::spawn_blocking(move || {
            let found = look::look(&source, &known, files_max, &told, &mut watch);
            (found, watch)
        });
        let found = match self.patiently(looked).await {
            Ok((found, watch)) => {
                self.watch = watch;
                found
            }
            Err(error) => Err(io::Error::other(error)),
        };
        let now = self.outlet.clock.instant();
        (self.looked_at, self.look_took) = (now, now - began);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.watch = None;
                if error.kind() == io::ErrorKind::NotFound {
                    // What it has when it comes is new as a whole.
                    self.begin();
                }
                self.outlet.trouble(format!("`{}` cannot be read: {error}", self.source.folder.display()));
                self.look_at = now + LOOK_FOR;
                return;
            }
        };
        self.look_at = now + LOOK.max(self.look_took * LOOK_SHARE);
        let is_old = self.seen.is_new() && self.source.from == From::Now;
        for (name, stamp) in found.differing {
            if is_old {
                self.seen.note(&Arc::from(name), stamp, now);
            } else {
                self.arm(&name, stamp);
            }
        }
        self.begin();
        match found.trouble {
            Some(trouble) => self.outlet.trouble(trouble),
            None => self.outlet.well(),
        }
    }

    fn begin(&mut self) {
        if self.seen.is_new() {
            self.seen.begin(self.outlet.clock.instant());
        }
    }

    /// Waits for the file system, and says so when that takes long: one that has gone may never answer. To ask once more would only have
    /// another thread wait beside this one.
    async fn patiently<T>(&self, asked: impl Future<Output = T>) -> T {
        let mut asked = pin!(asked);
        if let Ok(answer) = timeout(ANSWERS_WITHIN, &mut asked).await {
            return answer;
        }
        self.outlet.trouble(format!("`{}` does not answer", self.source.folder.display()));
        asked.await
    }

    /// What has that name; nothing when there is none.
    async fn metadata(&self, name: &str) -> io::Result<Option<Metadata>> {
        match self.patiently(fs::symlink_metadata(self.source.folder.join(name))).await {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How the file is; nothing when there is none of that name.
    async fn stamp(&self, name: &str) -> io::Result<Option<Stamp>> {
        Ok(self.metadata(name).await?.as_ref().and_then(Stamp::of))
    }

    /// How it was when it was handed on, or dealt with, last.
    fn before(&self, name: &str) -> Option<Stamp> {
        self.handed.get(name).copied().unwrap_or_else(|| self.seen.known().get(name).copied())
    }

    /// All files, as they were when they were handed on, or dealt with, last.
    fn known(&self) -> Arc<Known> {
        let mut known = Arc::clone(self.seen.known());
        for (name, stamp) in &self.handed {
            let known = Arc::make_mut(&mut known);
            match stamp {
                Some(stamp) => drop(known.insert(Arc::clone(name), *stamp)),
                None => drop(known.remove(name)),
            }
        }
        known
    }

    /// Whether one of them is in the folder of that name.
    fn knows_some_in(&self, name: &str) -> bool {
        let is_in = |file: &str| file.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        self.seen.knows_some_in(name) || self.handed.keys().any(|file| is_in(file))
    }

    /// Waits until the file is left alone, when it is otherwise than before.
    fn arm(&mut self, name: &str, stamp: Option<Stamp>) {
        let until = self.outlet.clock.instant() + self.source.settle.0;
        if let Some(settling) = self.settling.get_mut(name) {
            if settling.stamp != stamp {
                *settling = Settling { stamp, until: until.max(settling.until) };
            }
            return;
        }
        let before = self.before(name);
        let is_new = before.is_none();
        if before == stamp || is_new && stamp.is_some_and(|stamp| !self.source.is_for_size(stamp.size)) {
            return;
        }
        if is_new && self.seen.known().len() + self.settling.len() >= self.outlet.files_max {
            // The next look finds it, or says that there are too many.
            return;
        }
        self.wait(name.into(), stamp, until);
    }

    fn wait(&mut self, name: Arc<str>, stamp: Option<Stamp>, until: Instant) {
        self.due.push(Reverse((until, Arc::clone(&name))));
        self.settling.insert(name, Settling { stamp, until });
    }

    /// Hands the file on, unless it has changed since it was looked at last.
    async fn look_again(&mut self, name: Arc<str>) {
        let Some(settling) = self.settling.get(&name) else { return };
        let (now, stamp, until) = (self.outlet.clock.instant(), settling.stamp, settling.until);
        if until > now {
            self.due.push(Reverse((until, name)));
            return;
        }
        self.settling.remove(&name);
        match self.stamp(&name).await {
            Ok(found) if found != stamp => self.wait(name, found, now + self.source.settle.0),
            Ok(_) => match self.hand_on(&name, stamp).await {
                Ok(true) => {}
                Ok(false) => self.wait(name, stamp, now),
                Err(error) => self.try_again(name, stamp, &error),
            },
            Err(error) => self.try_again(name, stamp, &error),
        }
    }

    fn try_again(&mut self, name: Arc<str>, stamp: Option<Stamp>, error: &io::Error) {
        self.outlet.count(&format!("`{name}` cannot be read: {error}"));
        self.wait(name, stamp, self.outlet.clock.instant() + AGAIN);
    }

    /// Makes an event of it when it is one. Whether the file was still as it is to be described.
    async fn hand_on(&mut self, name: &Arc<str>, stamp: Option<Stamp>) -> io::Result<bool> {
        let before = self.before(name);
        let change = match (before, stamp) {
            (None, _) => Change::Created,
            (Some(_), Some(_)) => Change::Changed,
            (Some(_), None) => Change::Removed,
        };
        let Some(described) = stamp.or(before).filter(|_| before != stamp) else { return Ok(true) };
        let fits = self.source.is_for_size(described.size);
        if before.is_none() && !fits {
            return Ok(true);
        }
        let mut handed = Handed::default();
        if fits && self.source.on.contains(&change) {
            let sha256 = match stamp {
                Some(stamp) => match digest(self.source.folder.join(&**name), stamp).await? {
                    None => return Ok(false),
                    digest => digest,
                },
                None => None,
            };
            handed = self.emit(change, name, described, sha256).await;
        }
        self.handed.insert(Arc::clone(name), stamp);
        self.waiting.push_back(Waiting { name: Arc::clone(name), stamp, handed });
        Ok(true)
    }

    async fn emit(&self, change: Change, name: &Arc<str>, stamp: Stamp, sha256: Option<String>) -> Handed {
        let mut handed = Handed::default();
        for shape in [FileShape::Native, FileShape::S3] {
            let is_for =
                |trigger: &TriggerKind| matches!(trigger, TriggerKind::File(file) if file.event_shape == shape);
            if !self.outlet.is_heard(is_for) {
                continue;
            }
            let data = match shape {
                FileShape::Native => native(self.outlet.name(), change, name, stamp, sha256.as_deref()),
                FileShape::S3 => s3::notification(&s3::Object {
                    bucket: self.outlet.name(),
                    key: name,
                    size: stamp.size,
                    e_tag: sha256.as_deref(),
                    time_ms: self.outlet.clock.now_ms(),
                }),
            };
            let observed = Observed {
                kind: change.kind(),
                subject: Some(Arc::clone(name)),
                content_type: Some("application/json".into()),
                attributes: Vec::new(),
                data,
            };
            handed.add(self.outlet.hand_on(observed, is_for).await);
        }
        handed
    }

    /// The oldest that was handed on was settled.
    fn settle(&mut self, result: Result<(), String>) {
        let now = self.outlet.clock.instant();
        match result {
            Ok(()) => {
                let Some(Waiting { name, stamp, .. }) = self.waiting.pop_front() else { return };
                if self.handed.get(&name) == Some(&stamp) {
                    self.handed.remove(&name);
                }
                self.seen.note(&name, stamp, now);
            }
            Err(why) => {
                self.outlet.count(&format!("a file could not be handed on, and comes again: {why}"));
                self.handed.clear();
                for Waiting { name, stamp, .. } in std::mem::take(&mut self.waiting) {
                    if !self.settling.contains_key(&name) {
                        self.wait(name, stamp, now + AGAIN);
                    }
                }
            }
        }
    }

    async fn settle_rest(&mut self) {
        while !self.waiting.is_empty() {
            let result = settled(&mut self.waiting).await;
            self.settle(result);
        }
    }

    async fn keep(&mut self) {
        if let Err(error) = self.seen.keep(self.outlet.clock.instant()).await {
            self.outlet.count(&format!("what was handled cannot be kept, a restart may repeat it: {error}"));
        }
    }
}

/// How the oldest went; never, when there is none.
async fn settled(waiting: &mut VecDeque<Waiting>) -> Result<(), String> {
    match waiting.front_mut() {
        Some(oldest) => oldest.handed.settled().await.map_err(|why| why.to_string()),
        None => std::future::pending().await,
    }
}

/// What `then` gives, once it is `at`.
async fn until<T>(now: Instant, at: Instant, then: impl Future<Output = T>) -> T {
    if at > now {
        sleep_until(at).await;
    }
    then.await
}

/// The SHA-256 of the file, in hexadecimal; nothing when it is not, or does not stay, as `stamp` says. On a thread aside, which stops when
/// nobody waits for it.
async fn digest(path: PathBuf, stamp: Stamp) -> io::Result<Option<String>> {
    let abandoned = CancellationToken::new();
    let _abandons = abandoned.clone().drop_guard();
    let digest = move || digest_while(&path, stamp, || !abandoned.is_cancelled());
    tokio::task::spawn_blocking(digest).await.map_err(io::Error::other)?
}

fn digest_while(path: &Path, stamp: Stamp, is_wanted: impl Fn() -> bool) -> io::Result<Option<String>> {
    // What took the place of a file meanwhile, such as a link or a pipe, is not followed, and not waited for.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = match File::options().read(true).custom_flags(flags.cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_as_it_was = || Ok::<_, io::Error>(Stamp::of(&file.metadata()?) == Some(stamp));
    if !is_as_it_was()? {
        return Ok(None);
    }
    let (mut sha256, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    // No further than where it has grown, or whoever writes as fast would hold up all others.
    let mut content = (&file).take(stamp.size + 1);
    while is_wanted() {
        match content.read(&mut chunk) {
            Ok(0) => return Ok(is_as_it_was()?.then(|| hex::encode(sha256.finalize()))),
            Ok(bytes) => sha256.update(&chunk[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Our own payload.
fn native(source: &str, change: Change, name: &str, stamp: Stamp, sha256: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct File<'a> {
        change: Change,
        /// Below the folder.
        path: &'a str,
        name: &'a str,
        size: u64,
        modified_ms: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        sha256: Option<&'a str>,
        /// Where a function finds it that may read the folder.
        file: String,
    }
    let file = File {
        change,
        path: name,
        name: name.rsplit('/').next().unwrap_or(name),
        size: stamp.size,
        modified_ms: stamp.modified_ns.div_euclid(1_000_000),
        sha256,
        file: format!("{}/{name}", mounted_at(source)),
    };
    // Texts and numbers always have a form in JSON.
    serde_json::to_vec(&file).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use notify::event::{EventKind, ModifyKind, RenameMode};

    use super::*;
    use crate::metrics::Metrics;
    use crate::trigger::source::tests::{outlet, trouble};

    const TRIGGER: &str = "file = { source = \"inbox\" }";
    const LATER: Duration = Duration::from_secs(3_600);

    /// A folder of which all is looked at again in an hour, unless somebody tells of something.
    async fn folder<'a>(path: &Path, outlet: &'a Outlet) -> Folder<'a> {
        let source: FileSource = toml::from_str(&format!("folder = {path:?}\nrecursive = true")).unwrap();
        let (seen, _) = Seen::read(&path.join("seen"), path).await;
        let mut folder = Folder::new(source, outlet, seen);
        folder.look_at += LATER;
        folder
    }

    #[tokio::test]
    async fn a_folder_that_is_moved_in_or_out_is_looked_at_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (outlet, _) = outlet(TRIGGER, &Metrics::new());
        let told = async |folder: &mut Folder<'_>, name: &str, mode| {
            let kind = EventKind::Modify(ModifyKind::Name(mode));
            folder.told.hear(Ok(notify::Event::new(kind).add_path(dir.path().join(name))));
            folder.hear().await;
            folder.look_at < outlet.clock.instant() + LATER / 2
        };
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/a.csv"), "1").unwrap();
        fs::write(dir.path().join("b.csv"), "1").unwrap();
        assert!(!told(&mut folder(dir.path(), &outlet).await, "b.csv", RenameMode::To).await, "it is looked at alone");
        let mut folder = folder(dir.path(), &outlet).await;
        assert!(told(&mut folder, "sub", RenameMode::To).await);

        folder.look_at += LATER;
        let stamp = folder.stamp("sub/a.csv").await.unwrap();
        folder.seen.note(&"sub/a.csv".into(), stamp, outlet.clock.instant());
        fs::remove_dir_all(dir.path().join("sub")).unwrap();
        assert!(!told(&mut folder, "su", RenameMode::From).await, "nothing was in it");
        assert!(told(&mut folder, "sub", RenameMode::From).await);
    }

    #[tokio::test]
    async fn a_file_whose_name_is_a_folder_now_is_gone_also_while_it_is_handled() {
        let dir = tempfile::tempdir().unwrap();
        let (outlet, _) = outlet(TRIGGER, &Metrics::new());
        let mut folder = folder(dir.path(), &outlet).await;
        let stamp = Some(Stamp { modified_ns: 0, size: 1 });
        folder.seen.note(&"kept".into(), stamp, outlet.clock.instant());
        folder.handed = ["handled", "moved/a.csv"].map(|name| (name.into(), stamp)).into();
        fs::create_dir(dir.path().join("kept")).unwrap();
        fs::create_dir(dir.path().join("handled")).unwrap();
        let kind = EventKind::Modify(ModifyKind::Name(RenameMode::Any));
        let event = ["kept", "handled", "moved"].map(|name| dir.path().join(name)).into_iter();
        folder.told.hear(Ok(event.fold(notify::Event::new(kind), notify::Event::add_path)));
        folder.hear().await;
        let gone = |folder: &Folder<'_>| {
            let gone = folder.settling.iter().filter(|(_, settling)| settling.stamp.is_none());
            gone.map(|(name, _)| name.to_string()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(gone(&folder), ["handled", "kept"].map(str::to_owned).into());
        folder.look().await;
        assert_eq!(gone(&folder), ["handled", "kept", "moved/a.csv"].map(str::to_owned).into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_does_not_answer_is_a_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let (outlet, _) = outlet(TRIGGER, &Metrics::new());
        let folder = folder(dir.path(), &outlet).await;
        folder.patiently(tokio::time::sleep(ANSWERS_WITHIN / 2)).await;
        assert_eq!(trouble(&outlet), None);
        folder.patiently(tokio::time::sleep(ANSWERS_WITHIN * 2)).await;
        assert!(trouble(&outlet).unwrap().ends_with("does not answer"));
    }

    #[tokio::test]
    async fn a_digest_is_of_what_stays_and_of_nothing_that_nobody_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "abc").unwrap();
        let stamp = Stamp::of(&fs::metadata(&file).unwrap()).unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(file.clone(), stamp).await.unwrap().as_deref(), Some(abc));
        assert_eq!(digest(file.clone(), Stamp { size: 2, ..stamp }).await.unwrap(), None);
        assert_eq!(digest(dir.path().join("gone"), stamp).await.unwrap(), None);
        assert_eq!(digest_while(&file, stamp, || false).unwrap(), None);
    }
}
