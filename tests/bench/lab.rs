//! The agent's runtime without the agent, in this process: for what is too quick to be measured from outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tidegate::clock::Clock;
use tidegate::config::{Config, Environment};
use tidegate::event::{Event, new_id};
use tidegate::function::FunctionSpec;
use tidegate::inference::Models;
use tidegate::invocation::{Context, Outcome};
use tidegate::journal::{Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::runtime::{Chance, Function, Instance, Invoked, Runtime, RuntimeConfig, Services};
use tidegate::store;

/// A runtime, its services, and the functions of a configuration.
pub(crate) struct Lab {
    pub(crate) clock: Clock,
    pub(crate) runtime: Runtime,
    pub(crate) journal: Arc<Journal>,
    pub(crate) specs: Vec<Arc<FunctionSpec>>,
    pub(crate) folder: tempfile::TempDir,
}

impl Lab {
    /// With the sections of gateway.toml in `config`. Its files are beside the binaries: on a real disk, where `/tmp` may be none.
    pub(crate) async fn start(config: &str) -> anyhow::Result<Self> {
        let (clock, limits) = (Clock::system(), Arc::new(Limits::default()));
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(beside()?)?;
        // Nothing connects to that broker; triggers name it.
        let broker = "[mqtt.local]\nurl = \"mqtt://127.0.0.1:1883\"\n";
        let text = format!("[gateway]\nname = \"bench\"\nstate_dir = \"state\"\n{broker}{config}");
        let config = Config::parse(&text, &folder.path().join("gateway.toml"), &Environment::default())?;
        let journal_config = JournalConfig { streams: config.stream.clone(), limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&folder.path().join("journal"), journal_config, clock.clone())?);
        let models = Arc::new(Models::open(&config.inference, Arc::clone(&limits))?);
        for model in &config.model {
            models.load(model).await?;
        }
        let specs = store::resolve_all(&config, &limits)?.into_iter().map(|resolved| Arc::new(resolved.spec)).collect();
        let services =
            Services { models, journal: Arc::clone(&journal), clock: clock.clone(), limits, chance: Chance::default() };
        let runtime_config = RuntimeConfig {
            cache_dir: Some(folder.path().join("compiled")),
            instances_max: 8,
            ..RuntimeConfig::default()
        };
        let runtime = Runtime::new(runtime_config, services)?;
        Ok(Self { clock, runtime, journal, specs, folder })
    }

    /// Runs `work` where functions run.
    pub(crate) async fn there<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.runtime.spawn(work).await.context("the runtime's thread ended")?
    }
}

/// The folder of the binaries.
pub(crate) fn beside() -> anyhow::Result<PathBuf> {
    let binary = std::env::current_exe()?;
    binary.parent().map(Path::to_owned).context("the binary is in no folder")
}

/// The agent's own steps from event to outcome. Gives the returned value.
pub(crate) async fn invoke(
    instance: &mut Instance,
    function: &Function,
    event: &Arc<Event>,
    clock: &Clock,
) -> anyhow::Result<bytes::Bytes> {
    match run(instance, function, event, clock).await.outcome {
        Outcome::Succeeded(value) => Ok(value),
        outcome => anyhow::bail!("function `{}` {outcome}", function.spec.name),
    }
}

/// The same. Gives all that came of it.
pub(crate) async fn run(instance: &mut Instance, function: &Function, event: &Arc<Event>, clock: &Clock) -> Invoked {
    let spec = &function.spec;
    let context = Context {
        function: spec.name.clone(),
        version: Arc::clone(&spec.version),
        invocation: new_id(),
        attempt: 1,
        deadline_ms: clock.now_ms() + 3_000,
        memory_bytes: spec.memory.0,
        trace_parent: None,
        publish_qos: 1,
    };
    instance.invoke(event, context).await
}

/// An MQTT message as the function gets it.
pub(crate) fn event(topic: &str, data: impl Into<bytes::Bytes>) -> Arc<Event> {
    Arc::new(Event {
        id: new_id(),
        source: "mqtt:local".into(),
        kind: "mqtt.message".into(),
        subject: Some(topic.into()),
        data: data.into(),
        ..Event::default()
    })
}
