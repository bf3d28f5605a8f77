//! One gateway: what it says of itself, its log, its shadow.

use std::time::Duration;

use serde_json::{Value, json};

use super::list::cell;
use super::told;
use crate::cli::Failure;
use crate::cli::output::{Errors, Output};
use crate::cli::remote::{Method, Remote};
use crate::clock::Clock;
use crate::telemetry::LogRecord;

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// Its name
    gateway: String,
    /// For how long it sends what it logs
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Lowest level
    #[arg(long, default_value = "info")]
    level: String,
    /// Show what has come already, and ask for nothing
    #[arg(long)]
    no_ask: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShadowArgs {
    /// Its name
    gateway: String,
    /// Make this JSON object the desired document
    #[arg(long, value_name = "JSON")]
    set: Option<String>,
}

/// How often new lines are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn show(remote: &Remote, gateway: &str, as_json: bool) -> anyhow::Result<()> {
    let found: Value = remote.get(&format!("gateways/{gateway}")).await?;
    if as_json {
        return Ok(Output::json(&found)?);
    }
    let lines = [
        ("groups", "/groups"),
        ("agent", "/report/agent"),
        ("target", "/report/target"),
        ("heard of", "/reported_ms"),
        ("connected", "/connected"),
        ("desired deployment", "/desired/number"),
        ("active deployment", "/active/number"),
        ("newest deployment", "/progress/deployment/number"),
        ("phase", "/progress/phase"),
        ("kept", "/progress/kept"),
        ("since", "/progress/since_ms"),
        ("reason", "/progress/reason"),
        ("refused", "/refused"),
        ("unhealthy", "/unhealthy"),
    ];
    Output::line(gateway)?;
    for (what, pointer) in lines {
        Output::line(&format!("  {what:<18} {}", cell(&found, pointer)))?;
    }
    for running in found.pointer("/report/running").and_then(Value::as_array).into_iter().flatten() {
        let local = if running["local"] == true { ", by gateway.toml" } else { "" };
        let (kind, name, version) = (cell(running, "/kind"), cell(running, "/name"), cell(running, "/version"));
        Output::line(&format!("  runs               {kind} {name} {version}{local}"))?;
    }
    for error in found.pointer("/report/last_errors").and_then(Value::as_array).into_iter().flatten() {
        Output::line(&format!("  error              {}", cell(error, "")))?;
    }
    Ok(())
}

/// Asks it for another attempt at what it has rolled back.
pub(super) async fn try_again(remote: &Remote, gateway: &str, as_json: bool) -> anyhow::Result<()> {
    let found: Value = remote.get(&format!("gateways/{gateway}")).await?;
    let Some(deployment) = found.pointer("/progress/deployment") else {
        return Err(Failure::wrong(format!("{gateway} has not tried any deployment yet"), "deploy one").into());
    };
    remote
        .call(Method::POST, &format!("gateways/{gateway}/try-again"), &json!({ "deployment": deployment["digest"] }))
        .await?;
    let line = format!("{gateway} is asked to try deployment {} again", cell(deployment, "/number"));
    told(as_json, &json!({ "name": gateway, "deployment": deployment }), &line)
}

pub(super) async fn logs(remote: &Remote, args: &LogsArgs, as_json: bool) -> anyhow::Result<()> {
    let path = format!("gateways/{}/logs", args.gateway);
    let clock = Clock::system();
    let until = clock.instant() + Duration::from_secs(60 * args.minutes);
    if !args.no_ask {
        remote.call(Method::POST, &path, &json!({ "minutes": args.minutes, "level": args.level })).await?;
        Errors::line(&format!("following {} for {} min, Ctrl-C ends it", args.gateway, args.minutes));
    }
    let mut after = String::new();
    loop {
        let page: Value = remote.get(&format!("{path}?after={after}")).await?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        for item in &items {
            let line = item.get("line").unwrap_or(item);
            match serde_json::from_value::<LogRecord>(line.clone()) {
                // As `tidegate logs` shows it.
                Ok(record) if !as_json => Output::record(&record)?,
                _ => Output::line(&line.to_string())?,
            }
            after = item.get("id").map_or(after, ToString::to_string);
        }
        if args.no_ask && items.is_empty() || clock.instant() > until {
            return Ok(());
        }
        if items.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

pub(super) async fn shadow(remote: &Remote, args: &ShadowArgs, as_json: bool) -> anyhow::Result<()> {
    let path = format!("gateways/{}/shadow", args.gateway);
    let there: Value = remote.get(&path).await?;
    let Some(text) = &args.set else {
        if as_json {
            return Ok(Output::json(&there)?);
        }
        for part in ["desired", "reported", "delta"] {
            Output::line(&format!("{part}: {}", serde_json::to_string_pretty(&there[part])?))?;
        }
        return Ok(());
    };
    let desired: Value = serde_json::from_str(text).map_err(|error| {
        Failure::wrong(format!("this is no JSON: {error}"), "write for example `--set '{\"interval\": 10}'`")
    })?;
    let version = there.get("version").cloned().unwrap_or_else(|| json!(0));
    let answer = remote.call(Method::PUT, &path, &json!({ "desired": desired, "version": version })).await?;
    told(as_json, &answer, &format!("desired is at version {}", cell(&answer, "/version")))
}
