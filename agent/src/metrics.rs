//! What is counted and timed, and how Prometheus reads it.
//!
//! Each function's numbers are resolved once, when it is loaded: on the path of an event there is no lookup, no lock and no
//! allocation, only atomic additions. What other parts know already (brokers, streams, models) is not counted twice: they
//! register a closure that is read at scrape time.

mod histogram;
mod moving;
mod process;
mod scrape;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use self::histogram::{Histogram, HistogramCounts};
pub(crate) use self::moving::MovingHistogram;
pub use self::scrape::Scrape;
use crate::clock::Clock;
use crate::invocation::{Outcome, Timings};
use crate::name::FunctionName;
use crate::telemetry::RecentRuns;

/// Media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Memory of this process that is in RAM, shared pages counted whole; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    process::resident_bytes()
}

/// Every metric of one agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    functions: Arc<Functions>,
    registry: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Functions(RwLock<BTreeMap<FunctionName, Arc<FunctionMetrics>>>);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet; the agent's own process is measured already.
    pub fn new() -> Self {
        let functions = Arc::new(Functions::default());
        let metrics = Self { inner: Arc::new(Inner { functions: Arc::clone(&functions), registry: Mutex::default() }) };
        metrics.register(move |scrape| functions.collect(scrape));
        let clock = Clock::system();
        let started = clock.instant();
        metrics.register(move |scrape| process::collect(scrape, clock.instant() - started));
        metrics
    }

    /// The numbers of one function; the same ones for the same name, so that a reload does not lose any.
    pub fn function(&self, name: &FunctionName) -> Arc<FunctionMetrics> {
        let mut functions = self.inner.functions.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(functions.entry(name.clone()).or_default())
    }

    /// The numbers of one function, if it has any.
    pub fn known(&self, name: &FunctionName) -> Option<Arc<FunctionMetrics>> {
        self.inner.functions.0.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone)
    }

    /// Leaves a function out from now on. Its handles keep working, unseen.
    pub fn forget(&self, name: &FunctionName) {
        self.inner.functions.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Has `collect` called at each scrape. It must be quick and may not wait.
    pub fn register(&self, collect: impl Fn(&mut Scrape<'_>) -> fmt::Result + Send + Sync + 'static) {
        let mut registry = self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(Collector(Box::new(collect))));
    }

    /// All of it as [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// When a registered closure fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 << 10);
        text::encode(&mut text, &self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

struct Collector(Box<dyn Fn(&mut Scrape<'_>) -> fmt::Result + Send + Sync>);

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Scrape::new(encoder))
    }
}

/// Why an event was not taken into a function's queue, or left it again. Only QoS 0 and other at-most-once events are lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The function's queue was at its bound of events or bytes.
    QueueFull,
    /// It had been handed on too often.
    HopLimit,
    /// Over `limits.event_bytes_max`.
    TooLarge,
    /// The agent was draining, or the function was being removed.
    Stopping,
    /// Whoever had waited for the answer was gone before it began.
    CallerGone,
}

impl Dropped {
    const LABELS: [&str; 5] = ["queue-full", "hop-limit", "too-large", "stopping", "caller-gone"];

    /// One word for metrics and logs.
    pub const fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// Why a filter left an event out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// It says what the last one said.
    Unchanged,
    /// Its number is not far enough from the last one.
    Deadband,
    /// It came too soon.
    Rate,
}

impl Filtered {
    const LABELS: [&str; 3] = ["unchanged", "deadband", "rate"];
}

/// What ended a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowEnd {
    /// It has as many events as it is to have.
    Count,
    /// Its time has passed.
    Time,
    /// It would be too large, too much waited, or its trigger is gone.
    Early,
}

impl WindowEnd {
    const LABELS: [&str; 3] = ["count", "time", "early"];

    /// One word for metrics and handlers.
    pub const fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// The outcomes' labels, in the order of [`outcome_index`].
const OUTCOMES: [&str; 9] =
    ["succeeded", "retry", "rejected", "denied", "timed-out", "trapped", "out-of-memory", "bad-output", "unavailable"];

const fn outcome_index(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Succeeded(_) => 0,
        Outcome::Retry(_) => 1,
        Outcome::Rejected(_) => 2,
        Outcome::Denied { .. } => 3,
        Outcome::TimedOut { .. } => 4,
        Outcome::Trapped(_) => 5,
        Outcome::OutOfMemory { .. } => 6,
        Outcome::BadOutput(_) => 7,
        Outcome::Unavailable(_) => 8,
    }
}

/// Classes of status codes.
const URL_RESPONSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// One function's numbers.
#[derive(Debug, Default)]
pub struct FunctionMetrics {
    /// Events that were taken into the queue.
    pub received: Counter,
    /// Further attempts that were made.
    pub retries: Counter,
    /// Runs that came to nothing: what they had read was changed by another before they could commit, or an outbox was full.
    pub conflicts: Counter,
    /// Events that were given up on.
    pub dead_letters: Counter,
    /// Events that wait on disk now.
    pub parked: Gauge,
    /// Events that went to disk because too many waited in memory.
    pub spilled: Counter,
    /// Events that were not run, because their idempotency key was dealt with.
    pub duplicates: Counter,
    /// Events that passed a filter which did not find in them what it compares.
    pub unfiltered: Counter,
    /// Topics that a filter forgot, because there were too many.
    pub filter_forgotten: Counter,
    /// Events that wait in windows.
    pub windowed: Gauge,
    /// Instances that were made because no warm one was free.
    pub cold_starts: Counter,
    /// Instances that exist, busy or warm.
    pub instances: Gauge,
    /// From arrival to the start of the handler or of its instance.
    pub queue: Histogram,
    /// In the handler, inference included.
    pub handler: Histogram,
    /// From the handler's end until its effects were safe.
    pub commit: Histogram,
    /// The last runs.
    pub recent: RecentRuns,
    dropped: [Counter; Dropped::LABELS.len()],
    filtered: [Counter; Filtered::LABELS.len()],
    windows: [Counter; WindowEnd::LABELS.len()],
    url_responses: [Counter; URL_RESPONSES.len()],
    invocations: [Counter; OUTCOMES.len()],
}

impl FunctionMetrics {
    /// Counts an event that was not taken.
    pub fn dropped(&self, why: Dropped) {
        self.dropped[why as usize].inc();
    }

    /// Counts an event that a filter left out.
    pub fn filtered(&self, why: Filtered) {
        self.filtered[why as usize].inc();
    }

    /// Counts a window that has ended.
    pub fn window_ended(&self, why: WindowEnd) {
        self.windows[why as usize].inc();
    }

    /// Counts an invocation, its cold start if it had one, and its time in the handler.
    pub fn invoked(&self, outcome: &Outcome, timings: &Timings) {
        self.invocations[outcome_index(outcome)].inc();
        if timings.cold_start.is_some() {
            self.cold_starts.inc();
        }
        self.handler.observe(timings.handler);
    }

    /// Counts the answer to a request to one of its URLs.
    pub fn url_answered(&self, status: u16) {
        if let Some(counter) = self.url_responses.get(usize::from(status / 100).wrapping_sub(2)) {
            counter.inc();
        }
    }

    /// How many invocations ended with each [label](Outcome::label).
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        OUTCOMES.iter().zip(&self.invocations).map(|(label, counter)| (*label, counter.get()))
    }

    /// Events that filters left out, for whichever reason.
    pub fn events_filtered(&self) -> u64 {
        self.filtered.iter().map(Counter::get).sum()
    }

    /// Events that were not taken, for whichever reason.
    pub fn events_dropped(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }
}

impl Functions {
    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let functions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let counter = |of: fn(&FunctionMetrics) -> &Counter| {
            functions.iter().map(move |(name, metrics)| ([("function", name.as_str())], of(metrics).get()))
        };
        let histogram = |of: fn(&FunctionMetrics) -> &Histogram| {
            functions.iter().map(move |(name, metrics)| ([("function", name.as_str())], of(metrics)))
        };
        scrape.counters(
            "tidegate_function_events_received",
            "Events taken into the function's queue",
            counter(|f| &f.received),
        )?;
        scrape.counters(
            "tidegate_function_events_dropped",
            "Events not taken into the function's queue, or not run",
            functions.iter().flat_map(|(name, f)| by_label("reason", name, &Dropped::LABELS, &f.dropped)),
        )?;
        scrape.counters(
            "tidegate_function_events_filtered",
            "Events that the filters of the function's triggers left out",
            functions.iter().flat_map(|(name, f)| by_label("reason", name, &Filtered::LABELS, &f.filtered)),
        )?;
        scrape.counters(
            "tidegate_function_events_unfiltered",
            "Events that lacked what a filter compares",
            counter(|f| &f.unfiltered),
        )?;
        scrape.counters(
            "tidegate_function_filter_forgotten",
            "Topics that a filter forgot, because there were too many",
            counter(|f| &f.filter_forgotten),
        )?;
        scrape.counters(
            "tidegate_function_invocations",
            "Runs of the handler, by how they ended",
            functions.iter().flat_map(|(name, f)| by_label("outcome", name, &OUTCOMES, &f.invocations)),
        )?;
        scrape.gauges(
            "tidegate_function_windowed",
            "Events that wait on disk for their windows",
            functions.iter().map(|(name, f)| ([("function", name.as_str())], f.windowed.get())),
        )?;
        scrape.counters(
            "tidegate_function_windows",
            "Windows that were full, by what ended them",
            functions.iter().flat_map(|(name, f)| by_label("end", name, &WindowEnd::LABELS, &f.windows)),
        )?;
        // Most functions have no URL: they are left out.
        let called = functions.iter().filter(|(_, f)| f.url_responses.iter().any(|counter| counter.get() > 0));
        scrape.counters(
            "tidegate_function_url_responses",
            "Answers to requests to the function's URLs",
            called.flat_map(|(name, f)| by_label("status", name, &URL_RESPONSES, &f.url_responses)),
        )?;
        scrape.counters("tidegate_function_retries", "Further attempts", counter(|f| &f.retries))?;
        scrape.counters(
            "tidegate_function_conflicts",
            "Runs for nothing: what they had read was changed before their commit, or an outbox was full",
            counter(|f| &f.conflicts),
        )?;
        scrape.counters("tidegate_function_dead_letters", "Events given up on", counter(|f| &f.dead_letters))?;
        scrape.gauges(
            "tidegate_function_parked",
            "Events that wait on disk",
            functions.iter().map(|(name, f)| ([("function", name.as_str())], f.parked.get())),
        )?;
        scrape.counters(
            "tidegate_function_spilled",
            "Events that went to disk because too many waited in memory",
            counter(|f| &f.spilled),
        )?;
        scrape.counters(
            "tidegate_function_duplicates",
            "Events that were not run, because their idempotency key was dealt with",
            counter(|f| &f.duplicates),
        )?;
        scrape.counters(
            "tidegate_function_cold_starts",
            "Instances made because no warm one was free",
            counter(|f| &f.cold_starts),
        )?;
        scrape.gauges(
            "tidegate_function_instances",
            "Instances, busy or warm",
            functions.iter().map(|(name, f)| ([("function", name.as_str())], f.instances.get())),
        )?;
        scrape.seconds(
            "tidegate_function_queue",
            "From arrival to the start of the handler or of its instance",
            histogram(|f| &f.queue),
        )?;
        scrape.seconds("tidegate_function_handler", "In the handler, inference included", histogram(|f| &f.handler))?;
        scrape.seconds(
            "tidegate_function_commit",
            "From the handler's end until its effects were safe",
            histogram(|f| &f.commit),
        )
    }
}

fn by_label<'a>(
    label: &'static str,
    function: &'a FunctionName,
    values: &'static [&'static str],
    counters: &'a [Counter],
) -> impl Iterator<Item = ([(&'static str, &'a str); 2], u64)> {
    values
        .iter()
        .zip(counters)
        .map(move |(value, counter)| ([("function", function.as_str()), (label, *value)], counter.get()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(name: &str) -> FunctionName {
        FunctionName::parse(name).unwrap()
    }

    #[test]
    fn what_a_function_did_is_in_the_exposition() {
        let metrics = Metrics::new();
        let function = metrics.function(&name("fahrenheit"));
        function.received.inc();
        function.dropped(Dropped::QueueFull);
        let timings =
            Timings { cold_start: Some(Duration::ZERO), handler: Duration::from_millis(2), ..Timings::default() };
        function.invoked(&Outcome::TimedOut { after_ms: 3 }, &timings);
        let text = metrics.encode().unwrap();
        for line in [
            "# TYPE tidegate_function_invocations counter",
            "tidegate_function_events_received_total{function=\"fahrenheit\"} 1",
            "tidegate_function_events_dropped_total{function=\"fahrenheit\",reason=\"queue-full\"} 1",
            "tidegate_function_invocations_total{function=\"fahrenheit\",outcome=\"timed-out\"} 1",
            "tidegate_function_invocations_total{function=\"fahrenheit\",outcome=\"succeeded\"} 0",
            "tidegate_function_cold_starts_total{function=\"fahrenheit\"} 1",
            "# UNIT tidegate_function_handler_seconds seconds",
            "tidegate_function_handler_seconds_count{function=\"fahrenheit\"} 1",
            "tidegate_function_handler_seconds_bucket{le=\"0.0025\",function=\"fahrenheit\"} 1",
            "tidegate_function_handler_seconds_bucket{le=\"+Inf\",function=\"fahrenheit\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn the_labels_are_those_of_the_outcomes() {
        let all = [
            Outcome::Succeeded(bytes::Bytes::new()),
            Outcome::Retry(String::new()),
            Outcome::Rejected(String::new()),
            Outcome::Denied { capability: String::new(), message: String::new() },
            Outcome::TimedOut { after_ms: 0 },
            Outcome::Trapped(String::new()),
            Outcome::OutOfMemory { limit_bytes: 0 },
            Outcome::BadOutput(String::new()),
            Outcome::Unavailable(String::new()),
        ];
        for outcome in all {
            assert_eq!(OUTCOMES[outcome_index(&outcome)], outcome.label());
        }
    }

    #[test]
    fn a_reload_keeps_the_numbers_and_a_removal_ends_them() {
        let metrics = Metrics::new();
        metrics.function(&name("a")).received.inc();
        assert_eq!(metrics.function(&name("a")).received.get(), 1);
        metrics.forget(&name("a"));
        assert!(!metrics.encode().unwrap().contains("function=\"a\""));
    }

    #[test]
    fn other_parts_are_read_at_scrape_time() {
        let metrics = Metrics::new();
        metrics.register(|scrape| scrape.gauges("tidegate_stream_bytes", "On disk", [([("stream", "readings")], 42)]));
        assert!(metrics.encode().unwrap().contains("tidegate_stream_bytes{stream=\"readings\"} 42\n"));
    }

    #[test]
    fn the_process_is_measured() {
        let text = Metrics::new().encode().unwrap();
        for name in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "tidegate_uptime_seconds ",
            "tidegate_build_info{",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in\n{text}");
        }
    }
}
