//! Requests signed with the gateway's key, for where no client certificate gets through: `sync_protocol::request`.

use std::iter::repeat_with;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::SignatureScheme;
use rustls::crypto::ring;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sync_protocol::request::{
    CERTIFICATE, CONTENT_DIGEST, Covered, FRESH_SECS, SIGNATURE, SIGNATURE_INPUT, content_digest, signature,
};

use crate::transport::Call;

/// A difference to the control plane's clock from which signing again is worth it, in milliseconds.
pub(crate) const CLOCKS_DIFFER_MS: u64 = FRESH_SECS * 1000 / 10;

/// One for each kind of key.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];
const NONCE_CHARS: usize = 22;

/// A key that signs requests, with the certificate that goes along.
pub(crate) struct Signer {
    signer: Box<dyn rustls::sign::Signer>,
    certificate: HeaderValue,
}

impl Signer {
    pub(crate) fn new(chain: &[CertificateDer<'_>], key: &PrivateKeyDer<'_>) -> Result<Self, String> {
        let key: Arc<_> = ring::sign::any_supported_type(key).map_err(|error| error.to_string())?;
        let signer = key.choose_scheme(&SCHEMES).ok_or("a key of this kind signs no requests")?;
        let chain: Vec<String> = chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
        let certificate = HeaderValue::try_from(chain.join(",")).map_err(|error| error.to_string())?;
        Ok(Self { signer, certificate })
    }

    /// Adds the headers that sign `call`, as of `now_ms`.
    pub(crate) fn sign(&self, call: &Call, now_ms: u64, headers: &mut HeaderMap) -> Result<(), String> {
        let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
        let nonce: String = repeat_with(fastrand::alphanumeric).take(NONCE_CHARS).collect();
        let digest = content_digest(&call.body);
        let method = call.method.as_str();
        let covered = Covered { method, path, query, content_digest: &digest, created: now_ms / 1000, nonce: &nonce };
        let signed = self.signer.sign(covered.base().as_bytes()).map_err(|error| error.to_string())?;
        let mut put = |name, value: String| {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::try_from(value).map_err(|error| error.to_string())?,
            );
            Ok::<_, String>(())
        };
        put(CONTENT_DIGEST, digest.clone())?;
        put(SIGNATURE_INPUT, covered.signature_input())?;
        put(SIGNATURE, signature(&signed))?;
        headers.insert(HeaderName::from_static(CERTIFICATE), self.certificate.clone());
        Ok(())
    }
}
