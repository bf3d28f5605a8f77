//! One worker: owns one warm instance, takes one event at a time, and sees to what came of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::idempotency::{self, Claimed};
use super::item::{Answer, Item, Reply};
use super::queue::Wanted;
use super::recorded::Began;
use super::{Inner, Running, commit, retry};
use crate::config::function::Isolation;
use crate::event;
use crate::function::FunctionSpec;
use crate::invocation::{Context, Effects, Outcome, Timings};
use crate::journal::Batch;
use crate::metrics::Dropped;
use crate::recording::Recorded;
use crate::runtime::{Function, Instance};
use crate::telemetry::Invocation;
use crate::trigger::Delivery;

/// Puts the queue's count right when a worker panics.
struct Seat {
    inner: Arc<Inner>,
    running: Arc<Running>,
    left: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.left && self.running.queue.worker_died() == Wanted::Worker {
            self.inner.start_worker(&self.running);
        }
    }
}

/// Serves events until there has been none for a while.
pub(super) async fn work(inner: Arc<Inner>, running: Arc<Running>) {
    let mut seat = Seat { inner: Arc::clone(&inner), running: Arc::clone(&running), left: false };
    let me = Arc::new(Notify::new());
    let idle_max = inner.limits.instance_idle.0;
    let mut warm: Option<(Arc<Function>, Instance)> = None;
    while let Some(mut item) = running.queue.next(&me, idle_max).await {
        item.waiting = None;
        running.parked.feed(|| running.queue.has_room());
        serve(&inner, &running, &mut warm, item).await;
        // A queue that is never empty must not keep this thread from the other functions.
        tokio::task::consume_budget().await;
    }
    seat.left = true;
    if warm.is_some() {
        running.metrics.instances.dec();
    }
}

async fn serve(inner: &Arc<Inner>, running: &Arc<Running>, warm: &mut Option<(Arc<Function>, Instance)>, item: Item) {
    // Nobody would hear what came of it: callers who give up, and come again, must not keep the function busy.
    if matches!(&item.reply, Reply::Answer(caller) if caller.is_closed()) {
        return running.metrics.dropped(Dropped::CallerGone);
    }
    let (function, models) = inner.current(running);
    let spec = &function.spec;
    if item.event.hops > inner.limits.hops_max {
        let why = format!(
            "the event was handed on {} times, more than {}: do functions trigger each other in a circle?",
            item.event.hops, inner.limits.hops_max
        );
        let run = Run::none(inner.clock.instant());
        return finish(inner, running, &function, item, run, Outcome::Rejected(why), Effects::default()).await;
    }
    let Some(item) = claim(inner, running, &function, item).await else { return };
    // A new version, `fresh`, or another folder in the place of one that it reads: the instance at hand is not the one that is wanted.
    if warm.take_if(|(of, instance)| !Arc::ptr_eq(of, &function) || !instance.is_current()).is_some() {
        running.metrics.instances.dec();
    }
    let started = inner.clock.instant();
    let publish_qos = match (item.delivery, &item.reply) {
        (Delivery::AtMostOnce, Reply::Receipt(_)) => 0,
        _ => 1,
    };
    let mut cold_start = None;
    let instance = match warm {
        Some((_, instance)) => instance,
        None => match function.instantiate().await {
            Ok(instance) => {
                cold_start = Some(inner.clock.instant() - started);
                running.metrics.instances.inc();
                &mut warm.insert((Arc::clone(&function), instance)).1
            }
            Err(outcome) => {
                let mut run = Run::none(inner.clock.instant());
                running.metrics.invoked(&outcome, &run.timings);
                let (invocation, at_ms) = (Arc::clone(&run.invocation), inner.clock.now_ms());
                let came = (&outcome, &Effects::default(), &run.timings);
                run.recorded = inner.recorded(spec, &item, &Began { invocation, publish_qos, at_ms }, came);
                return finish(inner, running, &function, item, run, outcome, Effects::default()).await;
            }
        },
    };
    let queued = started.duration_since(item.enqueued);
    let began = Began { invocation: event::new_id(), publish_qos, at_ms: inner.clock.now_ms() };
    let deadline_ms = began.at_ms + u64::try_from(spec.timeout.0.as_millis()).unwrap_or(u64::MAX);
    let context = Context {
        function: spec.name.clone(),
        version: Arc::clone(&spec.version),
        invocation: Arc::clone(&began.invocation),
        attempt: item.attempt,
        deadline_ms,
        memory_bytes: spec.memory.0,
        trace_parent: inner.tracer.child_of(item.event.trace_parent.as_deref()),
        publish_qos,
    };
    let trace_parent = context.trace_parent.clone();
    let mut invoked = instance.invoke_with(&item.event, context, models).await;
    if !invoked.reusable || spec.isolation == Isolation::Fresh {
        *warm = None;
        running.metrics.instances.dec();
    }
    invoked.timings.cold_start = cold_start;
    running.metrics.queue.observe(queued);
    running.metrics.invoked(&invoked.outcome, &invoked.timings);
    let came = (&invoked.outcome, &invoked.effects, &invoked.timings);
    let recorded = inner.recorded(spec, &item, &began, came);
    let (invocation, timings, ended) = (began.invocation, invoked.timings, inner.clock.instant());
    let run = Run { invocation, trace_parent, queued, timings, ended, recorded };
    finish(inner, running, &function, item, run, invoked.outcome, invoked.effects).await;
}

/// Sees to it that an event with a key runs once. `None`: it does not run now.
async fn claim(inner: &Arc<Inner>, running: &Arc<Running>, function: &Arc<Function>, item: Item) -> Option<Item> {
    let Some(config) = &function.spec.idempotency else { return Some(item) };
    // A caller who waits for the value wants this run; and who has the claim has it.
    if matches!(item.reply, Reply::Answer(_)) || item.claim.is_some() {
        return Some(item);
    }
    let key = match running.seen.load(inner.outlets.journal(), &inner.clock).await {
        Ok(()) => idempotency::key_of(config, &item.event).map_err(Outcome::Rejected),
        Err(why) => Err(Outcome::Unavailable(format!("what was dealt with before is not known: {why}"))),
    };
    let claimed = match key {
        Ok(key) => running.seen.claim(
            running,
            item,
            key,
            config.window.0,
            (inner.clock.instant(), inner.outlets.journal().age_ms()),
        ),
        Err(outcome) => {
            let run = Run::none(inner.clock.instant());
            finish(inner, running, function, item, run, outcome, Effects::default()).await;
            return None;
        }
    };
    match claimed {
        Claimed::Runs(item) => return Some(item),
        Claimed::Waits => {}
        Claimed::Duplicate(item) => {
            tracing::debug!(function = %running.name, event_id = %item.event.id, "a duplicate was left out");
            running.metrics.duplicates.inc();
            let mut batch = Batch::default();
            item.end_in(&mut batch);
            match inner.outlets.journal().commit(batch).await {
                Ok(_) => item.succeeded(),
                Err(error) => {
                    tracing::warn!(function = %running.name, %error, "a duplicate comes again: it could not be settled")
                }
            }
        }
    }
    None
}

/// What is known of a run beside its outcome.
pub(super) struct Run {
    pub(super) invocation: Arc<str>,
    pub(super) trace_parent: Option<Arc<str>>,
    pub(super) queued: Duration,
    pub(super) timings: Timings,
    /// When the handler had ended.
    pub(super) ended: Instant,
    /// For those who record, until it is told to them.
    pub(super) recorded: Option<Arc<Recorded>>,
}

impl Run {
    /// A run that never came to its handler.
    fn none(now: Instant) -> Self {
        let timings = Timings::default();
        Self {
            invocation: event::new_id(),
            trace_parent: None,
            queued: Duration::ZERO,
            timings,
            ended: now,
            recorded: None,
        }
    }

    /// Tells those who record, now that the run counts: in the order in which effects became visible. A run that read what
    /// another changed is not told; the one that comes in its place is.
    pub(super) fn tell(&mut self, inner: &Inner) {
        if let Some(recorded) = self.recorded.take() {
            inner.tap.tell(&recorded);
        }
    }

    /// Hands on the run's spans, and keeps it for those who look, now that its effects are safe or it has failed.
    pub(super) fn trace(&self, inner: &Inner, running: &Running, spec: &FunctionSpec, item: &Item, outcome: &Outcome) {
        let now = inner.clock.instant();
        let committed = matches!(outcome, Outcome::Succeeded(_)).then(|| now - self.ended);
        let invocation = Invocation {
            event: &item.event,
            function: &spec.name,
            version: &spec.version,
            invocation: &self.invocation,
            attempt: item.attempt,
            trace_parent: self.trace_parent.as_deref(),
            queued: self.queued,
            timings: &self.timings,
            commit: committed,
            outcome,
        };
        inner.tracer.record(&invocation);
        running.metrics.recent.record(&invocation, now, &inner.clock, &inner.limits);
    }
}

/// Commits what a success wants done; gives a failure another attempt, or ends it.
async fn finish(
    inner: &Arc<Inner>,
    running: &Arc<Running>,
    function: &Arc<Function>,
    item: Item,
    mut run: Run,
    outcome: Outcome,
    effects: Effects,
) {
    let spec = &function.spec;
    if !matches!(outcome, Outcome::Succeeded(_)) {
        run.tell(inner);
    }
    match (outcome, &item.reply) {
        (Outcome::Succeeded(value), _) => commit::commit(inner, running, spec, item, run, value, effects).await,
        (outcome, Reply::Answer(_)) => {
            run.trace(inner, running, spec, &item, &outcome);
            answer(spec, item, run, outcome);
        }
        (outcome, Reply::Receipt(_)) => {
            run.trace(inner, running, spec, &item, &outcome);
            retry::failed(inner, running, spec, item, outcome);
        }
    }
}

/// Tells a waiting caller.
pub(super) fn answer(spec: &FunctionSpec, item: Item, run: Run, outcome: Outcome) {
    if let Reply::Answer(caller) = item.reply {
        let Run { invocation, queued, timings, .. } = run;
        // A caller that went away does not mind.
        let _ = caller.send(Answer { invocation, version: Arc::clone(&spec.version), outcome, timings, queued });
    }
}
