//! `POST /v1/events`: CloudEvents for every function whose `event` trigger matches.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::oneshot;

use super::error::ApiError;
use super::routes::{Agent, body};
use super::{Shared, cloudevents};
use crate::event::{Event, Opened};
use crate::name::FunctionName;
use crate::receipt::Receipt;
use crate::trigger::event::{EventTriggers, Wanted};
use crate::trigger::{Delivery, filter, window};
use crate::units::Span;

/// A batch may hold as much as this many of the largest events.
const BATCH_EVENTS_OF_MAX_SIZE: u64 = 4;

pub(super) async fn post(
    State(shared): Agent,
    uri: Uri,
    headers: HeaderMap,
    payload: Body,
) -> Result<Response, ApiError> {
    let wait = wait(&uri)?;
    let batch = cloudevents::is(cloudevents::content_type(&headers), cloudevents::BATCH);
    let event_bytes_max = shared.limits.event_bytes_max.0;
    let bytes_max = if batch { event_bytes_max * BATCH_EVENTS_OF_MAX_SIZE } else { event_bytes_max };
    let payload = body(&shared, payload, bytes_max).await?;
    let events = cloudevents::read(&headers, payload, shared.clock.now_ms(), shared.limits.api_batch_events_max)?;
    let triggers = shared.agent.event_triggers();
    let events =
        events.into_iter().map(|event| destined(event, &triggers, event_bytes_max)).collect::<Result<Vec<_>, _>>()?;

    let (settled, done) = oneshot::channel();
    let receipt = Receipt::new(move |result| {
        let _ = settled.send(result);
    });
    let accepted = submit(&shared, &events, &receipt);
    receipt.keep();
    accepted?;

    let ids: Vec<&str> = events.iter().map(|(event, _)| &*event.id).collect();
    let mut functions: Vec<&FunctionName> =
        events.iter().flat_map(|(_, wanted)| wanted).map(|wanted| &wanted.function).collect();
    functions.sort();
    functions.dedup();
    let Some(wait) = wait else {
        return Ok((StatusCode::ACCEPTED, Json(json!({ "ids": ids, "functions": functions }))).into_response());
    };
    match tokio::time::timeout(wait.0, done).await {
        Ok(Ok(Ok(()))) => Ok(Json(json!({ "ids": ids, "functions": functions, "settled": true })).into_response()),
        Ok(Ok(Err(why))) => Err(ApiError::new(StatusCode::BAD_GATEWAY, format!("not all functions settled it: {why}"))
            .hint("send it again: functions that have handled it already will see it twice")),
        Ok(Err(_)) | Err(_) => {
            Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, format!("not all functions settled it within {wait}"))
                .hint("it is still being worked on; wait longer, or send it again and have functions see it twice"))
        }
    }
}

/// `?wait=30s`: answer when every function has committed its effects, or the event is a dead letter on disk.
fn wait(uri: &Uri) -> Result<Option<Span>, ApiError> {
    let value = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("wait="));
    let parse =
        |text| Span::parse(text).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("`wait`: {error}")));
    value.map(parse).transpose()
}

/// The functions that want `event`. One that nobody wants is an error: its sender would take silence for success.
fn destined(event: Event, triggers: &EventTriggers, bytes_max: u64) -> Result<(Arc<Event>, Vec<Wanted>), ApiError> {
    if event.data.len() as u64 > bytes_max {
        let error = format!(
            "event `{}` has {} bytes of data, more than `limits.event_bytes_max` = {bytes_max}",
            event.id,
            event.data.len()
        );
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error));
    }
    let wanted = triggers.matching(&event);
    if wanted.is_empty() {
        let kinds = triggers.kinds();
        let waiting = match kinds.as_slice() {
            [] => "no function has an `event` trigger".to_owned(),
            kinds => format!("functions wait for the kinds `{}`", kinds.join("`, `")),
        };
        let error = format!("no function wants event `{}` of kind `{}` from `{}`", event.id, event.kind, event.source);
        return Err(ApiError::new(StatusCode::NOT_FOUND, error).hint(format!(
            "{waiting}; add `event = {{ kind = \"{}\" }}` as a `[[function.trigger]]` in gateway.toml, then run `tidegate reload`",
            event.kind
        )));
    }
    Ok((Arc::new(event), wanted))
}

fn submit(shared: &Shared, events: &[(Arc<Event>, Vec<Wanted>)], receipt: &Receipt) -> Result<(), ApiError> {
    for (event, wanted) in events {
        let opened = Opened::new(event);
        for Wanted { function, filters, window } in wanted {
            let Some(receipt) = filter::admit(filters, &opened, true, receipt.clone()) else { continue };
            let to = (function, window.as_deref());
            let submitted = window::hand_on(&*shared.agent, to, (event, &opened), Delivery::AtLeastOnce, receipt);
            submitted.map_err(|refused| ApiError::refused(function, &refused))?;
        }
    }
    Ok(())
}
