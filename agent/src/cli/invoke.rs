//! `tidegate invoke`: runs a function once, on the running agent or in a throw-away runtime.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Failure;
use super::connect::AgentArgs;
use super::output::{Errors, Output};
use super::throwaway::{self, ModelArg};
use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat};
use crate::event::Event;
use crate::invocation::Outcome;
use crate::limits::Limits;
use crate::store::resolve_alone;

/// Runs a function once: the result goes to stdout, what it logs and why it failed to stderr
#[derive(Debug, clap::Args)]
pub(super) struct InvokeArgs {
    /// The function on the running agent; `NAME:VERSION` insists on a version
    #[arg(required_unless_present = "bundle")]
    function: Option<String>,
    #[command(flatten)]
    event: EventArgs,
    /// Put the event into the function's queue, and do not wait for the result
    #[arg(long = "async", conflicts_with = "bundle")]
    asynchronous: bool,
    /// Run this bundle by itself, without an agent; what it sends is shown on stderr
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// With `--bundle`, a model that it runs; `models/NAME.onnx` of the bundle unless said
    #[arg(long = "model", value_name = "NAME=FILE", requires = "bundle")]
    models: Vec<ModelArg>,
    /// With `--bundle`, a folder, or a `.tar.zst` of one, that it sees at `/opt`; later ones over earlier ones
    #[arg(long = "layer", value_name = "PATH", requires = "bundle")]
    layers: Vec<PathBuf>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// What the function is to run on.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "input", required = true, multiple = false)]
struct EventArgs {
    /// The payload; `-` reads it from stdin
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
    /// A whole event as CloudEvents JSON; `-` reads it from stdin
    #[arg(long, value_name = "FILE")]
    cloudevent: Option<PathBuf>,
}

pub(super) async fn run(args: &InvokeArgs) -> anyhow::Result<()> {
    match (&args.bundle, &args.function) {
        (Some(bundle), _) => alone(args, bundle).await,
        (None, Some(function)) => on_agent(args, function).await,
        (None, None) => {
            Err(Failure::wrong("no function is named", "write `tidegate invoke FUNCTION --event FILE`").into())
        }
    }
}

/// Reads a file, or stdin for `-`.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let limit = Limits::default().event_bytes_max;
    let mut content = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(limit.0 + 1).read_to_end(&mut content)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit.0 + 1).read_to_end(&mut content))
    };
    read.map_err(|error| {
        Failure::wrong(format!("cannot read the event from `{}`", file.display()), "name a file, or `-` for stdin")
            .caused_by(error)
    })?;
    if content.len() as u64 > limit.0 {
        let what = format!("the event in `{}` has more than {limit}", file.display());
        return Err(Failure::wrong(what, "send it in parts, or send where it can be fetched").into());
    }
    Ok(content)
}

async fn on_agent(args: &InvokeArgs, function: &str) -> anyhow::Result<()> {
    let (content, content_type) = match (&args.event.event, &args.event.cloudevent) {
        (_, Some(file)) => (read(file)?, "application/cloudevents+json"),
        (Some(file), None) => {
            let content = read(file)?;
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&content).is_ok();
            (content, if is_json { "application/json" } else { "application/octet-stream" })
        }
        (None, None) => return Err(Failure::wrong("there is no event", "add `--event FILE`").into()),
    };
    let kind = if args.asynchronous { "Event" } else { "RequestResponse" };
    let path = format!("/v1/functions/{function}/invocations?type={kind}");
    let mut agent = args.agent.connect().await?;
    let reply = agent.post(&path, content_type, content).await?.success()?;
    if args.asynchronous {
        Errors::progress(
            "the event waits for the function; `tidegate status` and `tidegate logs` show what comes of it",
        );
        Output::line(String::from_utf8_lossy(&reply.body).trim_end())?;
    } else {
        Output::bytes(&reply.body)?;
    }
    Ok(())
}

async fn alone(args: &InvokeArgs, bundle: &Path) -> anyhow::Result<()> {
    let limits = Limits::default();
    let clock = Clock::system();
    let event = event(&args.event, clock.now_ms())?;
    let config = LogConfig { level: "warn,function=trace".to_owned(), format: LogFormat::Text };
    crate::telemetry::init(&config, &limits, clock)?;
    let state = tempfile::tempdir().context("cannot make a temporary folder")?;
    let resolved = resolve_alone(bundle, &args.layers, state.path(), &limits).map_err(super::wrong_bundle)?;
    let name = resolved.spec.name.clone();
    if let Some(other) = args.function.as_ref().filter(|function| **function != *name.as_str()) {
        let what = format!("the bundle `{}` holds function `{name}`, not `{other}`", bundle.display());
        return Err(Failure::wrong(what, "leave out one of the two").into());
    }
    let function = throwaway::start(resolved, &args.models).await?;
    let outcome = match function.run(event).await? {
        Ok(invoked) => {
            for line in throwaway::describe(&invoked.effects) {
                Errors::line(&line);
            }
            Errors::progress(&format!("handled in {:?}", invoked.timings.handler));
            invoked.outcome
        }
        Err(outcome) => outcome,
    };
    match outcome {
        Outcome::Succeeded(value) => Ok(Output::bytes(&value)?),
        outcome => Err(Failure::failed(format!("function `{name}` {outcome}"), hint(&outcome)).into()),
    }
}

/// What an author can do about a failed run.
fn hint(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Rejected(_) => "the handler said so of this event: send another".to_owned(),
        Outcome::Retry(_) => "on a gateway the event would be tried again, as `retry` says".to_owned(),
        Outcome::Denied { capability, .. } => format!("add `\"{capability}\"` to `capabilities` in function.toml"),
        Outcome::TimedOut { .. } => "give it more `timeout` in function.toml, or find out what it waits for".to_owned(),
        Outcome::OutOfMemory { .. } => "give it more `memory` in function.toml".to_owned(),
        _ => "what it logged is above".to_owned(),
    }
}

/// The event for a throw-away runtime.
fn event(args: &EventArgs, now_ms: u64) -> anyhow::Result<Event> {
    match (&args.event, &args.cloudevent) {
        (_, Some(file)) => crate::api::cloudevents::parse(&read(file)?, now_ms).map_err(|why| {
            let hint =
                "a whole event has at least `specversion`, `id`, `source` and `type`; `--event` takes a bare payload";
            Failure::wrong(format!("`{}` is not a CloudEvent: {why}", file.display()), hint).into()
        }),
        (Some(file), None) => Ok(crate::throwaway::payload(read(file)?, now_ms)),
        (None, None) => Err(Failure::wrong("there is no event", "add `--event FILE`").into()),
    }
}
