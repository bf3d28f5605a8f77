//! A histogram of the last few minutes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::HistogramCounts;

/// The window moves on by such a part of it.
const PARTS: u32 = 10;

/// How long something took of late. Nothing is done while nothing is observed: what is too old is left out by whoever looks.
#[derive(Debug, Default)]
pub(crate) struct MovingHistogram {
    /// Each with when it began, the oldest first. At most one more than there are parts in a window.
    parts: VecDeque<(Instant, HistogramCounts)>,
}

impl MovingHistogram {
    /// Counts one duration of something that ended `at`, which is now.
    pub(crate) fn observe(&mut self, took: Duration, at: Instant, window: Duration) {
        let goes_on = |began: Instant| at.saturating_duration_since(began) < window / PARTS;
        if !self.parts.back().is_some_and(|(began, _)| goes_on(*began)) {
            while self.parts.front().is_some_and(|(began, _)| is_over(*began, at, window)) {
                self.parts.pop_front();
            }
            self.parts.push_back((at, HistogramCounts::default()));
        }
        if let Some((_, counts)) = self.parts.back_mut() {
            counts.count(took);
        }
    }

    /// All that were counted within the `window` until `now`, but for up to a tenth of it at its start.
    pub(crate) fn counts(&self, now: Instant, window: Duration) -> HistogramCounts {
        let mut all = HistogramCounts::default();
        self.parts.iter().filter(|(began, _)| !is_over(*began, now, window)).for_each(|(_, counts)| all.add(counts));
        all
    }
}

/// Whether what was counted first in a part is out of the window.
fn is_over(began: Instant, now: Instant, window: Duration) -> bool {
    now.saturating_duration_since(began) >= window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const WINDOW: Duration = Duration::from_secs(300);

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let (mut moving, start) = (MovingHistogram::default(), Clock::held_at(0).instant());
        let after = |seconds| start + Duration::from_secs(seconds);
        let p50 = |moving: &MovingHistogram, seconds| moving.counts(after(seconds), WINDOW).quantile(0.5);
        assert_eq!(p50(&moving, 0), None);
        for seconds in [0, 1, 29] {
            moving.observe(Duration::from_secs(1), after(seconds), WINDOW);
        }
        moving.observe(Duration::from_millis(1), after(200), WINDOW);
        assert_eq!(p50(&moving, 299), Some(Duration::from_secs(1)));
        assert_eq!(p50(&moving, 300), Some(Duration::from_millis(1)));
        assert_eq!(p50(&moving, 500), None, "nothing has run for a while");
        // The old ones do not come back with a new one.
        moving.observe(Duration::from_millis(10), after(5_000), WINDOW);
        assert_eq!(p50(&moving, 5_000), Some(Duration::from_millis(10)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut moving, start) = (MovingHistogram::default(), Clock::held_at(0).instant());
        for seconds in 0..10_000 {
            moving.observe(Duration::from_millis(1), start + Duration::from_secs(seconds), WINDOW);
            assert!(moving.parts.len() <= 11, "{}", moving.parts.len());
        }
        let counted = moving.counts(start + Duration::from_secs(9_999), WINDOW).total();
        assert!((270..=300).contains(&counted), "{counted}");
    }
}
