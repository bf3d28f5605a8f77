//! All triggers of this gateway, each with its filter and its window.

use std::sync::Arc;

use super::filter::Filter;
use super::window::{Window, Windows};
use crate::clock::Clock;
use crate::config::TriggerConfig;
use crate::function::FunctionSpec;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::name::FunctionName;

/// One trigger of one function.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// Who runs.
    pub(crate) function: FunctionName,
    /// On what.
    pub(crate) trigger: TriggerConfig,
    /// What it does not see of that.
    pub(crate) filter: Option<Arc<Filter>>,
    /// Where that waits for more.
    pub(crate) window: Option<Arc<Window>>,
}

impl Listener {
    /// Who runs, what it does not see, and where that waits.
    pub(crate) fn parts(&self) -> (FunctionName, Option<Arc<Filter>>, Option<Arc<Window>>) {
        (self.function.clone(), self.filter.clone(), self.window.clone())
    }
}

/// A trigger among others, as they are gone through for each event.
pub(crate) trait Routed {
    /// Who runs, and whether it waits for more before.
    fn to(&self) -> (&FunctionName, bool);
}

impl Routed for Listener {
    fn to(&self) -> (&FunctionName, bool) {
        (&self.function, self.window.is_some())
    }
}

/// Has those be neighbours that get an event once: of each function all that have no window, then each that has one.
pub(crate) fn arrange<R: Routed>(routes: &mut [R]) {
    routes.sort_by(|a, b| a.to().cmp(&b.to()));
}

/// Those that get an event once, of triggers that are [arranged](arrange).
pub(crate) fn together<R: Routed>(routes: &[R]) -> impl Iterator<Item = &[R]> {
    routes.chunk_by(|a, b| a.to() == b.to() && !b.to().1)
}

/// See the module.
pub(crate) struct Listeners {
    all: Vec<Listener>,
    metrics: Metrics,
    limits: Arc<Limits>,
    clock: Clock,
}

impl Listeners {
    pub(crate) fn new(metrics: Metrics, limits: Arc<Limits>, clock: Clock) -> Self {
        Self { all: Vec::new(), metrics, limits, clock }
    }

    /// Those of `specs`, and no others. The filter of a trigger that is as it was keeps what it knows, whatever its window is now, and
    /// whatever version its function has.
    pub(crate) fn apply(&mut self, specs: &[Arc<FunctionSpec>], windows: &Windows) {
        let mut before = std::mem::take(&mut self.all);
        for spec in specs {
            for (trigger, window) in spec.triggers.iter().zip(windows.of(spec)) {
                let is_same = |old: &Listener| {
                    old.function == spec.name && old.trigger.kind == trigger.kind && old.trigger.only == trigger.only
                };
                let same = before.iter().position(is_same);
                let (function, trigger) = (spec.name.clone(), trigger.clone());
                let filter = match same {
                    Some(same) => before.swap_remove(same).filter,
                    None => self.filter(&function, &trigger),
                };
                self.all.push(Listener { function, trigger, filter, window });
            }
        }
    }

    fn filter(&self, function: &FunctionName, trigger: &TriggerConfig) -> Option<Arc<Filter>> {
        let (config, metrics) = (trigger.only.clone()?, self.metrics.function(function));
        Some(Arc::new(Filter::new(config, function.clone(), metrics, &self.limits, self.clock.clone())))
    }

    pub(crate) fn all(&self) -> &[Listener] {
        &self.all
    }
}
