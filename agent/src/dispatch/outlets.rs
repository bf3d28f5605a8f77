//! Where effects go: the journal, the field, and the brokers of gateway.toml, each with its outbox.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::outbox::{Lane, stream_of};
use crate::broker::{Broker, Link};
use crate::clock::Clock;
use crate::config::function::MqttDestination;
use crate::invocation::Publish;
use crate::journal::{DEAD_LETTERS, Journal};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::name::{BrokerName, FunctionName, GatewayName, NameError, Own, StreamName};
use crate::topic::TopicFilter;
use crate::trigger::actuators::Actuators;

/// See the module.
#[derive(Clone)]
pub struct Outlets {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Arc<Journal>,
    actuators: Actuators,
    gateway: GatewayName,
    dead_letters: StreamName,
    limits: Arc<Limits>,
    metrics: Metrics,
    clock: Clock,
    routes: RwLock<Routes>,
    /// Held by whoever ends a dead letter.
    letters: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Routes {
    lanes: HashMap<BrokerName, Arc<Lane>>,
    /// What functions here are triggered by: a publish that one of these matches comes back, so it carries its hops.
    own_filters: Vec<TopicFilter>,
}

/// How the outbox of one broker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Which broker.
    pub broker: BrokerName,
    /// Whether it is in gateway.toml: if not, what is here waits until it is there again.
    pub configured: bool,
    /// Publishes that were committed and are not confirmed.
    pub publishes: u64,
    /// What they count against the budget.
    pub bytes: u64,
    /// The budget.
    pub bytes_max: u64,
    /// Unix time in milliseconds of the oldest of them.
    pub oldest_ms: Option<u64>,
    /// Why the broker refused a publish, the last time that it did since the start.
    pub last_error: Option<String>,
}

impl fmt::Debug for Outlets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlets").field("gateway", &self.inner.gateway).finish_non_exhaustive()
    }
}

impl Outlets {
    /// Outlets without a broker yet.
    ///
    /// # Errors
    /// Never: the name of the dead letters is a name.
    pub fn new(
        journal: Arc<Journal>,
        actuators: Actuators,
        gateway: GatewayName,
        limits: Arc<Limits>,
        metrics: Metrics,
        clock: Clock,
    ) -> Result<Self, NameError> {
        let dead_letters = StreamName::parse(DEAD_LETTERS)?;
        let (routes, letters) = (RwLock::default(), tokio::sync::Mutex::default());
        let inner = Inner { journal, actuators, gateway, dead_letters, limits, metrics, clock, routes, letters };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.inner.journal
    }

    pub(super) fn actuators(&self) -> &Actuators {
        &self.inner.actuators
    }

    pub(super) fn dead_letters(&self) -> StreamName {
        self.inner.dead_letters.clone()
    }

    pub(super) fn letters_lock(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.letters
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Which brokers there are, and what this gateway's own triggers listen to. A broker that is new, or was made anew, gets
    /// what is left in its outbox. Must be called within a tokio runtime.
    pub fn set_routes(&self, brokers: HashMap<BrokerName, Broker>, own_filters: Vec<TopicFilter>) {
        let mut routes = self.inner.routes.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut routes.lanes);
        for (name, broker) in brokers {
            let lane = match before.remove(&name) {
                Some(lane) if lane.broker().is_same(&broker) => lane,
                Some(replaced) => Lane::start(self, broker, replaced.stop()),
                None => Lane::start(self, broker, None),
            };
            routes.lanes.insert(name, lane);
        }
        routes.own_filters = own_filters;
        drop(routes);
        for removed in before.into_values() {
            // It ends by itself; what is left stays on disk.
            drop(removed.stop());
        }
    }

    /// Whether a publish on `topic` comes back to a function of this gateway.
    pub(super) fn comes_back(&self, topic: &str) -> bool {
        let routes = self.inner.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.own_filters.iter().any(|filter| filter.matches(topic))
    }

    /// The way to a broker; `None` is `mqtt.local`.
    ///
    /// # Errors
    /// When gateway.toml has no such broker.
    pub(super) fn lane(&self, name: Option<&BrokerName>) -> Result<Arc<Lane>, String> {
        let name = name.map_or("local", BrokerName::as_str);
        let routes = self.inner.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.lanes.get(name).cloned().ok_or_else(|| format!("there is no broker `{name}` in gateway.toml"))
    }

    /// Whether one of these, given to its broker at once, would overtake what waits in the outbox.
    pub(super) fn holds_up(&self, publishes: &[Publish]) -> bool {
        let waits = |publish: &Publish| self.lane(publish.broker.as_ref()).is_ok_and(|lane| lane.has_unsent());
        publishes.iter().any(waits)
    }

    /// Whether one of these, given to its broker at once, would be confirmed only when that is back.
    pub(super) fn wait_for_a_broker(&self, publishes: &[Publish]) -> bool {
        let is_away = |publish: &Publish| {
            self.lane(publish.broker.as_ref()).is_ok_and(|lane| *lane.broker().link().borrow() == Link::Down)
        };
        publishes.iter().any(|publish| publish.qos > 0 && is_away(publish))
    }

    /// The topic of a destination, with its placeholders filled in.
    pub(super) fn topic(&self, destination: &MqttDestination, function: &FunctionName) -> Arc<str> {
        let topic = destination.topic.replace("{gateway}", self.inner.gateway.as_str());
        topic.replace("{function}", function.as_str()).into()
    }

    fn lanes(&self) -> BTreeMap<BrokerName, Arc<Lane>> {
        let routes = self.inner.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.lanes.iter().map(|(name, lane)| (name.clone(), Arc::clone(lane))).collect()
    }

    /// How each outbox is doing: those of the brokers in gateway.toml, and others that hold publishes.
    pub fn outboxes(&self) -> Vec<OutboxStatus> {
        let lanes = self.lanes();
        let streams = self.inner.journal.own_status();
        let stored = streams.iter().filter(|status| status.records > 0).filter_map(|status| {
            let prefix = StreamName::own(Own::Outbox, "");
            BrokerName::parse(status.name.as_str().strip_prefix(prefix.as_str())?).ok()
        });
        let mut names: Vec<BrokerName> = lanes.keys().cloned().chain(stored).collect();
        names.sort_unstable();
        names.dedup();
        let status = names.into_iter().map(|broker| {
            let stream = streams.iter().find(|status| status.name == stream_of(&broker));
            let lane = lanes.get(&broker);
            OutboxStatus {
                configured: lane.is_some(),
                publishes: stream.map_or(0, |stream| stream.records),
                bytes: stream.map_or(0, |stream| stream.bytes),
                bytes_max: self.inner.limits.outbox_bytes_max.0,
                oldest_ms: stream.and_then(|stream| stream.oldest_ms),
                last_error: lane.and_then(|lane| lane.last_error()),
                broker,
            }
        });
        status.collect()
    }

    /// Lets the outboxes bring out what they can to brokers that are there, for `patience` at most, and ends them. What remains
    /// is published after the next start.
    pub async fn stop(&self, patience: Duration) {
        let lanes = self.lanes();
        let idle = async {
            while !lanes.values().all(|lane| lane.is_idle()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // What is left stays on disk.
        let _ = tokio::time::timeout(patience, idle).await;
        let ends: Vec<_> = lanes.values().filter_map(|lane| lane.stop()).collect();
        futures_util::future::join_all(ends).await;
    }
}
