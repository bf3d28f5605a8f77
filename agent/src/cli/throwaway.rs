//! A function in a runtime of its own, with no agent around: for `tidegate invoke --bundle` and the tests of a bundle.
//!
//! It is granted what its manifest asks for. What it sends is shown, never sent; what it remembers is forgotten.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;

use super::Failure;
use crate::capability::Capability;
use crate::clock::Clock;
use crate::config::{BundleTest, Environment, Expectation, ModelConfig, StreamConfig};
use crate::event::{Event, new_id};
use crate::inference::Models;
use crate::invocation::{Context, Effects, Outcome};
use crate::journal::{Journal, JournalConfig};
use crate::limits::Limits;
use crate::name::{ModelName, StreamName};
use crate::runtime::{Function, Invoked, Runtime, RuntimeConfig, Services};
use crate::store::Resolved;

/// `NAME=FILE` of `--model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelArg {
    name: ModelName,
    file: PathBuf,
}

impl FromStr for ModelArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=FILE"))?;
        Ok(Self { name: ModelName::parse(name).map_err(|error| error.to_string())?, file: file.into() })
    }
}

/// A function that runs by itself, and the temporary folder that it needs.
pub(super) struct Throwaway {
    function: Function,
    clock: Clock,
    // The runtime's threads end when it is dropped, before the folder goes.
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Throwaway {
    /// Loads the function and the models that it asks for.
    pub(super) async fn start(resolved: Resolved, models: &[ModelArg]) -> anyhow::Result<Self> {
        let (limits, clock) = (Arc::new(Limits::default()), Clock::system());
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let spec = resolved.spec;
        let streams = spec.capabilities.0.iter().filter_map(stream_of);
        let streams = streams.map(|name| (name.clone(), StreamConfig::default())).collect();
        let config = JournalConfig { streams, limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(folder.path(), config, clock.clone())?);
        let loaded = Arc::new(Models::open(&Environment::of_process().inference(), Arc::clone(&limits))?);
        for name in spec.capabilities.0.iter().filter_map(model_of) {
            loaded.load(&model_config(name, models, &spec.root)?).await?;
        }
        let services = Services { models: loaded, journal, clock: clock.clone(), limits };
        let runtime = Runtime::new(RuntimeConfig { instances_max: 1, ..RuntimeConfig::default() }, services)?;
        let name = spec.name.clone();
        let loaded = runtime.load(Arc::new(spec)).await;
        let function = loaded.with_context(|| format!("function `{name}` cannot be loaded"))?;
        Ok(Self { function, clock, runtime, _folder: folder })
    }

    /// Folder of the bundle.
    pub(super) fn root(&self) -> &Path {
        &self.function.spec.root
    }

    /// Runs the handler once, in a new instance.
    pub(super) async fn run(&self, event: Event) -> anyhow::Result<Result<Invoked, Outcome>> {
        let (function, event) = (self.function.clone(), Arc::new(event));
        let spec = &self.function.spec;
        let timeout_ms = u64::try_from(spec.timeout.0.as_millis()).unwrap_or(u64::MAX);
        let context = Context {
            function: spec.name.clone(),
            version: Arc::clone(&spec.version),
            invocation: new_id(),
            attempt: 1,
            deadline_ms: self.clock.now_ms().saturating_add(timeout_ms),
            memory_bytes: spec.memory.0,
            trace_parent: event.trace_parent.clone(),
            publish_qos: 1,
        };
        let run = async move {
            match function.instantiate().await {
                Ok(mut instance) => Ok(instance.invoke(&event, context).await),
                Err(outcome) => Err(outcome),
            }
        };
        self.runtime.spawn(run).await.context("the runtime's thread ended")
    }

    /// Runs one test of the manifest; the inner error says why it failed.
    pub(super) async fn test(&self, test: &BundleTest) -> anyhow::Result<Result<(), String>> {
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

/// What the function wanted sent and kept, in words.
pub(super) fn describe(effects: &Effects) -> Vec<String> {
    let text = |data: &[u8]| match std::str::from_utf8(data) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("{} bytes", data.len()),
    };
    let publishes = effects.publishes.iter().map(|publish| {
        let broker = publish.broker.as_ref().map_or("local", |name| name.as_str());
        let retained = if publish.retain { ", retained" } else { "" };
        format!(
            "would publish on `{}` of {broker} (QoS {}{retained}): {}",
            publish.topic,
            publish.qos,
            text(&publish.data)
        )
    });
    let records =
        effects.records.iter().map(|(stream, data)| format!("would append to stream `{stream}`: {}", text(data)));
    let writes = effects.key_values.iter().map(|write| match &write.value {
        Some(value) => format!("would keep `{}` in bucket `{}`: {}", write.key, write.bucket, text(value)),
        None => format!("would delete `{}` from bucket `{}`", write.key, write.bucket),
    });
    publishes.chain(records).chain(writes).collect()
}

/// A recorded event with its attributes, or else a bare payload.
fn recorded(content: Vec<u8>, now_ms: u64) -> Event {
    match crate::api::cloudevents::parse(&content, now_ms) {
        Ok(event) => event,
        Err(_) => payload(content, now_ms),
    }
}

/// A bare payload as an event, as the agent makes one of it.
pub(super) fn payload(content: Vec<u8>, now_ms: u64) -> Event {
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
fn is_same(value: &[u8], expected: &[u8]) -> bool {
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

const fn model_of(capability: &Capability) -> Option<&ModelName> {
    match capability {
        Capability::Model(name) => Some(name),
        _ => None,
    }
}

/// The model that was named on the command line, or the one that lies in the bundle.
fn model_config(name: &ModelName, models: &[ModelArg], root: &Path) -> Result<ModelConfig, Failure> {
    let named = models.iter().find(|model| model.name == *name).map(|model| model.file.clone());
    let file = named.unwrap_or_else(|| root.join("models").join(format!("{name}.onnx")));
    if !file.is_file() {
        let what = format!("the function runs model `{name}`, but there is no file `{}`", file.display());
        return Err(Failure::wrong(what, format!("name one: `--model {name}=FILE.onnx`")));
    }
    Ok(ModelConfig { name: name.clone(), file, tests: None, concurrency: None })
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

    #[test]
    fn a_model_is_given_as_name_and_file() {
        let parsed: ModelArg = "motion=a/b.onnx".parse().unwrap();
        assert_eq!((parsed.name.as_str(), parsed.file.as_path()), ("motion", Path::new("a/b.onnx")));
        assert_eq!("motion".parse::<ModelArg>().unwrap_err(), "`motion` is not NAME=FILE");
    }
}
