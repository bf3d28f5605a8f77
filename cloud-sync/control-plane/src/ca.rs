//! The control plane's own authority: it signs the certificate that the control plane shows, and those of gateways.
//!
//! Gateways pin it by digest (it is in their claim token), so its life is long and nobody else vouches for it. Its key is a file that only the
//! control plane's user reads; who has that file can be any gateway, but cannot sign what gateways run.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, SubjectPublicKeyInfoDer};
use sync_protocol::Digest;
use sync_protocol::name::GatewayName;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::folder::write_secret;

/// A gateway in a cellar is not visited to exchange an authority.
const AUTHORITY_LIFE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
const SERVER_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Renewed when a third is left: a gateway may be off for two months and still need no re-enrolment.
const GATEWAY_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How much a gateway's clock may be behind ours and it still takes its new certificate.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// Longest request for a certificate, in bytes of PEM: an RSA key of 8,192 bits fits.
pub const CSR_BYTES_MAX: usize = 16 * 1024;

/// Why the authority could not be opened, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of it.
    #[error("authority file {0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
    /// It is there already.
    #[error("there is an authority in {0} already: a new one would lock out all gateways")]
    Exists(PathBuf),
    /// What a file holds is no key or certificate, or signing failed.
    #[error("authority: {0}")]
    Certificate(String),
    /// Neither a host name nor an address.
    #[error("`{0}` is neither a host name nor an address")]
    Name(String),
    /// The request is malformed, or not signed by the key that it names.
    #[error("the request for a certificate is refused: {0}")]
    Request(&'static str),
    /// The system gave no random bytes.
    #[error("the system has no random bytes: {0}")]
    Random(String),
}

fn certificate(error: impl std::fmt::Display) -> CaError {
    CaError::Certificate(error.to_string())
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// In PEM, the authority's behind it.
    pub chain_pem: String,
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// SHA-256 of [`Issued::der`].
    pub fingerprint: Digest,
    /// Unix time at which it expires.
    pub not_after_ms: u64,
}

/// The authority with its key.
pub struct Authority {
    der: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.digest())
    }
}

impl Authority {
    /// Makes one, in files `ca.pem` and `ca-key.pem` of `folder`.
    ///
    /// # Errors
    /// When there is one already, or a file cannot be written.
    pub fn create(folder: &Path, now_ms: u64) -> Result<Self, CaError> {
        let (pem_path, key_path) = (folder.join("ca.pem"), folder.join("ca-key.pem"));
        if pem_path.exists() || key_path.exists() {
            return Err(CaError::Exists(folder.to_owned()));
        }
        let key = KeyPair::generate().map_err(certificate)?;
        let mut params = params("Tidegate control plane", now_ms, AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.self_signed(&key).map_err(certificate)?;
        let write = |path: &Path, text: String| {
            write_secret(path, text.as_bytes()).map_err(|error| CaError::File(path.to_owned(), error))
        };
        write(&key_path, key.serialize_pem())?;
        write(&pem_path, signed.pem())?;
        Self::open(folder)
    }

    /// Reads the one in `folder`.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, CaError> {
        let pem = read(&folder.join("ca.pem"))?;
        let key = KeyPair::from_pem(&read(&folder.join("ca-key.pem"))?).map_err(certificate)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(certificate)?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(certificate)?;
        Ok(Self { der, pem, issuer })
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// What claim tokens pin: the SHA-256 of its certificate.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// A certificate for the control plane itself, and its key in PEM.
    ///
    /// # Errors
    /// When one of `names` is neither a host name nor an address.
    pub fn sign_server(&self, names: &[String], now_ms: u64) -> Result<(Issued, String), CaError> {
        let key = KeyPair::generate().map_err(certificate)?;
        let mut params = params(names.first().map_or("tidegate", String::as_str), now_ms, SERVER_LIFE)?;
        for name in names {
            let name_error = |_| CaError::Name(name.clone());
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    rustls_pki_types::DnsName::try_from(name.as_str()).map_err(|_| CaError::Name(name.clone()))?;
                    SanType::DnsName(name.as_str().try_into().map_err(name_error)?)
                }
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key_pem = key.serialize_pem();
        Ok((self.sign(&params, &key, now_ms, SERVER_LIFE)?, key_pem))
    }

    /// A certificate by which `gateway` is known. Of what it asked for, only the key counts.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign_gateway(&self, gateway: &GatewayName, key: &RequestedKey, now_ms: u64) -> Result<Issued, CaError> {
        let mut params = params(gateway.as_str(), now_ms, GATEWAY_LIFE)?;
        let uri = format!("urn:tidegate:gateway:{gateway}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(certificate)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, &key.0, now_ms, GATEWAY_LIFE)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl rcgen::PublicKeyData,
        now_ms: u64,
        life: Duration,
    ) -> Result<Issued, CaError> {
        let signed = params.signed_by(key, &self.issuer).map_err(certificate)?;
        let not_after_ms = end_ms(now_ms, life);
        Ok(Issued {
            chain_pem: format!("{}{}", signed.pem(), self.pem),
            fingerprint: Digest::of(signed.der()),
            der: signed.der().clone(),
            not_after_ms,
        })
    }
}

/// Certificates count in whole seconds.
fn end_ms(now_ms: u64, life: Duration) -> u64 {
    (now_ms / 1000 + life.as_secs()) * 1000
}

fn params(common_name: &str, now_ms: u64, life: Duration) -> Result<CertificateParams, CaError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now_ms / 1000);
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| CaError::Random(error.to_string()))?;
    // A serial number is positive (RFC 5280, 4.1.2.2), and DER must not need a byte in front to say so.
    serial[0] = serial[0] & 0x3f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // A common name has at most 64 characters (RFC 5280, upper bounds); a gateway's name always fits.
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + life;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The public key of a request, whose owner has proven to have the secret one.
#[derive(Debug)]
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Reads a PKCS #10 request in PEM, and checks its signature by the key in it.
    ///
    /// # Errors
    /// When it is malformed, not signed by its own key, or the key is none of Ed25519, ECDSA (P-256, P-384) and RSA (2,048 bits and more).
    pub fn from_pem(csr: &str) -> Result<Self, CaError> {
        if csr.len() > CSR_BYTES_MAX {
            return Err(CaError::Request("it is too long"));
        }
        let malformed = CaError::Request("it is no PKCS #10 request in PEM");
        let Ok(der) = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()) else { return Err(malformed) };
        let Ok((rest, request)) = X509CertificationRequest::from_der(&der) else { return Err(malformed) };
        if !rest.is_empty() {
            return Err(malformed);
        }
        let info = &request.certification_request_info;
        let spki = info.subject_pki.raw;
        let oid = request.signature_algorithm.algorithm.to_id_string();
        let signed = (info.raw, request.signature_value.data.as_ref());
        if !signed_by(spki, &oid, signed.0, signed.1) {
            return Err(CaError::Request(
                "it is not signed by the key in it, or by a kind of key that is not known here",
            ));
        }
        let key =
            SubjectPublicKeyInfo::from_der(spki).map_err(|_| CaError::Request("its kind of key is not known here"))?;
        Ok(Self(key))
    }

    /// SHA-256 of the key: by it a repeated request is told from one of another machine.
    pub fn digest(&self) -> Digest {
        use rcgen::PublicKeyData as _;
        Digest::of(&self.0.subject_public_key_info())
    }
}

/// Whether `signature` over `message` is of the key `spki`, by the algorithm that X.509 calls `oid`.
fn signed_by(spki: &[u8], oid: &str, message: &[u8], signature: &[u8]) -> bool {
    use rustls::SignatureScheme as Scheme;
    let scheme = match oid {
        "1.3.101.112" => Scheme::ED25519,
        "1.2.840.10045.4.3.2" => Scheme::ECDSA_NISTP256_SHA256,
        "1.2.840.10045.4.3.3" => Scheme::ECDSA_NISTP384_SHA384,
        "1.2.840.113549.1.1.11" => Scheme::RSA_PKCS1_SHA256,
        "1.2.840.113549.1.1.12" => Scheme::RSA_PKCS1_SHA384,
        "1.2.840.113549.1.1.13" => Scheme::RSA_PKCS1_SHA512,
        _ => return false,
    };
    verify_signature(spki, scheme, message, signature)
}

/// Whether `signature` over `message` is of the key `spki`; ECDSA in its ASN.1 form.
pub(crate) fn verify_signature(spki: &[u8], scheme: rustls::SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
    let provider = rustls::crypto::ring::default_provider();
    let spki = SubjectPublicKeyInfoDer::from(spki);
    let Ok(key) = webpki::RawPublicKeyEntity::try_from(&spki) else { return false };
    let mapping = provider.signature_verification_algorithms.mapping;
    // One scheme stands for several pairs of curve and hash, as in TLS 1.2; the key's own curve decides.
    let algorithms = mapping.iter().filter(|(known, _)| *known == scheme).flat_map(|(_, algorithms)| algorithms.iter());
    algorithms.into_iter().any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|error| CaError::File(path.to_owned(), error))
}

/// Whether a certificate that ends at `not_after_ms` is to be renewed by now: less than a third of its life is left.
pub(crate) fn server_renewal_due(not_after_ms: u64, now_ms: u64) -> bool {
    let third = u64::try_from(SERVER_LIFE.as_millis() / 3).unwrap_or(u64::MAX);
    now_ms.saturating_add(third) >= not_after_ms
}
