//! `tidegate check`: says all that is wrong with the config, its bundles and its models, and touches nothing.

use std::sync::Arc;

use super::ConfigArgs;
use super::failure::describe_problems;
use super::output::{Errors, Output};
use crate::config::{Config, ConfigErrors, Place, Problem};
use crate::inference::{InferenceError, Models};
use crate::limits::Limits;
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
    let (errors, warnings) = match &checked {
        Ok((functions, _)) => (Vec::new(), functions.iter().flat_map(|f| f.warnings.clone()).collect::<Vec<_>>()),
        Err(errors) => (errors.0.clone(), Vec::new()),
    };
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
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
