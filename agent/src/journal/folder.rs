//! The folder of a journal: one agent at a time, in a format that it knows.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::JournalError;

const FORMAT: &str = "tidegate journal ";
/// The format that this agent writes.
pub(super) const FORMAT_VERSION: u32 = 2;

/// Makes the folder, so that a power cut does not unmake it.
pub(super) fn make(dir: &Path) -> Result<(), JournalError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|source| JournalError::io("create", dir, source))?;
    for parent in dir.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        // Folders further up may not be ours to open; those are not ours to have made either.
        match File::open(parent).and_then(|folder| folder.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(JournalError::io("sync", parent, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes the lock of the journal in `dir`, which goes with the file.
pub(super) fn lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|source| JournalError::io("create", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(JournalError::io("lock", &path, source)),
    }
}

/// Refuses what a newer agent made, and notes our format.
pub(super) fn check_format(dir: &Path) -> Result<(), JournalError> {
    let path = dir.join("format");
    let found = match fs::read(&path) {
        Ok(found) => String::from_utf8_lossy(&found).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(JournalError::io("read", &path, error)),
    };
    if let Some((name, version)) = format_of(&found)
        && version > FORMAT_VERSION
    {
        return Err(JournalError::Format { path: dir.to_owned(), found: name.to_owned() });
    }
    let name = format!("{FORMAT}{FORMAT_VERSION}");
    let wanted = format!("{name} {:08x}\n", crc32c::crc32c(name.as_bytes()));
    if found == wanted {
        return Ok(());
    }
    if let Some((_, version)) = format_of(&found) {
        // Values tell their own layout, so older ones stay as they are and go with their segments.
        tracing::info!(journal = %dir.display(), from = version, to = FORMAT_VERSION, "the journal has a new format now");
    } else if !found.is_empty() {
        tracing::warn!(file = %path.display(), "the journal's format file is damaged and is written again");
    }
    fs::write(&path, wanted).map_err(|source| JournalError::io("write", &path, source))
}

/// The name of the format, and its version. The checksum behind it tells a newer agent's file from a damaged one.
fn format_of(text: &str) -> Option<(&str, u32)> {
    let (name, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    let version = name.strip_prefix(FORMAT)?.parse().ok()?;
    (sum == crc32c::crc32c(name.as_bytes())).then_some((name, version))
}
