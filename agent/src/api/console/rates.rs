//! How fast counters grow, from what they were at the last look. Nothing is sampled while nobody looks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Two looks that are closer together than this are one, whoever looks.
const APART: Duration = Duration::from_millis(900);
/// After such a pause what was known says nothing of now.
const STALE: Duration = Duration::from_secs(10);
/// A minute of one viewer.
const POINTS: usize = 60;
/// Looks that a shown rate is the mean of.
const MEAN_OF: usize = 3;

/// What a counter is of: `functions`, `fahrenheit`.
pub(super) type Key = (&'static str, String);

/// What was seen of some counters of late.
#[derive(Debug, Default)]
pub(super) struct Rates {
    seen_at: Option<Instant>,
    counters: BTreeMap<Key, Counter>,
}

#[derive(Debug)]
struct Counter {
    last: u64,
    /// Per second, the newest last.
    rates: VecDeque<f64>,
}

impl Rates {
    /// Takes note of how the counters stand. Those that are not among them are forgotten.
    pub(super) fn look(&mut self, counts: BTreeMap<Key, u64>, now: Instant) {
        let since = self.seen_at.map(|at| now.saturating_duration_since(at));
        if since.is_some_and(|since| since < APART) {
            return;
        }
        if since.is_none_or(|since| since > STALE) {
            self.counters.clear();
        }
        self.seen_at = Some(now);
        let mut before = std::mem::take(&mut self.counters);
        for (key, count) in counts {
            let counter = match (before.remove(&key), since) {
                (Some(Counter { last, mut rates }), Some(since)) => {
                    if rates.len() == POINTS {
                        rates.pop_front();
                    }
                    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                    rates.push_back(count.saturating_sub(last) as f64 / since.as_secs_f64());
                    Counter { last: count, rates }
                }
                _ => Counter { last: count, rates: VecDeque::new() },
            };
            self.counters.insert(key, counter);
        }
    }

    /// Per second, over the last looks; none before there were two.
    pub(super) fn rate(&self, key: &Key) -> Option<f64> {
        let rates = &self.counters.get(key)?.rates;
        let last = rates.iter().rev().take(MEAN_OF);
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let count = last.len() as f64;
        (count > 0.0).then(|| last.sum::<f64>() / count)
    }

    /// Per second, look by look, the newest last.
    pub(super) fn history(&self, key: &Key) -> Vec<f64> {
        self.counters.get(key).map(|counter| counter.rates.iter().copied().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn key() -> Key {
        ("functions", "double".to_owned())
    }

    #[test]
    fn a_rate_is_what_came_between_two_looks() {
        let (mut rates, start) = (Rates::default(), Clock::held_at(0).instant());
        let mut look = |count, after_ms| {
            rates.look(BTreeMap::from([(key(), count)]), start + Duration::from_millis(after_ms));
            rates.rate(&key())
        };
        assert_eq!(look(100, 0), None);
        assert_eq!(look(300, 2_000), Some(100.0));
        assert_eq!(look(301, 2_100), Some(100.0), "somebody else looks as well");
        assert_eq!(look(500, 3_000), Some(150.0));
        assert_eq!(look(0, 4_000), Some(100.0), "it began anew");
        assert_eq!(look(9_000, 20_000), None, "nobody has looked for a while");
    }

    #[test]
    fn what_is_kept_is_bounded_and_ends_with_its_counter() {
        let (mut rates, start) = (Rates::default(), Clock::held_at(0).instant());
        for n in 0..200 {
            rates.look(BTreeMap::from([(key(), n)]), start + Duration::from_secs(n));
        }
        assert_eq!(rates.history(&key()), [1.0; POINTS]);
        rates.look(BTreeMap::new(), start + Duration::from_secs(200));
        assert!(rates.counters.is_empty());
    }
}
