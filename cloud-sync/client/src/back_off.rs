//! Waits after failures: doubled each time, and never the same for two gateways.

use std::time::Duration;

use crate::limits::Limits;

#[derive(Debug)]
pub(crate) struct BackOff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl BackOff {
    pub(crate) const fn new(limits: &Limits) -> Self {
        Self { next: limits.back_off, first: limits.back_off, last: limits.back_off_max }
    }

    /// How long to wait now: what the other side asks for, and up to a quarter more so that not all come back at once; else
    /// between half of the step and all of it.
    pub(crate) fn step(&mut self, asked: Option<Duration>) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.last);
        match asked {
            Some(asked) => asked.min(self.last).mul_f64(1.0 + fastrand::f64() / 4.0),
            None => step.mul_f64(0.5 + fastrand::f64() / 2.0),
        }
    }

    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let limits = Limits::default();
        let steps = || {
            let mut back_off = BackOff::new(&limits);
            (0..20).map(|_| back_off.step(None)).collect::<Vec<_>>()
        };
        let (one, other) = (steps(), steps());
        assert_ne!(one, other);
        assert!(one[0] <= limits.back_off && one[0] >= limits.back_off / 2);
        assert!(one.iter().all(|step| *step <= limits.back_off_max));
        assert!(one[19] >= limits.back_off_max / 2);
    }

    #[test]
    fn what_the_server_asks_for_is_the_least() {
        let mut back_off = BackOff::new(&Limits::default());
        let asked = Duration::from_secs(10);
        let wait = back_off.step(Some(asked));
        assert!(wait >= asked && wait <= asked.mul_f64(1.25), "{wait:?}");
        assert!(back_off.step(Some(Duration::from_secs(1_000_000))) <= Limits::default().back_off_max.mul_f64(1.25));
    }
}
