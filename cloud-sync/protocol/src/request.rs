//! Requests that a gateway signs with its own key, where a proxy on the way ends TLS and mutual TLS cannot pass: the part of RFC 9421 that this
//! takes, with the body bound by RFC 9530's `Content-Digest`.
//!
//! Covered is always the same: method, path, query and body. The host is not, since proxies change it; the gateway's name is in the path.
//! Who signs holds the key of the certificate that comes along in [`CERTIFICATE`]; which algorithm that is, the certificate says.
//!
//! A request is good for [`FRESH_SECS`] before and after `created`, and once: [`Replays`]. A gateway without a clock takes the time from the `Date`
//! of an answer, and signs again.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Header with the gateway's certificate chain: base64 of DER, its own first, separated by commas.
pub const CERTIFICATE: &str = "tidegate-certificate";
/// Header of RFC 9421: what is covered, and when it was signed.
pub const SIGNATURE_INPUT: &str = "signature-input";
/// Header of RFC 9421: the signature.
pub const SIGNATURE: &str = "signature";
/// Header of RFC 9530: the digest of the body, also of an empty one.
pub const CONTENT_DIGEST: &str = "content-digest";

/// How far `created` may be from the server's clock, in seconds.
pub const FRESH_SECS: u64 = 300;
/// Most requests that are remembered within that time.
pub const REPLAYS_MAX: usize = 100_000;

const LABEL: &str = "tidegate=";
const COMPONENTS: &str = r#"("@method" "@path" "@query" "content-digest")"#;
/// Longest nonce, in characters.
const NONCE_BYTES_MAX: usize = 64;

/// Why a signed request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A header is missing, or not as this side writes it.
    #[error("header `{0}` is missing or malformed")]
    Header(&'static str),
    /// The body is not the one that was signed.
    #[error("the body does not have the digest that `content-digest` says")]
    Body,
    /// Signed too long ago, or in the future.
    #[error(
        "the request was signed at {created}, and it is {now} here (seconds of Unix time): more than {FRESH_SECS} s apart"
    )]
    NotFresh {
        /// When it was signed.
        created: u64,
        /// The server's time.
        now: u64,
    },
    /// It came before.
    #[error("the same signed request came before")]
    Replayed,
    /// So many came that no more can be remembered.
    #[error("more than {REPLAYS_MAX} signed requests within {FRESH_SECS} s")]
    TooMany,
}

/// What is signed of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered<'a> {
    /// `GET`, ….
    pub method: &'a str,
    /// As in the request line, without the query.
    pub path: &'a str,
    /// Without its `?`; empty when there is none.
    pub query: &'a str,
    /// Value of [`CONTENT_DIGEST`]: [`content_digest`] of the body.
    pub content_digest: &'a str,
    /// Unix time in seconds.
    pub created: u64,
    /// Random, new for each request; letters and digits.
    pub nonce: &'a str,
}

impl Covered<'_> {
    /// The signature base (RFC 9421, section 2.5): the bytes that are signed.
    pub fn base(&self) -> String {
        let Self { method, path, query, content_digest, .. } = self;
        format!(
            "\"@method\": {method}\n\"@path\": {path}\n\"@query\": ?{query}\n\"content-digest\": {content_digest}\n\"@signature-params\": {}",
            self.params()
        )
    }

    /// Value of [`SIGNATURE_INPUT`].
    pub fn signature_input(&self) -> String {
        format!("{LABEL}{}", self.params())
    }

    fn params(&self) -> String {
        format!("{COMPONENTS};created={};nonce=\"{}\"", self.created, self.nonce)
    }
}

/// The signature base of a request: see [`Covered::base`].
pub fn covered(method: &str, path: &str, query: &str, content_digest: &str, created: u64, nonce: &str) -> String {
    Covered { method, path, query, content_digest, created, nonce }.base()
}

/// Value of [`CONTENT_DIGEST`] for `body`.
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

/// Value of [`SIGNATURE`].
pub fn signature(bytes: &[u8]) -> String {
    format!("{LABEL}:{}:", STANDARD.encode(bytes))
}

/// The headers of a signed request; nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHeaders {
    /// Unix time in seconds.
    pub created: u64,
    /// Random.
    pub nonce: String,
    /// Value of [`CONTENT_DIGEST`].
    pub content_digest: String,
    /// The signature.
    pub signature: Vec<u8>,
}

impl SignedHeaders {
    /// Reads the headers, each by its name. Only what [`Covered`] writes is taken, so that there is nothing to choose for an attacker.
    ///
    /// # Errors
    /// With the header that is missing or malformed.
    pub fn parse<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Result<Self, RequestError> {
        let get = |name| header(name).ok_or(RequestError::Header(name));
        let input = get(SIGNATURE_INPUT)?;
        let (created, nonce) = parse_input(input).ok_or(RequestError::Header(SIGNATURE_INPUT))?;
        let encoded = get(SIGNATURE)?.strip_prefix(LABEL).and_then(|text| text.strip_prefix(':')?.strip_suffix(':'));
        let signature = encoded.and_then(|text| STANDARD.decode(text).ok()).ok_or(RequestError::Header(SIGNATURE))?;
        Ok(Self { created, nonce, content_digest: get(CONTENT_DIGEST)?.to_owned(), signature })
    }

    /// What they say is signed of this request.
    pub fn covered<'a>(&'a self, method: &'a str, path: &'a str, query: &'a str) -> Covered<'a> {
        let Self { created, nonce, content_digest, .. } = self;
        Covered { method, path, query, content_digest, created: *created, nonce }
    }

    /// The bytes that must have been signed for this request, whose body is checked here.
    ///
    /// # Errors
    /// When the body is another one.
    pub fn base(&self, method: &str, path: &str, query: &str, body: &[u8]) -> Result<String, RequestError> {
        if self.content_digest != content_digest(body) {
            return Err(RequestError::Body);
        }
        Ok(self.covered(method, path, query).base())
    }
}

fn parse_input(input: &str) -> Option<(u64, String)> {
    let rest = input.strip_prefix(LABEL)?.strip_prefix(COMPONENTS)?.strip_prefix(";created=")?;
    let (created, nonce) = rest.split_once(";nonce=\"")?;
    let nonce = nonce.strip_suffix('"')?;
    let plain = !nonce.is_empty() && nonce.len() <= NONCE_BYTES_MAX && nonce.bytes().all(|b| b.is_ascii_alphanumeric());
    let created: u64 = created.parse().ok().filter(|number: &u64| number.to_string() == created)?;
    plain.then(|| (created, nonce.to_owned()))
}

/// The signed requests of the last minutes, so that each counts once. To be asked after the signature was verified: what others send takes no room.
#[derive(Debug, Default)]
pub struct Replays {
    seen: BTreeSet<(u64, Digest)>,
}

impl Replays {
    /// Remembers the request whose signature `base` is; `now` is Unix time in seconds.
    ///
    /// # Errors
    /// When it is not of now, came before, or too many came.
    pub fn check(&mut self, created: u64, base: &str, now: u64) -> Result<(), RequestError> {
        if created.abs_diff(now) > FRESH_SECS {
            return Err(RequestError::NotFresh { created, now });
        }
        let oldest = (now.saturating_sub(FRESH_SECS), Digest::LOWEST);
        self.seen = self.seen.split_off(&oldest);
        if self.seen.len() >= REPLAYS_MAX {
            return Err(RequestError::TooMany);
        }
        if self.seen.insert((created, Digest::of(base.as_bytes()))) { Ok(()) } else { Err(RequestError::Replayed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"hello": "world"}"#;

    fn request(digest: &str) -> Covered<'_> {
        let path = "/v1/gateways/press-hall-3/desired";
        Covered {
            method: "GET",
            path,
            query: "wait=60&root=2",
            content_digest: digest,
            created: 1_700_000_000,
            nonce: "7f3a",
        }
    }

    fn headers(change: impl Fn(&str, String) -> Option<String>) -> Result<SignedHeaders, RequestError> {
        let digest = content_digest(BODY);
        let input = change(SIGNATURE_INPUT, request(&digest).signature_input());
        let signed = change(SIGNATURE, signature(&[1, 2, 3]));
        let digest = change(CONTENT_DIGEST, digest.clone());
        SignedHeaders::parse(|name| match name {
            SIGNATURE_INPUT => input.as_deref(),
            SIGNATURE => signed.as_deref(),
            _ => digest.as_deref(),
        })
    }

    /// The digest is the one of RFC 9530, appendix B.1; the base is laid out as in RFC 9421, section 2.5.
    #[test]
    fn what_is_signed_is_what_rfc_9421_says() {
        let digest = content_digest(BODY);
        assert_eq!(digest, "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:");
        let expected = concat!(
            "\"@method\": GET\n",
            "\"@path\": /v1/gateways/press-hall-3/desired\n",
            "\"@query\": ?wait=60&root=2\n",
            "\"content-digest\": sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:\n",
            "\"@signature-params\": (\"@method\" \"@path\" \"@query\" \"content-digest\");created=1700000000;nonce=\"7f3a\"",
        );
        assert_eq!(request(&digest).base(), expected);
    }

    #[test]
    fn the_server_reads_what_the_gateway_wrote() {
        let read = headers(|_, value| Some(value)).unwrap();
        let digest = content_digest(BODY);
        let covered = request(&digest);
        assert_eq!(read.base(covered.method, covered.path, covered.query, BODY), Ok(covered.base()));
        assert_eq!(read.signature, [1, 2, 3]);
        for other in [
            read.base("POST", covered.path, covered.query, BODY),
            read.base(covered.method, "/v1/gateways/press-hall-4/desired", covered.query, BODY),
            read.base(covered.method, covered.path, "wait=60&root=1", BODY),
        ] {
            assert_ne!(other, Ok(covered.base()));
        }
        assert_eq!(read.base(covered.method, covered.path, covered.query, b"{}"), Err(RequestError::Body));
    }

    #[test]
    fn a_signature_that_covers_less_is_refused() {
        for header in [SIGNATURE_INPUT, SIGNATURE, CONTENT_DIGEST] {
            let left_out = headers(|name, value| (name != header).then_some(value));
            assert_eq!(left_out, Err(RequestError::Header(header)));
        }
        let input = |from: &'static str, to: &'static str| headers(move |_, value| Some(value.replace(from, to)));
        for (from, to) in [
            ("\"@query\" ", ""),
            ("created=1700000000", "created=01700000000"),
            ("created=1700000000", "created=-1"),
            ("nonce=\"7f3a\"", "nonce=\"\""),
            ("nonce=\"7f3a\"", "nonce=\"7f\n3a\""),
            (";nonce=\"7f3a\"", ""),
            ("tidegate=(", "other=("),
        ] {
            assert_eq!(input(from, to), Err(RequestError::Header(SIGNATURE_INPUT)), "{from} {to}");
        }
    }

    #[test]
    fn a_request_counts_once_and_only_now() {
        let mut replays = Replays::default();
        let now = 1_700_000_000;
        assert_eq!(replays.check(now, "one", now), Ok(()));
        assert_eq!(replays.check(now, "one", now + FRESH_SECS), Err(RequestError::Replayed));
        assert_eq!(replays.check(now, "other", now), Ok(()));
        for (created, now) in [(now, now + FRESH_SECS + 1), (now + FRESH_SECS + 1, now), (0, now)] {
            assert_eq!(replays.check(created, "one", now), Err(RequestError::NotFresh { created, now }));
        }
        assert_eq!(replays.check(now + 900, "later", now + 900), Ok(()));
        assert_eq!(replays.seen.len(), 1, "those of earlier are forgotten");
    }
}
