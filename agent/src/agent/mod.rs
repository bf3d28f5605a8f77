//! The composition root: the parts of the agent meet here and nowhere else.

mod apply;
mod deploy;
mod handle;
mod layout;
mod memory;

use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::apply::Site;
use self::deploy::Layers;
use self::layout::Layout;
pub use self::memory::bound_heap;
use crate::api::{AgentHandle, Api, ApiOptions};
use crate::boot::Boot;
use crate::clock::Clock;
use crate::config::{ApiListen, Config};
use crate::deployment::{self, Deployer, Host, Tools};
use crate::dispatch::{Dispatcher, Outlets};
use crate::inference::Models;
use crate::journal::{Journal, JournalConfig};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::name::GatewayName;
use crate::net::Net;
use crate::runtime::{Chance, Compiler, Runtime, RuntimeConfig, Services, Threads};
use crate::store;
use crate::telemetry::{self, Exporter, LogRing};
use crate::trigger::actuators::Actuators;
use crate::trigger::listener::Listeners;
use crate::trigger::source::Sources;
use crate::trigger::window::Windows;
use crate::uplink::UplinkThread;

/// How long running invocations may go on once the agent stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long publishes may wait for their confirmation once the agent stops. What is not confirmed then is done again.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Instances that what is deployed later may have at the same time, beside those of the configuration at the start.
const DEPLOYED_INSTANCES: u32 = 128;

/// The outside world, so that tests can start the very same agent in another one.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// Time.
    pub clock: Clock,
    /// Connections to brokers.
    pub net: Net,
    /// Bounds, which some machines need smaller.
    pub limits: Limits,
    /// Where functions run.
    pub threads: Threads,
    /// Who compiles them.
    pub compiler: Compiler,
    /// Where log lines are found when somebody else receives those of this process; otherwise the agent does.
    pub logs: Option<LogRing>,
    /// How it came to run, and whether it can become another agent.
    pub boot: Boot,
}

impl Ports {
    /// This machine, in the program `tidegate`.
    pub fn real() -> Self {
        Self { compiler: Compiler::apart(), ..Self::default() }
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    parts: Arc<Parts>,
    api: Api,
    exporter: Option<Exporter>,
}

/// What runs from start to end; what a reload changes is in `site`.
#[derive(Debug)]
struct Parts {
    gateway: GatewayName,
    started: Instant,
    clock: Clock,
    net: Net,
    threads: Threads,
    limits: Arc<Limits>,
    logs: LogRing,
    metrics: Metrics,
    journal: Arc<Journal>,
    models: Arc<Models>,
    runtime: Runtime,
    /// The threads of brokers, sources and timers.
    network: Handle,
    outlets: Outlets,
    dispatcher: Dispatcher,
    site: Mutex<Site>,
    sources: Sources,
    windows: Windows,
    uplink_thread: UplinkThread,
    /// What the configuration that serves is made of.
    layers: RwLock<Layers>,
    /// Held while that changes.
    reconfiguring: Mutex<()>,
    /// Components that do not serve, but may at any moment.
    spare_code: std::sync::Mutex<Vec<Arc<str>>>,
    cloud: Option<sync_client::Cloud>,
    /// The version that this agent was deployed as; none: it is the packaged one.
    boot_version: Option<semver::Version>,
    /// Set once, when the parts are there that it works with.
    deployer: OnceLock<Deployer>,
    /// What is configured and connected now, for those who only look.
    layout: Layout,
}

impl Agent {
    /// Builds every part, innermost first, and applies the configuration. Never waits for a network.
    ///
    /// # Errors
    /// With what cannot be started, and why; [`crate::boot::Another`], when another agent is to run.
    pub async fn start(config: Config, ports: Ports) -> anyhow::Result<Self> {
        let Ports { clock, net, limits, threads, compiler, logs, boot } = ports;
        let limits = Arc::new(Limits { buffer_bytes_max: config.gateway.buffer_bytes, ..limits });
        let logs = match logs {
            Some(logs) => logs,
            None => telemetry::init(&config.log, &limits, clock.clone())?,
        };
        let gateway = config.gateway_name();
        let state_dir = config.gateway.state_dir.clone();
        std::fs::create_dir_all(&state_dir).with_context(|| {
            format!(
                "cannot create `{}`\n\nhint: `gateway.state_dir` must be writable by the agent's user",
                state_dir.display()
            )
        })?;

        let metrics = Metrics::new();
        let (tracer, exporter) = Exporter::start(&config.trace, &gateway, &limits, &metrics, clock.clone())?;
        let boot_version = boot.running().as_ref().map(|build| build.version.clone());
        let mut opened = deployment::open(&config, &limits, &clock, boot)?;
        let fit = opened.as_mut().and_then(|opened| opened.fit(&config));
        let (stream, functions) = match fit {
            Some(fit) => (fit.config.stream, fit.functions),
            None => (config.stream.clone(), store::resolve_all(&config, &limits)?),
        };
        let journal_config = JournalConfig { streams: stream, limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&state_dir.join("journal"), journal_config, clock.clone())?);
        let models = Arc::new(Models::open(&config.inference, Arc::clone(&limits))?);
        let services = Services {
            models: Arc::clone(&models),
            journal: Arc::clone(&journal),
            clock: clock.clone(),
            limits: Arc::clone(&limits),
            chance: Chance::default(),
        };
        let runtime_config = RuntimeConfig {
            cache_dir: Some(state_dir.join("compiled")),
            instances_max: functions.iter().map(|function| function.spec.concurrency).sum::<u32>()
                + opened.as_ref().map_or(0, |_| DEPLOYED_INSTANCES),
            threads,
            compiler,
        };
        let runtime = Runtime::new(runtime_config, services)?;
        let actuators = Actuators::default();
        let outlets = Outlets::new(
            Arc::clone(&journal),
            actuators.clone(),
            gateway.clone(),
            Arc::clone(&limits),
            metrics.clone(),
            clock.clone(),
        )?;
        let dispatcher = Dispatcher::new(
            runtime.clone(),
            outlets.clone(),
            metrics.clone(),
            tracer,
            Arc::clone(&limits),
            clock.clone(),
        );
        let listeners = Listeners::new(metrics.clone(), Arc::clone(&limits), clock.clone());
        let site = Mutex::new(Site::new(&dispatcher, listeners, &state_dir, clock.clone()));
        let sources = Sources::new(Arc::new(dispatcher.clone()), actuators, &state_dir, &limits, clock.clone());
        let windows = Windows::new(
            Arc::new(dispatcher.clone()),
            Arc::clone(&journal),
            metrics.clone(),
            Arc::clone(&limits),
            clock.clone(),
        );
        let parts = Arc::new(Parts {
            started: clock.instant(),
            gateway,
            clock,
            net,
            threads,
            limits,
            logs,
            metrics,
            journal,
            models,
            runtime,
            network: Handle::current(),
            outlets,
            dispatcher,
            site,
            sources,
            windows,
            uplink_thread: UplinkThread::start(threads)?,
            layers: RwLock::default(),
            reconfiguring: Mutex::default(),
            spare_code: std::sync::Mutex::default(),
            cloud: opened.as_ref().map(deployment::Opened::cloud),
            boot_version,
            deployer: OnceLock::new(),
            layout: Layout::default(),
        });
        parts.publish_metrics();
        parts.begin(config.clone(), &mut opened).await?;
        if let Some(opened) = opened {
            let (runtime, models) = (parts.runtime.clone(), Arc::clone(&parts.models));
            let tools = Tools { runtime, models, metrics: parts.metrics.clone(), logs: parts.logs.clone() };
            let host = Arc::clone(&parts) as Arc<dyn Host>;
            parts.deployer.get_or_init(|| opened.start(host, tools));
        }
        let api = parts.serve(&config).await?;
        if parts.threads != Threads::OfTheCaller {
            memory::stay_small();
        }
        tracing::info!(gateway = %parts.gateway, version = env!("CARGO_PKG_VERSION"), "the agent runs");
        Ok(Self { parts, api, exporter })
    }

    /// What the API, and a signal handler, may do with it.
    pub fn handle(&self) -> Arc<dyn AgentHandle> {
        Arc::clone(&self.parts) as Arc<dyn AgentHandle>
    }

    /// Resolves when another agent has to run: then this one is to stop.
    pub fn another(&self) -> impl Future<Output = ()> + use<> {
        let another = self.parts.deployer.get().map(Deployer::another);
        async move {
            match another {
                Some(another) => another.cancelled_owned().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Runs until `shutdown` resolves, then stops in the order in which data flows: no new events, let what runs finish, keep
    /// what it produced. Anything unsent is on disk already.
    ///
    /// # Errors
    /// When what was committed cannot be brought to disk.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        shutdown.await;
        let Self { parts, api, exporter } = self;
        api.stop().await;
        if let Some(deployer) = parts.deployer.get() {
            deployer.stop().await;
        }
        let mut site = parts.site.lock().await;
        site.stop_triggers();
        parts.sources.hush().await;
        parts.windows.hush().await;
        parts.dispatcher.drain(DRAIN_PATIENCE).await;
        parts.windows.stop().await;
        parts.sources.stop().await;
        parts.outlets.stop(DISCONNECT_PATIENCE).await;
        site.stop_links(DISCONNECT_PATIENCE).await;
        if let Some(exporter) = exporter {
            exporter.stop().await;
        }
        // Who still holds the journal is cut off; streams that are synced now and then are synced here.
        parts.journal.close().await?;
        tracing::info!("the agent has stopped");
        Ok(())
    }
}

impl Parts {
    async fn serve(self: &Arc<Self>, config: &Config) -> anyhow::Result<Api> {
        let read = |file: &std::path::PathBuf| {
            let token = std::fs::read_to_string(file);
            token.with_context(|| format!("cannot read `api.token_file` {}", file.display()))
        };
        let options = ApiOptions {
            listen: match config.api.listen {
                ApiListen::Off => None,
                ApiListen::At(address) => Some(address),
            },
            socket: config.socket(),
            token: config.api.token_file.as_ref().map(read).transpose()?.map(|token| token.trim_end().to_owned()),
            gateway: self.gateway.clone(),
            console: config.api.console,
        };
        let handle = Arc::clone(self) as Arc<dyn AgentHandle>;
        let (limits, clock) = (Arc::clone(&self.limits), self.clock.clone());
        // Who calls a function URL waits for its function: on one thread neither has to wake the other's.
        Ok(self.runtime.spawn(Api::start(options, handle, limits, clock)).await??)
    }
}
