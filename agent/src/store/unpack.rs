//! Unpacks a bundle file, trusting nothing in it.
//!
//! # Promises
//! - Nothing is written outside of the bundle's own folder: no absolute paths, no `..`, no links, no devices.
//! - An archive cannot fill the disk: bytes and entries are counted while they are unpacked.
//! - The folder is there whole or not at all, also after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::path::{Component, Path, PathBuf};

use crate::limits::Limits;
use crate::units::ByteSize;

/// Why a bundle file was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Reading the archive, or writing the folder.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    /// An entry that may not be in a bundle.
    #[error("entry `{0}` is {1}")]
    Entry(String, &'static str),
    /// Over [`Limits::bundle_bytes_max`].
    #[error("it unpacks to more than {0}")]
    TooLarge(ByteSize),
    /// Over [`Limits::bundle_entries_max`].
    #[error("it has more than {0} files and folders")]
    TooMany(usize),
}

/// The largest window that `tidegate build` and zstd's own levels use; more is a way to take the machine's memory.
const WINDOW_LOG_MAX: u32 = 27;

/// Unpacks `archive` into a folder of `bundles` named by the archive's digest, and says which. What is there already is
/// kept.
///
/// # Errors
/// When the archive is malformed, over a limit, or cannot be written.
pub fn unpack(archive: &Path, bundles: &Path, limits: &Limits) -> Result<PathBuf, UnpackError> {
    let digest = super::digest_file(archive).map_err(|e| UnpackError::Io("read it", e))?;
    let folder = bundles.join(&digest);
    if folder.is_dir() {
        return Ok(folder);
    }
    super::make_folder(bundles).map_err(|e| UnpackError::Io("make the folder for bundles", e))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".unpack-")
        .tempdir_in(bundles)
        .map_err(|e| UnpackError::Io("make a folder for the bundle", e))?;
    let file = File::open(archive).map_err(|e| UnpackError::Io("read it", e))?;
    let mut decoder = zstd::Decoder::new(file).map_err(|e| UnpackError::Io("read it as zstd", e))?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(|e| UnpackError::Io("read it as zstd", e))?;
    write_entries(decoder, unfinished.path(), limits)?;
    bring_to_disk(unfinished.path()).map_err(|e| UnpackError::Io("bring it to disk", e))?;
    let unfinished = unfinished.keep();
    let moved = fs::rename(&unfinished, &folder).and_then(|()| File::open(bundles)?.sync_all());
    if let Err(error) = moved {
        // What is left is only a folder that nobody will look at.
        let _ = fs::remove_dir_all(&unfinished);
        if !folder.is_dir() {
            return Err(UnpackError::Io("move the bundle into its place", error));
        }
    }
    Ok(folder)
}

fn write_entries(archive: impl Read, folder: &Path, limits: &Limits) -> Result<(), UnpackError> {
    let malformed = |e| UnpackError::Io("read it as a .tar.zst", e);
    let mut archive = tar::Archive::new(archive);
    let mut bytes_left = limits.bundle_bytes_max.0;
    for (i, entry) in archive.entries().map_err(malformed)?.enumerate() {
        if i >= limits.bundle_entries_max {
            return Err(UnpackError::TooMany(limits.bundle_entries_max));
        }
        let mut entry = entry.map_err(malformed)?;
        let name = entry.path().map_err(malformed)?.into_owned();
        let path = folder.join(safe_path(&name)?);
        let written = match entry.header().entry_type() {
            tar::EntryType::Directory => fs::create_dir_all(&path),
            tar::EntryType::Regular | tar::EntryType::Continuous => write_file(&mut entry, &path, &mut bytes_left)
                .and_then(|fits| if fits { Ok(()) } else { Err(io::Error::from(io::ErrorKind::FileTooLarge)) }),
            tar::EntryType::XGlobalHeader => Ok(()),
            _ => return Err(UnpackError::Entry(name.display().to_string(), "neither a file nor a folder")),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(UnpackError::TooLarge(limits.bundle_bytes_max));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(UnpackError::Entry(name.display().to_string(), "in it twice"));
            }
            Err(error) => return Err(UnpackError::Io("unpack it", error)),
        }
    }
    Ok(())
}

/// Brings all that is in `folder` to disk, names too: a file that a power cut leaves without one is not there.
fn bring_to_disk(folder: &Path) -> io::Result<()> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    let mut next = 0;
    while let Some(folder) = folders.get(next) {
        let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        next += 1;
        for entry in entries {
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    // All of them are given their place before the first is waited for: the file system then writes its own books once, and not
    // once for each file.
    for file in &files {
        start_writing(&File::open(file)?)?;
    }
    for path in files.iter().chain(&folders) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

fn start_writing(file: &File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "it is not wrapped; the file is open as long as it runs")]
    // SAFETY: it takes numbers only.
    let started = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if started == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The entry's path inside of the bundle.
fn safe_path(name: &Path) -> Result<PathBuf, UnpackError> {
    let mut safe = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => safe.push(part),
            Component::CurDir => {}
            _ => return Err(UnpackError::Entry(name.display().to_string(), "outside of the bundle")),
        }
    }
    Ok(safe)
}

/// Writes one file; `false` when it has more than `bytes_left`.
fn write_file(entry: &mut impl Read, path: &Path, bytes_left: &mut u64) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let written = io::copy(&mut entry.take(*bytes_left + 1), &mut file)?;
    if written > *bytes_left {
        return Ok(false);
    }
    *bytes_left -= written;
    file.flush()?;
    Ok(true)
}
