//! `tidegate reload`: has the running agent read its config again and apply the difference.

use super::connect::AgentArgs;
use super::output::Output;
use crate::api::status::Reloaded;

/// Has the running agent read its configuration again and apply the difference; what did not change is not touched
#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print what changed as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &ReloadArgs) -> anyhow::Result<()> {
    let reply = args.agent.connect().await?.post("/v1/reload", "application/json", "").await?;
    let reloaded: Reloaded = reply.json()?;
    if args.json {
        return Ok(Output::json(&reloaded)?);
    }
    if reloaded.changes.is_empty() && reloaded.needs_restart.is_empty() {
        Output::line("nothing changed")?;
    }
    for change in &reloaded.changes {
        Output::line(change)?;
    }
    for change in &reloaded.needs_restart {
        Output::line(&format!("{change}: needs a restart of the agent"))?;
    }
    Ok(())
}
