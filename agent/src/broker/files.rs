//! The files that brokers need: passwords, certificates, keys.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::FileError;

/// A PEM file with at least one certificate.
pub(super) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| error(key, path, e.to_string()))?;
    if found.is_empty() {
        return Err(error(key, path, "there is no certificate in it".to_owned()));
    }
    Ok(found)
}

/// A PEM file with a private key.
pub(super) fn private_key(key: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| error(key, path, e.to_string()))
}

/// A password: the file's content without the newline at its end.
pub(super) fn password(path: &Path) -> Result<String, FileError> {
    let text = std::fs::read_to_string(path).map_err(|e| error("password_file", path, e.to_string()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(error("password_file", path, "it is empty".to_owned())),
        password => Ok(password.to_owned()),
    }
}

fn error(key: &'static str, path: &Path, why: String) -> FileError {
    FileError { key, path: PathBuf::from(path), why }
}
