//! Bundles on disk, and the functions that they and gateway.toml make together.

pub mod bundle;
pub mod layers;
mod pack;
mod resolve;
mod unpack;

pub use self::bundle::{Bundle, BundleError};
pub use self::pack::{pack, pack_files};
pub use self::resolve::{Resolved, resolve, resolve_all, resolve_alone};
pub use self::unpack::{UnpackError, unpack};

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use sha2::{Digest, Sha256};

/// SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn digest_file(file: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(file)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            bytes => hasher.update(&chunk[..bytes]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a folder that only its owner enters, if there is none; then its name is on disk, so that no power cut takes away what is written into it.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    folder.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}
