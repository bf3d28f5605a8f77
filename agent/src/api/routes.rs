//! Which call goes where, and the calls that only show something.

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::{Shared, console, dead_letters, deployments, events, invocations, recording};
use crate::metrics;
use crate::telemetry::{Follower, LogRecord};

/// Lines that `GET /v1/logs` starts with unless the caller says.
const LOG_LINES: usize = 100;

pub(super) type Agent = State<Arc<Shared>>;

/// What only those may call who may open the Unix socket, beside all the rest.
pub(super) fn local(shared: Arc<Shared>) -> Router {
    let local = Router::new()
        .route("/v1/apply", post(deployments::apply))
        .route("/v1/recording", get(recording::follow))
        .with_state(Arc::clone(&shared));
    router(shared).merge(local)
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let console = console::router(&shared);
    Router::new()
        .merge(console)
        .route("/healthz", get(health))
        .route("/metrics", get(prometheus))
        .route("/v1/status", get(status))
        .route("/v1/logs", get(logs))
        .route("/v1/reload", post(reload))
        .route("/v1/deployment", get(deployments::show))
        .route("/v1/dead-letters", get(dead_letters::page))
        .route("/v1/dead-letters/{id}", get(dead_letters::show).delete(dead_letters::discard))
        .route("/v1/dead-letters/{id}/replay", post(dead_letters::replay))
        .route("/v1/events", post(events::post))
        .route("/v1/functions/{function}/invocations", post(invocations::post).get(invocations::recent))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown)
        .with_state(shared)
}

/// Reads a body of at most `bytes_max`, within the time that a request may take.
pub(super) async fn body(shared: &Shared, body: Body, bytes_max: u64) -> Result<Bytes, ApiError> {
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let patience = shared.limits.api_request_max;
    match tokio::time::timeout(patience.0, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
                let error = format!("the body has more than the {bytes_max} bytes that an event may have");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error)
                    .hint("send it in parts, or send where it can be fetched"));
            }
            Err(ApiError::new(StatusCode::BAD_REQUEST, format!("the body did not come whole: {error}")))
        }
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {patience}"))),
    }
}

async fn health(State(shared): Agent) -> Response {
    let health = shared.agent.health();
    if health.reasons.is_empty() {
        Json(json!({ "status": "ok" })).into_response()
    } else {
        let body = json!({ "status": "unhealthy", "reasons": health.reasons });
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    }
}

async fn prometheus(State(shared): Agent) -> Result<Response, ApiError> {
    let text = shared.agent.metrics().encode().map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written").log(error.to_string())
    })?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn status(State(shared): Agent) -> Response {
    Json(shared.agent.status()).into_response()
}

async fn reload(State(shared): Agent) -> Result<Response, ApiError> {
    match shared.agent.reload().await {
        Ok(reloaded) => Ok(Json(reloaded).into_response()),
        Err(why) => {
            let (error, hint) = why.split_once("\n\nhint: ").unwrap_or((&why, ""));
            let failed =
                ApiError::new(StatusCode::BAD_REQUEST, error).log("the reload was refused; all runs on as it did");
            Err(if hint.is_empty() { failed } else { failed.hint(hint) })
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    #[serde(default)]
    follow: bool,
    function: Option<String>,
    lines: Option<usize>,
}

async fn logs(State(shared): Agent, uri: Uri) -> Result<Response, ApiError> {
    let Query(query) = Query::<LogQuery>::try_from_uri(&uri).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, error.body_text())
            .hint("`follow=true`, `function=NAME` and `lines=N` are known")
    })?;
    let (kept, follower) = shared.agent.logs().follow(usize::MAX);
    let wanted = move |record: &LogRecord| query.function.is_none() || query.function.as_deref() == record.function();
    let mut last: Vec<_> =
        kept.iter().rev().filter(|record| wanted(record)).take(query.lines.unwrap_or(LOG_LINES)).collect();
    last.reverse();
    let lines: String = last.into_iter().map(|record| record.json() + "\n").collect();
    let body = if query.follow { follow(&shared, lines, follower, wanted) } else { Body::from(lines) };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Sends `lines`, then what is logged, until the caller leaves or the agent stops.
fn follow(
    shared: &Shared,
    lines: String,
    follower: Follower,
    wanted: impl Fn(&LogRecord) -> bool + Send + 'static,
) -> Body {
    let stop = shared.stop.clone();
    let now = shared.clock.clone();
    let state = (Some(lines), follower, wanted);
    Body::from_stream(stream::unfold(state, move |(first, mut follower, wanted)| {
        let (stop, now) = (stop.clone(), now.clone());
        async move {
            if let Some(lines) = first {
                return Some((Ok::<_, std::convert::Infallible>(lines), (None, follower, wanted)));
            }
            loop {
                let next = tokio::select! {
                    next = follower.next() => next?,
                    () = stop.cancelled() => return None,
                };
                let line = match next {
                    Ok(record) if wanted(&record) => record.json(),
                    Ok(_) => continue,
                    Err(missed) => LogRecord::missed(now.now_ms(), missed).json(),
                };
                return Some((Ok(line + "\n"), (None, follower, wanted)));
            }
        }
    }))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("`{}` does not take {method}", uri.path()))
}

async fn unknown(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at `{}`", uri.path())).hint(
        "the console at /, and /healthz, /metrics, /v1/status, /v1/logs, /v1/reload, /v1/deployment, /v1/dead-letters, /v1/events, /v1/functions/NAME/invocations and function URLs below /fn/ are there",
    )
}
