//! Who the gateway is: its key, certificate, and the authority that it believes.
//!
//! # On disk
//! `key.pem` and the nonce in `identity.json` come first, so that a request that had no answer is made again word for word, and the
//! control plane gives the same answer. `certificate.pem` comes last: where it is, the gateway is provisioned.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sync_protocol::Envelope;
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::provision::Provisioned;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::{self, Readers};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
const CA: &str = "ca.pem";
const ROOTS: &str = "roots.json";
const IDENTITY: &str = "identity.json";

/// Why there is no identity to use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is there, and makes no sense.
    #[error("{path} is of no use: {why}", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The system gives no random bytes, or the library fails.
    #[error("cannot make a key: {0}")]
    Key(String),
    /// The control plane sent what does not fit what was asked.
    #[error("the control plane sent {0}")]
    Answer(String),
}

impl IdentityError {
    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Damaged { .. } => Some(
                "put a copy of the file back, or move the folder away and provision this gateway with a new claim token",
            ),
            _ => None,
        }
    }
}

/// What is known before and after provisioning.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The name that was asked for.
    pub(crate) wanted: GatewayName,
    /// The same for each attempt.
    pub(crate) nonce: String,
    /// The name that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<GatewayName>,
    #[serde(default)]
    groups: Vec<GroupName>,
}

/// A gateway's key with its certificate.
pub struct Identity {
    /// Its name in the fleet.
    name: GatewayName,
    groups: Vec<GroupName>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: Vec<CertificateDer<'static>>,
    roots: Vec<Envelope>,
    life: Life,
    /// Where renewals are kept; `None` when somebody else looks after the files.
    folder: Option<PathBuf>,
}

/// When a certificate is valid, as Unix time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// From then on.
    pub from_ms: u64,
    /// Not after.
    pub until_ms: u64,
}

impl Life {
    /// Of a certificate in DER.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        let validity = parsed.validity();
        Ok(Self { from_ms: ms(validity.not_before.timestamp()), until_ms: ms(validity.not_after.timestamp()) })
    }

    /// Whether two thirds are over.
    pub const fn is_due(self, now_ms: u64) -> bool {
        now_ms >= self.from_ms + self.until_ms.saturating_sub(self.from_ms) / 3 * 2
    }
}

impl Identity {
    /// What provisioning has left in `folder`; `None` when there is no certificate yet.
    ///
    /// # Errors
    /// When a file cannot be read, or the key is of no use. A certificate that is of no use counts as none: the control plane gives it again.
    pub fn open(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(request) = Request::open(folder)? else { return Ok(None) };
        let (Some(name), Some(certificate)) = (request.name, read(&folder.join(CERTIFICATE))?) else { return Ok(None) };
        let key = key_in(folder)?;
        let parsed =
            certificates(&certificate).and_then(|chain| Ok((Life::of(&chain[0])?, fits(&chain[0], &key)?, chain)));
        let (life, (), chain) = match parsed {
            Ok(parsed) => parsed,
            Err(why) => {
                let path = folder.join(CERTIFICATE);
                tracing::warn!(path = %path.display(), why, "the certificate is of no use, a new one is asked for");
                return Ok(None);
            }
        };
        let ca_path = folder.join(CA);
        let ca = read(&ca_path)?.map(|pem| certificates(&pem)).transpose().map_err(|why| damaged(&ca_path, why))?;
        let roots = read(&folder.join(ROOTS))?.map(|json| serde_json::from_slice(&json)).transpose();
        let roots = roots.map_err(|error| damaged(&folder.join(ROOTS), error))?.unwrap_or_default();
        let (ca, folder) = (ca.unwrap_or_default(), Some(folder.to_owned()));
        Ok(Some(Self {
            name,
            groups: request.groups,
            chain,
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            ca,
            roots,
            life,
            folder,
        }))
    }

    /// A certificate that somebody else issued and renews, with its key: RSA, ECDSA or Ed25519, as PEM.
    ///
    /// # Errors
    /// When a file cannot be read or is of no use.
    pub fn from_files(name: GatewayName, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let pem = read(certificate)?.ok_or_else(|| absent(certificate))?;
        let chain = certificates(&pem).map_err(|why| damaged(certificate, why))?;
        let life = Life::of(&chain[0]).map_err(|why| damaged(certificate, why))?;
        let pem = read(key)?.ok_or_else(|| absent(key))?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| damaged(key, error))?;
        Ok(Self { name, groups: Vec::new(), chain, key, ca: Vec::new(), roots: Vec::new(), life, folder: None })
    }

    /// Its name in the fleet: the one that the control plane gave.
    pub const fn name(&self) -> &GatewayName {
        &self.name
    }

    /// The groups that it had when it was provisioned.
    pub fn groups(&self) -> &[GroupName] {
        &self.groups
    }

    /// Roots of trust from the first, as they were when it was provisioned; empty for [`Identity::from_files`].
    pub fn roots(&self) -> &[Envelope] {
        &self.roots
    }

    /// When its certificate is valid.
    pub const fn life(&self) -> Life {
        self.life
    }

    /// Whether its certificate should be renewed: two thirds of its life are over, and that is for us to do.
    pub fn renew_due(&self, now_ms: Option<u64>) -> bool {
        self.is_ours() && now_ms.is_some_and(|now| self.life.is_due(now))
    }

    /// Whether the control plane issued it, and renewing it is for us to do.
    pub const fn is_ours(&self) -> bool {
        self.folder.is_some()
    }

    /// Whether its certificate's time is over, as far as the clock is known.
    pub fn is_expired(&self, now_ms: Option<u64>) -> bool {
        now_ms.is_some_and(|now| now > self.life.until_ms)
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) const fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    pub(crate) fn ca(&self) -> &[CertificateDer<'static>] {
        &self.ca
    }

    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The request for a new certificate with the same key.
    pub(crate) fn csr(&self) -> Result<String, IdentityError> {
        let PrivateKeyDer::Pkcs8(der) = &self.key else { return Err(IdentityError::Key("it is not ours".to_owned())) };
        csr(&KeyPair::try_from(der).map_err(key_error)?, &self.name)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, until {} ms)", self.name, self.life.until_ms)
    }
}

impl Request {
    fn open(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(IDENTITY);
        let Some(json) = read(&path)? else { return Ok(None) };
        serde_json::from_slice(&json).map(Some).map_err(|error| damaged(&path, error))
    }

    /// The request that was begun in `folder`, or a new one with a key of its own; and its CSR.
    pub(crate) fn begin(folder: &Path, wanted: &GatewayName) -> Result<(Self, String), IdentityError> {
        files::create_folder(folder).map_err(|source| file("write", folder, source))?;
        let path = folder.join(KEY);
        if read(&path)?.is_none() {
            let key = KeyPair::generate_for(&PKCS_ED25519).map_err(key_error)?;
            put(&path, key.serialize_pem().as_bytes(), Readers::Owner)?;
        }
        let key = key_in(folder)?;
        let request = match Self::open(folder)? {
            Some(request) => request,
            None => {
                // The key is random already, so its digest is as hard to guess.
                let nonce = sync_protocol::Digest::of(&key.serialize_der()).hex();
                let request = Self { wanted: wanted.clone(), nonce, name: None, groups: Vec::new() };
                request.save(folder)?;
                request
            }
        };
        let csr = csr(&key, &request.wanted)?;
        Ok((request, csr))
    }

    fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let json = serde_json::to_vec_pretty(self).map_err(|error| IdentityError::Key(error.to_string()))?;
        put(&folder.join(IDENTITY), &json, Readers::All)
    }

    /// Keeps the control plane's answer to it.
    pub(crate) fn finish(mut self, folder: &Path, answer: &Provisioned) -> Result<(), IdentityError> {
        check(folder, answer)?;
        let roots =
            serde_json::to_vec_pretty(&answer.roots).map_err(|error| IdentityError::Answer(error.to_string()))?;
        put(&folder.join(ROOTS), &roots, Readers::All)?;
        self.name = Some(answer.name.clone());
        self.groups.clone_from(&answer.groups);
        self.save(folder)?;
        keep_certificate(folder, answer)
    }
}

/// Keeps a renewed certificate. Its authority comes first: the new certificate may be of a new one.
pub(crate) fn keep_certificate(folder: &Path, answer: &Provisioned) -> Result<(), IdentityError> {
    check(folder, answer)?;
    put(&folder.join(CA), answer.ca.as_bytes(), Readers::All)?;
    put(&folder.join(CERTIFICATE), answer.certificate.as_bytes(), Readers::All)
}

/// Nothing is kept of an answer that would be of no use.
fn check(folder: &Path, answer: &Provisioned) -> Result<(), IdentityError> {
    let refused = |what: &'static str| move |why| IdentityError::Answer(format!("a {what} that is of no use: {why}"));
    certificates(answer.ca.as_bytes()).map_err(refused("authority"))?;
    let chain = certificates(answer.certificate.as_bytes()).map_err(refused("certificate"))?;
    Life::of(&chain[0]).map_err(refused("certificate"))?;
    fits(&chain[0], &key_in(folder)?).map_err(refused("certificate"))
}

/// Whether a certificate is of this key.
fn fits(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    match parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw() {
        true => Ok(()),
        false => Err("it is of another key".to_owned()),
    }
}

fn csr(key: &KeyPair, name: &GatewayName) -> Result<String, IdentityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(key_error)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    params.serialize_request(key).and_then(|request| request.pem()).map_err(key_error)
}

fn key_in(folder: &Path) -> Result<KeyPair, IdentityError> {
    let path = folder.join(KEY);
    let pem = read(&path)?.ok_or_else(|| absent(&path))?;
    let pem = std::str::from_utf8(&pem).map_err(|error| damaged(&path, error))?;
    KeyPair::from_pem(pem).map_err(|error| damaged(&path, error))
}

/// At least one certificate.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// The authorities in a file.
pub(crate) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = read(path)?.ok_or_else(|| absent(path))?;
    certificates(&pem).map_err(|why| damaged(path, why))
}

fn put(path: &Path, bytes: &[u8], readers: Readers) -> Result<(), IdentityError> {
    files::write(path, bytes, readers).map_err(|source| file("write", path, source))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    files::read(path).map_err(|source| file("read", path, source))
}

fn absent(path: &Path) -> IdentityError {
    file("read", path, io::ErrorKind::NotFound.into())
}

fn file(what: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File { what, path: path.to_owned(), source }
}

fn damaged(path: &Path, why: impl fmt::Display) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), why: why.to_string() }
}

fn key_error(error: rcgen::Error) -> IdentityError {
    IdentityError::Key(error.to_string())
}
