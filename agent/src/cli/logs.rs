//! `tidegate logs`: what the agent and its functions said.

use super::connect::AgentArgs;
use super::output::Output;
use crate::name::FunctionName;
use crate::telemetry::LogRecord;

/// Shows what the agent and its functions logged of late
#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// Go on with what is logged from now on
    #[arg(long, short)]
    follow: bool,
    /// Only lines of this function, or about it
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// How many lines to start with
    #[arg(long, short = 'n', default_value_t = 100)]
    lines: usize,
    /// Print each line as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgs,
}

pub(super) async fn run(args: &LogsArgs) -> anyhow::Result<()> {
    let mut path = format!("/v1/logs?follow={}&lines={}", args.follow, args.lines);
    if let Some(function) = &args.function {
        let name = FunctionName::parse(function)
            .map_err(|error| super::Failure::wrong(error.to_string(), "`tidegate status` lists the functions"))?;
        path = format!("{path}&function={name}");
    }
    let mut written = Ok(());
    let show = |line: &str| {
        let record = serde_json::from_str::<LogRecord>(line);
        written = match record {
            Ok(record) if !args.json => Output::record(&record),
            _ => Output::line(line),
        };
        written.is_ok()
    };
    args.agent.connect().await?.lines(&path, show).await?;
    Ok(written?)
}
