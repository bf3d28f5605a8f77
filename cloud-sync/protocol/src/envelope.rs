//! A document with its signatures: `{"signed": {…}, "signatures": [{"keyid", "sig"}]}`, as in TUF.
//!
//! Signed is the canonical JSON (RFC 8785) of `signed`: members sorted by name, no white space, whole numbers only. What was received is checked
//! with all that it holds, so a member that this version does not know still counts.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::canonical;
use crate::key::{KeyId, PublicKey, SecretKey};
use crate::limits::{ENVELOPE_BYTES_MAX, SIGNATURES_MAX};
use crate::{Digest, RoleKeys};

/// What can be signed: each kind says its name within, so that one never passes for another.
pub trait Document: Serialize + DeserializeOwned {
    /// The value of `_type`.
    const TYPE: &'static str;
    /// Most bytes of its canonical form.
    const BYTES_MAX: usize;
}

/// Why an envelope is not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON, or not an envelope.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// Another kind of document.
    #[error("it is a `{found}`, not a `{wanted}`")]
    Type {
        /// What it should be.
        wanted: &'static str,
        /// What it says.
        found: String,
    },
    /// More than is allowed.
    #[error("it has {count} {unit}, more than {max}")]
    TooMuch {
        /// How many there are.
        count: usize,
        /// Of what.
        unit: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// Too few of the keys that may sign have signed.
    #[error("{valid} of the {threshold} signatures that it needs are there and valid")]
    Threshold {
        /// Different keys of the role whose signature is valid.
        valid: usize,
        /// How many it takes.
        threshold: usize,
    },
}

/// A signature over the canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Whose.
    pub keyid: KeyId,
    /// Its 64 bytes in hexadecimal.
    pub sig: String,
}

/// A document that somebody claims was signed. Nothing of it is to be used before [`Envelope::verify`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    #[serde(deserialize_with = "canonical::strict")]
    signed: Value,
    #[serde(deserialize_with = "canonical::at_most::<_, _, SIGNATURES_MAX>")]
    signatures: Vec<Signature>,
}

impl Envelope {
    /// Signs `document` with each of `keys`.
    ///
    /// # Errors
    /// When the document holds what canonical JSON has no form for: a fraction, or a number beyond 2^53.
    pub fn sign<T: Document>(document: &T, keys: &[&SecretKey]) -> Result<Self, EnvelopeError> {
        let mut signed = serde_json::to_value(document).map_err(malformed)?;
        if let Value::Object(members) = &mut signed {
            members.insert("_type".to_owned(), T::TYPE.into());
        }
        let mut envelope = Self { signed, signatures: Vec::new() };
        for key in keys {
            envelope.add_signature(key)?;
        }
        Ok(envelope)
    }

    /// Adds one more signature, which replaces an earlier one of the same key: so several people can sign one after the other.
    ///
    /// # Errors
    /// As [`Envelope::sign`].
    pub fn add_signature(&mut self, key: &SecretKey) -> Result<(), EnvelopeError> {
        let keyid = key.public().id();
        let sig = hex::encode(key.sign(&self.canonical()?));
        self.signatures.retain(|signature| signature.keyid != keyid);
        self.signatures.push(Signature { keyid, sig });
        Ok(())
    }

    /// Reads one; nothing is verified yet.
    ///
    /// # Errors
    /// When it is malformed or too large for any document.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        at_most(bytes.len(), "bytes", ENVELOPE_BYTES_MAX)?;
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The document, when at least the threshold of `keys` have signed it. A key counts once, however often it signed.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn verify<T: Document>(&self, keys: &RoleKeys) -> Result<T, EnvelopeError> {
        at_most(self.canonical()?.len(), "bytes", T::BYTES_MAX)?;
        let (valid, threshold) = (self.valid_signers(keys)?.len(), keys.threshold.max(1));
        if valid < threshold {
            return Err(EnvelopeError::Threshold { valid, threshold });
        }
        self.unverified()
    }

    /// Those of `keys` that have validly signed it.
    pub(crate) fn valid_signers(&self, keys: &RoleKeys) -> Result<BTreeSet<KeyId>, EnvelopeError> {
        at_most(self.signatures.len(), "signatures", SIGNATURES_MAX)?;
        let canonical = self.canonical()?;
        let valid = |signature: &&Signature| {
            let mut bytes = [0; 64];
            let key: Option<&PublicKey> = keys.keys.get(&signature.keyid);
            key.is_some_and(|key| {
                key.id() == signature.keyid
                    && hex::decode_to_slice(&signature.sig, &mut bytes).is_ok()
                    && key.verify(&canonical, &bytes)
            })
        };
        Ok(self.signatures.iter().filter(valid).map(|signature| signature.keyid).collect())
    }

    /// What it says, whoever signed it: to show, or to find the keys that it has to be verified with.
    ///
    /// # Errors
    /// When it is malformed or of another kind.
    pub fn unverified<T: Document>(&self) -> Result<T, EnvelopeError> {
        let found = self.signed.get("_type").and_then(Value::as_str).unwrap_or("");
        if found != T::TYPE {
            return Err(EnvelopeError::Type { wanted: T::TYPE, found: found.chars().take(40).collect() });
        }
        let mut signed = self.signed.clone();
        if let Value::Object(members) = &mut signed {
            members.remove("_type");
        }
        serde_json::from_value(signed).map_err(malformed)
    }

    /// Who claims to have signed.
    pub fn signers(&self) -> impl Iterator<Item = KeyId> {
        self.signatures.iter().map(|signature| signature.keyid)
    }

    /// The digest of what is signed, whoever signed it: by which other documents refer to it.
    ///
    /// # Errors
    /// As [`Envelope::sign`].
    pub fn digest(&self) -> Result<Digest, EnvelopeError> {
        Ok(Digest::of(&self.canonical()?))
    }

    /// As text for people and files: indented, members sorted.
    pub fn to_pretty(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    fn canonical(&self) -> Result<Vec<u8>, EnvelopeError> {
        canonical::canonical(&self.signed).map_err(EnvelopeError::Malformed)
    }
}

fn at_most(count: usize, unit: &'static str, max: usize) -> Result<(), EnvelopeError> {
    if count > max { Err(EnvelopeError::TooMuch { count, unit, max }) } else { Ok(()) }
}

fn malformed(error: impl fmt::Display) -> EnvelopeError {
    EnvelopeError::Malformed(error.to_string())
}
