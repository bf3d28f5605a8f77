//! How a new gateway becomes one of the fleet: a claim token and a request for a certificate.

use std::path::{Path, PathBuf};

use sync_protocol::limits::ROOTS_MAX;
use sync_protocol::name::GatewayName;
use sync_protocol::provision::{ClaimToken, ProvisionRequest, Provisioned};
use sync_protocol::trust::Trust;
use sync_protocol::{Digest, Refused};

use crate::error::SessionError;
use crate::identity::{self, Identity, IdentityError, Request};
use crate::limits::PROVISIONED_BYTES_MAX;
use crate::session::SessionConfig;
use crate::tls::Authorities;
use crate::transport::{Call, Transport};
use crate::trust_store::{TrustError, TrustStore};
use crate::{Now, files};

/// Why a gateway is not provisioned.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// There is no identity, and nothing to get one with.
    #[error("this gateway has no identity yet, and there is no claim token in {}", .0.display())]
    NoToken(PathBuf),
    /// The token cannot be read, or is none.
    #[error("claim token {}: {why}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The call failed.
    #[error("cannot provision this gateway: {0}")]
    Session(#[from] SessionError),
    /// The control plane showed another authority than the token names.
    #[error("the control plane sent an authority that is not {expected}, which the claim token names")]
    Authority {
        /// What the token names.
        expected: Digest,
    },
    /// The control plane showed a root of trust that is not that of the token.
    #[error("the control plane's root of trust is refused: {0}")]
    Root(#[from] Refused),
    /// Something cannot be kept.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// What is trusted cannot be kept.
    #[error("{0}")]
    Trust(#[from] TrustError),
}

impl ProvisionError {
    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoToken(_) | Self::Token { .. } => Some(
                "`tidegate fleet claim` prints one; put it into the file that `claim_token_file` of `[cloud]` names",
            ),
            Self::Authority { .. } | Self::Root(_) => {
                Some("is the claim token of this control plane? `url` of `[cloud]` says which one that is")
            }
            Self::Session(error) => error.hint(),
            Self::Identity(error) => error.hint(),
            Self::Trust(_) => None,
        }
    }
}

/// Gets an identity for `name` with the claim token in `token`, and puts it into `folder`; what is to be trusted goes into `trust`.
///
/// What was begun goes on: the same key and nonce are sent, for which the control plane gives the same answer again.
pub(crate) async fn provision(
    folder: &Path,
    trust: &TrustStore,
    name: &GatewayName,
    token: &Path,
    config: &SessionConfig,
    now: Now,
) -> Result<Identity, ProvisionError> {
    let token = read_token(token)?;
    let (request, csr) = Request::begin(folder, name)?;
    // Whoever knows the token's secret could be any gateway, so it is shown to nobody but its own control plane.
    let authorities =
        if config.ca.is_empty() { Authorities::Pinned(token.ca) } else { Authorities::Known(config.ca.clone()) };
    let transport = Transport::new(&config.url, authorities, None, None, config.limits, now)?;
    let asked = ProvisionRequest {
        claim: token.id,
        secret: token.secret,
        name: request.wanted.clone(),
        csr,
        nonce: request.nonce.clone(),
    };
    let response = transport.send(Call::post("/v1/provision".to_owned(), &asked)?).await?;
    let answer: Provisioned = transport.read_json(response, PROVISIONED_BYTES_MAX).await?;

    let authorities = identity::certificates(answer.ca.as_bytes()).map_err(IdentityError::Answer)?;
    if !authorities.iter().any(|authority| Digest::of(authority) == token.ca) {
        return Err(ProvisionError::Authority { expected: token.ca });
    }
    let first = answer.roots.first().ok_or_else(|| IdentityError::Answer("no root of trust".to_owned()))?;
    let mut trusted = Trust::anchor(first, &token.root)?;
    for roots in answer.roots[1..].chunks(ROOTS_MAX) {
        trusted.update_roots(roots)?;
    }
    trusted.provisioned(&answer.groups);
    // The identity comes last: with it, provisioning is over.
    trust.begin(trusted)?;
    request.finish(folder, &answer)?;
    Identity::open(folder)?.ok_or_else(|| IdentityError::Answer("no identity".to_owned()).into())
}

fn read_token(path: &Path) -> Result<ClaimToken, ProvisionError> {
    let wrong = |why: String| ProvisionError::Token { path: path.to_owned(), why };
    match files::read(path).map_err(|error| wrong(error.to_string()))? {
        None => Err(ProvisionError::NoToken(path.to_owned())),
        Some(text) => String::from_utf8_lossy(&text).parse().map_err(|error| wrong(format!("{error}"))),
    }
}
