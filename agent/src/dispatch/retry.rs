//! What becomes of an event whose handler did not succeed: another attempt after a while, or a dead letter.

use std::sync::Arc;
use std::time::Duration;

use super::dead_letter::DeadLetter;
use super::item::{Item, Reply};
use super::{Inner, Running, commit};
use crate::function::FunctionSpec;
use crate::invocation::{Effects, Outcome};
use crate::journal::Batch;
use crate::trigger::Delivery;

/// Wait before the second attempt; doubles for each further one.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest wait.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Runs that may be for nothing in a row before the event has to wait as after a failure.
pub(super) const CONFLICTS_MAX: u32 = 100;

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
    mut item: Item,
    outcome: Outcome,
) {
    let (wait, now) = (backoff(item.attempt + 1), inner.clock.instant());
    let again = outcome.may_retry()
        // At most once is what its source asked for.
        && item.delivery == Delivery::AtLeastOnce
        && item.attempt < spec.retry.attempts
        && item.age(now) + wait <= spec.retry.max_age.0;
    if again {
        tracing::warn!(
            function = %spec.name, event_id = %item.event.id, attempt = item.attempt,
            retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "handler {outcome}"
        );
        running.metrics.retries.inc();
        item.attempt += 1;
        item.conflicts = 0;
        running.parked.park(item, now, wait, outcome.to_string().into());
    } else {
        let (inner, running, spec) = (Arc::clone(inner), Arc::clone(running), Arc::clone(spec));
        let runtime = inner.runtime.clone();
        runtime.spawn(async move { bury(&inner, &running, &spec, item, &outcome).await });
    }
}

/// Runs the handler again at once: what it had read was changed before its effects could be committed.
pub(super) fn run_again(inner: &Arc<Inner>, running: &Arc<Running>, spec: &Arc<FunctionSpec>, mut item: Item) {
    item.conflicts += 1;
    if item.conflicts > CONFLICTS_MAX {
        item.conflicts = 0;
        let why = format!("what it read was changed by others while it ran, {CONFLICTS_MAX} times in a row");
        return failed(inner, running, spec, item, Outcome::Retry(why));
    }
    item.enqueued = inner.clock.instant();
    running.run(item);
}

async fn bury(inner: &Arc<Inner>, running: &Arc<Running>, spec: &FunctionSpec, item: Item, outcome: &Outcome) {
    tracing::warn!(
        function = %spec.name, event_id = %item.event.id, attempts = item.attempt,
        "handler {outcome}; the event is now a dead letter"
    );
    running.metrics.dead_letters.inc();
    let letter = DeadLetter::of_event(spec, &item.event, item.attempt, outcome).encode();
    let mut effects = Effects::default();
    let mut chained = Vec::new();
    effects.records.push((inner.outlets.dead_letters(), letter.clone()));
    commit::send_to(&inner.outlets, spec, &spec.on_failure, &letter, &mut effects, &mut chained);
    let mut batch = Batch::default();
    item.end_in(&mut batch);
    let result = inner.result_event(spec, &item.event, letter, None);
    match (inner.append(&spec.name, effects, (&chained, &result), batch).await, item.reply) {
        (Ok(()), Reply::Receipt(receipt)) => receipt.keep(),
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
