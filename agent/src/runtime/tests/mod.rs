//! The runtime as the dispatcher uses it, on guests written in WAT.

pub(crate) mod guest;
mod http;
mod layers;
mod limits;
mod outcomes;
mod precompiled;

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::capability::Capabilities;
use crate::config::StreamConfig;
use crate::config::function::{Isolation, RetryConfig};
use crate::event::{Event, new_id};
use crate::function::FunctionSpec;
use crate::invocation::{Context, Outcome};
use crate::journal::JournalConfig;
use crate::name::{FunctionName, StreamName};
use crate::units::{ByteSize, Span};

/// A runtime in a folder of its own.
struct Site {
    runtime: Runtime,
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(|_, _| {})
    }

    fn with(change: impl FnOnce(&mut RuntimeConfig, &mut Limits)) -> Self {
        Self::by(Runtime::new, change)
    }

    fn by(
        make: impl FnOnce(RuntimeConfig, Services) -> Result<Runtime, RuntimeError>,
        change: impl FnOnce(&mut RuntimeConfig, &mut Limits),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut limits = Limits::default();
        let mut config =
            RuntimeConfig { cache_dir: Some(dir.path().join("code")), instances_max: 8, ..RuntimeConfig::default() };
        change(&mut config, &mut limits);
        let limits = Arc::new(limits);
        let clock = Clock::system();
        let streams = BTreeMap::from([(StreamName::parse("readings").unwrap(), StreamConfig::default())]);
        let journal = JournalConfig { streams, limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&dir.path().join("journal"), journal, clock.clone()).unwrap());
        let services =
            Services { models: Arc::new(Models::default()), journal, clock, limits, chance: Chance::default() };
        Self { runtime: make(config, services).unwrap(), dir }
    }

    fn journal(&self) -> &Journal {
        &self.runtime.shared.services.journal
    }

    fn spec(&self, component: &[u8], change: impl FnOnce(&mut FunctionSpec)) -> Arc<FunctionSpec> {
        let digest = Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let root = self.dir.path().join("bundle");
        let file = root.join(format!("{digest}.wasm"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(&file, component).unwrap();
        let capabilities = ["mqtt:publish:results/#", "stream:readings", "stream:missing", "keyvalue"];
        let mut spec = FunctionSpec {
            idempotency: None,
            order: crate::config::function::Order::None,
            name: FunctionName::parse("guest").unwrap(),
            version: Arc::from("1.0.0"),
            component: file,
            digest: Arc::from(digest),
            root,
            layers: None,
            folders: BTreeMap::new(),
            timeout: Span::parse("5s").unwrap(),
            memory: ByteSize::mib(4),
            concurrency: 1,
            isolation: Isolation::Warm,
            environment: BTreeMap::from([("LIMIT".to_owned(), "30".to_owned())]),
            capabilities: Capabilities(capabilities.iter().map(|text| text.parse().unwrap()).collect()),
            retry: RetryConfig::default(),
            on_success: Vec::new(),
            on_failure: Vec::new(),
            triggers: Vec::new(),
        };
        change(&mut spec);
        Arc::new(spec)
    }

    /// The compiled code that is kept.
    fn code(&self) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(self.dir.path().join("code")).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    async fn load(&self, component: &[u8]) -> Function {
        self.runtime.load(self.spec(component, |_| {})).await.unwrap()
    }

    /// Loads a handler and runs it on `data` in a new instance.
    async fn run(&self, body: &str, texts: &str, data: &str) -> Invoked {
        let function = self.load(&guest::component(body, texts)).await;
        invoke(&mut function.instantiate().await.unwrap(), data).await
    }
}

/// What the host functions of an instance see, without the instance.
pub(crate) fn host_state(models: Arc<Models>, limits: Arc<Limits>, capabilities: &[&str]) -> HostState {
    let site = Site::new();
    let capabilities = Capabilities(capabilities.iter().map(|text| text.parse().unwrap()).collect());
    let spec = site.spec(b"", |spec| spec.capabilities = capabilities);
    let services = Services { models, limits, ..site.runtime.shared.services.as_ref().clone() };
    let log = host::log::Log::new(spec.name.clone(), 0);
    let wasi = host::wasi::context(&spec, &services, &log, false).unwrap();
    HostState::new(spec, Arc::new(services), wasi, log)
}

async fn invoke(instance: &mut Instance, data: &str) -> Invoked {
    let event =
        Arc::new(Event { id: new_id(), source: "test".into(), data: data.to_owned().into(), ..Event::default() });
    instance.invoke(&event, context()).await
}

fn context() -> Context {
    Context {
        function: FunctionName::parse("guest").unwrap(),
        version: Arc::from("1.0.0"),
        invocation: new_id(),
        attempt: 1,
        deadline_ms: 0,
        memory_bytes: 4 << 20,
        trace_parent: None,
        publish_qos: 1,
    }
}

fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Succeeded(value) => String::from_utf8(value.to_vec()).unwrap(),
        other => panic!("{other}"),
    }
}
