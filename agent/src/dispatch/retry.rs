//! What becomes of an event whose handler did not succeed: another attempt after a while, or a dead letter.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::item::{Item, Reply};
use super::{Inner, Running, commit};
use crate::event::Event;
use crate::function::FunctionSpec;
use crate::invocation::{Effects, Outcome};
use crate::trigger::Delivery;

/// Wait before the second attempt; doubles for each further one.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest wait.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// An event that was given up on, as it is kept in the stream `dead-letters`.
#[derive(Debug, Serialize)]
struct DeadLetter<'a> {
    function: &'a str,
    version: &'a str,
    outcome: &'a str,
    reason: String,
    attempts: u32,
    event: EventRecord<'a>,
}

/// The event whole, by the attribute names of CloudEvents' JSON format.
#[derive(Debug, Serialize)]
struct EventRecord<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    attributes: &'a [(String, String)],
    data_base64: String,
}

impl<'a> From<&'a Event> for EventRecord<'a> {
    fn from(event: &'a Event) -> Self {
        use base64::Engine as _;
        Self {
            specversion: "1.0",
            id: &event.id,
            source: &event.source,
            r#type: &event.kind,
            subject: event.subject.as_deref(),
            time_ms: event.time_ms,
            datacontenttype: event.content_type.as_deref(),
            attributes: &event.attributes,
            data_base64: base64::engine::general_purpose::STANDARD.encode(&event.data),
        }
    }
}

/// How long to wait before attempt `next`: exponential, with the upper half by chance, so that events that failed together
/// do not come back together.
fn backoff(next: u32) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1 << next.saturating_sub(2).min(16)).min(BACKOFF_MAX);
    doubled.mul_f64(1.0 + fastrand::f64())
}

/// Tries again, or gives up and keeps the event as a dead letter.
pub(super) fn failed(
    inner: &Arc<Inner>,
    running: &Arc<Running>,
    spec: &Arc<FunctionSpec>,
    item: Item,
    outcome: Outcome,
) {
    let wait = backoff(item.attempt + 1);
    let age = inner.clock.instant().duration_since(item.first);
    let again = outcome.may_retry()
        // At most once is what its source asked for.
        && item.delivery == Delivery::AtLeastOnce
        && item.attempt < spec.retry.attempts
        && age + wait <= spec.retry.max_age.0;
    let (inner, running, spec) = (Arc::clone(inner), Arc::clone(running), Arc::clone(spec));
    let runtime = inner.runtime.clone();
    if again {
        tracing::warn!(
            function = %spec.name, event_id = %item.event.id, attempt = item.attempt,
            retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "handler {outcome}"
        );
        running.metrics.retries.inc();
        runtime.spawn(async move {
            tokio::time::sleep(wait).await;
            let item = Item { attempt: item.attempt + 1, enqueued: inner.clock.instant(), ..item };
            // When the function is gone the receipt is dropped with the item, and its source keeps the event.
            drop(inner.push(&running, item));
        });
    } else {
        runtime.spawn(async move { bury(&inner, &running, &spec, item, &outcome).await });
    }
}

async fn bury(inner: &Arc<Inner>, running: &Arc<Running>, spec: &FunctionSpec, item: Item, outcome: &Outcome) {
    tracing::warn!(
        function = %spec.name, event_id = %item.event.id, attempts = item.attempt,
        "handler {outcome}; the event is now a dead letter"
    );
    running.metrics.dead_letters.inc();
    let letter = DeadLetter {
        function: spec.name.as_str(),
        version: &spec.version,
        outcome: outcome.label(),
        reason: outcome.to_string(),
        attempts: item.attempt,
        event: EventRecord::from(&*item.event),
    };
    let letter = match serde_json::to_vec(&letter) {
        Ok(json) => Bytes::from(json),
        Err(error) => return tracing::error!(event_id = %item.event.id, %error, "dead letter could not be written"),
    };
    let mut effects = Effects::default();
    let mut chained = Vec::new();
    effects.records.push((inner.outlets.dead_letters(), letter.clone()));
    commit::send_to(&inner.outlets, spec, &spec.on_failure, &letter, &mut effects, &mut chained);
    match (inner.append(effects).await, item.reply) {
        (Ok(()), Reply::Receipt(receipt)) => {
            let event = inner.result_event(spec, &item.event, letter, None);
            inner.hand_on(&chained, &event, &receipt);
            receipt.keep();
        }
        (Err(error), _) => {
            tracing::error!(event_id = %item.event.id, error, "dead letter could not be kept; the event will come again");
        }
        (Ok(()), Reply::Answer(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        for (attempt, low_ms, high_ms) in [(2, 500, 1000), (3, 1000, 2000), (4, 2000, 4000), (40, 60_000, 120_000)] {
            let wait = backoff(attempt).as_millis();
            assert!((low_ms..=high_ms).contains(&wait), "attempt {attempt}: {wait} ms");
        }
    }
}
