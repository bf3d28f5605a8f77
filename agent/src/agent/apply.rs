//! Applies a configuration, the first one or a changed one: only what differs is touched.
//!
//! What can fail comes first (models, compilation, new connections' files), so that a wrong configuration changes nothing;
//! then the parts are switched over, from the inside out: nothing is heard before there is a function to hear it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::Parts;
use super::layout::Current;
use crate::api::status::Reloaded;
use crate::broker::Broker;
use crate::broker::embedded::{EmbeddedBroker, Intake};
use crate::capability::Capability;
use crate::clock::Clock;
use crate::config::{
    BrokerUser, Config, EmbeddedBrokerConfig, GatewayConfig, MqttConfig, MqttTrigger, TriggerConfig, TriggerKind,
};
use crate::dispatch::Dispatcher;
use crate::function::FunctionSpec;
use crate::inference::Prepared;
use crate::name::{BrokerName, FunctionName};
use crate::runtime::{Function, Threads};
use crate::store::Resolved;
use crate::topic::TopicFilter;
use crate::trigger::Submit;
use crate::trigger::event::{self, EventTriggers};
use crate::trigger::http::FunctionUrls;
use crate::trigger::listener::Listeners;
use crate::trigger::mqtt::{MqttTriggers, Route};
use crate::trigger::schedule::Schedules;
use crate::uplink::{Publisher, Publishers, Uplink};

/// The broker that triggers and destinations mean when they name none.
const LOCAL: &str = "local";

/// Who the agent is to its embedded broker, when that one asks for users.
const OWN_USER: &str = "tidegate-agent";

/// What a configuration starts, and a changed one replaces.
pub(super) struct Site {
    state_dir: PathBuf,
    submit: Arc<dyn Submit>,
    clock: Clock,
    embedded: Option<EmbeddedBroker>,
    brokers: BTreeMap<BrokerName, (MqttConfig, Broker)>,
    specs: BTreeMap<FunctionName, Arc<FunctionSpec>>,
    listeners: Listeners,
    schedules: Option<Schedules>,
    uplink: Option<Arc<Uplink>>,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("brokers", &self.brokers.keys())
            .field("functions", &self.specs.keys())
            .finish_non_exhaustive()
    }
}

impl Site {
    pub(super) fn new(dispatcher: &Dispatcher, listeners: Listeners, state_dir: &Path, clock: Clock) -> Self {
        let submit: Arc<dyn Submit> = Arc::new(dispatcher.clone());
        Self {
            state_dir: state_dir.to_owned(),
            schedules: Some(Schedules::new(Arc::clone(&submit), state_dir, clock.clone())),
            submit,
            listeners,
            clock,
            embedded: None,
            brokers: BTreeMap::new(),
            specs: BTreeMap::new(),
            uplink: None,
        }
    }

    /// No new events from now on.
    pub(super) fn stop_triggers(&mut self) {
        for (_, broker) in self.brokers.values() {
            broker.pause();
        }
        if let Some(schedules) = self.schedules.take() {
            schedules.stop();
        }
    }

    /// Lets go of the uplinks and brokers, with what they can still bring out within `patience`.
    pub(super) async fn stop_links(&mut self, patience: Duration) {
        if let Some(uplink) = self.uplink.take() {
            uplink.stop().await;
        }
        let brokers = std::mem::take(&mut self.brokers);
        futures_util::future::join_all(brokers.values().map(|(_, broker)| broker.disconnect(patience))).await;
        if let Some(embedded) = self.embedded.take() {
            embedded.stop().await;
        }
    }

    /// The file with the password by which the agent knows itself to its embedded broker; new at each start.
    fn own_password(&self) -> anyhow::Result<PathBuf> {
        let file = self.state_dir.join("mqtt").join("agent.password");
        if self.embedded.is_none() {
            std::fs::create_dir_all(self.state_dir.join("mqtt"))?;
            let _ = std::fs::remove_file(&file);
            let mut open = std::fs::OpenOptions::new();
            let mut out = open.write(true).create_new(true).mode(0o600).open(&file)?;
            let secret = uuid::Uuid::new_v4().simple().to_string();
            out.write_all(secret.as_bytes()).with_context(|| format!("cannot write `{}`", file.display()))?;
        }
        Ok(file)
    }

    /// The embedded broker, when it is what `config` connects to.
    fn embedded_behind(&self, config: &MqttConfig) -> Option<&EmbeddedBroker> {
        self.embedded.as_ref().filter(|embedded| config.client_id.as_deref() == Some(embedded.own_client_id()))
    }

    fn handles(&self) -> BTreeMap<BrokerName, Broker> {
        self.brokers.iter().map(|(name, (_, broker))| (name.clone(), broker.clone())).collect()
    }
}

impl Parts {
    /// Makes `config` with its `functions` what runs. On an error what ran goes on as it was.
    pub(super) async fn apply(&self, config: Config, functions: Vec<Resolved>) -> anyhow::Result<Reloaded> {
        let mut site = self.site.lock().await;
        let before = self.layout.current();
        let mut told = Reloaded { needs_restart: needs_restart(&before.config, &config), ..Reloaded::default() };
        for warning in functions.iter().flat_map(|function| &function.warnings) {
            tracing::warn!("{warning}");
        }

        // What can fail.
        let specs: Vec<_> = functions.into_iter().map(|function| Arc::new(function.spec)).collect();
        let changed = self.load_changed(&site, &specs).await?;
        let models = self.prepare_models(&config).await?;
        let mut wanted = config.mqtt.clone();
        if let Some(embedded) = &config.embedded_broker {
            wanted.insert(BrokerName::parse(LOCAL)?, self.embedded(&mut site, embedded).await?);
        }
        let connected = self.connect_changed(&site, &wanted, &config, &specs)?;
        let urls = self.function_urls(&specs, &before.urls)?;

        // What cannot.
        let buffer_bytes = config.gateway.buffer_bytes;
        self.journal.configure(config.stream.clone(), buffer_bytes);
        if buffer_bytes != before.config.gateway.buffer_bytes {
            told.changes.push(format!("gateway.buffer_bytes: {buffer_bytes}"));
        }
        told.changes.extend(changes(&before.config.stream, &config.stream, "stream"));
        let gone: Vec<_> = site.brokers.extract_if(.., |name, (config, _)| wanted.get(name) != Some(config)).collect();
        for (name, _) in &gone {
            if !wanted.contains_key(name) {
                told.changes.push(format!("broker `{name}`: removed{}", self.left_for(name)));
            }
        }
        for (name, config, broker) in connected {
            let verb = if gone.iter().any(|(old, _)| *old == name) { "reconnected" } else { "added" };
            told.changes.push(format!("broker `{name}`: {verb}"));
            site.brokers.insert(name, (config, broker));
        }
        self.outlets.set_routes(site.handles().into_iter().collect(), own_filters(&specs));
        for function in &changed {
            let (spec, old) = (&function.spec, site.specs.get(&function.spec.name));
            told.changes.push(match old {
                None => format!("function `{}`: {} added", spec.name, spec.version),
                Some(old) if old.version == spec.version => {
                    format!("function `{}`: {} changed", spec.name, spec.version)
                }
                Some(old) => format!("function `{}`: {} → {}", spec.name, old.version, spec.version),
            });
        }
        let models_before = self.model_digests();
        let had = before.config.model.iter().map(|model| model.name.clone());
        let gone_models: Vec<_> = had.filter(|name| !config.model.iter().any(|model| model.name == *name)).collect();
        self.dispatcher.switch(changed, || self.models.replace(models, &gone_models));
        told.changes.extend(changes(&models_before, &self.model_digests(), "model"));
        let removed: Vec<_> =
            site.specs.keys().filter(|name| !specs.iter().any(|spec| spec.name == **name)).cloned().collect();
        site.specs = specs.iter().map(|spec| (spec.name.clone(), Arc::clone(spec))).collect();
        self.listen(&mut site, &config, &specs)?;
        for name in removed {
            told.changes.push(format!("function `{name}`: removed"));
            self.dispatcher.remove(&name);
            self.metrics.forget(&name);
        }
        let spare = self.spare_code.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        self.runtime
            .retain(&specs.iter().map(|spec| &*spec.digest).chain(spare.iter().map(|d| &**d)).collect::<Vec<_>>());
        let anew: Vec<_> = gone.iter().map(|(name, _)| name.clone()).collect();
        self.drain_streams(&mut site, &config, &anew).await?;
        for (_, (_, broker)) in gone {
            // Its publishes find their way within a while, or are made again by those who wait for them.
            tokio::spawn(async move { broker.disconnect(super::DISCONNECT_PATIENCE).await });
        }
        let events = EventTriggers::new(site.listeners.all().iter().filter_map(|listener| {
            let TriggerKind::Event(trigger) = &listener.trigger.kind else { return None };
            let (function, only, window) = listener.parts();
            Some(event::Route { trigger: trigger.clone(), function, only, window })
        }));
        let brokers =
            site.brokers.iter().map(|(name, (mqtt, broker))| (name.clone(), (mqtt.url.clone(), broker.clone())));
        let (brokers, uplink) = (brokers.collect(), site.uplink.clone());
        self.layout.replace(Current { config, brokers, uplink, events: Arc::new(events), urls: Arc::new(urls) });
        for change in &told.changes {
            tracing::info!("{change}");
        }
        if self.threads != Threads::OfTheCaller {
            super::memory::release_soon();
        }
        Ok(told)
    }

    /// What stays in the outbox of a broker that goes, in words.
    fn left_for(&self, broker: &BrokerName) -> String {
        let outboxes = self.outlets.outboxes();
        match outboxes.iter().find(|outbox| outbox.broker == *broker).map_or(0, |outbox| outbox.publishes) {
            0 => String::new(),
            1 => ", 1 publish waits on disk until it is back".to_owned(),
            n => format!(", {n} publishes wait on disk until it is back"),
        }
    }

    /// Starts the embedded broker unless it runs, and says how the agent itself connects to it.
    async fn embedded(&self, site: &mut Site, config: &EmbeddedBrokerConfig) -> anyhow::Result<MqttConfig> {
        let mut config = config.clone();
        let mut login = None;
        if !config.users.is_empty() {
            let password_file = site.own_password()?;
            let all = vec![TopicFilter::parse("#")?];
            let user = BrokerUser { password_file: password_file.clone(), publish: all.clone(), subscribe: all };
            config.users.insert(OWN_USER.to_owned(), user);
            login = Some(password_file);
        }
        let broker = match &mut site.embedded {
            Some(broker) => broker,
            none => {
                let journal = Some(Arc::clone(&self.journal));
                let intake = Arc::new(Intake::new(journal, &self.limits, self.clock.clone()));
                none.insert(EmbeddedBroker::start_with(&config, &self.limits, Some(intake)).await?)
            }
        };
        let client_id = Some(broker.own_client_id().to_owned());
        let own = MqttConfig { client_id, ..MqttConfig::to(broker.local_url()) };
        Ok(match login {
            Some(file) => MqttConfig { username: Some(OWN_USER.to_owned()), password_file: Some(file), ..own },
            None => own,
        })
    }

    /// Compiles, or maps from the cache, what is not running as it is.
    async fn load_changed(&self, site: &Site, specs: &[Arc<FunctionSpec>]) -> anyhow::Result<Vec<Function>> {
        let mut functions = Vec::new();
        for spec in specs {
            if site.specs.get(&spec.name) != Some(spec) {
                let function = self.runtime.load(Arc::clone(spec)).await;
                functions.push(function.with_context(|| format!("function `{}` cannot be loaded", spec.name))?);
            }
        }
        Ok(functions)
    }

    /// Loads and tests the models that are new or changed.
    async fn prepare_models(&self, config: &Config) -> anyhow::Result<Vec<Prepared>> {
        let mut prepared = Vec::new();
        for model in &config.model {
            prepared.extend(self.models.prepare(model).await?);
        }
        Ok(prepared)
    }

    fn model_digests(&self) -> BTreeMap<String, String> {
        self.models.status().into_iter().map(|model| (model.name.to_string(), model.digest)).collect()
    }

    fn connect_changed(
        &self,
        site: &Site,
        wanted: &BTreeMap<BrokerName, MqttConfig>,
        all: &Config,
        specs: &[Arc<FunctionSpec>],
    ) -> anyhow::Result<Vec<(BrokerName, MqttConfig, Broker)>> {
        let mut connected = Vec::new();
        let uplinks = self.uplink_thread.handle();
        for (name, config) in wanted {
            if site.brokers.get(name).map(|(config, _)| config) != Some(config) {
                let _there = only_drains(name, all, specs).then(|| uplinks.enter());
                let (clock, net) = (self.clock.clone(), self.net.clone());
                let broker =
                    Broker::connect(name.clone(), config, &self.gateway, &site.state_dir, &self.limits, clock, net)?;
                let intake = site.embedded_behind(config).and_then(EmbeddedBroker::intake).cloned();
                connected.push((name.clone(), config.clone(), broker.beside(intake)));
            }
        }
        Ok(connected)
    }

    fn function_urls(&self, specs: &[Arc<FunctionSpec>], before: &FunctionUrls) -> anyhow::Result<FunctionUrls> {
        let triggers = specs.iter().flat_map(|spec| {
            spec.triggers.iter().filter_map(|trigger| match &trigger.kind {
                TriggerKind::Http(http) => Some((spec.name.clone(), http.clone())),
                _ => None,
            })
        });
        FunctionUrls::new(triggers, self.limits.url_calls_max, &self.metrics, before)
            .context("cannot read the `token_file` of a function URL")
    }

    /// Has the streams that say so drain.
    async fn drain_streams(&self, site: &mut Site, config: &Config, anew: &[BrokerName]) -> anyhow::Result<()> {
        let publisher = |broker: Broker| Arc::new(broker) as Arc<dyn Publisher>;
        let publishers: Publishers =
            site.handles().into_iter().map(|(name, broker)| (name, publisher(broker))).collect();
        match &site.uplink {
            Some(uplink) => uplink.configure(&publishers, &config.stream, anew).await,
            None => {
                let (journal, gateway, clock) = (Arc::clone(&self.journal), self.gateway.clone(), self.clock.clone());
                site.uplink = Some(Arc::new(Uplink::start_with(
                    journal,
                    &publishers,
                    gateway,
                    &config.stream,
                    clock,
                    self.cloud.clone(),
                    self.uplink_thread.handle(),
                )?));
            }
        }
        Ok(())
    }

    /// Has the triggers of `specs`, and no others, make events.
    fn listen(&self, site: &mut Site, config: &Config, specs: &[Arc<FunctionSpec>]) -> anyhow::Result<()> {
        self.windows.apply(specs);
        site.listeners.apply(specs, &self.windows);
        for (name, (config, broker)) in &site.brokers {
            let routes = site.listeners.all().iter().filter_map(|listener| match &listener.trigger.kind {
                TriggerKind::Mqtt(mqtt) if broker_of(mqtt) == name.as_str() => {
                    let (function, only, window) = listener.parts();
                    Some(Route { filter: mqtt.filter.clone(), qos: mqtt.qos, function, only, window })
                }
                _ => None,
            });
            let triggers =
                |routes| Arc::new(MqttTriggers::new(name, routes, Arc::clone(&site.submit), site.clock.clone()));
            let mut subscribed: Vec<Route> = routes.collect();
            if let Some(embedded) = site.embedded_behind(config) {
                // A shared one competes with other clients, so the broker has to choose who gets a message.
                let direct: Vec<_> = subscribed.extract_if(.., |route| !route.filter.is_shared()).collect();
                embedded.hear(direct.iter().map(|route| route.filter.clone()).collect(), triggers(direct));
            }
            let subscribed = triggers(subscribed);
            broker.subscribe(subscribed.subscriptions(), subscribed);
        }
        let schedules = specs.iter().flat_map(|spec| {
            spec.triggers.iter().filter_map(|trigger| match &trigger.kind {
                TriggerKind::Schedule(schedule) => Some((spec.name.clone(), schedule.clone())),
                _ => None,
            })
        });
        if let Some(running) = &mut site.schedules {
            running.apply(schedules)?;
        }
        let written = specs.iter().flat_map(|spec| &spec.capabilities.0).filter_map(|capability| match capability {
            Capability::SourceWrite(name) => Some(name.clone()),
            _ => None,
        });
        self.sources.apply(&config.source, site.listeners.all(), written.collect());
        Ok(())
    }
}

/// The broker that a trigger listens to.
fn broker_of(trigger: &MqttTrigger) -> &str {
    trigger.broker.as_ref().map_or(LOCAL, BrokerName::as_str)
}

/// Whether streams drain to that broker, and no trigger waits for what comes from it.
fn only_drains(broker: &BrokerName, config: &Config, specs: &[Arc<FunctionSpec>]) -> bool {
    let uplinks = config.stream.values().filter_map(|stream| stream.uplink.as_ref()?.broker());
    let mut triggers = specs.iter().flat_map(|spec| &spec.triggers);
    let is_heard = |trigger: &TriggerConfig| matches!(&trigger.kind, TriggerKind::Mqtt(mqtt) if broker_of(mqtt) == broker.as_str());
    uplinks.into_iter().any(|uplink| uplink == broker) && !triggers.any(is_heard)
}

/// What a publish of ours would come back by.
fn own_filters(specs: &[Arc<FunctionSpec>]) -> Vec<crate::topic::TopicFilter> {
    let triggers = specs.iter().flat_map(|spec| &spec.triggers);
    let filters = triggers.filter_map(|trigger| match &trigger.kind {
        TriggerKind::Mqtt(mqtt) => Some(mqtt.filter.clone()),
        _ => None,
    });
    filters.collect()
}

/// One line for each difference between two maps.
fn changes<K: Ord + std::fmt::Display, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    what: &str,
) -> Vec<String> {
    let new = after.iter().filter_map(|(key, value)| match before.get(key) {
        None => Some(format!("{what} `{key}`: added")),
        Some(old) if old != value => Some(format!("{what} `{key}`: changed")),
        Some(_) => None,
    });
    let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| format!("{what} `{key}`: removed"));
    new.chain(gone).collect()
}

/// The sections that are only read at the start.
fn needs_restart(before: &Config, after: &Config) -> Vec<String> {
    if before.file.as_os_str().is_empty() {
        return Vec::new();
    }
    // This one is not.
    let buffer_bytes = after.gateway.buffer_bytes;
    let sections = [
        ("[gateway]", GatewayConfig { buffer_bytes, ..before.gateway.clone() } != after.gateway),
        ("[embedded_broker]", before.embedded_broker != after.embedded_broker),
        ("[api]", before.api != after.api),
        ("[log]", before.log != after.log),
        ("[trace]", before.trace != after.trace),
        ("[cloud]", before.cloud != after.cloud),
        ("[inference]", before.inference != after.inference),
    ];
    sections.into_iter().filter(|(_, differs)| *differs).map(|(section, _)| section.to_owned()).collect()
}
