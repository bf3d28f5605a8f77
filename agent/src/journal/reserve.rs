//! Room that is kept free for when the disk is full, so that what frees space can still be written.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tokio::time::{Duration, Instant};

use crate::units::ByteSize;

/// Enough for a new segment and many acknowledgements.
pub(super) const RESERVE_BYTES: u64 = 2 << 20;
/// How often it is looked whether there is room again.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const STEP_BYTES: usize = 64 << 10;

/// Bytes that the file system of `path` has left for us.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let of = rustix::fs::statvfs(path).ok()?;
    Some(of.f_bavail.saturating_mul(of.f_frsize))
}

/// What `why` comes from, when the disk is full.
pub(super) fn explain(path: &Path, why: String) -> String {
    match free_bytes(path).filter(|free| *free < RESERVE_BYTES) {
        Some(free) => format!(
            "{why}; its file system has {} free\nhint: free space there, or lower the `max_bytes` of streams; the journal goes on by itself",
            ByteSize(free)
        ),
        None => why,
    }
}

/// The file that takes the room.
pub(super) struct Reserve {
    path: PathBuf,
    /// When to look again, while the room is not taken.
    look_at: Option<Instant>,
    /// It was given away: nothing is added until it is taken again.
    released: bool,
}

impl Reserve {
    pub(super) fn of(journal: &Path, now: Instant) -> Self {
        Self { path: journal.join("reserve"), look_at: Some(now), released: false }
    }

    /// Gives the room away when the disk is full. Whether it is.
    pub(super) fn release_if_full(&mut self, now: Instant) -> bool {
        let is_full = free_bytes(&self.path_of_journal()).is_some_and(|free| free < RESERVE_BYTES);
        if is_full && self.look_at.is_none() {
            self.look_at = Some(now + LOOK_EVERY);
            self.released = true;
            match fs::remove_file(&self.path) {
                Ok(()) => tracing::error!(
                    file = %self.path.display(),
                    "the disk is full: nothing is appended until there is room, what frees space still is"
                ),
                Err(error) => tracing::warn!(file = %self.path.display(), %error, "could not be deleted"),
            }
        }
        is_full
    }

    /// Why nothing may be added, if so.
    pub(super) fn refusal(&self) -> Option<String> {
        let free = || free_bytes(&self.path_of_journal()).unwrap_or(0);
        self.released.then(|| {
            let (free, wanted) = (ByteSize(free()), ByteSize(2 * RESERVE_BYTES));
            format!("the disk is full: {free} are free, and {wanted} must be\nhint: free space there, or lower the `max_bytes` of streams; the journal goes on by itself")
        })
    }

    pub(super) const fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Takes the room again if that is due and there is enough.
    pub(super) fn take_in_time(&mut self, now: Instant) {
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.look_at = Some(now + LOOK_EVERY);
        let there = fs::metadata(&self.path).is_ok_and(|file| file.len() == RESERVE_BYTES);
        if there || self.take().is_ok() {
            self.look_at = None;
            if std::mem::take(&mut self.released) {
                tracing::info!(file = %self.path.display(), "there is room on the disk again");
            }
        }
    }

    fn take(&self) -> io::Result<()> {
        let free = free_bytes(&self.path_of_journal()).unwrap_or(u64::MAX);
        if free < 2 * RESERVE_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut file = File::create(&self.path)?;
        if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES).is_ok() {
            return Ok(());
        }
        let step = vec![0; STEP_BYTES];
        let mut left = RESERVE_BYTES;
        while left > 0 {
            let bytes = left.min(STEP_BYTES as u64);
            let written = file.write_all(&step[..usize::try_from(bytes).unwrap_or(STEP_BYTES)]);
            if let Err(error) = written {
                fs::remove_file(&self.path)?;
                return Err(error);
            }
            left -= bytes;
        }
        Ok(())
    }

    fn path_of_journal(&self) -> PathBuf {
        self.path.parent().map(Path::to_owned).unwrap_or_default()
    }
}
