//! Tokens of people: `tgt1.ID.SECRET`, of which the control plane keeps the SHA-256 of the secret.

use sync_protocol::Digest;

use crate::auth::Role;
use crate::secret;
use crate::store::TokenRow;

const KIND: &str = "tgt1";

/// A new one: what is kept of it, and its text, which is shown once.
///
/// # Errors
/// When the system has no random bytes.
pub fn make(
    name: &str,
    role: Role,
    expires_ms: Option<u64>,
    now_ms: u64,
) -> Result<(TokenRow, String), getrandom::Error> {
    let (id, shown) = (secret::id()?, secret::generate()?);
    let text = format!("{KIND}.{id}.{shown}");
    let row = TokenRow {
        id,
        name: name.to_owned(),
        role,
        secret: Digest::of(shown.as_bytes()),
        created_ms: now_ms,
        expires_ms,
        used_ms: None,
        revoked_ms: None,
    };
    Ok((row, text))
}

/// The id and the digest of the secret in a token's text.
pub fn parse(text: &str) -> Option<(&str, Digest)> {
    let (id, shown) = text.strip_prefix(KIND)?.strip_prefix('.')?.split_once('.')?;
    Some((id, Digest::of(shown.as_bytes())))
}
