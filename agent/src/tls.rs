//! What connections need from files: passwords, certificates, keys; and TLS made of them, by rustls with ring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A password, certificate or key file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read `{key}` from {path}: {why}", path = path.display())]
pub struct FileError {
    /// The key in gateway.toml.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// Why TLS cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// Certificates or keys do not fit.
    #[error("{0}")]
    Unfit(String),
}

/// TLS of a client: trusts `ca`, or the public authorities; shows `cert` when the server asks.
///
/// # Errors
/// When a file cannot be read, or they do not fit together.
pub(crate) fn client_config(
    ca: Option<&Path>,
    cert: Option<&Path>,
    key: Option<&Path>,
) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for certificate in certificates("ca", file)? {
                roots.add(certificate).map_err(|e| TlsError::Unfit(format!("{}: {e}", file.display())))?;
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Unfit(e.to_string()))?
        .with_root_certificates(roots);
    match (cert, key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let (chain, key) = (certificates("cert", cert)?, private_key("key", key)?);
            builder.with_client_auth_cert(chain, key).map_err(|e| TlsError::Unfit(format!("cert and key: {e}")))
        }
        _ => Err(TlsError::Unfit("`cert` and `key` go together".to_owned())),
    }
}

/// A PEM file with at least one certificate.
pub(crate) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| error(key, path, e.to_string()))?;
    if found.is_empty() {
        return Err(error(key, path, "there is no certificate in it".to_owned()));
    }
    Ok(found)
}

/// A PEM file with a private key.
pub(crate) fn private_key(key: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| error(key, path, e.to_string()))
}

/// A password or a token: the file's content without the newline at its end.
pub(crate) fn password(key: &'static str, path: &Path) -> Result<String, FileError> {
    let text = std::fs::read_to_string(path).map_err(|e| error(key, path, e.to_string()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(error(key, path, "it is empty".to_owned())),
        password => Ok(password.to_owned()),
    }
}

fn error(key: &'static str, path: &Path, why: String) -> FileError {
    FileError { key, path: PathBuf::from(path), why }
}
