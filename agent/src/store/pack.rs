//! Packs a function's folder into a bundle file: the same bytes for the same files, whoever packs them, wherever and when.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What Rust needs to build a function, and the gateway does not.
const SOURCES: [&str; 7] = ["Cargo.toml", "Cargo.lock", "build.rs", "src", "sdk", "target", "tests"];

/// A level whose window fits into [`super::unpack`]'s.
const LEVEL: i32 = 19;

/// Writes all files of `folder` but Rust's sources, hidden files and earlier bundles to `file`, and says how many bytes it has.
///
/// # Errors
/// When a file cannot be read, or the bundle cannot be written.
pub fn pack(folder: &Path, file: &Path) -> io::Result<u64> {
    let mut names = Vec::new();
    collect(folder, Path::new(""), &mut names)?;
    names.sort();
    let files: Vec<_> = names.into_iter().map(|name| (folder.join(&name), name)).collect();
    pack_files(&files, file)
}

/// Writes `files`, each with its name in there, to the archive `file`, and says how many bytes it has.
///
/// # Errors
/// When a file cannot be read, or the archive cannot be written.
pub fn pack_files(files: &[(PathBuf, PathBuf)], file: &Path) -> io::Result<u64> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unfinished = tempfile::Builder::new().prefix(".pack-").tempfile_in(parent)?;
    let mut archive = tar::Builder::new(zstd::Encoder::new(unfinished, LEVEL)?);
    for (from, name) in files {
        let content = fs::read(from)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    let unfinished = archive.into_inner()?.finish()?;
    unfinished.as_file().sync_all()?;
    let written: File = unfinished.persist(file).map_err(|error| error.error)?;
    Ok(written.metadata()?.len())
}

/// Finds the files below `folder`, by their path from there.
fn collect(folder: &Path, below: &Path, names: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let is_source = below.as_os_str().is_empty() && SOURCES.contains(&&*text);
        if is_source || text.starts_with('.') || text.ends_with(".tar.zst") {
            continue;
        }
        let path = below.join(&name);
        let metadata = fs::metadata(entry.path())?;
        if metadata.is_dir() {
            collect(folder, &path, names)?;
        } else if metadata.is_file() {
            names.push(path);
        }
    }
    Ok(())
}
