//! Keys of those who sign: Ed25519 (RFC 8032), secret ones in PKCS #8 PEM as `openssl genpkey` writes them.

use std::fmt;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::Digest;

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes of a point on the curve, or a weak one.
    #[error("`{0}` is no Ed25519 public key in hexadecimal")]
    Public(String),
    /// No PEM of an Ed25519 secret key.
    #[error("this is no Ed25519 secret key in PKCS #8 PEM")]
    Secret,
    /// The system gave no random bytes.
    #[error("the system has no random bytes: {0}")]
    Random(String),
}

/// A public key; in JSON its 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// What signatures name it by: the SHA-256 of its 32 bytes.
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(self.0.as_bytes()))
    }

    /// Whether `signature` is this key's over `message`; strict, so that no signature has a second form.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        let wrong = || KeyError::Public(text.chars().take(80).collect());
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| wrong())?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| wrong())?;
        if key.is_weak() { Err(wrong()) } else { Ok(Self(key)) }
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        hex::encode(key.0.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(*self))
    }
}

/// Which key: the SHA-256 of a public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub Digest);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex()[..16])
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret key. Its text is never shown by `Debug`.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new one, from the system's random bytes.
    ///
    /// # Errors
    /// When the system has none.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| KeyError::Random(error.to_string()))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads PKCS #8 PEM.
    ///
    /// # Errors
    /// When it is none of Ed25519.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| KeyError::Secret)
    }

    /// As PKCS #8 PEM: to be kept where only its owner reads it.
    ///
    /// # Errors
    /// Never for a key that exists.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0.to_pkcs8_pem(LineEnding::LF).map(|pem| pem.as_str().to_owned()).map_err(|_| KeyError::Secret)
    }

    /// The key that others verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 8410, section 10.3, as `openssl genpkey -algorithm ed25519` writes one.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";

    fn public(text: &str) -> Result<PublicKey, KeyError> {
        PublicKey::try_from(text.to_owned())
    }

    #[test]
    fn a_key_that_openssl_made_signs() {
        let key = SecretKey::from_pem(PEM).unwrap();
        assert_eq!(String::from(key.public()), PUBLIC);
        let signature = key.sign(b"message");
        assert!(public(PUBLIC).unwrap().verify(b"message", &signature));
        assert!(!key.public().verify(b"massage", &signature));
    }

    #[test]
    fn a_key_is_kept_as_openssl_keeps_it() {
        let key = SecretKey::generate().unwrap();
        let again = SecretKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        assert!(SecretKey::from_pem("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n").is_err());
        assert!(SecretKey::from_pem(PUBLIC).is_err());
    }

    /// Test 3 of RFC 8032, section 7.1.
    #[test]
    fn a_signature_is_one_of_rfc_8032() {
        let key = public("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025").unwrap();
        let hex = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";
        let mut signature = [0; 64];
        hex::decode_to_slice(hex, &mut signature).unwrap();
        assert!(key.verify(&[0xaf, 0x82], &signature));
    }

    /// For a point of small order a signature can be made that holds for any message.
    #[test]
    fn a_weak_key_is_none() {
        for weak in ["01", "00", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"] {
            assert!(public(&format!("{weak:0<64}")).is_err(), "{weak}");
        }
        for wrong in ["", &PUBLIC[2..], &PUBLIC.replace('1', "g")] {
            assert!(public(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_key_does_not_show() {
        let key = SecretKey::from_pem(PEM).unwrap();
        assert_eq!(format!("{key:?}"), format!("SecretKey({})", key.public().id()));
    }
}
