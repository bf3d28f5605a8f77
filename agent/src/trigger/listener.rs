//! All triggers of this gateway, each with its filter.

use std::sync::Arc;

use super::filter::Filter;
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

    /// Those of `specs`, and no others. The filter of a trigger that is as it was keeps what it knows, whatever version its
    /// function has.
    pub(crate) fn apply(&mut self, specs: &[Arc<FunctionSpec>]) {
        let mut before = std::mem::take(&mut self.all);
        for spec in specs {
            for trigger in &spec.triggers {
                let same = before.iter().position(|old| old.function == spec.name && old.trigger == *trigger);
                let (function, trigger) = (spec.name.clone(), trigger.clone());
                self.all.push(match same {
                    Some(same) => before.swap_remove(same),
                    None => Listener { filter: self.filter(&function, &trigger), function, trigger },
                });
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
