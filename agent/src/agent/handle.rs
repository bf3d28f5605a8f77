//! The agent as the API sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io::Read;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::Parts;
use crate::api::AgentHandle;
use crate::api::status::{
    BrokerStatus, FunctionNumbers, FunctionStatus, Health, Latency, ModelStatus, OutboxStatus, Reloaded, Status,
    StreamStatus, UnclaimedStatus,
};
use crate::broker::{Broker, Link};
use crate::config::{Config, StreamConfig};
use crate::deployment::{Applied, ApplyError, Deployer, DeploymentStatus};
use crate::dispatch::{Answer, LetterError, LetterPage, StoredLetter};
use crate::event::Event;
use crate::hint::Told;
use crate::journal::{DEAD_LETTER_BYTES, DEAD_LETTERS};
use crate::metrics::Metrics;
use crate::name::{BrokerName, FunctionName, ModelName};
use crate::receipt::Receipt;
use crate::recording::tap::{Recording, Selection, TooManyRecordings};
use crate::telemetry::LogRing;
use crate::trigger::event::EventTriggers;
use crate::trigger::http::FunctionUrls;
use crate::trigger::source::SourceStatus;
use crate::trigger::{Delivery, Refused, Submit};
use crate::uplink::{UplinkState, UplinkStatus};

impl Submit for Parts {
    fn submit(
        &self,
        function: &FunctionName,
        event: Arc<Event>,
        delivery: Delivery,
        receipt: Receipt,
    ) -> Result<(), Refused> {
        self.dispatcher.submit(function, event, delivery, receipt)
    }
}

impl AgentHandle for Parts {
    fn health(&self) -> Health {
        let mut reasons = self.unhealthy_brokers();
        reasons.extend(self.deployer.get().and_then(|deployer| deployer.status().broken));
        Health { reasons }
    }

    fn status(&self) -> Status {
        let current = self.layout.current();
        let default = StreamConfig::default();
        let dead_letters = StreamConfig { max_bytes: DEAD_LETTER_BYTES, ..StreamConfig::default() };
        let mut draining = current.uplink.as_ref().map(|uplink| uplink.status()).unwrap_or_default();
        let now_ms = self.clock.now_ms();
        let streams = self.journal.status().into_iter().map(|stream| {
            let own = if stream.name.as_str() == DEAD_LETTERS { &dead_letters } else { &default };
            let config = current.config.stream.get(&stream.name).unwrap_or(own);
            StreamStatus {
                bytes_max: config.max_bytes.0,
                uplink: config.uplink.as_ref().map(ToString::to_string),
                draining: draining.remove(&stream.name),
                age_ms: stream.oldest_ms.map(|oldest_ms| now_ms.saturating_sub(oldest_ms)),
                name: stream.name,
                records: stream.records,
                bytes: stream.bytes,
                oldest_ms: stream.oldest_ms,
                newest_sequence: stream.newest_sequence,
                acked_sequence: stream.acked_sequence,
                dropped_by_age: stream.dropped_by_age,
                dropped_by_bytes: stream.dropped_by_bytes,
                dropped_by_buffer: stream.dropped_by_buffer,
                lost: stream.lost,
            }
        });
        Status {
            gateway: self.gateway.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from((self.clock.instant() - self.started).as_millis()).unwrap_or(u64::MAX),
            functions: self.dispatcher.functions().iter().map(function_status).collect(),
            brokers: current.brokers.iter().map(|(name, (url, broker))| broker_status(name, url, broker)).collect(),
            unclaimed: self.unclaimed(),
            sources: self.sources.status(),
            outboxes: self.outlets.outboxes().into_iter().map(outbox_status).collect(),
            streams: streams.collect(),
            models: self.models.status().into_iter().filter_map(model_status).collect(),
            deployment: self.deployment(),
        }
    }

    fn deployment(&self) -> Option<DeploymentStatus> {
        self.deployer.get().map(Deployer::status)
    }

    fn apply(&self, archive: Box<dyn Read + Send>) -> BoxFuture<'_, Result<Applied, ApplyError>> {
        self.on_network(async move {
            match self.deployer.get() {
                Some(deployer) => deployer.apply(archive).await,
                None => Err(ApplyError::Refused {
                    why: "this gateway trusts nobody who could have signed it".to_owned(),
                    hint: Some(
                        "add `[cloud]` with `root = \"root.json\"` to gateway.toml, and restart the agent".to_owned(),
                    ),
                }),
            }
        })
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn logs(&self) -> &LogRing {
        &self.logs
    }

    fn version(&self, function: &FunctionName) -> Option<Arc<str>> {
        self.dispatcher.version(function)
    }

    fn event_triggers(&self) -> Arc<EventTriggers> {
        Arc::clone(&self.layout.current().events)
    }

    fn function_urls(&self) -> Arc<FunctionUrls> {
        Arc::clone(&self.layout.current().urls)
    }

    fn invoke<'a>(&'a self, function: &'a FunctionName, event: Arc<Event>) -> BoxFuture<'a, Result<Answer, Refused>> {
        Box::pin(self.dispatcher.invoke(function, event))
    }

    fn record(&self, wanted: Selection) -> Result<Recording, TooManyRecordings> {
        self.dispatcher.record(wanted)
    }

    fn letters(
        &self,
        function: Option<FunctionName>,
        after: u64,
        count_max: usize,
    ) -> BoxFuture<'_, Result<LetterPage, LetterError>> {
        Box::pin(async move { self.dispatcher.letters(function.as_ref(), after, count_max).await })
    }

    fn letter(&self, id: u64) -> BoxFuture<'_, Result<StoredLetter, LetterError>> {
        Box::pin(self.dispatcher.letter(id))
    }

    fn replay(&self, id: u64) -> BoxFuture<'_, Result<StoredLetter, LetterError>> {
        Box::pin(self.dispatcher.replay(id))
    }

    fn drop_letter(&self, id: u64) -> BoxFuture<'_, Result<(), LetterError>> {
        Box::pin(self.dispatcher.drop_letter(id))
    }

    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, String>> {
        self.on_network(async move {
            let config = Config::load(&self.layers().base.file).map_err(|errors| errors.to_string())?;
            let told = self.reconfigure(|layers| layers.base = Arc::new(config)).await;
            let (told, _) = told.map_err(|error| Told::of(&error).text())?;
            if let Some(deployer) = self.deployer.get() {
                deployer.reloaded().await;
            }
            Ok(told)
        })
    }
}

impl Parts {
    /// Does `work` as if it were a task of the network's threads: what it starts stays there, whichever threads a call came in by.
    fn on_network<'a, T>(&'a self, work: impl Future<Output = T> + Send + 'a) -> BoxFuture<'a, T> {
        let mut work = Box::pin(work);
        Box::pin(poll_fn(move |context| {
            let _entered = self.network.enter();
            work.as_mut().poll(context)
        }))
    }
}

fn function_status(function: &crate::dispatch::FunctionStatus) -> FunctionStatus {
    FunctionStatus {
        name: function.spec.name.clone(),
        version: function.spec.version.to_string(),
        digest: function.spec.digest.to_string(),
        triggers: function.spec.triggers.iter().map(|trigger| trigger.to_string()).collect(),
        busy: function.busy,
        idle: function.idle,
        queued: function.queued,
        parked: function.parked,
        numbers: FunctionNumbers::from(&*function.metrics),
    }
}

fn broker_status(name: &BrokerName, url: &str, broker: &Broker) -> BrokerStatus {
    let status = broker.status();
    BrokerStatus {
        name: name.clone(),
        url: url.to_owned(),
        connected: status.link != Link::Down,
        ready: status.link == Link::Ready,
        since_ms: Some(status.since_ms),
        last_error: status.last_error,
        in_flight: status.in_flight as u64,
        unconfirmed: status.unconfirmed as u64,
        reconnects: status.reconnects,
        received: status.received,
        published: status.published,
    }
}

fn outbox_status(outbox: crate::dispatch::OutboxStatus) -> OutboxStatus {
    let crate::dispatch::OutboxStatus { broker, configured, publishes, bytes, bytes_max, oldest_ms, last_error } =
        outbox;
    OutboxStatus { broker, configured, publishes, bytes, bytes_max, oldest_ms, last_error }
}

fn model_status(model: crate::inference::ModelStatus) -> Option<ModelStatus> {
    let latency = model.latency;
    let run = Latency { count: latency.runs, p50_us: Some(latency.p50_us), p99_us: Some(latency.p99_us) };
    Some(ModelStatus {
        name: ModelName::parse(&model.name).ok()?,
        digest: model.digest,
        engine: model.engine.to_string(),
        run,
    })
}

impl Parts {
    /// Functions that are not in service, and have events on disk: parked, or in windows.
    fn unclaimed(&self) -> Vec<UnclaimedStatus> {
        let mut events: BTreeMap<FunctionName, u64> = BTreeMap::new();
        for (function, waiting) in self.dispatcher.orphans().into_iter().chain(self.windows.unclaimed()) {
            *events.entry(function).or_default() += waiting;
        }
        events.into_iter().map(|(function, events)| UnclaimedStatus { function, events }).collect()
    }

    /// What is wrong with the connections to brokers.
    pub(super) fn unhealthy_brokers(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for (name, (_, broker)) in &self.layout.current().brokers {
            let status = broker.status();
            if status.link == Link::Down {
                let why = status.last_error.unwrap_or_else(|| "still connecting".to_owned());
                reasons.push(format!("broker `{name}` is not connected: {why}"));
            }
            for (filter, why) in status.refused {
                reasons.push(format!("broker `{name}` refused the subscription to `{filter}`: {why}"));
            }
        }
        reasons
    }

    /// Has `/metrics` show what the parts know themselves.
    pub(super) fn publish_metrics(self: &Arc<Self>) {
        // The metrics belong to the parts: a strong reference would keep both alive for ever.
        let parts = Arc::downgrade(self);
        self.metrics.register(move |scrape| {
            let Some(parts) = parts.upgrade() else { return Ok(()) };
            parts.scrape(scrape)
        });
    }

    fn scrape(&self, scrape: &mut crate::metrics::Scrape<'_>) -> fmt::Result {
        let status = self.status();
        let brokers = |value: fn(&BrokerStatus) -> u64| {
            status.brokers.iter().map(move |broker| ([("broker", broker.name.as_str())], value(broker)))
        };
        let streams = |value: fn(&StreamStatus) -> u64| {
            status.streams.iter().map(move |stream| ([("stream", stream.name.as_str())], value(stream)))
        };
        let gauge = |(labels, n): ([(&'static str, _); 1], u64)| (labels, i64::try_from(n).unwrap_or(i64::MAX));
        let connected = brokers(|b| u64::from(b.connected)).map(gauge);
        scrape.gauges("tidegate_broker_connected", "Whether there is a connection", connected)?;
        let unconfirmed = brokers(|b| b.unconfirmed).map(gauge);
        scrape.gauges("tidegate_broker_unconfirmed", "Publishes that wait for their confirmation", unconfirmed)?;
        let in_flight = brokers(|b| b.in_flight).map(gauge);
        scrape.gauges("tidegate_broker_in_flight", "Messages that are not acknowledged yet", in_flight)?;
        scrape.counters("tidegate_broker_reconnects", "Connections after the first", brokers(|b| b.reconnects))?;
        scrape.counters("tidegate_broker_received", "Messages that came", brokers(|b| b.received))?;
        scrape.counters("tidegate_broker_published", "Messages that were published", brokers(|b| b.published))?;
        let sources = |value: fn(&SourceStatus) -> u64| {
            status.sources.iter().map(move |source| ([("source", source.name.as_str())], value(source)))
        };
        scrape.counters("tidegate_source_events", "Events that were taken from the source", sources(|s| s.events))?;
        scrape.counters("tidegate_source_troubles", "How often something went wrong", sources(|s| s.troubles))?;
        let well = sources(|s| u64::from(s.trouble.is_none())).map(gauge);
        scrape.gauges("tidegate_source_well", "Whether the source works now", well)?;
        let outboxes = |value: fn(&OutboxStatus) -> u64| {
            status.outboxes.iter().map(move |outbox| ([("broker", outbox.broker.as_str())], value(outbox)))
        };
        let publishes = outboxes(|o| o.publishes).map(gauge);
        scrape.gauges("tidegate_outbox_publishes", "Publishes that were committed and not confirmed", publishes)?;
        let bytes = outboxes(|o| o.bytes).map(gauge);
        scrape.gauges(
            "tidegate_outbox_bytes",
            "Bytes of the publishes that were committed and not confirmed",
            bytes,
        )?;
        let records = streams(|s| s.records).map(gauge);
        scrape.gauges("tidegate_stream_records", "Records on disk", records)?;
        let bytes = streams(|s| s.bytes).map(gauge);
        scrape.gauges("tidegate_stream_bytes", "Bytes of the records on disk", bytes)?;
        scrape.counters(
            "tidegate_stream_appended",
            "Records that were appended, ever",
            streams(|s| s.newest_sequence),
        )?;
        scrape.counters(
            "tidegate_stream_dropped_by_age",
            "Records that `max_age` cost, ever",
            streams(|s| s.dropped_by_age),
        )?;
        let by_bytes = streams(|s| s.dropped_by_bytes);
        scrape.counters("tidegate_stream_dropped_by_bytes", "Records that `max_bytes` cost, ever", by_bytes)?;
        let by_total = streams(|s| s.dropped_by_buffer);
        scrape.counters("tidegate_stream_dropped_by_buffer", "Records that `buffer_bytes` cost, ever", by_total)?;
        scrape.counters("tidegate_stream_lost", "Records that damage cost, ever", streams(|s| s.lost))?;
        let ages =
            status.streams.iter().map(|s| ([("stream", s.name.as_str())], s.age_ms.unwrap_or(0) / 1000)).map(gauge);
        scrape.gauges("tidegate_stream_backlog_age_seconds", "Age of the oldest record on disk", ages)?;
        let uplinks = |value: fn(&UplinkStatus) -> u64| {
            let uplink = move |s: &'_ StreamStatus| s.draining.as_ref().map(value);
            status.streams.iter().filter_map(move |s| Some(([("stream", s.name.as_str())], uplink(s)?)))
        };
        let offline = uplinks(|u| u64::from(u.state != UplinkState::Offline)).map(gauge);
        scrape.gauges("tidegate_uplink_connected", "Whether the other side can be reached", offline)?;
        let in_flight = uplinks(|u| u.in_flight).map(gauge);
        scrape.gauges("tidegate_uplink_in_flight", "Records that wait for their confirmation", in_flight)?;
        scrape.counters("tidegate_uplink_sent", "Records that were sent, repeats included", uplinks(|u| u.sent))?;
        scrape.counters("tidegate_uplink_confirmed", "Records that arrived", uplinks(|u| u.confirmed))?;
        scrape.counters("tidegate_uplink_refused", "Refusals by the other side", uplinks(|u| u.refused))?;
        let letters = uplinks(|u| u.dead_letters);
        scrape.counters("tidegate_uplink_dead_letters", "Records that could never be sent", letters)?;
        let code = self.runtime.code_counts();
        let sources = [("compiler", code.compiled), ("publisher", code.adopted)].map(|(from, n)| ([("from", from)], n));
        scrape.counters("tidegate_native_code", "Components that came by native code, and how", sources)?;
        let models = status.models.iter().map(|model| ([("model", model.name.as_str())], model.run.count));
        scrape.counters("tidegate_model_runs", "Runs of the model", models)
    }
}
