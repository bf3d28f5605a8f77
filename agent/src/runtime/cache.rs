//! Compiled components on disk, so that a start maps code instead of compiling it.
//!
//! # Promises
//! - What is loaded is what this agent compiled, or took by a digest that was signed: the folder is the agent's own, and a file that
//!   is short, changed or from another engine is removed, never run.
//! - A crash while writing leaves no half file under a name that is read.
//! - Files of components that are no longer wanted go away.
//!
//! # On disk
//! `DIGEST.ENGINE.cwasm`: wasmtime's own format, then a trailer: its length (u64), its CRC-32C (u32), both little-endian, and a mark.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::load::hex;

const MARK: &[u8; 8] = b"tidegate";
const TRAILER_BYTES: u64 = 8 + 4 + 8;
const EXTENSION: &str = "cwasm";

/// The folder.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    /// Version and settings of the engine: code of another one does not fit.
    engine: String,
}

impl Cache {
    /// Opens or makes `dir`, which nobody else may read or write.
    ///
    /// # Errors
    /// When it cannot be made, or belongs to somebody else.
    pub(crate) fn open(dir: &Path, engine: String) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        Ok(Self { dir: dir.to_owned(), engine })
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.{}.{EXTENSION}", self.engine))
    }

    /// The compiled component of `digest`, if it is there and whole.
    pub(crate) fn load(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        if let Err(error) = verify(&path) {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %path.display(), %error, "compiled code is damaged, and removed");
                self.remove(&path);
            }
            return None;
        }
        #[expect(
            unsafe_code,
            reason = "the file is native code: this agent wrote it, as it compiled it or as it was signed, into a folder that only \
                      it may write, and its checksum has just been compared"
        )]
        let component = unsafe { Component::deserialize_file(engine, &path) };
        component
            .inspect_err(|error| {
                tracing::warn!(file = %path.display(), %error, "compiled code does not fit, and is removed");
                self.remove(&path);
            })
            .ok()
    }

    /// Keeps `compiled`.
    ///
    /// # Errors
    /// When it cannot be written.
    #[cfg(feature = "compiler")]
    pub(crate) fn store(&self, digest: &str, compiled: impl Read) -> io::Result<()> {
        self.keep(digest, compiled, None)
    }

    /// Keeps code that another machine compiled, if `signed` is its SHA-256 (hexadecimal).
    ///
    /// # Errors
    /// When it is other code, or cannot be read or written.
    pub(crate) fn adopt(&self, digest: &str, code: impl Read, signed: &str) -> io::Result<()> {
        self.keep(digest, code, Some(signed))
    }

    /// Whether there is a file for `digest`.
    pub(crate) fn has(&self, digest: &str) -> bool {
        self.path(digest).is_file()
    }

    fn keep(&self, digest: &str, code: impl Read, signed: Option<&str>) -> io::Result<()> {
        let path = self.path(digest);
        let unfinished = self.dir.join(format!("{digest}.{:016x}.tmp", fastrand::u64(..)));
        let written = write(&unfinished, code, signed).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            self.remove(&unfinished);
        }
        written?;
        // What was compiled here and has no name after a power cut is compiled again. What others compiled might not be to be had then.
        if signed.is_some() { File::open(&self.dir)?.sync_all() } else { Ok(()) }
    }

    /// Removes everything but the files of `digests` that this engine can use.
    pub(crate) fn retain(&self, digests: &[&str]) {
        let wanted: Vec<PathBuf> = digests.iter().map(|digest| self.path(digest)).collect();
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let ours = path.extension().is_some_and(|extension| extension == EXTENSION || extension == "tmp");
            if ours && !wanted.contains(&path) {
                self.remove(&path);
            }
        }
    }

    fn remove(&self, path: &Path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), dir = %self.dir.display(), %error, "compiled code cannot be removed");
            }
            _ => {}
        }
    }
}

/// Writes the whole file in pieces. When its digest must be `signed`, it is that of the very bytes that were written.
fn write(path: &Path, mut code: impl Read, signed: Option<&str>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let (mut length, mut crc, mut hasher) = (0_u64, 0, Sha256::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = code.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
        length += read as u64;
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
        hasher.update(&buffer[..read]);
    }
    let found = hex(&hasher.finalize());
    if let Some(signed) = signed.filter(|signed| **signed != *found) {
        let why = format!("its digest is sha256:{found}, and sha256:{signed} was signed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    file.write_all(&length.to_le_bytes())?;
    file.write_all(&crc.to_le_bytes())?;
    file.write_all(MARK)?;
    file.sync_all()
}

/// Reads the whole file once, in pieces.
fn verify(path: &Path) -> io::Result<()> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its length or checksum is wrong");
    let mut file = File::open(path)?;
    let length = file.metadata()?.len().checked_sub(TRAILER_BYTES).ok_or_else(damaged)?;
    let mut crc = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut left = length;
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..take])?;
        crc = crc32c::crc32c_append(crc, &buffer[..take]);
        left -= take as u64;
    }
    let mut expected = Vec::with_capacity(32);
    expected.extend_from_slice(&length.to_le_bytes());
    expected.extend_from_slice(&crc.to_le_bytes());
    expected.extend_from_slice(MARK);
    let mut trailer = Vec::with_capacity(expected.len());
    file.read_to_end(&mut trailer)?;
    if trailer == expected { Ok(()) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(engine: &Engine) -> Vec<u8> {
        engine.precompile_component(&wat::parse_str("(component)").unwrap()).unwrap()
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let (dir, engine) = (tempfile::tempdir().unwrap(), Engine::default());
        let cache = Cache::open(&dir.path().join("code"), "this".to_owned()).unwrap();
        assert!(cache.load(&engine, "abc").is_none());
        cache.store("abc", compiled(&engine).as_slice()).unwrap();
        assert!(cache.load(&engine, "abc").is_some());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&cache.dir), mode(&cache.path("abc"))), (0o700, 0o600));
    }

    #[test]
    fn a_damaged_file_is_never_loaded() {
        let (dir, engine) = (tempfile::tempdir().unwrap(), Engine::default());
        let cache = Cache::open(dir.path(), "this".to_owned()).unwrap();
        let compiled = compiled(&engine);
        let damages: [fn(&mut Vec<u8>); 5] = [
            |file| file.clear(),
            |file| file.truncate(file.len() - 1),
            |file| file.truncate(10),
            |file| file.push(0),
            |file| {
                let middle = file.len() / 2;
                file[middle] ^= 1;
            },
        ];
        for damage in damages {
            cache.store("abc", compiled.as_slice()).unwrap();
            let mut file = fs::read(cache.path("abc")).unwrap();
            damage(&mut file);
            fs::write(cache.path("abc"), file).unwrap();
            assert!(cache.load(&engine, "abc").is_none());
            assert!(!cache.path("abc").exists());
        }
    }

    #[test]
    fn what_is_no_longer_wanted_goes() {
        let (dir, engine) = (tempfile::tempdir().unwrap(), Engine::default());
        let cache = Cache::open(dir.path(), "this".to_owned()).unwrap();
        for digest in ["new", "old"] {
            cache.store(digest, compiled(&engine).as_slice()).unwrap();
        }
        fs::write(dir.path().join("new.another.cwasm"), "of another engine").unwrap();
        fs::write(dir.path().join("new.1.tmp"), "a crash").unwrap();
        fs::write(dir.path().join("README"), "not ours").unwrap();
        cache.retain(&["new"]);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [dir.path().join("README"), cache.path("new")]);
    }
}
