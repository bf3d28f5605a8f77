//! Who calls: a person with a role, or a gateway. Handlers ask for [`Caller`] or [`GatewayCaller`]; what found out who it is put it into the request.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use sync_protocol::name::GatewayName;
use utoipa::ToSchema;

use crate::error::ApiError;

/// What a person may do; each may do all that those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads all but secrets.
    Viewer,
    /// Uploads blobs and signed releases, moves aliases.
    Publisher,
    /// Hands in signed deployments, chooses among them, makes groups and claims, sees logs.
    Operator,
    /// Hands in roots, makes tokens.
    Admin,
}

/// A person, by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's name, for the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Caller {
    /// Lets through who has `role` or more.
    ///
    /// # Errors
    /// 403 otherwise.
    pub fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        let word = |role: Role| format!("{role:?}").to_lowercase();
        let error = format!("token `{}` has the role {}, and this takes {}", self.name, word(self.role), word(role));
        Err(ApiError::new(StatusCode::FORBIDDEN, error).hint("use another token: --token-file"))
    }
}

/// A gateway, by its certificate or a signed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayCaller(pub GatewayName);

impl GatewayCaller {
    /// Lets through who calls in its own name.
    ///
    /// # Errors
    /// 403 otherwise.
    pub fn require(&self, name: &GatewayName) -> Result<(), ApiError> {
        if self.0 == *name {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::FORBIDDEN, format!("gateway `{}` may not speak for `{name}`", self.0)))
    }
}

/// Either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anyone {
    /// A person.
    Person(Caller),
    /// A gateway.
    Gateway(GatewayCaller),
}

/// A gateway that may at least renew its certificate, which may have expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewing(pub GatewayName);

/// Why a token or a certificate that came with the request does not count.
#[derive(Clone, Debug)]
pub(crate) struct WhyNot(pub(crate) ApiError);

fn unknown(parts: &Parts, who: &str, hint: &str) -> ApiError {
    let why = parts.extensions.get::<WhyNot>().map(|WhyNot(why)| why.clone());
    why.unwrap_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, format!("this call takes {who}")).hint(hint))
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| unknown(parts, "a person's token", "send `Authorization: Bearer TOKEN`: --token-file"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for GatewayCaller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| {
            unknown(
                parts,
                "a gateway's certificate",
                "provision the gateway, or set `sign_requests` where TLS is taken apart",
            )
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Renewing {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match parts.extensions.get::<Self>() {
            Some(renewing) => Ok(renewing.clone()),
            None => GatewayCaller::from_request_parts(parts, state).await.map(|GatewayCaller(name)| Self(name)),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Anyone {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        if let Ok(gateway) = GatewayCaller::from_request_parts(parts, state).await {
            return Ok(Self::Gateway(gateway));
        }
        Caller::from_request_parts(parts, state).await.map(Self::Person)
    }
}
