//! `/v1/functions/{name}/invocations`: runs one function on what is posted, and shows what ran of late.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::IgnoredAny;
use serde_json::json;

use super::Shared;
use super::cloudevents;
use super::error::ApiError;
use super::routes::{Agent, body};
use crate::dispatch::Answer;
use crate::event::{Event, new_id};
use crate::invocation::Outcome;
use crate::name::FunctionName;
use crate::receipt::Receipt;
use crate::trigger::Delivery;

pub(super) const INVOCATION: HeaderName = HeaderName::from_static("tidegate-invocation");
const OUTCOME: HeaderName = HeaderName::from_static("tidegate-outcome");
const VERSION: HeaderName = HeaderName::from_static("tidegate-version");
/// As Lambda's `X-Amz-Invocation-Type`.
const INVOCATION_TYPE: &str = "tidegate-invocation-type";

pub(super) async fn post(
    State(shared): Agent,
    Path(function): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    payload: Body,
) -> Result<Response, ApiError> {
    let function = function_named(&shared, &function)?;
    let asynchronous = is_asynchronous(&uri, &headers)?;
    let payload = body(&shared, payload, shared.limits.event_bytes_max.0).await?;
    let event = Arc::new(event_of(&shared, &headers, payload)?);
    if asynchronous {
        let id = Arc::clone(&event.id);
        // The caller was told that it was taken, not that it is done; nobody waits for this receipt.
        let receipt = Receipt::new(|_| {});
        let submitted = shared.agent.submit(&function, event, Delivery::AtLeastOnce, receipt);
        submitted.map_err(|refused| ApiError::refused(&function, &refused))?;
        return Ok((StatusCode::ACCEPTED, Json(json!({ "id": &*id, "function": function }))).into_response());
    }
    let answer =
        shared.agent.invoke(&function, event).await.map_err(|refused| ApiError::refused(&function, &refused))?;
    Ok(respond(&function, answer))
}

/// The last runs, the newest first.
pub(super) async fn recent(State(shared): Agent, Path(function): Path<String>) -> Result<Response, ApiError> {
    let function = function_named(&shared, &function)?;
    let numbers = shared.agent.metrics().known(&function);
    let runs = numbers.map(|numbers| numbers.recent.newest_first()).unwrap_or_default();
    Ok(Json(json!({ "invocations": runs })).into_response())
}

/// `NAME` or `NAME:QUALIFIER`; only the version that serves can be named.
pub(super) fn function_named(shared: &Shared, text: &str) -> Result<FunctionName, ApiError> {
    let (name, qualifier) = text.split_once(':').map_or((text, None), |(name, qualifier)| (name, Some(qualifier)));
    let function =
        FunctionName::parse(name).map_err(|error| ApiError::new(StatusCode::NOT_FOUND, error.to_string()))?;
    let version = shared.agent.version(&function).ok_or_else(|| ApiError::unknown(&function))?;
    match qualifier {
        Some(qualifier) if qualifier != &*version => {
            let error = format!("function `{function}` has no version or alias `{qualifier}` on this gateway");
            Err(ApiError::new(StatusCode::NOT_FOUND, error)
                .hint(format!("version {version} runs: name that one, or none")))
        }
        _ => Ok(function),
    }
}

fn is_asynchronous(uri: &Uri, headers: &HeaderMap) -> Result<bool, ApiError> {
    let query = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("type="));
    let header = headers.get(INVOCATION_TYPE).map(|value| value.to_str().unwrap_or_default());
    match header.or(query).map(str::to_ascii_lowercase).as_deref() {
        None | Some("requestresponse") => Ok(false),
        Some("event") => Ok(true),
        Some(other) => Err(ApiError::new(StatusCode::BAD_REQUEST, format!("`{other}` is not an invocation type"))
            .hint("`RequestResponse` waits for the result, `Event` does not")),
    }
}

pub(super) fn event_of(shared: &Shared, headers: &HeaderMap, payload: Bytes) -> Result<Event, ApiError> {
    let content_type = cloudevents::content_type(headers);
    let now_ms = shared.clock.now_ms();
    let mut event = if cloudevents::is(content_type, cloudevents::STRUCTURED) {
        cloudevents::structured(&payload, now_ms)?
    } else {
        Event {
            id: new_id(),
            source: "api".into(),
            kind: "api.invocation".into(),
            time_ms: now_ms,
            content_type: content_type.map(Into::into),
            data: payload,
            ..Event::default()
        }
    };
    if event.trace_parent.is_none() {
        event.trace_parent = headers.get("traceparent").and_then(|value| value.to_str().ok()).map(Into::into);
    }
    Ok(event)
}

/// The value as the body; what went wrong as JSON. Both say in headers which run it was.
fn respond(function: &FunctionName, answer: Answer) -> Response {
    let Answer { invocation, version, outcome, .. } = answer;
    let label = outcome.label();
    let mut response = match outcome {
        Outcome::Succeeded(value) => {
            let json = serde_json::from_slice::<IgnoredAny>(&value).is_ok();
            let content_type = if json { "application/json" } else { "application/octet-stream" };
            ([(header::CONTENT_TYPE, content_type)], value).into_response()
        }
        outcome => failed(function, &outcome).into_response(),
    };
    let headers = [(INVOCATION, HeaderValue::from_str(&invocation)), (VERSION, HeaderValue::from_str(&version))];
    response.headers_mut().extend(headers.into_iter().filter_map(|(name, value)| Some((name, value.ok()?))));
    response.headers_mut().insert(OUTCOME, HeaderValue::from_static(label));
    response
}

/// 4xx when the event or the config is at fault, 5xx when the function or the machine is.
fn failed(function: &FunctionName, outcome: &Outcome) -> ApiError {
    let (status, hint) = match outcome {
        Outcome::Rejected(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "the handler said so of this event: send another".to_owned())
        }
        Outcome::Denied { capability, .. } => (
            StatusCode::FORBIDDEN,
            format!(
                "add `\"{capability}\"` to `capabilities` of this function in gateway.toml, then run `tidegate reload`"
            ),
        ),
        Outcome::TimedOut { .. } => (
            StatusCode::GATEWAY_TIMEOUT,
            "give it more `timeout` in gateway.toml, or find out what it waits for".to_owned(),
        ),
        Outcome::OutOfMemory { .. } => (StatusCode::BAD_GATEWAY, "give it more `memory` in gateway.toml".to_owned()),
        Outcome::Retry(_) => (StatusCode::SERVICE_UNAVAILABLE, "send the event again later".to_owned()),
        Outcome::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "`tidegate logs` may say more".to_owned()),
        _ => (StatusCode::BAD_GATEWAY, format!("`tidegate logs --function {function}` shows what it said")),
    };
    ApiError::new(status, format!("function `{function}` {outcome}")).hint(hint)
}
