//! W3C trace context in and out, and the spans of an invocation.
//!
//! Spans are made after the fact, from times that are measured anyway: while nobody collects them an invocation pays for one
//! comparison, and for a new span id when the event carries a `traceparent` that has to be handed on.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::event::Event;
use crate::invocation::{Outcome, Timings};
use crate::name::FunctionName;

/// A W3C `traceparent`: which span caused this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Of the whole trace; never 0.
    pub trace_id: u128,
    /// Of the span; never 0.
    pub span_id: u64,
    /// Whether its spans are kept.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`, and the start of later versions. `None` when malformed:
    /// the standard then has a new trace begin.
    pub fn parse(text: &str) -> Option<Self> {
        fn hex(text: &str) -> Option<u128> {
            let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if lower { u128::from_str_radix(text, 16).ok() } else { None }
        }
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = [version.len(), trace_id.len(), span_id.len(), flags.len()];
        if lengths != [2, 32, 16, 2] || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        hex(version)?;
        let (trace_id, span_id) = (hex(trace_id)?, u64::try_from(hex(span_id)?).ok()?);
        let sampled = hex(flags)? & 1 == 1;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled })
    }

    fn context(self, remote: bool) -> SpanContext {
        let flags = TraceFlags::NOT_SAMPLED.with_sampled(self.sampled);
        SpanContext::new(TraceId::from(self.trace_id), SpanId::from(self.span_id), flags, remote, TraceState::NONE)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// What [`Tracer::record`] makes spans of.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    /// What was handled; its `trace_parent` is the remote parent.
    pub event: &'a Event,
    /// Which function ran.
    pub function: &'a FunctionName,
    /// Its version.
    pub version: &'a str,
    /// Id of the run.
    pub invocation: &'a str,
    /// 1 for the first.
    pub attempt: u32,
    /// What [`Tracer::child_of`] gave for it.
    pub trace_parent: Option<&'a str>,
    /// Between arrival and the start of the handler, or of its instance when one had to be made.
    pub queued: Duration,
    /// Where the time went after that.
    pub timings: &'a Timings,
    /// Between the handler's end and the effects being safe, when there were any.
    pub commit: Option<Duration>,
    /// How it ended.
    pub outcome: &'a Outcome,
}

/// Makes trace contexts, and spans when someone collects them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer {
    collected: Option<Collected>,
}

#[derive(Clone, Debug)]
struct Collected {
    spans: mpsc::Sender<Vec<SpanData>>,
    /// Of 2⁶³; a trace is kept when the lower bits of its id are below.
    sample_below: u64,
    dropped: Arc<AtomicU64>,
    scope: InstrumentationScope,
    clock: Clock,
}

impl Tracer {
    /// Nobody collects spans; a `traceparent` is still handed on.
    pub const fn off() -> Self {
        Self { collected: None }
    }

    /// Hands the spans of each invocation to `spans`, and counts in `dropped` when there is no room.
    pub(super) fn to(spans: mpsc::Sender<Vec<SpanData>>, sample: f64, dropped: Arc<AtomicU64>, clock: Clock) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2⁶³")]
        let sample_below = (sample.clamp(0.0, 1.0) * 2_f64.powi(63)) as u64;
        let scope = InstrumentationScope::builder("tidegate").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { collected: Some(Collected { spans, sample_below, dropped, scope, clock }) }
    }

    /// The `traceparent` of a new span under `parent`, which goes to the handler and onto all that it sends. `None` when there
    /// is no trace to belong to and nobody collects one.
    pub fn child_of(&self, parent: Option<&str>) -> Option<Arc<str>> {
        let child = match (parent.and_then(TraceParent::parse), &self.collected) {
            (Some(parent), _) => TraceParent { span_id: new_span_id(), ..parent },
            (None, None) => return None,
            (None, Some(collected)) => {
                let trace_id = fastrand::u128(1..);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "the lower half decides, as in OpenTelemetry's own sampler"
                )]
                let sampled = (trace_id as u64 >> 1) < collected.sample_below;
                TraceParent { trace_id, span_id: new_span_id(), sampled }
            }
        };
        Some(child.to_string().into())
    }

    /// Hands on the spans of a run that has just ended: its own, and below it queue, cold start, handler, inference and
    /// commit. Never waits.
    pub fn record(&self, run: &Invocation<'_>) {
        let Some(collected) = &self.collected else { return };
        let Some(own) = run.trace_parent.and_then(TraceParent::parse).filter(|own| own.sampled) else { return };
        if collected.spans.try_send(collected.spans_of(run, own)).is_err() {
            collected.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn new_span_id() -> u64 {
    fastrand::u64(1..)
}

impl Collected {
    fn spans_of(&self, run: &Invocation<'_>, own: TraceParent) -> Vec<SpanData> {
        let Timings { cold_start, handler, inference } = *run.timings;
        let (cold, commit) = (cold_start.unwrap_or_default(), run.commit.unwrap_or_default());
        let ended = UNIX_EPOCH + Duration::from_millis(self.clock.now_ms());
        let started = ended - (run.queued + cold + handler + commit);
        let parent = run.event.trace_parent.as_deref().and_then(TraceParent::parse);

        let mut root = self.span(own, run.function.to_string().into(), parent.map_or(0, |p| p.span_id), started, ended);
        root.parent_span_is_remote = parent.is_some();
        root.span_kind = SpanKind::Consumer;
        root.attributes = attributes(run);
        if !matches!(run.outcome, Outcome::Succeeded(_)) {
            root.status = Status::error(run.outcome.to_string());
        }
        let mut spans = vec![root];

        let child = |name: &'static str, parent: u64, from: SystemTime, took: Duration| {
            let id = TraceParent { span_id: new_span_id(), ..own };
            self.span(id, name.into(), parent, from, from + took)
        };
        let cold_from = started + run.queued;
        let handler_from = cold_from + cold;
        spans.push(child("queue", own.span_id, started, run.queued));
        if cold_start.is_some() {
            spans.push(child("cold start", own.span_id, cold_from, cold));
        }
        let handled = child("handler", own.span_id, handler_from, handler);
        if !inference.is_zero() {
            // All runs of models together; only their sum is measured, so the span starts with the handler.
            spans.push(child("inference", span_number(&handled), handler_from, inference));
        }
        spans.push(handled);
        if run.commit.is_some() {
            spans.push(child("commit", own.span_id, handler_from + handler, commit));
        }
        spans
    }

    fn span(
        &self,
        id: TraceParent,
        name: Cow<'static, str>,
        parent: u64,
        start: SystemTime,
        end: SystemTime,
    ) -> SpanData {
        SpanData {
            span_context: id.context(false),
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: start,
            end_time: end,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn span_number(span: &SpanData) -> u64 {
    u64::from_be_bytes(span.span_context.span_id().to_bytes())
}

/// By OpenTelemetry's semantic conventions for functions and for CloudEvents.
fn attributes(run: &Invocation<'_>) -> Vec<KeyValue> {
    let event = run.event;
    let mut attributes = vec![
        KeyValue::new("faas.name", run.function.to_string()),
        KeyValue::new("faas.version", run.version.to_owned()),
        KeyValue::new("faas.invocation_id", run.invocation.to_owned()),
        KeyValue::new("faas.coldstart", run.timings.cold_start.is_some()),
        KeyValue::new("tidegate.attempt", i64::from(run.attempt)),
        KeyValue::new("tidegate.outcome", run.outcome.label()),
        KeyValue::new("cloudevents.event_id", event.id.to_string()),
        KeyValue::new("cloudevents.event_source", event.source.to_string()),
        KeyValue::new("cloudevents.event_type", event.kind.to_string()),
    ];
    if let Some(subject) = &event.subject {
        attributes.push(KeyValue::new("cloudevents.event_subject", subject.to_string()));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(sample: f64, room: usize) -> (Tracer, mpsc::Receiver<Vec<SpanData>>, Arc<AtomicU64>) {
        let (sender, receiver) = mpsc::channel(room);
        let dropped = Arc::new(AtomicU64::new(0));
        (Tracer::to(sender, sample, Arc::clone(&dropped), Clock::held_at(10_000)), receiver, dropped)
    }

    fn record(tracer: &Tracer, trace_parent: Option<&str>) {
        let run = Invocation {
            event: &Event::default(),
            function: &FunctionName::parse("double").unwrap(),
            version: "1.0.0",
            invocation: "7",
            attempt: 1,
            trace_parent,
            queued: Duration::ZERO,
            timings: &Timings::default(),
            commit: None,
            outcome: &Outcome::Rejected("no".to_owned()),
        };
        tracer.record(&run);
    }

    #[test]
    fn a_traceparent_reads_back_as_it_was_written() {
        assert_eq!(TraceParent::parse(PARENT).unwrap().to_string(), PARENT);
        assert!(TraceParent::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-later").unwrap().sampled);
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_trace_is_handed_on_even_when_nobody_collects_it() {
        let child = Tracer::off().child_of(Some(PARENT)).unwrap();
        assert!(child.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && child.ends_with("-01"), "{child}");
        assert_ne!(&*child, PARENT);
        assert_eq!(Tracer::off().child_of(None), None);
        assert_eq!(Tracer::off().child_of(Some("nonsense")), None);
    }

    #[test]
    fn a_parent_decides_whether_its_trace_is_kept_and_the_share_decides_for_new_ones() {
        let sampled =
            |sample: f64, parent| TraceParent::parse(&tracer(sample, 1).0.child_of(parent).unwrap()).unwrap().sampled;
        assert!(sampled(0.0, Some(PARENT)));
        assert!(!sampled(1.0, Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")));
        assert!(!sampled(0.0, None));
        assert!(sampled(1.0, None));
        let (half, ..) = tracer(0.5, 1);
        let kept = (0..1000).filter(|_| half.child_of(None).unwrap().ends_with("-01")).count();
        assert!((350..650).contains(&kept), "{kept}");
    }

    #[test]
    fn spans_that_find_no_room_are_dropped_and_counted() {
        let (tracer, mut spans, dropped) = tracer(1.0, 1);
        (0..3).for_each(|_| record(&tracer, Some(PARENT)));
        record(&tracer, None);
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        let first = spans.try_recv().unwrap();
        assert_eq!(first.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["double", "queue", "handler"]);
        assert_eq!(first[0].status, Status::error("rejected the event: no"));
    }
}
