//! `only`: which of a trigger's events its function sees, the same for every kind of trigger that has it.
//!
//! # Promises
//! - An event that is left out is dealt with, and counted: its source keeps it no longer than those that passed before it.
//! - It is compared with the last one that passed, of its own topic or whatever `per` says. One that passed and was not dealt with
//!   counts no more: it passes when it comes again.
//! - An event without what is to be compared passes, and is counted.
//! - The number of topics of which anything is known is bounded; one that is forgotten passes the next time.
//! - An event that came by several triggers of a function is left out only when each of them leaves it out.

mod config;
mod line;
mod recent;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

pub use self::config::{AtMost, Deadband, Field, FilterConfig};
use self::line::Line;
use self::recent::Recent;
use self::value::{Number, Seen};
use crate::clock::Clock;
use crate::event::Opened;
use crate::limits::Limits;
use crate::metrics::{Filtered, FunctionMetrics};
use crate::name::FunctionName;
use crate::receipt::{NotKept, Receipt};

/// The filter of one trigger, with what it knows.
pub struct Filter {
    config: FilterConfig,
    function: FunctionName,
    metrics: Arc<FunctionMetrics>,
    clock: Clock,
    /// Makes hashes that nobody outside can foresee.
    hashes: RandomState,
    known: Mutex<Recent<Known>>,
    /// Receipts of events that were left out, which wait for those that passed.
    waiting: AtomicUsize,
    waiting_max: usize,
    /// Whether the log has told of an event without what is compared.
    told: AtomicBool,
}

/// What is known of one topic, or whatever `per` says.
struct Known {
    /// What passed last.
    last: Option<Seen>,
    /// When the first of the `passed` events did.
    since: Instant,
    passed: u32,
    /// Those that have not ended.
    line: Arc<Line>,
}

impl Known {
    fn leaves_out(&self, config: &FilterConfig, seen: Option<Seen>, now: Instant) -> Option<Filtered> {
        if let (Some(seen), Some(last)) = (seen, self.last)
            && !seen.differs(last, config.deadband)
        {
            return Some(if config.deadband.is_some() { Filtered::Deadband } else { Filtered::Unchanged });
        }
        let at_most = config.at_most.filter(|at_most| self.passed >= at_most.events)?;
        (now.saturating_duration_since(self.since) < at_most.within.0).then_some(Filtered::Rate)
    }

    fn passes(&mut self, config: &FilterConfig, seen: Option<Seen>, now: Instant) {
        let begins = config.at_most.is_none_or(|it| now.saturating_duration_since(self.since) >= it.within.0);
        (self.since, self.passed) = if begins { (now, 1) } else { (self.since, self.passed + 1) };
        // What lacks the value says nothing about it.
        self.last = seen.or(self.last);
    }
}

/// An event that a filter let pass, until it is known how it ends.
struct Passed {
    filter: Arc<Filter>,
    key: u64,
    line: Arc<Line>,
    number: u64,
    /// Whether it lacks what is compared.
    lacks_it: bool,
}

impl Passed {
    fn end(&self, result: &Result<(), NotKept>) {
        if result.is_ok() {
            // Now, since one that is refused comes again.
            self.filter.metrics.unfiltered.inc_by(u64::from(self.lacks_it));
        } else {
            // First, since whoever hears of it below may send it again at once. All of it: what passed since may have been compared with
            // this one, and an event too many is better than one that is lost.
            self.filter.lock().forget(self.key, |known| Arc::ptr_eq(&known.line, &self.line));
        }
        let settled = self.line.end(self.number, result);
        self.filter.waiting.fetch_sub(settled, Ordering::Relaxed);
    }
}

/// An event that a filter leaves out.
struct LeftOut {
    why: Filtered,
    /// Those that passed before it, as far as they have not ended.
    line: Arc<Line>,
}

impl Filter {
    /// One that knows nothing yet.
    pub fn new(
        config: FilterConfig,
        function: FunctionName,
        metrics: Arc<FunctionMetrics>,
        limits: &Limits,
        clock: Clock,
    ) -> Self {
        Self {
            config,
            function,
            metrics,
            clock,
            hashes: RandomState::new(),
            known: Mutex::new(Recent::new(limits.filter_keys_max)),
            waiting: AtomicUsize::new(0),
            waiting_max: limits.filter_waiting_max,
            told: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at an event, and remembers it when it passes.
    fn look(self: &Arc<Self>, event: &Opened<'_>) -> Result<Passed, LeftOut> {
        let now = self.clock.instant();
        let key = self.hashes.hash_one(event.part(&self.config.per).ok().flatten());
        let seen = self.seen(event);
        let lacks_it = seen.is_none() && self.config.changed.is_some();
        let mut recent = self.lock();
        let known = recent.get(key);
        if let Some(known) = &known
            && let Some(why) = known.leaves_out(&self.config, seen, now)
        {
            return Err(LeftOut { why, line: Arc::clone(&known.line) });
        }
        let line = match known {
            Some(known) => {
                known.passes(&self.config, seen, now);
                Arc::clone(&known.line)
            }
            None => {
                let line = Arc::<Line>::default();
                let known = Known { last: seen, since: now, passed: 1, line: Arc::clone(&line) };
                if recent.add(key, known) {
                    self.metrics.filter_forgotten.inc();
                }
                line
            }
        };
        // Under the lock of all: what is left out from now on stands behind it.
        let number = line.join();
        drop(recent);
        Ok(Passed { filter: Arc::clone(self), key, line, number, lacks_it })
    }

    /// What is compared of `event`; `None` when nothing is, or it lacks that.
    fn seen(&self, event: &Opened<'_>) -> Option<Seen> {
        let field = self.config.changed.as_ref()?;
        let seen = match (field, self.config.deadband) {
            (Field::Payload, None) => Some(Seen::of_bytes(&event.event().data, &self.hashes)),
            (Field::Payload, Some(_)) => event.json().ok().and_then(Number::of).map(Seen::Number),
            (Field::Pointer(pointer), deadband) => {
                let value = event.json().ok().and_then(|json| json.pointer(pointer));
                value.and_then(|value| match deadband {
                    Some(_) => Number::of(value).map(Seen::Number),
                    None => Some(Seen::of_json(value, &self.hashes)),
                })
            }
        };
        if seen.is_none() && !self.told.swap(true, Ordering::Relaxed) {
            let topic = event.event().subject.as_deref().unwrap_or_default();
            let what = if self.config.deadband.is_some() { "number" } else { "value" };
            tracing::warn!(function = %self.function, %field, topic, "an event has no such {what}, and is not compared; others are only counted");
        }
        seen
    }

    /// Has `receipt` settled with those in `line`.
    fn stand_behind(&self, line: &Line, receipt: Receipt) {
        if self.waiting.load(Ordering::Relaxed) >= self.waiting_max {
            return receipt.keep();
        }
        // Counted before, since it may be settled by another thread meanwhile.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if !line.stand_behind(receipt) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("function", &self.function).field("config", &self.config).finish_non_exhaustive()
    }
}

/// The filters that an event has to pass one of, out of those of the triggers that it came by: none, when one of these has none.
pub(crate) fn needed<'a>(triggers: impl Iterator<Item = Option<&'a Arc<Filter>>>) -> Vec<Arc<Filter>> {
    triggers.map(Option::<&Arc<_>>::cloned).collect::<Option<_>>().unwrap_or_default()
}

/// The receipt to submit `event` with; `None` when all of `filters` leave it out, and there are any: then it is kept, and when its
/// source `waits`, not before those that passed before it have ended.
pub(crate) fn admit(filters: &[Arc<Filter>], event: &Opened<'_>, waits: bool, receipt: Receipt) -> Option<Receipt> {
    if filters.is_empty() {
        return Some(receipt);
    }
    let (mut passed, mut left_out) = (Vec::new(), Vec::new());
    for filter in filters {
        match filter.look(event) {
            Ok(pass) => passed.push(pass),
            Err(out) => left_out.push((filter, out)),
        }
    }
    if !passed.is_empty() {
        return Some(Receipt::new(move |result| {
            passed.iter().for_each(|pass| pass.end(&result));
            receipt.settle(result);
        }));
    }
    if let Some((filter, out)) = left_out.first() {
        filter.metrics.filtered(out.why);
    }
    if waits {
        for (filter, out) in left_out {
            filter.stand_behind(&out.line, receipt.clone());
        }
    }
    receipt.keep();
    None
}
