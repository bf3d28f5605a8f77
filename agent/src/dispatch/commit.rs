//! Makes what a handler wanted done happen: records and key-values to the journal in one transaction, then publishes, then
//! other functions. The event's receipt is kept when the last of them is safe.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use super::item::{Item, Reply};
use super::worker::{Run, answer};
use super::{Inner, Running, retry};
use crate::broker::Broker;
use crate::config::function::{DestinationConfig, MqttDestination};
use crate::event::{self, Event};
use crate::function::FunctionSpec;
use crate::invocation::{Effects, Outcome, Publish};
use crate::journal::{Batch, DEAD_LETTERS, Journal, RecordMeta};
use crate::name::{BrokerName, FunctionName, GatewayName, NameError, StreamName};
use crate::receipt::Receipt;
use crate::topic::TopicFilter;
use crate::trigger::Delivery;
use crate::trigger::mqtt::{HOPS_PROPERTY, TRACE_PARENT_PROPERTY};

/// Where effects go.
#[derive(Clone)]
pub struct Outlets {
    journal: Arc<Journal>,
    gateway: GatewayName,
    dead_letters: StreamName,
    routes: Arc<RwLock<Routes>>,
}

#[derive(Default)]
struct Routes {
    brokers: HashMap<BrokerName, Broker>,
    /// What functions here are triggered by: a publish that one of these matches comes back, so it carries its hops.
    own_filters: Vec<TopicFilter>,
}

impl fmt::Debug for Outlets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlets").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

impl Outlets {
    /// Outlets without a broker yet.
    ///
    /// # Errors
    /// Never: the name of the dead letters is a name.
    pub fn new(journal: Arc<Journal>, gateway: GatewayName) -> Result<Self, NameError> {
        Ok(Self { journal, gateway, dead_letters: StreamName::parse(DEAD_LETTERS)?, routes: Arc::default() })
    }

    pub(super) fn dead_letters(&self) -> StreamName {
        self.dead_letters.clone()
    }

    /// Which brokers there are, and what this gateway's own triggers listen to.
    pub fn set_routes(&self, brokers: HashMap<BrokerName, Broker>, own_filters: Vec<TopicFilter>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = Routes { brokers, own_filters };
    }

    fn comes_back(&self, topic: &str) -> bool {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.own_filters.iter().any(|filter| filter.matches(topic))
    }

    fn broker(&self, name: Option<&BrokerName>) -> Result<Broker, String> {
        let name = name.map_or("local", BrokerName::as_str);
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.brokers.get(name).cloned().ok_or_else(|| format!("there is no broker `{name}` in gateway.toml"))
    }

    fn topic(&self, destination: &MqttDestination, function: &FunctionName) -> Arc<str> {
        let topic = destination.topic.replace("{gateway}", self.gateway.as_str());
        topic.replace("{function}", function.as_str()).into()
    }
}

/// Counts a success until its effects are safe, so that a drain waits for it.
struct Unsettled(Arc<Running>);

impl Unsettled {
    fn of(running: &Arc<Running>) -> Self {
        running.unsettled.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(running))
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.0.unsettled.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is left of a success once its value has been sent on.
struct Pending {
    inner: Arc<Inner>,
    running: Unsettled,
    spec: Arc<FunctionSpec>,
    item: Item,
    run: Run,
    value: Bytes,
}

impl Pending {
    fn settle(self, result: Result<(), String>) {
        let Self { inner, running, spec, item, run, value } = self;
        let outcome = match result {
            Ok(()) => Outcome::Succeeded(value),
            Err(why) => Outcome::Unavailable(format!("what it sent could not be delivered: {why}")),
        };
        run.trace(&inner, &spec, &item, &outcome);
        match (outcome, item.reply) {
            (Outcome::Succeeded(_), Reply::Receipt(receipt)) => receipt.keep(),
            (outcome, reply @ Reply::Answer(_)) => answer(&spec, Item { reply, ..item }, run, outcome),
            (outcome, reply) => retry::failed(&inner, &running.0, &spec, Item { reply, ..item }, outcome),
        }
    }
}

/// Commits `effects` and sends `value` to the function's `on_success` destinations.
pub(super) async fn commit(
    inner: &Arc<Inner>,
    running: &Arc<Running>,
    spec: &Arc<FunctionSpec>,
    item: Item,
    run: Run,
    value: Bytes,
    mut effects: Effects,
) {
    let mut chained = Vec::new();
    send_to(&inner.outlets, spec, &spec.on_success, &value, &mut effects, &mut chained);
    stamp(inner, &item.event, &run, &mut effects.publishes);
    let pending =
        Pending { inner: Arc::clone(inner), running: Unsettled::of(running), spec: Arc::clone(spec), item, run, value };
    if !effects.writes() {
        return deliver(pending, effects.publishes, chained).await;
    }
    // The next event on this instance must see what this one wrote. Records alone have no reader here: they join the
    // commits of other events, so that one fsync serves many.
    let ordered = !effects.key_values.is_empty();
    let work = write_then_deliver(pending, effects, chained);
    if ordered {
        work.await;
    } else {
        inner.runtime.spawn(work);
    }
}

async fn write_then_deliver(pending: Pending, effects: Effects, chained: Vec<FunctionName>) {
    let started = pending.run.ended;
    let meta = RecordMeta { time_ms: pending.inner.clock.now_ms(), trace_parent: pending.run.trace_parent.clone() };
    let batch = Batch {
        records: effects.records.into_iter().map(|(stream, data)| (stream, data, meta.clone())).collect(),
        key_values: effects.key_values.into_iter().map(|write| (pending.spec.name.clone(), write)).collect(),
    };
    let committed = pending.inner.outlets.journal.commit(batch).await;
    pending.running.0.metrics.commit.observe(pending.inner.clock.instant() - started);
    match committed {
        Ok(()) => deliver(pending, effects.publishes, chained).await,
        Err(error) => pending.settle(Err(error.to_string())),
    }
}

async fn deliver(pending: Pending, publishes: Vec<Publish>, chained: Vec<FunctionName>) {
    if publishes.is_empty() && chained.is_empty() {
        return pending.settle(Ok(()));
    }
    let inner = Arc::clone(&pending.inner);
    let result = (!chained.is_empty()).then(|| {
        let trace_parent = pending.run.trace_parent.clone();
        inner.result_event(&pending.spec, &pending.item.event, pending.value.clone(), trace_parent)
    });
    let all = Receipt::new(move |result| pending.settle(result));
    for publish in publishes {
        match inner.outlets.broker(publish.broker.as_ref()) {
            Ok(broker) => broker.publish(publish, all.clone()).await,
            Err(why) => all.clone().fail(why),
        }
    }
    if let Some(result) = result {
        inner.hand_on(&chained, &result, &all);
    }
    all.keep();
}

/// Adds `value`, on its way to `destinations`, to what is committed.
pub(super) fn send_to(
    outlets: &Outlets,
    spec: &FunctionSpec,
    destinations: &[DestinationConfig],
    value: &Bytes,
    effects: &mut Effects,
    chained: &mut Vec<FunctionName>,
) {
    for destination in destinations {
        match destination {
            DestinationConfig::Mqtt(mqtt) => effects.publishes.push(Publish {
                broker: mqtt.broker.clone(),
                topic: outlets.topic(mqtt, &spec.name),
                data: value.clone(),
                qos: mqtt.qos,
                retain: mqtt.retain,
                content_type: None,
                properties: Vec::new(),
            }),
            DestinationConfig::Stream(stream) => effects.records.push((stream.clone(), value.clone())),
            DestinationConfig::Function(function) => chained.push(function.clone()),
        }
    }
}

/// Hands the trace on, and counts the hops of what will come back here.
fn stamp(inner: &Inner, event: &Event, run: &Run, publishes: &mut [Publish]) {
    for publish in publishes {
        if let Some(trace_parent) = &run.trace_parent {
            publish.properties.push((Cow::Borrowed(TRACE_PARENT_PROPERTY), trace_parent.as_ref().to_owned()));
        }
        if inner.outlets.comes_back(&publish.topic) {
            publish.properties.push((Cow::Borrowed(HOPS_PROPERTY), (event.hops + 1).to_string()));
        }
    }
}

impl Inner {
    /// The event that another function gets when this one's value, or its dead letter, is handed on.
    pub(super) fn result_event(
        &self,
        spec: &FunctionSpec,
        cause: &Event,
        data: Bytes,
        trace_parent: Option<Arc<str>>,
    ) -> Arc<Event> {
        Arc::new(Event {
            id: event::new_id(),
            source: format!("function:{}", spec.name).into(),
            kind: Cow::Borrowed("function.result"),
            subject: cause.subject.clone(),
            time_ms: self.clock.now_ms(),
            content_type: None,
            attributes: Vec::new(),
            data,
            trace_parent,
            hops: cause.hops + 1,
        })
    }

    /// Queues `event` for each of `functions`; `receipt` is kept when they have all dealt with it.
    pub(super) fn hand_on(self: &Arc<Self>, functions: &[FunctionName], event: &Arc<Event>, receipt: &Receipt) {
        for function in functions {
            let reply = Reply::Receipt(receipt.clone());
            if let Err(refused) = self.enqueue(function, Arc::clone(event), Delivery::AtLeastOnce, reply) {
                tracing::warn!(%function, error = %refused, "a result was not handed on");
            }
        }
    }

    /// Commits records that belong to no success: dead letters and what `on_failure` wants.
    pub(super) async fn append(&self, effects: Effects) -> Result<(), String> {
        let meta = RecordMeta { time_ms: self.clock.now_ms(), trace_parent: None };
        let batch = Batch {
            records: effects.records.into_iter().map(|(stream, data)| (stream, data, meta.clone())).collect(),
            key_values: Vec::new(),
        };
        self.outlets.journal.commit(batch).await.map_err(|error| error.to_string())?;
        for publish in effects.publishes {
            let broker = self.outlets.broker(publish.broker.as_ref())?;
            let topic = Arc::clone(&publish.topic);
            let receipt = Receipt::new(move |result| {
                if let Err(why) = result {
                    tracing::warn!(%topic, why, "a failure could not be published");
                }
            });
            broker.publish(publish, receipt).await;
        }
        Ok(())
    }
}
