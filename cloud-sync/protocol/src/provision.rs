//! How a gateway gets its identity: `POST /v1/provision` and `POST /v1/gateways/{id}/renew`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::envelope::Envelope;
use crate::name::{GatewayName, GroupName};

/// What an operator gives to a new gateway, or puts into a golden image: `tgc1.ID.SECRET.CA.ROOT`.
///
/// Beside its secret it names the control plane's authority and root of trust by digest, so that neither has to be believed on first sight.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimToken {
    /// Which one, for lists and the audit log.
    pub id: String,
    /// 32 random bytes in hexadecimal; the control plane keeps only its digest.
    pub secret: String,
    /// Of the DER of the authority that signs the control plane's and the gateways' certificates.
    pub ca: Digest,
    /// [`Envelope::digest`] of the first root that the gateway is to trust.
    pub root: Digest,
}

/// Why something is no claim token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no claim token: it must be the whole text that `tidegate fleet claim` printed, `tgc1.` and four parts"
)]
pub struct ClaimTokenError;

impl FromStr for ClaimToken {
    type Err = ClaimTokenError;
    fn from_str(text: &str) -> Result<Self, ClaimTokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let ["tgc1", id, secret, ca, root] = parts[..] else { return Err(ClaimTokenError) };
        let digest = |hex: &str| format!("sha256:{hex}").parse().map_err(|_| ClaimTokenError);
        if id.is_empty() || secret.len() != 64 || !id.bytes().chain(secret.bytes()).all(|b| b.is_ascii_alphanumeric()) {
            return Err(ClaimTokenError);
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), ca: digest(ca)?, root: digest(root)? })
    }
}

impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tgc1.{}.{}.{}.{}", self.id, self.secret, self.ca.hex(), self.root.hex())
    }
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimToken({})", self.id)
    }
}

/// `POST /v1/provision`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// [`ClaimToken::id`].
    pub claim: String,
    /// [`ClaimToken::secret`].
    pub secret: String,
    /// The name that the gateway wants.
    pub name: GatewayName,
    /// PKCS #10 request in PEM; the key stays on the gateway.
    pub csr: String,
    /// Random, made once per identity and kept: the same request may come again when an answer was lost.
    pub nonce: String,
}

/// The answer to it, and to a renewal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provisioned {
    /// Its name from now on: another one when the wanted one is taken and the token allows it.
    pub name: GatewayName,
    /// Its groups.
    pub groups: Vec<GroupName>,
    /// Certificate chain in PEM, the gateway's first.
    pub certificate: String,
    /// The control plane's authority in PEM.
    pub ca: String,
    /// All roots from the first.
    pub roots: Vec<Envelope>,
}

/// `POST /v1/gateways/{id}/renew`, with the certificate of now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// PKCS #10 request in PEM, with the same key or a new one.
    pub csr: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_token_is_one_word_that_can_be_pasted() {
        let token = ClaimToken {
            id: "7f3a".to_owned(),
            secret: "0a".repeat(32),
            ca: Digest::of(b"ca"),
            root: Digest::of(b"root"),
        };
        let text = token.to_string();
        assert!(text.starts_with("tgc1.7f3a.") && !text.contains(char::is_whitespace), "{text}");
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "ClaimToken(7f3a)");
        for wrong in [&text[1..], &text[..text.len() - 1], &text.replace("tgc1", "tgc2"), &format!("{text}.x"), ""] {
            assert_eq!(wrong.parse::<ClaimToken>(), Err(ClaimTokenError), "{wrong}");
        }
    }
}
