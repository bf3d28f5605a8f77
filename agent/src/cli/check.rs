//! `tidegate check`: says all that is wrong with the config, its bundles and its models, and touches nothing.

use std::sync::Arc;

use super::ConfigArgs;
use super::failure::describe_problems;
use super::output::{Errors, Output, count_of};
use crate::api::client::Client;
use crate::api::status::Status;
use crate::config::{Config, ConfigErrors, Place, Problem};
use crate::inference::{InferenceError, Models};
use crate::limits::Limits;
use crate::name::FunctionName;
use crate::store;

/// Reads gateway.toml, the bundles and the models that it names, and says all that is wrong, with file and line
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let config = args.config.load();
    let mut checked = config.and_then(|config| Ok((store::resolve_all(&config, &Limits::default())?, config)));
    if let Ok((_, config)) = &checked {
        let wrong = wrong_models(config).await;
        if !wrong.is_empty() {
            checked = Err(ConfigErrors(wrong));
        }
    }
    let (errors, mut warnings) = match &checked {
        Ok((functions, _)) => (Vec::new(), functions.iter().flat_map(|f| f.warnings.clone()).collect::<Vec<_>>()),
        Err(errors) => (errors.0.clone(), Vec::new()),
    };
    if let Ok((_, config)) = &checked {
        warnings.extend(left_behind(config).await);
    }
    if args.json {
        Output::json(&serde_json::json!({ "errors": errors, "warnings": warnings }))?;
    }
    let (functions, config) = checked?;
    if !args.json {
        if !warnings.is_empty() {
            Errors::line(&describe_problems("warning", &warnings));
        }
        let file = args.config.file();
        Output::line(&format!(
            "{} is good: {}, {}, {}",
            file.display(),
            count(functions.len(), "function"),
            count(config.model.len(), "model"),
            count(config.stream.len(), "stream"),
        ))?;
    }
    Ok(())
}

/// What the running agent, if one runs, holds for functions and brokers that the config does not have.
async fn left_behind(config: &Config) -> Vec<Problem> {
    let Ok(mut agent) = Client::connect(&config.socket()).await else { return Vec::new() };
    let Ok(Ok(status)) = agent.get("/v1/status").await.map(|reply| reply.json::<Status>()) else { return Vec::new() };
    let is_there = |name: &str| config.mqtt.contains_key(name) || (name == "local" && config.embedded_broker.is_some());
    let is_configured = |name: &FunctionName| config.function.iter().any(|function| function.name == *name);
    let serves = status.functions.into_iter().map(|function| (function.name, function.parked as u64));
    let parked = serves.chain(status.unclaimed.into_iter().map(|unclaimed| (unclaimed.function, unclaimed.events)));
    let unclaimed = parked.filter(|(name, events)| *events > 0 && !is_configured(name)).map(|(name, events)| Problem {
        place: Place { file: config.file.clone(), ..Place::default() },
        key: format!("function[{name}]"),
        what: format!("the function is not here, and {} of it wait on disk", count_of(events, "event", "s")),
        hint: "they run when it is back; past its `retry.max_age` they become dead letters".to_owned(),
    });
    let left = status.outboxes.into_iter().filter(|outbox| outbox.publishes > 0 && !is_there(outbox.broker.as_str()));
    let warn = |outbox: crate::api::status::OutboxStatus| Problem {
        place: Place { file: config.file.clone(), ..Place::default() },
        key: format!("mqtt.{}", outbox.broker),
        what: format!(
            "the broker is not here, and the running agent holds {} for it",
            count_of(outbox.publishes, "publish", "es")
        ),
        hint: "they wait on disk until it is back: add it again, or leave it at that".to_owned(),
    };
    unclaimed.chain(left.map(warn)).collect()
}

/// Loads each model as the agent would, and runs its tests.
async fn wrong_models(config: &Config) -> Vec<Problem> {
    let problem = |key: String, error: &InferenceError| Problem {
        place: Place { file: config.file.clone(), ..Place::default() },
        key,
        what: error.to_string(),
        hint: error.hint().unwrap_or_else(|| "the guide on models says what a gateway can run".to_owned()),
    };
    let models = match Models::open(&config.inference, Arc::new(Limits::default())) {
        Ok(models) => Arc::new(models),
        Err(error) => return vec![problem("inference.library".to_owned(), &error)],
    };
    let mut wrong = Vec::new();
    for model in &config.model {
        if let Err(error) = models.load(model).await {
            wrong.push(problem(format!("model[{}]", model.name), &error));
        }
    }
    wrong
}

fn count(n: usize, what: &str) -> String {
    count_of(n as u64, what, "s")
}
