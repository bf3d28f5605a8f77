//! A histogram that threads share without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Ten steps per decade (the R10 series), so that a quantile is off by an eighth at most.
const STEPS: [u64; 10] = [100, 125, 160, 200, 250, 315, 400, 500, 630, 800];
/// 1 µs to 1000 s.
const DECADES: usize = 9;
const LEN: usize = STEPS.len() * DECADES + 1;

/// Upper bounds in nanoseconds, each included.
const BOUNDS: [u64; LEN] = {
    let mut bounds = [0; LEN];
    let (mut i, mut scale) = (0, 10);
    while i < LEN {
        bounds[i] = STEPS[i % STEPS.len()] * scale;
        i += 1;
        if i % STEPS.len() == 0 {
            scale *= 10;
        }
    }
    bounds
};

fn nanos(took: Duration) -> u64 {
    took.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(took.subsec_nanos()))
}

fn bucket(ns: u64) -> usize {
    BOUNDS.partition_point(|bound| *bound < ns)
}

/// How long something took, from 1 µs to 1000 s, as counts per bucket.
pub struct Histogram {
    /// The last one is for what is longer than any bound.
    counts: [AtomicU64; LEN + 1],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count()).field("p50", &self.quantile(0.5)).finish()
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let ns = nanos(took);
        self.counts[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// All durations added up.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed))
    }

    /// The duration that a share `q` (0.0 to 1.0) of all did not exceed: the upper bound of its bucket. `None` while nothing
    /// was counted.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        self.counts().quantile(q)
    }

    /// How it stands now.
    pub fn counts(&self) -> HistogramCounts {
        HistogramCounts(self.snapshot())
    }

    /// Counts per bucket of 1, 2.5 and 5 per decade from 10 µs to 100 s, with the upper bounds in seconds; and how many there
    /// are. A scrape is no place for ninety lines per function.
    pub(super) fn coarse(&self) -> (Vec<(f64, u64)>, u64) {
        let counts = self.snapshot();
        let mut buckets = Vec::with_capacity(24);
        let mut pending = 0;
        for (index, count) in counts.iter().enumerate() {
            pending += count;
            let shown = (10..=80).contains(&index) && matches!(index % STEPS.len(), 0 | 4 | 7);
            if shown {
                buckets.push((Duration::from_nanos(BOUNDS[index]).as_secs_f64(), std::mem::take(&mut pending)));
            }
        }
        buckets.push((f64::INFINITY, pending));
        (buckets, counts.iter().sum())
    }

    fn snapshot(&self) -> [u64; LEN + 1] {
        std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed))
    }
}

/// How a histogram stood at some moment.
#[derive(Clone, PartialEq, Eq)]
pub struct HistogramCounts([u64; LEN + 1]);

impl Default for HistogramCounts {
    fn default() -> Self {
        Self([0; LEN + 1])
    }
}

impl HistogramCounts {
    /// Counts one duration.
    pub(super) fn count(&mut self, took: Duration) {
        self.0[bucket(nanos(took))] += 1;
    }

    /// Counts what `other` counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, other)| *count += other);
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(earlier.0[i])))
    }

    /// As [`Histogram::quantile`].
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.total();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count"
        )]
        let rank = ((total as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        let index = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        (total > 0).then(|| Duration::from_nanos(BOUNDS[index.min(LEN - 1)]))
    }
}

impl std::fmt::Debug for HistogramCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} counted", self.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_off_by_a_quarter_at_most() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for ms in 1..=1000 {
            histogram.observe(Duration::from_millis(ms));
        }
        for (q, ms) in [(0.5, 500.0), (0.99, 990.0), (0.0, 1.0), (1.0, 1000.0)] {
            let off = histogram.quantile(q).unwrap().as_secs_f64() * 1000.0 / ms;
            assert!((1.0..1.27).contains(&off), "p{q}: {off} times what it is");
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.sum(), Duration::from_micros(500_500_000));
    }

    #[test]
    fn what_came_later_is_seen_alone() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        let before = histogram.counts();
        histogram.observe(Duration::from_secs(1));
        assert_eq!(histogram.counts().since(&before).quantile(0.0), Some(Duration::from_secs(1)));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_is_shorter_or_longer_than_all_bounds_is_counted() {
        let histogram = Histogram::default();
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::from_secs(86_400));
        let (buckets, count) = histogram.coarse();
        assert_eq!(count, 2);
        assert_eq!(buckets[0], (0.000_01, 1));
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, 1));
    }

    #[test]
    fn the_bounds_are_round_and_include_their_own_value() {
        let histogram = Histogram::default();
        for us in [10, 25, 50, 100] {
            histogram.observe(Duration::from_micros(us));
        }
        let shown: Vec<_> = histogram.coarse().0.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(shown, [(0.000_01, 1), (0.000_025, 1), (0.000_05, 1), (0.000_1, 1)]);
    }
}
