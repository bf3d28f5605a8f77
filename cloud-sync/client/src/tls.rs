//! Whom the gateway believes to be the control plane, and what it shows of itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sync_protocol::Digest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::Now;

/// Who may vouch for the control plane.
#[derive(Clone, Debug)]
pub(crate) enum Authorities {
    /// These alone.
    Known(Vec<CertificateDer<'static>>),
    /// The one with this digest, which the control plane shows along with its certificate.
    Pinned(Digest),
    /// Those that browsers believe.
    Public,
}

/// A certificate chain and its key.
pub(crate) type Shown<'a> = (&'a [CertificateDer<'static>], &'a PrivateKeyDer<'static>);

/// TLS that believes `authorities`, and shows `own` when it is asked for.
pub(crate) fn client(authorities: Authorities, own: Option<Shown<'_>>, now: Now) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let time = Arc::new(Time(now));
    let verifier = Verifier::new(authorities, Arc::clone(&provider), Arc::clone(&time))?;
    let builder = ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain.to_vec(), key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    // There is one server.
    config.resumption = Resumption::in_memory_sessions(2);
    Ok(config)
}

/// The machine's clock; 1970 while it is unknown.
struct Time(Now);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis((self.0)().unwrap_or(0))))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

#[derive(Debug)]
struct Verifier {
    /// `None`: built when the pinned authority is seen.
    known: Option<Arc<WebPkiServerVerifier>>,
    pinned: Option<Digest>,
    provider: Arc<CryptoProvider>,
    time: Arc<Time>,
}

impl Verifier {
    fn new(authorities: Authorities, provider: Arc<CryptoProvider>, time: Arc<Time>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        let mut pinned = None;
        match authorities {
            Authorities::Known(certificates) => certificates.into_iter().try_for_each(|known| roots.add(known))?,
            Authorities::Pinned(digest) => pinned = Some(digest),
            Authorities::Public => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let known = match pinned {
            None => Some(by_authorities(roots, &provider)?),
            Some(_) => None,
        };
        Ok(Self { known, pinned, provider, time })
    }

    fn verifier(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, Error> {
        if let Some(known) = &self.known {
            return Ok(Arc::clone(known));
        }
        let authority = shown.iter().find(|one| Some(Digest::of(one)) == self.pinned);
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        by_authorities(roots, &self.provider)
    }
}

fn by_authorities(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Without a clock nobody can say whether a certificate has expired; a gateway that therefore spoke to nobody would never
        // get a clock either. What it fetches is signed and numbered by others.
        let now = match (self.time.0)() {
            Some(_) => now,
            None => begin_of(std::iter::once(end_entity).chain(intermediates)),
        };
        self.verifier(intermediates)?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The first moment at which all of them are valid.
fn begin_of<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'a>>) -> UnixTime {
    let begins = certificates.filter_map(|certificate| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        u64::try_from(parsed.validity().not_before.timestamp()).ok()
    });
    UnixTime::since_unix_epoch(Duration::from_secs(begins.max().unwrap_or(0)))
}
