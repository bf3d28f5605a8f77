//! The folder of the boot record and of the binaries that it names.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use semver::Version;
use sync_protocol::Digest;

use super::record::{Build, Record, Which};
use crate::hint::Told;
use crate::store;

const RECORD: &str = "boot.json";
/// Who may run a deployed agent: whoever the agent runs as.
const MODE: u32 = 0o700;

/// The folder. It is made when the first agent is deployed. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    folder: Arc<Path>,
    /// Binaries come and go one at a time: who tidies up does not take what is being made.
    changing: Arc<Mutex<()>>,
}

impl Slots {
    pub(crate) fn at(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("agent").into(), changing: Arc::default() }
    }

    /// What was written down last. Where there is nothing, or nothing that makes sense, no agent was deployed.
    pub(crate) fn load(&self) -> Record {
        let path = self.folder.join(RECORD);
        let read = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Record::default(),
            Err(error) => Err(error.to_string()),
            Ok(bytes) => Record::parse(&bytes),
        };
        read.unwrap_or_else(|why| {
            tracing::error!(file = %path.display(), why, "the boot record cannot be used, the packaged agent runs");
            Record::default()
        })
    }

    /// Brings `record` to disk.
    ///
    /// # Errors
    /// When it is not there; then what was there still is.
    pub(crate) fn store(&self, record: &Record) -> anyhow::Result<()> {
        let (path, beside) = (self.folder.join(RECORD), self.folder.join(format!("{RECORD}.new")));
        let write = || -> io::Result<()> {
            store::make_folder(&self.folder)?;
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Which agent is to be started by the packaged one, which has `version`; one on trial is counted.
    pub(super) fn choose(&self, version: &Version) -> Which {
        let mut record = self.load();
        let before = record.clone();
        let chosen = record.choose(version);
        if record == before {
            return chosen;
        }
        match self.store(&record) {
            Ok(()) => chosen,
            Err(error) => {
                // What cannot be counted might be tried for ever.
                tracing::error!("no agent is tried, since it cannot be counted: {}", Told::of(&error).text());
                record.trial = None;
                record.choose(version)
            }
        }
    }

    /// `build`, which was chosen, does not start.
    pub(super) fn give_up(&self, build: &Build, error: &anyhow::Error) {
        let reason = Told::of(error).causes.join(": ");
        // It is made again of what was fetched.
        let _ = fs::remove_file(self.path(&build.digest));
        let mut record = self.load();
        let is_on_trial = record.trial.is_some();
        record.give_up(reason);
        if !is_on_trial {
            record.good = None;
        }
        // Where that cannot be written, the binary is missing at the next start, and it ends here again.
        let _ = self.store(&record);
    }

    /// The binary of `build`, which has just come to its digest.
    pub(super) fn check(&self, build: &Build) -> anyhow::Result<PathBuf> {
        let path = self.path(&build.digest);
        let found = store::digest_file(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        if found != build.digest.hex() {
            bail!("`{}` was changed on this gateway's disk", path.display());
        }
        Ok(path)
    }

    /// Whether the binary is there.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Takes `blob` as the binary of `build`: a second name of the same bytes where the disk can do that, so that they are written once.
    ///
    /// # Errors
    /// When it is not what was signed, or cannot be brought to disk.
    pub(crate) fn take(&self, build: &Build, blob: &Path) -> anyhow::Result<PathBuf> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, beside) = (self.path(&build.digest), self.folder.join(format!("{}.new", build.digest.hex())));
        if store::digest_file(blob).context("cannot read what was fetched")? != build.digest.hex() {
            bail!("blob {} was changed on this gateway's disk", build.digest);
        }
        let take = || -> io::Result<()> {
            store::make_folder(&self.folder)?;
            remove(&beside)?;
            fs::hard_link(blob, &beside).or_else(|_| fs::copy(blob, &beside).map(drop))?;
            fs::set_permissions(&beside, Permissions::from_mode(MODE))?;
            File::open(&beside)?.sync_all()?;
            // Of two names of the same file, a rename leaves both.
            remove(&path)?;
            fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        take().with_context(|| format!("cannot make `{}`", path.display()))?;
        Ok(path)
    }

    /// Removes all binaries but `wanted`.
    pub(crate) fn keep_only(&self, wanted: &[Digest]) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name != RECORD && !wanted.iter().any(|digest| name == *digest.hex()) {
                // What is left is only room.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_tidies_up_does_not_take_what_is_being_made() {
        let folder = tempfile::tempdir().unwrap();
        let (slots, blob) = (Slots::at(folder.path()), folder.path().join("blob"));
        fs::write(&blob, "an agent").unwrap();
        let build = Build { version: Version::new(1, 1, 0), digest: Digest::of(b"an agent") };
        let tidy = slots.clone();
        let tidying = std::thread::spawn(move || (0..1_000).for_each(|_| tidy.keep_only(&[Digest::of(b"an agent")])));
        for _ in 0..50 {
            let binary = slots.take(&build, &blob).unwrap();
            assert_eq!(slots.check(&build).unwrap(), binary);
        }
        tidying.join().unwrap();
        slots.keep_only(&[]);
        assert!(!slots.has(&build.digest));
        assert_eq!(fs::read(&blob).unwrap(), b"an agent", "the blob is not touched");
    }

    #[test]
    fn another_blob_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (slots, blob) = (Slots::at(folder.path()), folder.path().join("blob"));
        fs::write(&blob, "another agent").unwrap();
        let build = Build { version: Version::new(1, 1, 0), digest: Digest::of(b"an agent") };
        let refused = slots.take(&build, &blob).unwrap_err().to_string();
        assert!(refused.contains("was changed on this gateway's disk"), "{refused}");
        assert!(!slots.has(&build.digest));
    }
}
