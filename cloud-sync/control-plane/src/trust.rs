//! The same checks that gateways make, made early: by the newest root that is here.

use sync_protocol::{Envelope, Refused, Root, Trust};

use crate::error::ApiError;

/// The root that `envelope` brings after `roots`, when it follows the last of them.
///
/// # Errors
/// With what is wrong.
pub fn next_root(roots: &[Envelope], envelope: &Envelope) -> Result<Root, ApiError> {
    let said: Root = envelope.unverified().map_err(Refused::of("the root"))?;
    let (trusted, trust) = match roots.last() {
        None => (0, anchor(envelope)?),
        Some(newest) => {
            let mut trust = anchor(newest)?;
            let trusted = trust.root_version();
            trust.update_roots(std::slice::from_ref(envelope))?;
            (trusted, trust)
        }
    };
    if said.version != trusted + 1 {
        return Err(Refused::RootVersion { trusted, offered: said.version }.into());
    }
    Ok(trust.root().clone())
}

fn anchor(root: &Envelope) -> Result<Trust, Refused> {
    let digest = root.digest().map_err(Refused::of("the root"))?;
    Trust::anchor(root, &digest)
}

/// The newest of `roots`.
///
/// # Errors
/// When none was handed in yet.
pub fn newest(roots: &[Envelope]) -> Result<Root, ApiError> {
    let Some(newest) = roots.last() else {
        let hint = "make one with `tidegate keygen`, then hand it in";
        return Err(ApiError::conflict("no root of trust was handed in yet").hint(hint));
    };
    newest.unverified().map_err(ApiError::internal)
}
