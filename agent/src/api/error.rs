//! What a caller is told when a call fails, and what the log is told beside it.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::name::FunctionName;
use crate::trigger::Refused;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What, which, why not.
    pub error: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A failed call: a text for the caller, and one for the log when there is more to say to whoever runs the gateway.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    log: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// Fails with `status`, saying `error`.
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let body = ErrorBody { error: error.into(), hint: None };
        Self { status, body, log: None, headers: Vec::new() }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    /// What only the log may know.
    pub(super) fn log(mut self, log: impl Into<String>) -> Self {
        self.log = Some(log.into());
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The event was not taken.
    pub(super) fn refused(function: &FunctionName, refused: &Refused) -> Self {
        match refused {
            Refused::Unknown(_) => Self::unknown(function),
            Refused::Full { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("`{function}` did not take the event: {refused}"))
                    .hint("send it again in a moment; if that goes on, give the function more `concurrency`")
                    .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            Refused::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("`{function}` did not take the event: {refused}"))
                    .hint("send it again when the agent is back")
                    .header(header::RETRY_AFTER, HeaderValue::from_static("5"))
            }
        }
    }

    /// There is no such function.
    pub(super) fn unknown(function: &FunctionName) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("function `{function}` does not run on this gateway")).hint(
            "`tidegate status` lists the functions that do; a new one goes into gateway.toml, then `tidegate reload`",
        )
    }
}

impl ApiError {
    /// Tells the log, and leaves what the caller is told.
    pub(super) fn told(self) -> (StatusCode, ErrorBody, Vec<(HeaderName, HeaderValue)>) {
        let Self { status, body, log, headers } = self;
        match log {
            Some(log) => warn!(status = status.as_u16(), error = body.error, "API call failed: {log}"),
            None => debug!(status = status.as_u16(), error = body.error, "API call failed"),
        }
        (status, body, headers)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body, headers) = self.told();
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().extend(headers);
        response
    }
}
