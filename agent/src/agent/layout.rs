//! What is configured and connected at the moment: replaced as a whole, so that whoever looks sees one state.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::broker::Broker;
use crate::config::{Config, TriggerConfig};
use crate::function::FunctionSpec;
use crate::name::BrokerName;
use crate::trigger::event::EventTriggers;
use crate::uplink::Uplink;

/// One state.
#[derive(Debug, Default)]
pub(super) struct Current {
    pub(super) config: Config,
    /// With the address of each.
    pub(super) brokers: BTreeMap<BrokerName, (String, Broker)>,
    pub(super) uplink: Option<Arc<Uplink>>,
    pub(super) events: Arc<EventTriggers>,
}

/// The state that is current.
#[derive(Debug, Default)]
pub(super) struct Layout(RwLock<Arc<Current>>);

impl Layout {
    pub(super) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, current: Current) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
    }
}

/// Triggers as `status` shows them: `mqtt local sensors/+/temp`, `every 5m`.
pub(super) fn in_words(spec: &FunctionSpec) -> Vec<String> {
    let words = |trigger: &TriggerConfig| match trigger {
        TriggerConfig::Mqtt(mqtt) => {
            let broker = mqtt.broker.as_ref().map_or("local", BrokerName::as_str);
            format!("mqtt {broker} {}", mqtt.filter)
        }
        TriggerConfig::Schedule(schedule) => match (&schedule.every, &schedule.cron) {
            (Some(every), _) => format!("every {every}"),
            (None, Some(cron)) => format!("cron {cron}"),
            (None, None) => "never".to_owned(),
        },
        TriggerConfig::Event(event) => match &event.source {
            Some(source) => format!("event {} from {source}", event.kind),
            None => format!("event {}", event.kind),
        },
    };
    spec.triggers.iter().map(words).collect()
}
