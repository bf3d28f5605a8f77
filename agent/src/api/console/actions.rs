//! What people may do on the pages: try a function, deal with dead letters, sign in and out.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::header::{CONTENT_TYPE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;

use super::pages::{AnswerView, Failure, RunLink, TestEvent, function_page, is_for_htmx, sign_in_page};
use super::view::payload;
use super::{ROOT, SIGN_IN, html};
use crate::api::Shared;
use crate::api::dead_letters;
use crate::api::error::ApiError;
use crate::api::guard::{Guard, address};
use crate::api::invocations::{event_of, function_named};
use crate::api::routes::{Agent, body};
use crate::dispatch::Answer;
use crate::event::BY_HAND;
use crate::invocation::Outcome;
use crate::name::FunctionName;
use crate::readable::micros;

/// A byte of a form may take three: `%7B`.
const FORM_BYTES_PER_BYTE: u64 = 3;
/// Names of the fields, and what is not the payload.
const FORM_BYTES_BESIDE: u64 = 16 << 10;

/// The fields of a form.
async fn form(shared: &Shared, sent: Body, bytes_max: u64) -> Result<HashMap<String, String>, ApiError> {
    let sent = body(shared, sent, bytes_max * FORM_BYTES_PER_BYTE + FORM_BYTES_BESIDE).await?;
    Ok(form_urlencoded::parse(&sent).into_owned().collect())
}

fn may_act(shared: &Shared) -> Result<(), ApiError> {
    if shared.console.acts() {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "this console only shows").hint(
        "`console = \"on\"` in `[api]` of gateway.toml lets people invoke functions, and replay or drop dead letters",
    ))
}

pub(super) async fn invoke(
    State(shared): Agent,
    caller: Option<Extension<Arc<Guard>>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    sent: Body,
) -> Result<Response, Failure> {
    may_act(&shared)?;
    let function = function_named(&shared, &name)?;
    let event_bytes_max = shared.limits.event_bytes_max;
    let mut fields = form(&shared, sent, event_bytes_max.0).await?;
    let test = TestEvent {
        subject: fields.remove("subject").unwrap_or_default(),
        // A browser sends each line with both ends.
        payload: fields.remove("payload").unwrap_or_default().replace("\r\n", "\n"),
    };
    if test.payload.len() as u64 > event_bytes_max.0 {
        let error = format!("the payload has {} bytes, more than {event_bytes_max}", test.payload.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error).into());
    }
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&test.payload).is_ok();
    let content_type = HeaderValue::from_static(if is_json { "application/json" } else { "text/plain" });
    let mut event =
        event_of(&shared, &HeaderMap::from_iter([(CONTENT_TYPE, content_type)]), Bytes::from(test.payload.clone()))?;
    event.source = BY_HAND.into();
    event.subject = Some(&*test.subject).filter(|subject| !subject.is_empty()).map(Into::into);
    let answer = match shared.agent.invoke(&function, Arc::new(event)).await {
        Ok(answer) => answered(&shared, &function, answer),
        Err(refused) => {
            AnswerView { outcome: "not taken".to_owned(), is_bad: true, text: refused.to_string(), run: None }
        }
    };
    if is_for_htmx(&headers) {
        return Ok(html(StatusCode::OK, &answer));
    }
    function_page(&shared, &caller, &name, test, Some(answer))
}

fn answered(shared: &Shared, function: &FunctionName, answer: Answer) -> AnswerView {
    let kept = shared.agent.metrics().known(function).map(|numbers| numbers.recent.newest_first()).unwrap_or_default();
    let took = answer.queued + answer.timings.cold_start.unwrap_or_default() + answer.timings.handler;
    let run = RunLink {
        function: function.to_string(),
        invocation: answer.invocation.to_string(),
        is_kept: kept.iter().any(|run| run.invocation == *answer.invocation),
        took: micros(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
    };
    let text = match &answer.outcome {
        Outcome::Succeeded(value) => payload(value),
        outcome => format!("function `{function}` {outcome}"),
    };
    let is_bad = !matches!(answer.outcome, Outcome::Succeeded(_));
    AnswerView { outcome: answer.outcome.label().to_owned(), is_bad, text, run: Some(run) }
}

pub(super) async fn replay(State(shared): Agent, Path(id): Path<String>) -> Result<Redirect, Failure> {
    may_act(&shared)?;
    let id = dead_letters::id_of(&id)?;
    shared.agent.replay(id).await.map_err(dead_letters::failed)?;
    Ok(Redirect::to(&format!("/console/dead-letters?replayed={id}")))
}

pub(super) async fn discard(State(shared): Agent, Path(id): Path<String>) -> Result<Redirect, Failure> {
    may_act(&shared)?;
    let id = dead_letters::id_of(&id)?;
    shared.agent.drop_letter(id).await.map_err(dead_letters::failed)?;
    Ok(Redirect::to(&format!("/console/dead-letters?dropped={id}")))
}

pub(super) async fn sign_in(
    State(shared): Agent,
    caller: Option<Extension<Arc<Guard>>>,
    request: Request,
) -> Result<Response, Failure> {
    let Some(guard) = caller.filter(|guard| guard.asks()) else { return Ok(Redirect::to(ROOT).into_response()) };
    let (parts, sent) = request.into_parts();
    let fields = form(&shared, sent, 0).await?;
    if !guard.is_token(fields.get("token").map(|token| token.trim()).unwrap_or_default()) {
        tracing::warn!("somebody tried to sign in to the console with a wrong token");
        return Ok(sign_in_page(true));
    }
    let mut response = Redirect::to(ROOT).into_response();
    response
        .headers_mut()
        .extend(guard.sessions().begin(address(&parts.extensions)).map(|cookie| (SET_COOKIE, cookie)));
    Ok(response)
}

pub(super) async fn sign_out(caller: Option<Extension<Arc<Guard>>>, headers: HeaderMap) -> Response {
    let mut response = Redirect::to(SIGN_IN).into_response();
    let forgotten = caller.and_then(|guard| guard.sessions().end(&headers));
    response.headers_mut().extend(forgotten.map(|cookie| (SET_COOKIE, cookie)));
    response
}
