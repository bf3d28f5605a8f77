//! How long a model's runs take: for metrics, and to decide where the next run goes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// A model whose median is below runs on the thread of its function: moving it to another thread and back would take as long.
const QUICK: Duration = Duration::from_micros(200);
/// Above, it goes to a thread of its own again. Apart from `QUICK`, so that a model near either does not go back and forth.
const SLOW: Duration = Duration::from_micros(400);
/// Runs that the median is taken of.
const RECENT: usize = 15;

/// Each power of two of microseconds is divided into this many, so that a quantile is off by an eighth at most.
const STEPS: usize = 8;
/// The highest power of two: 2³¹ µs are 36 minutes, longer than any handler may run.
const POWERS: usize = 32;

/// Counts the runs of one model. Recording takes no lock that a reader holds for long.
#[derive(Debug)]
pub(super) struct Meter {
    counts: Box<[AtomicU64]>,
    micros: AtomicU64,
    failures: AtomicU64,
    quick: AtomicBool,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    runs: [Duration; RECENT],
    count: usize,
}

/// What the runs of a model took.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Runs that ended well.
    pub runs: u64,
    /// Runs that failed in the engine. Inputs that do not fit never get there.
    pub failures: u64,
    /// Half took less, in microseconds.
    pub p50_us: u64,
    /// All but one in a hundred took less, in microseconds.
    pub p99_us: u64,
    /// All together, in seconds.
    pub sum_s: f64,
    /// A histogram: upper bound in seconds, and the runs that took no longer (cumulative).
    pub buckets: Vec<(f64, u64)>,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            counts: (0..POWERS * STEPS).map(|_| AtomicU64::new(0)).collect(),
            micros: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            quick: AtomicBool::new(false),
            recent: Mutex::default(),
        }
    }

    /// Whether the model was measured to be quick enough to run where its function runs.
    pub(super) fn is_quick(&self) -> bool {
        self.quick.load(Relaxed)
    }

    /// Counts a run that ended well.
    pub(super) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[index(micros)].fetch_add(1, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let at = recent.count % RECENT;
        recent.runs[at] = took;
        recent.count += 1;
        if recent.count >= RECENT {
            let mut runs = recent.runs;
            let (_, median, _) = runs.select_nth_unstable(RECENT / 2);
            let bound = if self.is_quick() { SLOW } else { QUICK };
            self.quick.store(*median < bound, Relaxed);
        }
    }

    /// Counts a run that failed in the engine.
    pub(super) fn record_failure(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    pub(super) fn latency(&self) -> Latency {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let runs = counts.iter().sum();
        // From 16 µs, a factor of 4 apart: ten buckets carry a small model on a desktop and a large one on a Pi.
        let bounds = (4..=24).step_by(2).map(|power| 1_u64 << power);
        let buckets = bounds.map(|bound| (seconds(bound), counts[..index(bound)].iter().sum())).collect();
        Latency {
            runs,
            failures: self.failures.load(Relaxed),
            p50_us: quantile(&counts, runs, 50),
            p99_us: quantile(&counts, runs, 99),
            sum_s: seconds(self.micros.load(Relaxed)),
            buckets,
        }
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// The place of a time among the counts: below `STEPS` each microsecond has its own, above each power of two has `STEPS`.
fn index(micros: u64) -> usize {
    let small = usize::try_from(micros).unwrap_or(usize::MAX);
    if small < STEPS {
        return small;
    }
    let power = micros.ilog2() as usize;
    let step = usize::try_from(micros >> (power - STEPS.ilog2() as usize)).unwrap_or(usize::MAX) % STEPS;
    ((power - 2) * STEPS + step).min(POWERS * STEPS - 1)
}

/// The lowest time of a place, in microseconds: what `index` is the reverse of.
fn lowest(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let power = index / STEPS + 2;
    ((STEPS + index % STEPS) as u64) << (power - STEPS.ilog2() as usize)
}

/// The upper end of the place where the run of that rank is.
fn quantile(counts: &[u64], runs: u64, percent: u64) -> u64 {
    let rank = (runs * percent).div_ceil(100);
    let mut passed = 0;
    let reached = |count: &u64| {
        passed += count;
        passed >= rank
    };
    if runs == 0 { 0 } else { counts.iter().position(reached).map_or(0, |at| lowest(at + 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn quantiles_are_off_by_an_eighth_at_most() {
        let meter = Meter::new();
        (1..=1000).for_each(|run| meter.record(micros(run * 10)));
        let latency = meter.latency();
        assert_eq!((latency.runs, latency.failures), (1000, 0));
        assert!((5000..5000 * 9 / 8).contains(&latency.p50_us), "{}", latency.p50_us);
        assert!((9900..9900 * 9 / 8).contains(&latency.p99_us), "{}", latency.p99_us);
        assert!((latency.sum_s - 5.005).abs() < 1e-9);
        assert_eq!(Meter::new().latency().p99_us, 0);
    }

    #[test]
    fn every_time_has_a_place_and_places_are_in_order() {
        for power in 0..40 {
            for near in [0, 1, 3] {
                let time = (1_u64 << power).saturating_sub(near);
                let at = index(time);
                assert!(lowest(at) <= time, "{time}");
                assert!(at == POWERS * STEPS - 1 || time < lowest(at + 1), "{time}");
            }
        }
        assert_eq!(index(u64::MAX), POWERS * STEPS - 1);
    }

    #[test]
    fn buckets_count_all_runs_below_their_bound() {
        let meter = Meter::new();
        for took in [1, 15, 16, 63, 64, 2_000_000] {
            meter.record(micros(took));
        }
        let buckets = meter.latency().buckets;
        assert_eq!(buckets[0], (0.000_016, 2));
        assert_eq!(buckets[1], (0.000_064, 4));
        assert_eq!(buckets.last().unwrap(), &(16.777_216, 6));
    }

    #[test]
    fn a_model_is_quick_only_after_many_quick_runs_and_until_it_is_much_slower() {
        let meter = Meter::new();
        let record = |took: u64, times: usize| (0..times).for_each(|_| meter.record(micros(took)));
        record(50, RECENT - 1);
        assert!(!meter.is_quick(), "not before there are enough");
        record(50, 1);
        assert!(meter.is_quick());
        record(5000, RECENT / 2);
        assert!(meter.is_quick(), "a few slow ones are the machine's");
        record(300, RECENT);
        assert!(meter.is_quick(), "between the bounds it stays");
        record(500, RECENT);
        assert!(!meter.is_quick());
        record(300, RECENT);
        assert!(!meter.is_quick(), "between the bounds it stays");
        record(100, RECENT);
        assert!(meter.is_quick());
    }
}
