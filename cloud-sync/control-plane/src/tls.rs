//! TLS of the control plane: the certificate that it shows, and what it asks of those who come.
//!
//! The handshake only proves that the other side has the key of the certificate that it shows, and takes one from anybody. What that certificate
//! is worth is found out for each request, in [`crate::gate`]: only there the registry can be asked, so that a revocation counts within an open
//! connection too; only there it is known that the call is a renewal, for which alone an expired certificate will do; and signed requests, which
//! bring their certificate in a header, are judged by the very same lines. Until then nobody is anybody: a certificate that nobody knows gives
//! no more than none.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;

use crate::ca::{Authority, CaError, server_renewal_due};
use crate::folder::{Folder, write_secret};
use crate::peer;

/// Most certificates that somebody may show.
const CHAIN_MAX: usize = 4;

/// The control plane's own certificate. It renews itself; its names are taken over from the one before.
pub struct ServerCertificate {
    authority: Arc<Authority>,
    folder: Folder,
    current: RwLock<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    not_after_ms: u64,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCertificate")
    }
}

impl ServerCertificate {
    /// Signs one for `names` and keeps it in `folder`.
    ///
    /// # Errors
    /// When a name is none, or a file cannot be written.
    pub fn create(authority: &Authority, folder: &Folder, names: &[String], now_ms: u64) -> Result<(), CaError> {
        let (issued, key) = authority.sign_server(names, now_ms)?;
        // Both in one file, so that a certificate never meets the key of another.
        let path = path(folder);
        write_secret(&path, format!("{}{key}", issued.chain_pem).as_bytes()).map_err(|error| CaError::File(path, error))
    }

    /// Signs the one in `folder` anew, for `names` beside those that it has; answers all of them. A control plane that serves takes it over.
    ///
    /// # Errors
    /// When there is none, a name is none, or a file cannot be written.
    pub fn certify(folder: &Folder, names: &[String], now_ms: u64) -> Result<Vec<String>, CaError> {
        let authority = Authority::open(&folder.keys())?;
        let mut all = read(folder)?.names;
        for name in names {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        Self::create(&authority, folder, &all, now_ms)?;
        Ok(all)
    }

    /// Reads the one in `folder`, and renews it if that is due.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn open(authority: Arc<Authority>, folder: Folder, now_ms: u64) -> Result<Arc<Self>, CaError> {
        let current = read(&folder)?;
        let certificate = Arc::new(Self { authority, folder, current: RwLock::new(current) });
        certificate.renew_if_due(now_ms)?;
        Ok(certificate)
    }

    /// Signs the next one when less than a third of this one's life is left. Connections that are open stay.
    ///
    /// # Errors
    /// When a file cannot be written; the one of now goes on.
    pub fn renew_if_due(&self, now_ms: u64) -> Result<bool, CaError> {
        let names = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if !server_renewal_due(current.not_after_ms, now_ms) {
                return Ok(false);
            }
            current.names.clone()
        };
        Self::create(&self.authority, &self.folder, &names, now_ms)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = read(&self.folder)?;
        Ok(true)
    }

    /// Takes over the one in the folder, if that was signed anew by [`ServerCertificate::certify`]. Connections that are open stay.
    ///
    /// # Errors
    /// When it is missing or damaged; the one of now goes on.
    pub fn reread(&self) -> Result<bool, CaError> {
        let there = read(&self.folder)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = there.key.cert != current.key.cert;
        if changed {
            *current = there;
        }
        Ok(changed)
    }

    /// What rustls needs to serve with it.
    ///
    /// # Errors
    /// Never with the provider that is built in.
    pub fn config(self: &Arc<Self>) -> Result<ServerConfig, CaError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(AnyCertificate(provider.clone()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| CaError::Certificate(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).key.clone())
    }
}

fn path(folder: &Folder) -> PathBuf {
    folder.keys().join("server.pem")
}

fn read(folder: &Folder) -> Result<Current, CaError> {
    let path = path(folder);
    let damaged = |error: &dyn fmt::Display| CaError::Certificate(format!("{}: {error}", path.display()));
    let pem = std::fs::read(&path).map_err(|error| CaError::File(path.clone(), error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| damaged(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| damaged(&error))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| damaged(&error))?;
    let facts = chain.first().and_then(peer::Facts::of).ok_or_else(|| damaged(&"there is no certificate in it"))?;
    Ok(Current { key: Arc::new(CertifiedKey::new(chain, key)), names: facts.hosts, not_after_ms: facts.not_after_ms })
}

/// Takes whatever certificate is shown, or none, if only its key signs the handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: so that certificates of other authorities are shown too.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() >= CHAIN_MAX || peer::Facts::of(end_entity).is_none() {
            return Err(CertificateError::BadEncoding.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
