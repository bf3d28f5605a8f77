//! Segments of format 1, which were sled databases. Each becomes a log when it is opened.
//!
//! Values explain themselves, so they are found without sled; of two with the same name the later one counts.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::log;
use crate::buffer::record;

/// Makes the log at `path` of what the database in `dir` holds. False when there is none.
pub(super) fn convert(dir: &Path, id: u64, path: &Path) -> io::Result<bool> {
    if !dir.join("db").try_exists()? {
        return Ok(false);
    }
    let mut values = Vec::new();
    for file in database(dir)? {
        values.extend(record::scan(&fs::read(file)?.into()));
    }
    values.sort_by_key(|(stamp, _)| stamp.revision);
    let values: Vec<_> =
        values.iter().map(|(stamp, frame)| (record::key(frame), record::encode(*stamp, frame))).collect();
    let new = dir.join("log.new");
    fs::write(&new, log::encode(id, 0, 0, &values))?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()?;
    // What is left behind takes space until the segment goes, and nothing else.
    let rest =
        [fs::remove_file(dir.join("db")), fs::remove_file(dir.join("conf")), fs::remove_dir_all(dir.join("blobs"))];
    for error in rest.into_iter().filter_map(Result::err).filter(|error| error.kind() != io::ErrorKind::NotFound) {
        tracing::warn!(folder = %dir.display(), %error, "what is left of an earlier format could not be deleted");
    }
    Ok(true)
}

/// The files that a database in `dir` keeps values in.
fn database(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    match fs::read_dir(dir.join("blobs")) {
        Ok(blobs) => {
            for blob in blobs {
                files.push(blob?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files.push(dir.join("db"));
    Ok(files)
}
