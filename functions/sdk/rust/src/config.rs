//! The `environment` and `secrets` of the function's configuration.

use crate::failure::Failure;
use crate::host;

/// The setting of that name, if there is one.
///
/// # Errors
/// [`Failure::Retry`] when the gateway cannot say.
pub fn get(name: &str) -> Result<Option<String>, Failure> {
    host::config_get(name)
}

/// The setting of that name.
///
/// # Errors
/// [`Failure::Reject`] when there is none.
pub fn require(name: &str) -> Result<String, Failure> {
    get(name)?.ok_or_else(|| Failure::reject(format_args!("setting `{name}` is missing: set it in `environment`")))
}

/// All settings.
///
/// # Errors
/// [`Failure::Retry`] when the gateway cannot say.
pub fn all() -> Result<Vec<(String, String)>, Failure> {
    host::config_all()
}
