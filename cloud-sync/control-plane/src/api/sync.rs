//! The two calls by which a gateway is managed: what it should run, and what it says.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sync_protocol::limits::{REPORT_BYTES_MAX, WAIT_SECS_MAX};
use sync_protocol::name::GatewayName;
use sync_protocol::report::Report;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, PathOf, QueryOf};
use crate::auth::GatewayCaller;
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::shadow::delta;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(desired)).routes(routes!(reported))
}

/// How it is asked.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// How long to hold the question while there is no news, in seconds: 60 when it is not said, 300 at most.
    wait: Option<u64>,
    /// Version of the root that the gateway trusts: newer ones come with the answer.
    #[serde(default)]
    root: u64,
}

/// What the gateway should run, and all that it needs to verify it. With `If-None-Match` it is answered when that is something else, or 304 after
/// `wait`.
#[utoipa::path(
    get, path = "/v1/gateways/{name}/desired", tag = "gateways", params(("name" = String, Path), Asked, ("If-None-Match" = Option<String>, Header)),
    responses((status = 200, body = Object), (status = 304, description = "No news"), (status = 403, body = ErrorBody))
)]
async fn desired(
    State(app): State<App>,
    caller: GatewayCaller,
    PathOf(name): PathOf<GatewayName>,
    QueryOf(asked): QueryOf<Asked>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(&name)?;
    let known = headers.get(IF_NONE_MATCH).and_then(|etag| etag.to_str().ok());
    let wait = Duration::from_secs(asked.wait.unwrap_or(limits::WAIT_SECS).min(WAIT_SECS_MAX));
    let quiet = [(CACHE_CONTROL, "no-store")];
    match app.desired(&name, asked.root, known, wait).await? {
        Some(answer) => Ok((quiet, [(ETAG, answer.etag)], Json(answer.answer)).into_response()),
        None => {
            app.metrics.desired_unchanged.inc();
            Ok((StatusCode::NOT_MODIFIED, quiet).into_response())
        }
    }
}

/// What a report is answered with.
#[derive(Debug, Serialize, ToSchema)]
struct Heard {
    /// What people want in the shadow and the gateway does not say; `null`: nothing.
    #[schema(value_type = Option<Object>)]
    delta: Option<Value>,
    /// Of what people want.
    version: u64,
}

/// Takes a report, the newest of which is kept, with the phases that the gateway was in.
#[utoipa::path(
    post, path = "/v1/gateways/{name}/reported", tag = "gateways", request_body(content = Object, description = "Report"), params(("name" = String, Path)),
    responses((status = 200, body = Heard), (status = 403, body = ErrorBody), (status = 413, body = ErrorBody))
)]
async fn reported(
    State(app): State<App>,
    caller: GatewayCaller,
    PathOf(name): PathOf<GatewayName>,
    body: bytes::Bytes,
) -> Result<Json<Heard>, ApiError> {
    caller.require(&name)?;
    if body.len() > REPORT_BYTES_MAX {
        return Err(ApiError::too_large(format!("the report of `{name}`, {} bytes", body.len()), REPORT_BYTES_MAX));
    }
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| ApiError::malformed(format!("the report of `{name}` is malformed: {error}")))?;
    let now_ms = app.clock.now_ms();
    app.store.report(&name, &report, now_ms).await?;
    if app.store.notice_boot(&name, &report.boot, now_ms).await? {
        tracing::warn!(gateway = %name, "two machines speak under this name: its identity was copied");
    }
    app.metrics.reports.inc();
    let shadow = app.store.shadow(&name).await?;
    Ok(Json(Heard { delta: delta(&shadow.desired, &report.shadow), version: shadow.version }))
}
