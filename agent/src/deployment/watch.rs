//! Judges a deployment on trial by what its functions do, compared with what they did before. The judgement is pure; the numbers
//! are those of `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sync_protocol::deployment::Policy;

use super::state::Verdict;
use crate::metrics::{FunctionMetrics, HistogramCounts, Metrics};
use crate::name::FunctionName;

/// A handler that takes less is not slow, whatever it took before: a busy moment of the machine makes ten times of nothing.
const SLOW_MIN: Duration = Duration::from_millis(10);

/// How things were when a deployment came to serve. Part of what survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    /// The functions that it changed or brought.
    pub(crate) functions: BTreeMap<FunctionName, Was>,
    /// What was wrong with the agent's health anyway.
    pub(crate) unhealthy: Vec<String>,
    /// Whether it brought another agent, and the one before had the control plane's line.
    #[serde(default)]
    pub(crate) linked: bool,
}

/// How a function did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Was {
    /// Share of its invocations that failed.
    failed_percent: u64,
    /// 99 of 100 took at most this, in microseconds. `None` while there were too few to say.
    p99_us: Option<u64>,
}

/// What a changed function has done since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Did {
    runs: u64,
    failed: u64,
    /// Of those, the ones that the handler itself called wrong events.
    rejected: u64,
    /// The failure that came most often.
    mostly: Option<&'static str>,
    p99_us: Option<u64>,
}

/// A function's numbers, and where they stood.
#[derive(Debug)]
struct Gauge {
    metrics: Arc<FunctionMetrics>,
    outcomes: BTreeMap<&'static str, u64>,
    handler: HistogramCounts,
}

/// Reads the numbers of the functions of one deployment.
#[derive(Debug)]
pub(crate) struct Watch {
    gauges: BTreeMap<FunctionName, Gauge>,
}

impl Before {
    /// How `functions` have done since the agent started, and what is wrong.
    pub(crate) fn of(functions: &[FunctionName], metrics: &Metrics, unhealthy: Vec<String>, policy: &Policy) -> Self {
        let was = |name: &FunctionName| {
            let did = Gauge::new(metrics.function(name)).ever();
            let known = did.runs > 0 && did.runs >= policy.invocations_min;
            let failed_percent = if known { did.failed * 100 / did.runs } else { 0 };
            (name.clone(), Was { failed_percent, p99_us: did.p99_us.filter(|_| known) })
        };
        Self { functions: functions.iter().map(was).collect(), unhealthy, linked: false }
    }
}

impl Gauge {
    fn new(metrics: Arc<FunctionMetrics>) -> Self {
        let (outcomes, handler) = (metrics.outcomes().collect(), metrics.handler.counts());
        Self { metrics, outcomes, handler }
    }

    fn ever(&self) -> Did {
        did(&self.outcomes, &BTreeMap::new(), &self.handler)
    }

    fn since(&self) -> Did {
        let handler = self.metrics.handler.counts().since(&self.handler);
        did(&self.metrics.outcomes().collect(), &self.outcomes, &handler)
    }
}

fn did(now: &BTreeMap<&'static str, u64>, before: &BTreeMap<&'static str, u64>, handler: &HistogramCounts) -> Did {
    let since = |label: &str, n: u64| n.saturating_sub(before.get(label).copied().unwrap_or(0));
    let runs: u64 = now.iter().map(|(label, n)| since(label, *n)).sum();
    let of = |label: &str| now.get(label).map_or(0, |n| since(label, *n));
    let failures = now.iter().map(|(label, n)| (since(label, *n), *label));
    let mostly = failures.filter(|(n, label)| *n > 0 && *label != "succeeded").max().map(|(_, label)| label);
    let p99 = handler.quantile(0.99).map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    Did { runs, failed: runs.saturating_sub(of("succeeded")), rejected: of("rejected"), mostly, p99_us: p99 }
}

impl Watch {
    /// Counts from now on.
    pub(crate) fn start(before: &Before, metrics: &Metrics) -> Self {
        let gauge = |name: &FunctionName| (name.clone(), Gauge::new(metrics.function(name)));
        Self { gauges: before.functions.keys().map(gauge).collect() }
    }

    /// What the numbers say so far; `at_end`: its time is over.
    pub(crate) fn judge(&self, before: &Before, policy: &Policy, at_end: bool, unhealthy: &[String]) -> Verdict {
        let mut doubts = Vec::new();
        for (name, gauge) in &self.gauges {
            let was = before.functions.get(name).copied().unwrap_or_default();
            match judge(&gauge.since(), was, policy, at_end) {
                Verdict::Good => {}
                Verdict::Doubtful(why) => doubts.push(format!("function `{name}` {why}")),
                Verdict::Bad(why) => return Verdict::Bad(format!("function `{name}` {why}")),
            }
        }
        let anew = |reason: &&String| before.unhealthy.iter().all(|before| subject(before) != subject(reason));
        doubts.extend(unhealthy.iter().find(anew).cloned());
        doubts.into_iter().next().map_or(Verdict::Good, Verdict::Doubtful)
    }
}

/// What a reason is about, without what differs from time to time.
fn subject(reason: &str) -> &str {
    reason.split(": ").next().unwrap_or(reason)
}

fn judge(did: &Did, was: Was, policy: &Policy, at_end: bool) -> Verdict {
    let Did { runs, failed, rejected, mostly, p99_us } = *did;
    let times = format!("failed {failed} of {runs} times");
    let mostly = mostly.map(|label| format!(", mostly `{label}`")).unwrap_or_default();
    let enough = runs > 0 && runs >= policy.invocations_min;
    // What failed before is not the new version's fault.
    let percent_max = was.failed_percent + u64::from(policy.failed_percent_max);
    if enough && failed * 100 > runs.saturating_mul(percent_max) {
        return Verdict::Bad(format!("{times}, more than {}%{mostly}", percent_max.min(100)));
    }
    // One that runs once an hour never has enough.
    if at_end && failed == runs && failed > rejected {
        return Verdict::Bad(times + &mostly);
    }
    let (Some(p99_us), Some(was_us)) = (p99_us.filter(|_| enough), was.p99_us) else { return Verdict::Good };
    let slow = policy.slower_times_max > 0
        && p99_us > was_us.saturating_mul(policy.slower_times_max)
        && Duration::from_micros(p99_us) > SLOW_MIN;
    let why = || {
        let ms = |us: u64| format!("{}.{} ms", us / 1000, us % 1000 / 100);
        format!("takes {} at p99, before it was {}", ms(p99_us), ms(was_us))
    };
    match (slow, at_end) {
        (true, true) => Verdict::Bad(why()),
        (true, false) => Verdict::Doubtful(why()),
        (false, _) => Verdict::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy { invocations_min: 20, failed_percent_max: 10, slower_times_max: 10, ..Policy::default() }
    }

    #[track_caller]
    fn check(did: Did, was: Was, at_end: bool, expected: &str) {
        let verdict = match judge(&did, was, &policy(), at_end) {
            Verdict::Good => "good".to_owned(),
            Verdict::Doubtful(why) => format!("doubtful: {why}"),
            Verdict::Bad(why) => format!("bad: {why}"),
        };
        assert_eq!(verdict, expected, "{did:?}");
    }

    fn runs(runs: u64, failed: u64) -> Did {
        Did { runs, failed, ..Did::default() }
    }

    #[test]
    fn a_version_that_fails_too_often_is_bad() {
        let was = Was::default();
        check(runs(19, 19), was, false, "good");
        check(runs(20, 2), was, false, "good");
        check(runs(20, 3), was, false, "bad: failed 3 of 20 times, more than 10%");
        check(runs(0, 0), was, true, "good");
        let did = Did { mostly: Some("trapped"), ..runs(20, 3) };
        check(did, was, false, "bad: failed 3 of 20 times, more than 10%, mostly `trapped`");
    }

    #[test]
    fn the_failure_that_came_most_often_is_named() {
        let counts = |succeeded, trapped, timed_out| {
            BTreeMap::from([("succeeded", succeeded), ("trapped", trapped), ("timed-out", timed_out)])
        };
        let handler = crate::metrics::Histogram::default().counts();
        let mostly = |now, before| did(&now, &before, &handler).mostly;
        assert_eq!(mostly(counts(9, 5, 6), counts(0, 0, 0)), Some("timed-out"));
        assert_eq!(mostly(counts(9, 5, 6), counts(0, 0, 6)), Some("trapped"));
        assert_eq!(mostly(counts(9, 5, 6), counts(0, 5, 6)), None);
    }

    #[test]
    fn what_failed_before_is_not_its_fault() {
        let was = Was { failed_percent: 50, p99_us: None };
        check(runs(100, 60), was, true, "good");
        check(runs(100, 61), was, true, "bad: failed 61 of 100 times, more than 60%");
    }

    #[test]
    fn a_rare_function_that_never_succeeds_is_bad_in_the_end() {
        check(runs(2, 2), Was::default(), false, "good");
        check(runs(2, 2), Was::default(), true, "bad: failed 2 of 2 times");
        check(runs(2, 1), Was::default(), true, "good");
        check(Did { rejected: 2, ..runs(2, 2) }, Was::default(), true, "good");
    }

    #[test]
    fn a_version_that_is_much_slower_is_bad_in_the_end() {
        let was = Was { failed_percent: 0, p99_us: Some(2_000) };
        let did = |p99_us| Did { p99_us: Some(p99_us), ..runs(20, 0) };
        check(did(20_000), was, true, "good");
        check(did(21_000), was, false, "doubtful: takes 21.0 ms at p99, before it was 2.0 ms");
        check(did(21_000), was, true, "bad: takes 21.0 ms at p99, before it was 2.0 ms");
        check(did(9_000), Was { p99_us: Some(10), ..was }, true, "good");
        check(did(9_000_000), Was { p99_us: None, ..was }, true, "good");
    }
}
