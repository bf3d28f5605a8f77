//! How old a record is, and when it was made, on machines whose clock may be wrong, unset or set while they run.
//!
//! Ages are counted by a clock of the journal's own. While the agent runs it advances with monotonic time; over the time in
//! between by as much as the wall clock did, when that went forward and can be believed before and after. So nothing
//! expires because somebody set the clock, and nothing is kept for ever.

use std::collections::BTreeMap;

/// A wall clock that moves by more than this against monotonic time was set.
const STEP_MS: u64 = 1_000;
/// A wall clock that is behind what the journal saw, and that nobody sets for this long, is believed: the earlier one was
/// wrong.
const PATIENCE_MS: u64 = 24 * 3_600_000;
/// Runs whose start is remembered, for records that were made before the clock was set.
const RUNS_MAX: usize = 64;

/// What the machine's clocks say.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Unix time in milliseconds, as far as the machine knows.
    pub wall_ms: u64,
    /// Milliseconds that only ever advance.
    pub steady_ms: u64,
    /// Whether the wall clock is later than this agent's code.
    pub plausible: bool,
}

/// What is kept of the time from one run to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClockState {
    /// Number of this run of the agent.
    pub run: u64,
    /// The journal's own clock.
    pub age_ms: u64,
    /// When the wall clock was believed last: what it said, and what the journal's own said then.
    pub wall_ms: u64,
    /// The journal's own clock at that time.
    pub wall_age_ms: u64,
    /// Unix time in milliseconds of the starts of runs whose clock was set only later.
    pub runs: BTreeMap<u64, u64>,
}

/// When something is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// By the journal's own clock.
    pub age_ms: u64,
    /// The number of this run when the wall clock cannot be believed, else 0.
    pub run: u64,
    /// Milliseconds since this run's start.
    pub since_start_ms: u64,
}

/// The journal's clock.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    state: ClockState,
    last: Option<Reading>,
    started_ms: u64,
    believed: bool,
    /// Something was kept in this run whose time is not known.
    unknown: bool,
    /// The clock was set, which is not kept yet.
    news: bool,
}

impl Ages {
    /// Starts a run after the one that left `state`; `seen_ms` is the highest age in the journal.
    pub fn start(state: ClockState, seen_ms: u64, now: Reading) -> Self {
        let (run, age_ms) = (state.run + 1, state.age_ms.max(seen_ms));
        let believed = now.plausible && now.wall_ms >= state.wall_ms;
        let mut ages =
            Self { state: ClockState { run, age_ms, ..state }, started_ms: now.steady_ms, ..Self::default() };
        if believed {
            ages.believe(now);
        }
        ages.last = Some(now);
        ages
    }

    fn believe(&mut self, now: Reading) {
        let state = &mut self.state;
        if !self.believed && state.wall_ms > 0 {
            state.age_ms = state.age_ms.max(state.wall_age_ms + now.wall_ms.saturating_sub(state.wall_ms));
        } else if state.age_ms == 0 {
            // So that journals from before there were ages go on: theirs are wall times.
            state.age_ms = now.wall_ms;
        }
        self.believed = true;
    }

    /// Notes what time it is, and returns how something that is kept now is stamped.
    pub fn look(&mut self, now: Reading) -> Moment {
        let last = self.last.replace(now).unwrap_or(now);
        let passed_ms = now.steady_ms.saturating_sub(last.steady_ms);
        self.state.age_ms += passed_ms;
        let was_set = now.wall_ms.abs_diff(last.wall_ms.saturating_add(passed_ms)) > STEP_MS;
        self.news |= was_set;
        let since_start_ms = now.steady_ms.saturating_sub(self.started_ms);
        if !now.plausible {
            self.believed = false;
        } else if !self.believed && (was_set || since_start_ms > PATIENCE_MS) {
            self.believe(now);
        }
        if self.believed {
            self.state.wall_ms = now.wall_ms;
            self.state.wall_age_ms = self.state.age_ms;
            if self.unknown && !self.state.runs.contains_key(&self.state.run) {
                self.state.runs.insert(self.state.run, now.wall_ms.saturating_sub(since_start_ms));
                self.news = true;
                while self.state.runs.len() > RUNS_MAX {
                    self.state.runs.pop_first();
                }
            }
        }
        let run = if self.believed { 0 } else { self.state.run };
        Moment { age_ms: self.state.age_ms, run, since_start_ms }
    }

    /// A record was stamped with `moment`.
    pub fn used(&mut self, moment: Moment) {
        self.unknown |= moment.run > 0;
    }

    /// Unix time in milliseconds of something that was kept `since_start_ms` after the start of `run`, if it is known now.
    pub fn time_of(&self, run: u64, since_start_ms: u64) -> Option<u64> {
        self.state.runs.get(&run).map(|start_ms| start_ms + since_start_ms)
    }

    /// Whether times are not known at present.
    pub const fn is_waiting(&self) -> bool {
        self.unknown && !self.believed
    }

    /// Whether the clock was set since this was asked last: what is kept of it should say so soon, or a run that ends before
    /// takes the step for time that has passed.
    pub const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.news, false)
    }

    /// What to keep of it.
    pub const fn state(&self) -> &ClockState {
        &self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_2026: u64 = 1_780_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn at(wall_ms: u64, steady_ms: u64) -> Reading {
        Reading { wall_ms, steady_ms, plausible: wall_ms >= 1_700_000_000_000 }
    }

    #[test]
    fn a_clock_that_is_set_makes_nothing_older() {
        let mut ages = Ages::start(ClockState::default(), 0, at(HOUR, 0));
        let before = ages.look(at(HOUR + 1000, 1000));
        ages.used(before);
        assert_eq!((before.age_ms, before.run, before.since_start_ms), (1000, 1, 1000));
        assert_eq!(ages.time_of(1, 1000), None);
        let after = ages.look(at(YEAR_2026, 2000));
        assert_eq!((after.age_ms, after.run), (2000, 0));
        assert_eq!(ages.time_of(1, 1000), Some(YEAR_2026 - 1000), "its time is known now");
        assert!(ages.take_news() && !ages.take_news(), "to be kept once");
        let back = ages.look(at(HOUR, 3000));
        assert_eq!((back.age_ms, back.run), (3000, 1));
    }

    #[test]
    fn time_passes_between_runs_as_far_as_it_is_known() {
        let mut ages = Ages::start(ClockState::default(), 0, at(YEAR_2026, 500));
        let first = ages.look(at(YEAR_2026 + 10, 510)).age_ms;
        let state = ages.state().clone();
        // The next morning.
        let mut next = Ages::start(state.clone(), first, at(YEAR_2026 + 10 + 8 * HOUR, 3));
        assert_eq!(next.look(at(YEAR_2026 + 10 + 8 * HOUR, 3)).age_ms, first + 8 * HOUR);
        // A clock that starts in 1970 and is set after a minute.
        let mut unset = Ages::start(state.clone(), first, at(0, 3));
        assert_eq!(unset.look(at(60_000, 60_003)).age_ms, first + 60_000);
        assert_eq!(unset.look(at(YEAR_2026 + 10 + 8 * HOUR, 60_004)).age_ms, first + 8 * HOUR);
        // One that is behind, and stays so.
        let mut behind = Ages::start(state, first, at(YEAR_2026 - HOUR, 0));
        assert_eq!(
            behind.look(at(YEAR_2026 - HOUR + 1000, 1000)),
            Moment { age_ms: first + 1000, run: 2, since_start_ms: 1000 }
        );
        let day = 25 * HOUR;
        assert_eq!(behind.look(at(YEAR_2026 - HOUR + day, day)).run, 0, "the earlier one was wrong");
    }
}
