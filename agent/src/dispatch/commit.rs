//! Makes what a handler wanted done happen.
//!
//! An invocation that writes has one transaction: its records, key-values, publishes of QoS 1 and 2 (into the outbox), what it
//! hands on to other functions, and the end of its own event on disk are kept together or not at all. Its event is settled when
//! they are on disk. One that writes nothing has no need of the disk: its event is settled when what it sent was confirmed. Where
//! an event of its topic has left publishes in the outbox, order has it go there too; and where a caller waits, but the broker is
//! away, the answer need not.
//!
//! What it sets in the field cannot be undone, so that is done first: when something after it fails, it is done again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::item::{Item, Reply};
use super::outbox::{Lane, Outgoing};
use super::outlets::Outlets;
use super::parked::Anew;
use super::worker::{Run, answer};
use super::{Inner, Running, retry};
use crate::config::function::DestinationConfig;
use crate::event::{self, Event};
use crate::function::FunctionSpec;
use crate::invocation::{Effects, KeyRead, Outcome, Publish};
use crate::journal::{Batch, Committed, Committing, JournalError, KeyValueRead, RecordMeta};
use crate::name::{FunctionName, StreamName};
use crate::receipt::{NotKept, Receipt};
use crate::trigger::mqtt::{HOPS_PROPERTY, TRACE_PARENT_PROPERTY};
use crate::trigger::{Delivery, Refused};

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
    /// The event that other functions get.
    fn result_event(&self) -> Event {
        self.inner.result_event(&self.spec, &self.item.event, self.value.clone(), self.run.trace_parent.clone())
    }

    fn settle(self, result: Result<(), NotKept>) {
        let Self { inner, running, spec, item, mut run, value } = self;
        run.tell(&inner);
        let outcome = match result {
            Ok(()) => Outcome::Succeeded(value),
            Err(NotKept::ForGood(why) | NotKept::NotAllowed(why)) => {
                Outcome::BadOutput(format!("what it sent was refused: {why}"))
            }
            Err(NotKept::NotNow(why)) => Outcome::Unavailable(format!("what it sent could not be delivered: {why}")),
        };
        run.trace(&inner, &running.0, &spec, &item, &outcome);
        match (outcome, &item.reply) {
            (outcome, Reply::Answer(_)) => answer(&spec, item, run, outcome),
            (Outcome::Succeeded(_), Reply::Receipt(_)) => item.succeeded(),
            (outcome, Reply::Receipt(_)) => retry::failed(&inner, &running.0, &spec, item, outcome),
        }
    }

    /// The commit was refused. What was read has changed, or the outbox is full: then the handler runs again.
    async fn refused(self, error: JournalError, posted: &Posted) {
        match (&error, &self.item.reply) {
            (JournalError::Conflict { .. }, Reply::Answer(_)) if self.item.conflicts >= retry::CONFLICTS_MAX => {
                return self.settle(Err(error.to_string().into()));
            }
            (JournalError::Conflict { .. }, _) => {}
            (JournalError::Full { stream, .. }, Reply::Receipt(_)) => match posted.lane_of(stream) {
                // The worker waits too: events behind this one would find no room either, and their source can keep them.
                Some(lane) => lane.room().await,
                None => return self.settle(Err(error.to_string().into())),
            },
            _ => return self.settle(Err(error.to_string().into())),
        }
        self.running.0.metrics.conflicts.inc();
        retry::run_again(&self.inner, &self.running.0, &self.spec, self.item);
    }

    async fn committed(self, committing: Committing, posted: Posted, direct: Direct) {
        let durable = committing.durable().await;
        self.running.0.metrics.commit.observe(self.inner.clock.instant() - self.run.ended);
        let committed = match durable {
            Ok(committed) => committed,
            Err(error) => {
                posted.forget();
                return self.refused(error, &posted).await;
            }
        };
        let inner = Arc::clone(&self.inner);
        let later = posted.start(&committed, &inner);
        deliver(self, direct).await;
        inner.publish_at_most_once(later).await;
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
    let meta = RecordMeta { time_ms: inner.clock.now_ms(), trace_parent: run.trace_parent.clone() };
    let mut pending =
        Pending { inner: Arc::clone(inner), running: Unsettled::of(running), spec: Arc::clone(spec), item, run, value };
    let Effects { field_writes, publishes, records, key_values, reads } = effects;
    // First, since they can fail: then nothing of it is committed, and the event comes again.
    if let Err(why) = inner.outlets.actuators().write(field_writes).await {
        return pending.settle(Err(why));
    }
    let mut batch = Batch {
        records: records.into_iter().map(|(stream, data)| (stream, data, meta.clone())).collect(),
        key_values: key_values.into_iter().map(|write| (spec.name.clone(), write)).collect(),
        ..Batch::default()
    };
    pending.item.settle_in(&mut batch);
    let (mut posted, mut direct) = (Posted::default(), Direct::default());
    let to_outbox = match pending.item.reply {
        Reply::Answer(_) => inner.outlets.wait_for_a_broker(&publishes) || inner.outlets.holds_up(&publishes),
        Reply::Receipt(_) => pending.item.turn.is_some() && inner.outlets.holds_up(&publishes),
    };
    if batch.is_empty() && !to_outbox {
        direct = Direct { publishes, chained };
        if reads.is_empty() {
            pending.run.tell(inner);
            return deliver(pending, direct).await;
        }
    } else {
        let result = (!chained.is_empty()).then(|| pending.result_event());
        match post(inner, &spec.name, publishes, &meta, (&chained, result.as_ref()), &mut batch).await {
            Ok(all) => posted = all,
            Err(why) => return pending.settle(Err(why.into())),
        }
    }
    batch.reads = key_value_reads(&spec.name, reads);
    match inner.outlets.journal().begin(batch).await {
        Ok(committing) => {
            // From here on the next event on this instance sees what this one wrote. The disk is waited for elsewhere, so
            // that one sync serves many.
            posted.expect(committing.committed());
            pending.run.tell(inner);
            inner.runtime.spawn(pending.committed(committing, posted, direct));
        }
        Err(error) => pending.refused(error, &posted).await,
    }
}

fn key_value_reads(function: &FunctionName, reads: HashMap<KeyRead, u64>) -> Vec<KeyValueRead> {
    let read = |(KeyRead { bucket, key }, version)| KeyValueRead { function: function.clone(), bucket, key, version };
    reads.into_iter().map(read).collect()
}

/// What an invocation that writes sends elsewhere.
#[derive(Default)]
struct Posted {
    /// Where publishes of QoS 1 and 2 are among the batch's records, and the outbox that each goes through.
    first: usize,
    outgoing: Vec<(Arc<Lane>, Outgoing)>,
    sequences: Vec<u64>,
    /// Events for other functions.
    handed_on: Vec<Anew>,
    /// Publishes of QoS 0: sent after the commit.
    later: Vec<Publish>,
}

/// Adds publishes of `function` to `batch`, as records of their brokers' outboxes, and the event that other functions get.
async fn post(
    inner: &Inner,
    function: &FunctionName,
    publishes: Vec<Publish>,
    meta: &RecordMeta,
    (chained, result): (&[FunctionName], Option<&Event>),
    batch: &mut Batch,
) -> Result<Posted, String> {
    let mut posted = Posted { first: batch.records.len(), ..Posted::default() };
    for publish in publishes {
        if publish.qos == 0 {
            posted.later.push(publish);
            continue;
        }
        let lane = inner.outlets.lane(publish.broker.as_ref())?;
        let outgoing = Outgoing { function: function.clone(), publish };
        batch.records.push((lane.stream().clone(), outgoing.encode(), meta.clone()));
        posted.outgoing.push((lane, outgoing));
    }
    if let Some(result) = result {
        for other in chained {
            let running = inner.running(other).ok_or_else(|| Refused::Unknown(other.clone()).to_string())?;
            posted.handed_on.push(inner.anew_in(&running, result, batch).await);
        }
    }
    Ok(posted)
}

impl Posted {
    /// They have their places in the outboxes.
    fn expect(&mut self, committed: &Committed) {
        let sequences = committed.sequences.iter().skip(self.first).copied();
        self.sequences = sequences.take(self.outgoing.len()).collect();
        for ((lane, outgoing), sequence) in self.outgoing.iter().zip(&self.sequences) {
            lane.expect(*sequence, outgoing.clone());
        }
    }

    /// They are not kept after all.
    fn forget(&self) {
        for ((lane, _), sequence) in self.outgoing.iter().zip(&self.sequences) {
            lane.forget(*sequence);
        }
    }

    /// They are on disk: other functions may start. Gives back what is to be published now.
    fn start(self, committed: &Committed, inner: &Inner) -> Vec<Publish> {
        let now = inner.clock.instant();
        self.handed_on.into_iter().for_each(|anew| anew.start(committed, now));
        self.later
    }

    fn lane_of(&self, stream: &StreamName) -> Option<&Arc<Lane>> {
        self.outgoing.iter().map(|(lane, _)| lane).find(|lane| lane.stream() == stream)
    }
}

/// What an invocation that does not write sends elsewhere.
#[derive(Default)]
struct Direct {
    publishes: Vec<Publish>,
    chained: Vec<FunctionName>,
}

/// Sends what needs no disk, and settles the event when it has arrived.
async fn deliver(pending: Pending, Direct { publishes, chained }: Direct) {
    if publishes.is_empty() && chained.is_empty() {
        return pending.settle(Ok(()));
    }
    let inner = Arc::clone(&pending.inner);
    let result = (!chained.is_empty()).then(|| Arc::new(pending.result_event()));
    let all = Receipt::new(move |result| pending.settle(result));
    for publish in publishes {
        match inner.outlets.lane(publish.broker.as_ref()) {
            Ok(lane) => lane.broker().publish(publish, all.clone()).await,
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
    ) -> Event {
        Event {
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
        }
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

    /// Commits what belongs to no success: a dead letter, what `on_failure` wants, and what `batch` has already. `chained` are
    /// the functions that get `result`.
    pub(super) async fn append(
        &self,
        function: &FunctionName,
        effects: Effects,
        (chained, result): (&[FunctionName], &Event),
        mut batch: Batch,
    ) -> Result<(), String> {
        let meta = RecordMeta { time_ms: self.clock.now_ms(), ..RecordMeta::default() };
        batch.records.extend(effects.records.into_iter().map(|(stream, data)| (stream, data, meta.clone())));
        // What is not there must not keep the letter from being written.
        let (publishes, nowhere): (Vec<_>, Vec<_>) =
            effects.publishes.into_iter().partition(|publish| self.outlets.lane(publish.broker.as_ref()).is_ok());
        let (chained, gone): (Vec<_>, Vec<_>) =
            chained.iter().cloned().partition(|other| self.running(other).is_some());
        if !nowhere.is_empty() || !gone.is_empty() {
            tracing::error!(%function, "a destination of `on_failure` is not in gateway.toml any more");
        }
        let mut posted = post(self, function, publishes, &meta, (&chained, Some(result)), &mut batch).await?;
        let committing = self.outlets.journal().begin(batch).await.map_err(|error| error.to_string())?;
        posted.expect(committing.committed());
        match committing.durable().await {
            Ok(committed) => {
                let later = posted.start(&committed, self);
                self.publish_at_most_once(later).await;
                Ok(())
            }
            Err(error) => {
                posted.forget();
                Err(error.to_string())
            }
        }
    }

    /// Publishes of QoS 0 that go out behind a commit.
    async fn publish_at_most_once(&self, publishes: Vec<Publish>) {
        for publish in publishes {
            let topic = Arc::clone(&publish.topic);
            match self.outlets.lane(publish.broker.as_ref()) {
                Ok(lane) => {
                    let receipt = Receipt::new(move |result| {
                        if let Err(why) = result {
                            tracing::warn!(%topic, %why, "a publish of QoS 0 was lost");
                        }
                    });
                    lane.broker().publish(publish, receipt).await;
                }
                Err(why) => tracing::warn!(%topic, why, "a publish of QoS 0 was lost"),
            }
        }
    }
}
