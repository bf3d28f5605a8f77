//! How fast a stream may leave, and how fast it does.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Rate;

/// What may leave at once after a pause, as time at the rate: short, so that a thin link keeps room for others.
const BURST: Duration = Duration::from_millis(100);
/// What a rate is measured over.
const MEASURED: Duration = Duration::from_secs(10);

/// Keeps a stream within its `max_rate`.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: Option<Rate>,
    /// When all that has left would have left at exactly the rate.
    paid_at: Option<Instant>,
}

impl Throttle {
    pub(super) const fn new(rate: Option<Rate>) -> Self {
        Self { rate, paid_at: None }
    }

    /// When the next may leave; `None` when it may at once.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        self.paid_at.filter(|at| *at > now)
    }

    /// Notes what has left.
    pub(super) fn took(&mut self, now: Instant, records: u64, bytes: u64) {
        let (amount, rate) = match self.rate {
            None => return,
            Some(Rate::Records(rate)) => (records, rate),
            Some(Rate::Bytes(rate)) => (bytes, rate),
        };
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(rate.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.paid_at.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        self.paid_at = Some(from + cost);
    }

    /// Most bytes that should leave together: a second's worth.
    pub(super) fn bytes_at_once(&self) -> usize {
        match self.rate {
            Some(Rate::Bytes(rate)) => usize::try_from(rate).unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    /// Most records that should leave together: a second's worth.
    pub(super) fn records_at_once(&self) -> usize {
        match self.rate {
            Some(Rate::Records(rate)) => usize::try_from(rate.max(1)).unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }
}

/// How fast records have arrived lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    /// Seconds since some start, and what arrived in each.
    seconds: VecDeque<(u64, u64)>,
    began: Option<Instant>,
}

impl Meter {
    pub(super) fn count(&mut self, now: Instant, records: u64) {
        let second = now.duration_since(*self.began.get_or_insert(now)).as_secs();
        match self.seconds.back_mut() {
            Some((last, sum)) if *last == second => *sum += records,
            _ => self.seconds.push_back((second, records)),
        }
        while self.seconds.front().is_some_and(|(first, _)| first + MEASURED.as_secs() <= second) {
            self.seconds.pop_front();
        }
    }

    /// Records a second over the last ten, the one that runs left out.
    pub(super) fn per_second(&self, now: Instant) -> u64 {
        let Some(began) = self.began else { return 0 };
        let second = now.duration_since(began).as_secs();
        let recent = self.seconds.iter().filter(|(at, _)| *at < second && at + MEASURED.as_secs() >= second);
        recent.map(|(_, sum)| sum).sum::<u64>() / MEASURED.as_secs().min(second.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_the_rate_and_a_tenth() {
        let clock = crate::clock::Clock::system();
        let mut throttle = Throttle::new(Some(Rate::Records(100)));
        let start = clock.instant();
        let mut left = Vec::new();
        while clock.instant() < start + Duration::from_secs(5) {
            match throttle.wait_until(clock.instant()) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => {
                    throttle.took(clock.instant(), 1, 1_000);
                    left.push(clock.instant());
                }
            }
        }
        for (i, from) in left.iter().enumerate() {
            let within = left[i..].iter().take_while(|at| **at < *from + Duration::from_secs(1)).count();
            assert!(within <= 111, "{within} within a second");
        }
        assert!((490..=520).contains(&left.len()), "{}", left.len());
    }

    #[test]
    fn a_rate_of_bytes_counts_bytes() {
        let now = crate::clock::Clock::system().instant();
        let mut throttle = Throttle::new(Some(Rate::Bytes(1_000)));
        throttle.took(now, 1, 5_000);
        let wait = throttle.wait_until(now).unwrap() - now;
        assert_eq!(wait, Duration::from_secs(5));
        assert!(throttle.wait_until(now + Duration::from_secs(5)).is_none());
        assert!(Throttle::new(None).wait_until(now).is_none());
    }

    #[test]
    fn what_arrived_is_measured_over_ten_seconds() {
        let now = crate::clock::Clock::system().instant();
        let mut meter = Meter::default();
        for second in 0..20 {
            meter.count(now + Duration::from_secs(second), 50);
        }
        assert_eq!(meter.per_second(now + Duration::from_secs(20)), 50);
        assert_eq!(meter.per_second(now + Duration::from_secs(25)), 25);
        assert_eq!(meter.per_second(now + Duration::from_secs(60)), 0);
    }
}
