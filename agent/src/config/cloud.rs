//! `[cloud]`: the control plane that this gateway follows, and whom it believes.

use std::path::PathBuf;

use super::read::keys;
use crate::units::Span;

/// `[cloud]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CloudConfig {
    /// `https://cloud.example:8443`. Without it deployments come from files only.
    pub url: Option<String>,
    /// File with the claim token by which the gateway gets its certificate; not needed once it has one.
    pub claim_token_file: Option<PathBuf>,
    /// The first root document that is trusted, where no claim token names it.
    pub root: Option<PathBuf>,
    /// PEM file of the authorities that may sign the control plane's certificate; the one of the claim token unless said.
    pub ca: Option<PathBuf>,
    /// PEM file of a certificate chain that this gateway has already.
    pub cert: Option<PathBuf>,
    /// PEM file of the key of `cert`.
    pub key: Option<PathBuf>,
    /// Signs each request instead of showing the certificate, where a proxy breaks TLS up.
    pub sign_requests: bool,
    /// Takes native code that publishers compiled for this processor, instead of compiling it here.
    pub native_code: bool,
    /// How often the gateway reports when nothing happens.
    pub report_every: Span,
}

keys! { CloudConfig:
    url = optional(),
    claim_token_file = optional(),
    root = optional(),
    ca = optional(),
    cert = optional(),
    key = optional(),
    sign_requests = or(false),
    native_code = or(true),
    report_every = or(Self::default().report_every),
}

impl Default for CloudConfig {
    fn default() -> Self {
        Self {
            url: None,
            claim_token_file: None,
            root: None,
            ca: None,
            cert: None,
            key: None,
            sign_requests: false,
            native_code: true,
            report_every: Span::from_secs(900),
        }
    }
}
