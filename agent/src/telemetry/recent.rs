//! The last runs of each function, kept in memory for whoever looks: where their time went, and why some failed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Invocation;
use crate::clock::Clock;
use crate::event::BY_HAND;
use crate::invocation::Outcome;
use crate::limits::Limits;
use crate::metrics::{HistogramCounts, MovingHistogram};

/// One run that is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentRun {
    /// Id of the run.
    pub invocation: String,
    /// The version that ran.
    pub version: String,
    /// 1 for the first.
    pub attempt: u32,
    /// Unix time in milliseconds at which its event was put into the queue for it.
    pub started_ms: u64,
    /// How it ended, in a word.
    pub outcome: String,
    /// How it ended, in a sentence; none when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The event's id.
    pub event_id: String,
    /// Where the event came from.
    pub event_source: String,
    /// Its kind.
    pub event_type: String,
    /// Its topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_subject: Option<String>,
    /// Size of its payload.
    pub payload_bytes: u64,
    /// W3C trace context of the run, when it belongs to a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_parent: Option<String>,
    /// Waiting in the queue, in microseconds.
    pub queue_us: u64,
    /// Making an instance, when no warm one was free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_start_us: Option<u64>,
    /// In the handler, inference included.
    pub handler_us: u64,
    /// In models.
    pub inference_us: u64,
    /// Making its effects safe; none when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_us: Option<u64>,
}

impl RecentRun {
    fn of(run: &Invocation<'_>, ended_ms: u64, text_bytes_max: usize) -> Self {
        let cut = |text: &str| text[..text.floor_char_boundary(text_bytes_max)].to_owned();
        let (event, timings) = (run.event, run.timings);
        let took =
            run.queued + timings.cold_start.unwrap_or_default() + timings.handler + run.commit.unwrap_or_default();
        Self {
            invocation: run.invocation.to_owned(),
            version: run.version.to_owned(),
            attempt: run.attempt,
            started_ms: ended_ms.saturating_sub(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            outcome: run.outcome.label().to_owned(),
            reason: (!succeeded(run)).then(|| cut(&run.outcome.to_string())),
            event_id: cut(&event.id),
            event_source: cut(&event.source),
            event_type: cut(&event.kind),
            event_subject: event.subject.as_deref().map(cut),
            payload_bytes: event.data.len() as u64,
            trace_parent: run.trace_parent.map(ToOwned::to_owned),
            queue_us: us(run.queued),
            cold_start_us: timings.cold_start.map(us),
            handler_us: us(timings.handler),
            inference_us: us(timings.inference),
            commit_us: run.commit.map(us),
        }
    }

    /// From its queue to its end, in microseconds.
    pub fn total_us(&self) -> u64 {
        self.queue_us + self.cold_start_us.unwrap_or(0) + self.handler_us + self.commit_us.unwrap_or(0)
    }

    /// Whether both are about one event: the same one, or one that the other's run has caused.
    pub fn is_of_one_event(&self, other: &Self) -> bool {
        let trace = |run: &Self| run.trace_parent.as_deref().and_then(|text| text.get(3..35).map(str::to_owned));
        let same_event = self.event_id == other.event_id && self.event_source == other.event_source;
        same_event || trace(self).is_some_and(|own| trace(other).is_some_and(|theirs| own == theirs))
    }
}

fn us(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

const fn succeeded(run: &Invocation<'_>) -> bool {
    matches!(run.outcome, Outcome::Succeeded(_))
}

/// How long the parts of a function's runs took of late.
#[derive(Clone, Debug, Default)]
pub struct RecentLatency {
    /// Waiting in the queue.
    pub queue: HistogramCounts,
    /// In the handler, inference included.
    pub handler: HistogramCounts,
    /// Making its effects safe.
    pub commit: HistogramCounts,
}

/// The last runs of one function. Of those that succeed a few in each second are kept, so that a busy function pays for no more
/// than a look at the time, and what is shown stays long enough to be looked at.
#[derive(Debug, Default)]
pub struct RecentRuns(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    succeeded: VecDeque<RecentRun>,
    failed: VecDeque<RecentRun>,
    succeeded_at: Option<Instant>,
    queue: MovingHistogram,
    handler: MovingHistogram,
    commit: MovingHistogram,
}

impl RecentRuns {
    /// Keeps a run that ended `at`, which is now.
    pub(crate) fn record(&self, run: &Invocation<'_>, at: Instant, clock: &Clock, limits: &Limits) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(run.outcome, Outcome::Unavailable(_)) {
            let window = limits.recent_window.0;
            kept.queue.observe(run.queued, at, window);
            kept.handler.observe(run.timings.handler, at, window);
            run.commit.into_iter().for_each(|took| kept.commit.observe(took, at, window));
        }
        let runs = if succeeded(run) {
            let is_soon = |last| at.saturating_duration_since(last) < limits.recent_runs_every.0;
            // Who sends an event by hand wants to see what came of it.
            if &*run.event.source != BY_HAND && kept.succeeded_at.is_some_and(is_soon) {
                return;
            }
            kept.succeeded_at = Some(at);
            &mut kept.succeeded
        } else {
            &mut kept.failed
        };
        while runs.len() >= limits.recent_runs_max {
            runs.pop_front();
        }
        runs.push_back(RecentRun::of(run, clock.now_ms(), limits.recent_text_bytes_max));
    }

    /// How long they took in the `window` until `now`, also those that are not kept.
    pub fn latency(&self, now: Instant, window: Duration) -> RecentLatency {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = |of: &MovingHistogram| of.counts(now, window);
        RecentLatency { queue: counts(&kept.queue), handler: counts(&kept.handler), commit: counts(&kept.commit) }
    }

    /// All that are kept, the newest first.
    pub fn newest_first(&self) -> Vec<RecentRun> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut runs: Vec<_> = kept.succeeded.iter().chain(&kept.failed).cloned().collect();
        drop(kept);
        runs.sort_by_key(|run| std::cmp::Reverse(run.started_ms));
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::invocation::Timings;
    use crate::name::FunctionName;
    use crate::units::Span;

    fn record(runs: &RecentRuns, id: &str, outcome: &Outcome, at: Instant, limits: &Limits) {
        let event = Event { id: id.into(), ..Event::default() };
        let run = Invocation {
            event: &event,
            function: &FunctionName::parse("double").unwrap(),
            version: "1.0.0",
            invocation: id,
            attempt: 1,
            trace_parent: None,
            queued: Duration::from_millis(1),
            timings: &Timings { handler: Duration::from_millis(2), ..Timings::default() },
            commit: None,
            outcome,
        };
        runs.record(&run, at, &Clock::held_at(1_000), limits);
    }

    fn ids(runs: &RecentRuns) -> Vec<String> {
        runs.newest_first().into_iter().map(|run| run.invocation).collect()
    }

    #[test]
    fn a_busy_function_keeps_a_few_runs_in_a_second_and_each_that_failed() {
        let limits = Limits { recent_runs_every: Span(Duration::from_secs(1)), ..Limits::default() };
        let (runs, start) = (RecentRuns::default(), Clock::held_at(0).instant());
        let (succeeded, failed) = (Outcome::Succeeded(bytes::Bytes::new()), Outcome::Rejected("no".to_owned()));
        for (id, after_ms) in [("a", 0), ("b", 999), ("c", 1_000)] {
            record(&runs, id, &succeeded, start + Duration::from_millis(after_ms), &limits);
        }
        record(&runs, "d", &failed, start, &limits);
        record(&runs, "e", &failed, start, &limits);
        assert_eq!(ids(&runs), ["a", "c", "d", "e"]);
        let last = runs.newest_first().pop().unwrap();
        assert_eq!(last.reason.as_deref(), Some("rejected the event: no"));
        assert_eq!((last.started_ms, last.total_us()), (997, 3_000));
    }

    #[test]
    fn all_runs_of_late_count_for_the_latency() {
        let (runs, start) = (RecentRuns::default(), Clock::held_at(0).instant());
        let limits = Limits { recent_window: Span(Duration::from_secs(60)), ..Limits::default() };
        let unavailable = Outcome::Unavailable("no memory".to_owned());
        for outcome in [Outcome::Succeeded(bytes::Bytes::new()), Outcome::Rejected("no".to_owned()), unavailable] {
            (0..50).for_each(|_| record(&runs, "a", &outcome, start, &limits));
        }
        let after = |seconds| runs.latency(start + Duration::from_secs(seconds), Duration::from_secs(60));
        let latency = after(59);
        assert_eq!([latency.queue.total(), latency.handler.total(), latency.commit.total()], [100, 100, 0]);
        assert_eq!(latency.handler.quantile(0.5), Some(Duration::from_millis(2)));
        assert_eq!(after(60).handler.total(), 0);
    }

    #[test]
    fn recent_runs_are_bounded_in_number_and_in_text() {
        let limits = Limits { recent_runs_max: 2, recent_text_bytes_max: 5, ..Limits::default() };
        let (runs, failed) = (RecentRuns::default(), Outcome::Rejected("é".repeat(1000)));
        let now = Clock::held_at(0).instant();
        ["a", "b", "ccccccc"].iter().for_each(|id| record(&runs, id, &failed, now, &limits));
        let kept = runs.newest_first();
        assert_eq!(kept.iter().map(|run| &*run.event_id).collect::<Vec<_>>(), ["b", "ccccc"]);
        assert!(kept.iter().all(|run| run.reason.as_ref().unwrap().len() <= 5));
    }
}
