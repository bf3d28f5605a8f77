//! The disk below a process: a FUSE file system in memory that remembers all that was done to it, fails when it is told to,
//! and can be taken back to what a power cut at any moment may have left.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::Duration;

use fastrand::Rng;
use fuser::MountOption;
use tempfile::TempDir;

use crate::image::{Image, Op};
use crate::live::{CAPACITY_BYTES, Call, Failure, Live};
use crate::server::Server;

/// A handle to a mounted disk. Unmounts it when dropped.
pub(crate) struct Disk {
    live: Arc<Mutex<Live>>,
    folder: TempDir,
    session: Option<fuser::BackgroundSession>,
}

impl Disk {
    /// An empty disk.
    pub(crate) fn mount() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(unmount_orphans);
        let live = Arc::new(Mutex::new(Live::new(Image::default())));
        let folder = tempfile::Builder::new().prefix("tidegate-disk-").tempdir().unwrap();
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("tidegate-disk".to_owned()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Server(Arc::clone(&live)), folder.path(), &config)
            .expect("a FUSE file system can be mounted: /dev/fuse, and root or Debian's package fuse3");
        Self { live, folder, session: Some(session) }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap()
    }

    /// How many operations have changed the disk: the moment, for a cut.
    pub(crate) fn moment(&self) -> usize {
        self.live().log.len()
    }

    /// All calls of the file system since the disk was inserted.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.live().calls.clone()
    }

    /// Everything that was done to the disk since it was inserted.
    pub(crate) fn history(&self) -> History {
        let live = self.live();
        History { start: live.start.clone(), log: live.log.clone(), syncs: live.syncs.clone() }
    }

    /// The power goes off by itself: after `syncs` more, right before the next one is done.
    pub(crate) fn switch_off_after(&self, syncs: usize) {
        self.live().syncs_left = Some(syncs);
    }

    /// The same; what is synced of the journal is not counted.
    pub(crate) fn switch_off_after_beside_journal(&self, syncs: usize) {
        let mut live = self.live();
        (live.syncs_left, live.beside_journal) = (Some(syncs), true);
    }

    /// How often anything but the journal was synced since the disk was inserted.
    pub(crate) fn syncs_beside_journal(&self) -> usize {
        self.live().syncs_beside_journal
    }

    /// Whether the power is off.
    pub(crate) fn is_off(&self) -> bool {
        self.live().off
    }

    /// No call gets through any more.
    pub(crate) fn switch_off(&self) {
        self.live().off = true;
    }

    /// Exchanges what is on the disk, and switches it on. Nobody may have a file of it open.
    pub(crate) fn insert(&self, image: &Image) {
        let mut live = self.live();
        *live = Live::new(image.clone());
    }

    /// Has call number `nth` from the insertion fail.
    pub(crate) fn fail(&self, nth: usize, failure: Failure) {
        self.live().failing.insert(nth, failure);
    }

    /// The calls that failed.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.live().failed.clone()
    }

    /// All works again.
    pub(crate) fn heal(&self) {
        let mut live = self.live();
        live.failing.clear();
        (live.read_only, live.capacity, live.delay) = (false, CAPACITY_BYTES, Duration::ZERO);
    }

    /// Nothing can be written any more.
    pub(crate) fn set_read_only(&self) {
        self.live().read_only = true;
    }

    /// There is no room for anything more.
    pub(crate) fn fill_up(&self) {
        let mut live = self.live();
        live.capacity = live.image.bytes();
    }

    /// Each write and sync takes this long.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.live().delay = delay;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A call that waits would hold up the unmounting.
        self.heal();
        if let Some(session) = self.session.take()
            && session.umount_and_join().is_err()
        {
            // Somebody still has a file open: it goes when they let go of it.
            let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        }
    }
}

/// A test that was killed leaves its disks mounted, with nobody behind them.
fn unmount_orphans() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let disks = mounts.lines().filter_map(|line| line.strip_prefix("tidegate-disk ")?.split(' ').next());
    for folder in disks.filter(|folder| std::fs::metadata(folder).is_err()) {
        let _ = Command::new("umount").args(["-l", folder]).status();
        let _ = std::fs::remove_dir(folder);
    }
}

/// A disk's past.
#[derive(Clone)]
pub(crate) struct History {
    start: Image,
    log: Vec<Op>,
    syncs: Vec<usize>,
}

impl History {
    /// The moments right behind each sync.
    pub(crate) fn syncs(&self) -> &[usize] {
        &self.syncs
    }

    /// The number of operations.
    pub(crate) fn moments(&self) -> usize {
        self.log.len()
    }

    /// What a power cut at `moment` may have left, drawn from `seed`.
    pub(crate) fn cut(&self, moment: usize, seed: u64) -> Image {
        let mut image = self.start.clone();
        self.log[..moment].iter().for_each(|op| image.apply(op));
        image.cut(&mut Rng::with_seed(seed))
    }
}
