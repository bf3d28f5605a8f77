//! Where things are in the control plane's folder, and that only one control plane uses it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// The folder that `tidegate cloud init` makes. Its owner alone may read it: it holds secret keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, which may not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All rows.
    pub fn database(&self) -> PathBuf {
        self.0.join("control-plane.db")
    }

    /// What gateways delivered.
    pub fn records(&self) -> PathBuf {
        self.0.join("records.db")
    }

    /// All bytes.
    pub fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    /// Secret keys and certificates.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// Makes what is missing of the folder and those in it.
    ///
    /// # Errors
    /// As the file system does.
    pub fn create(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        [self.0.clone(), self.blobs(), self.keys()].iter().try_for_each(|folder| builder.create(folder))
    }

    /// Holds the folder until the file is dropped.
    ///
    /// # Errors
    /// When another process holds it.
    pub fn lock(&self) -> io::Result<File> {
        let path = self.0.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }
}

/// Writes a secret so that it is there whole or not at all, even after a power cut, and only its owner reads it.
///
/// # Errors
/// As the file system does.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    sync_folder(path)
}

/// Brings the name of the file at `path` to disk.
///
/// # Errors
/// As the file system does.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
