//! What somebody shows of himself: a certificate chain, whose key he has proven to have.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sync_protocol::Digest;
use x509_parser::extensions::GeneralName;

/// The other side of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where from.
    pub address: SocketAddr,
    /// What it showed, its own certificate first; empty: none.
    pub chain: Arc<[CertificateDer<'static>]>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of its DER.
    pub fingerprint: Digest,
    /// Its subject's common name; empty when it has none.
    pub common_name: String,
    /// Names and addresses of hosts that it is for.
    pub hosts: Vec<String>,
    /// Unix time from which it counts.
    pub not_before_ms: u64,
    /// Unix time up to which it counts.
    pub not_after_ms: u64,
    /// Its key: SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl Facts {
    /// Reads a certificate; `None` when it is malformed.
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (rest, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let alternative = parsed.subject_alternative_name().ok()?;
        let names = alternative.iter().flat_map(|names| names.value.general_names.iter());
        let hosts = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        Some(Self {
            fingerprint: Digest::of(der),
            common_name: common_name.unwrap_or_default().to_owned(),
            hosts: hosts.collect(),
            not_before_ms: ms(parsed.validity().not_before.timestamp()),
            not_after_ms: ms(parsed.validity().not_after.timestamp()),
            spki: parsed.public_key().raw.to_vec(),
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Whether `chain` leads to one of `anchors`, for a client, at the time `at_ms`.
pub(crate) fn leads_to(chain: &[CertificateDer<'_>], anchors: &[TrustAnchor<'_>], at_ms: u64) -> bool {
    let [first, intermediates @ ..] = chain else { return false };
    let Ok(certificate) = webpki::EndEntityCert::try_from(first) else { return false };
    let at = UnixTime::since_unix_epoch(Duration::from_millis(at_ms));
    let usage = webpki::KeyUsage::client_auth();
    certificate.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, anchors, intermediates, at, usage, None, None).is_ok()
}
