//! What is configured and connected at the moment: replaced as a whole, so that whoever looks sees one state.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::broker::Broker;
use crate::config::Config;
use crate::name::BrokerName;
use crate::trigger::event::EventTriggers;
use crate::trigger::http::FunctionUrls;
use crate::uplink::Uplink;

/// One state.
#[derive(Debug, Default)]
pub(super) struct Current {
    pub(super) config: Config,
    /// With the address of each.
    pub(super) brokers: BTreeMap<BrokerName, (String, Broker)>,
    pub(super) uplink: Option<Arc<Uplink>>,
    pub(super) events: Arc<EventTriggers>,
    pub(super) urls: Arc<FunctionUrls>,
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
