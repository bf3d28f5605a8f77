//! A function in a runtime without the world around it: for `tidegate invoke --bundle`, the tests of a bundle, those of a version
//! that was deployed, and `tidegate replay`.
//!
//! What it sends is shown, never sent; what it remembers is forgotten.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;

use crate::capability::Capability;
use crate::clock::Clock;
use crate::config::function::Isolation;
use crate::config::{BundleTest, Expectation, StreamConfig};
use crate::event::{Event, new_id};
use crate::function::FunctionSpec;
use crate::inference::Models;
use crate::invocation::{Context, KeyValueWrite, Outcome};
use crate::journal::{Batch, Journal, JournalConfig, JournalError};
use crate::limits::Limits;
use crate::name::StreamName;
use crate::runtime::{Chance, Function, Instance, Invoked, Runtime, RuntimeConfig, Services};

/// A file system in memory, which Linux has everywhere.
const MEMORY: &str = "/dev/shm";

/// A function that runs by itself, and the temporary folder that it needs.
#[derive(Debug)]
pub(crate) struct Throwaway {
    function: Function,
    clock: Clock,
    journal: Arc<Journal>,
    // The runtime's threads end when it is dropped, before the folder goes.
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Throwaway {
    /// Loads the function into a runtime of its own.
    pub(crate) async fn alone(spec: FunctionSpec, models: Arc<Models>) -> anyhow::Result<Self> {
        Self::within(spec, models, Clock::system(), Chance::default()).await
    }

    /// The same with a time and a chance that the caller makes.
    pub(crate) async fn within(
        spec: FunctionSpec,
        models: Arc<Models>,
        clock: Clock,
        chance: Chance,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let services = Services { chance, ..services(&spec, models, Arc::default(), clock, folder.path())? };
        let config = RuntimeConfig { instances_max: 1, ..RuntimeConfig::default() };
        let runtime = Runtime::new(config, services.clone())?;
        Self::load(spec, runtime, services, folder).await
    }

    /// Loads the function into the agent's own `runtime`, but with `models`, and with a journal below `folder` that goes with it.
    pub(crate) async fn beside(
        spec: FunctionSpec,
        runtime: &Runtime,
        models: Arc<Models>,
        limits: Arc<Limits>,
        clock: Clock,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let made = |within: &Path| tempfile::Builder::new().prefix(".test-").tempdir_in(within);
        // In memory, since flash wears out by what is written to it; what a crash leaves there is gone with the next start of the machine.
        let folder = made(Path::new(MEMORY)).or_else(|_| made(folder)).context("cannot make a temporary folder")?;
        let services = services(&spec, models, limits, clock, folder.path())?;
        Self::load(spec, runtime.with_services(services.clone()), services, folder).await
    }

    async fn load(
        spec: FunctionSpec,
        runtime: Runtime,
        services: Services,
        folder: tempfile::TempDir,
    ) -> anyhow::Result<Self> {
        let name = spec.name.clone();
        let loaded = runtime.load(Arc::new(spec)).await;
        let function = loaded.with_context(|| format!("function `{name}` cannot be loaded"))?;
        let Services { clock, journal, .. } = services;
        Ok(Self { function, clock, journal, runtime, _folder: folder })
    }

    /// How the function runs.
    pub(crate) fn spec(&self) -> &FunctionSpec {
        &self.function.spec
    }

    /// Folder of the bundle.
    pub(crate) fn root(&self) -> &Path {
        &self.function.spec.root
    }

    /// What a run that begins now is told.
    pub(crate) fn context(&self, event: &Event, invocation: Arc<str>, attempt: u32, publish_qos: u8) -> Context {
        let spec = &self.function.spec;
        let timeout_ms = u64::try_from(spec.timeout.0.as_millis()).unwrap_or(u64::MAX);
        Context {
            function: spec.name.clone(),
            version: Arc::clone(&spec.version),
            invocation,
            attempt,
            deadline_ms: self.clock.now_ms().saturating_add(timeout_ms),
            memory_bytes: spec.memory.0,
            trace_parent: event.trace_parent.clone(),
            publish_qos,
        }
    }

    /// Runs the handler in `warm`, or in a new instance that stays there for the next event.
    pub(crate) async fn serve(
        &self,
        warm: &mut Option<Instance>,
        event: &Arc<Event>,
        context: Context,
    ) -> Result<Invoked, Outcome> {
        let instance = match warm {
            Some(instance) => instance,
            None => warm.insert(self.function.instantiate().await?),
        };
        let invoked = instance.invoke(event, context).await;
        if !invoked.reusable || self.function.spec.isolation == Isolation::Fresh {
            *warm = None;
        }
        Ok(invoked)
    }

    /// Lets the function remember `writes`, until it is thrown away.
    pub(crate) async fn remember(&self, writes: Vec<KeyValueWrite>) -> Result<(), JournalError> {
        let key_values = writes.into_iter().map(|write| (self.function.spec.name.clone(), write)).collect();
        // Reads see it already. The disk is nobody's concern here.
        drop(self.journal.begin(Batch { key_values, ..Batch::default() }).await?);
        Ok(())
    }

    /// Runs the handler once, in a new instance.
    pub(crate) async fn run(&self, event: Event) -> anyhow::Result<Result<Invoked, Outcome>> {
        let context = self.context(&event, new_id(), 1, 1);
        let (function, event) = (self.function.clone(), Arc::new(event));
        let run = async move {
            match function.instantiate().await {
                Ok(mut instance) => Ok(instance.invoke(&event, context).await),
                Err(outcome) => Err(outcome),
            }
        };
        self.runtime.spawn(run).await.context("the runtime's thread ended")
    }

    /// Runs one test of the manifest; the inner error says why it failed.
    pub(crate) async fn test(&self, test: &BundleTest) -> anyhow::Result<Result<(), String>> {
        let read = |file: &Path| std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()));
        let event = recorded(read(&test.event)?, self.clock.now_ms());
        let outcome = match self.run(event).await? {
            Ok(invoked) => invoked.outcome,
            Err(outcome) => outcome,
        };
        let expected = match &test.expect {
            Expectation::Result(file) => {
                let expected = read(file)?;
                match &outcome {
                    Outcome::Succeeded(value) if is_same(value, &expected) => return Ok(Ok(())),
                    _ => format!("the result {}", String::from_utf8_lossy(&expected).trim_end()),
                }
            }
            Expectation::Failure(label) if is_label(&outcome, label) => return Ok(Ok(())),
            Expectation::Failure(label) => format!("the failure `{label}`"),
        };
        let found = match &outcome {
            Outcome::Succeeded(value) => format!("it returned {}", String::from_utf8_lossy(value)),
            outcome => format!("it {outcome}"),
        };
        Ok(Err(format!("expected {expected}\n{found}")))
    }
}

/// A journal in `folder` with the streams that the function may append to, and no world.
fn services(
    spec: &FunctionSpec,
    models: Arc<Models>,
    limits: Arc<Limits>,
    clock: Clock,
    folder: &Path,
) -> anyhow::Result<Services> {
    let streams = spec.capabilities.0.iter().filter_map(stream_of);
    let streams = streams.map(|name| (name.clone(), StreamConfig::default())).collect();
    let config = JournalConfig { streams, limits: Arc::clone(&limits) };
    let journal = Arc::new(Journal::open(folder, config, clock.clone())?);
    Ok(Services { models, journal, clock, limits, chance: Chance::default() })
}

/// A recorded event with its attributes, or else a bare payload.
fn recorded(content: Vec<u8>, now_ms: u64) -> Event {
    match crate::api::cloudevents::parse(&content, now_ms) {
        Ok(event) => event,
        Err(_) => payload(content, now_ms),
    }
}

/// A bare payload as an event, as the agent makes one of it.
pub(crate) fn payload(content: Vec<u8>, now_ms: u64) -> Event {
    Event {
        id: new_id(),
        source: "api".into(),
        kind: "api.invocation".into(),
        time_ms: now_ms,
        data: Bytes::from(content),
        ..Event::default()
    }
}

/// JSON is the same when it means the same; anything else byte by byte, but for the line break that editors add.
pub(crate) fn is_same(value: &[u8], expected: &[u8]) -> bool {
    let json = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    match (json(value), json(expected)) {
        (Some(value), Some(expected)) => value == expected,
        _ => value == expected || Some(value) == expected.strip_suffix(b"\n"),
    }
}

/// Whether `outcome` is what a test calls `label`; `reject` is what the handler says, `rejected` what comes of it.
fn is_label(outcome: &Outcome, label: &str) -> bool {
    outcome.label() == if label == "reject" { "rejected" } else { label }
}

const fn stream_of(capability: &Capability) -> Option<&StreamName> {
    match capability {
        Capability::Stream(name) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_compared_by_what_they_mean() {
        assert!(is_same(br#"{"a":1,"b":2}"#, b"{ \"b\": 2, \"a\": 1 }\n"));
        assert!(is_same(b"text", b"text\n"));
        assert!(is_same(b"", b""));
        assert!(!is_same(b"1", b"2"));
        assert!(!is_same(b"", b"null"));
    }
}
