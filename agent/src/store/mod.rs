//! Bundles on disk, and the functions that they and gateway.toml make together.

pub mod bundle;
mod pack;
mod resolve;
mod unpack;

pub use self::bundle::{Bundle, BundleError};
pub use self::pack::pack;
pub use self::resolve::{Resolved, resolve, resolve_all, resolve_alone};

use std::io::{self, Read};
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
