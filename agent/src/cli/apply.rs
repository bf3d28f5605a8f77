//! `tidegate apply`: a deployment from a file, on a gateway without a network.

use std::path::PathBuf;

use serde_json::Value;

use super::Failure;
use super::connect::AgentArgs;
use super::output::Output;

/// Gives a deployment from a file to the agent, which checks and runs it as if it came from the control plane
#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    /// What `tidegate deploy --out FILE --with-blobs` wrote
    file: PathBuf,
    #[command(flatten)]
    agent: AgentArgs,
}

pub(super) async fn run(args: &ApplyArgs) -> anyhow::Result<()> {
    let file = tokio::fs::File::open(&args.file).await.map_err(|error| {
        let hint = "name what `tidegate deploy --out FILE --with-blobs` wrote";
        Failure::wrong(format!("cannot read `{}`: {error}", args.file.display()), hint)
    })?;
    let mut agent = args.agent.connect().await?;
    let applied: Value = agent.post_file("/v1/apply", file).await?.json()?;
    let number = applied.pointer("/deployment/number").unwrap_or(&Value::Null);
    Output::line(&format!("the agent has accepted deployment {number}; `tidegate status` shows how far it is"))?;
    Ok(())
}
