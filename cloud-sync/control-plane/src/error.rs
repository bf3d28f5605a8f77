//! What a call is answered with when it is refused: `{"error": "what, which, why not", "hint": "…"}`.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sync_protocol::Refused;
use utoipa::ToSchema;

use crate::store::StoreError;

/// A refusal. Its text is for the caller; what went wrong inside goes to the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What, which, why not.
    pub error: String,
    /// What to do; empty when there is nothing to say.
    pub hint: String,
}

/// How an [`ApiError`] looks on the wire.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What, which, why not.
    pub error: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl ApiError {
    /// A refusal without a hint.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: String::new() }
    }

    /// 400: the request cannot be read.
    pub fn malformed(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 404: `what` is not here.
    pub fn missing(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    /// 409: it contradicts what is here.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// 422: it was understood, and is not allowed.
    pub fn refused(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error)
    }

    /// 413: larger than a bound.
    pub fn too_large(what: impl std::fmt::Display, max: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{what}: more than {max}"))
    }

    /// 500: our own fault. `cause` goes to the log, not to the caller.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "a call could not be answered");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the control plane could not do it; its log says why")
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// What the shared checks refuse: the same words here as on a gateway.
impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::Malformed { .. } => StatusCode::BAD_REQUEST,
            Refused::TooMuch { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::RootVersion { .. } | Refused::Changed { .. } => StatusCode::CONFLICT,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, refused.to_string()).hint(refused.hint())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(what) => Self::missing(what),
            StoreError::Conflict(why) => Self::conflict(why),
            StoreError::Broken { .. } => Self::internal(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, axum::Json(ErrorBody { error: self.error, hint: self.hint })).into_response()
    }
}
