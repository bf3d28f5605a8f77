//! What a deployment would do to each gateway.

use serde::{Deserialize, Serialize};
use sync_protocol::Deployment;

use super::DeployArgs;
use crate::cli::Failure;
use crate::cli::output::{Output, size, table, time};
use crate::cli::remote::{Method, Remote};

/// For one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Preview {
    /// Which.
    gateway: String,
    /// Bytes that it does not have.
    fetch_bytes: u64,
    /// What is new on it.
    add: Vec<String>,
    /// What begins anew.
    restart: Vec<String>,
    /// What is not touched.
    keep: Vec<String>,
    /// What it would not run any more.
    remove: Vec<String>,
    /// Functions that nobody compiled for it, and it cannot.
    uncompiled: Vec<String>,
}

#[derive(Deserialize)]
struct Previews {
    items: Vec<Preview>,
    next: Option<String>,
}

/// Asks the control plane, which knows what each gateway runs.
pub(super) async fn ask(remote: &Remote, deployment: &Deployment) -> anyhow::Result<Vec<Preview>> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("deployments/preview?after={after}");
        let answer = remote.call(Method::POST, &path, deployment).await?;
        let Previews { items, next } = serde_json::from_value(answer)?;
        all.extend(items);
        match next {
            Some(next) => after = next,
            None => return Ok(all),
        }
    }
}

pub(super) fn show(deployment: &Deployment, previews: &[Preview], args: &DeployArgs) -> anyhow::Result<()> {
    if args.json {
        return Ok(Output::json(&serde_json::json!({ "deployment": deployment, "gateways": previews }))?);
    }
    document(&format!("deployment {deployment} would be"), deployment)?;
    if previews.is_empty() {
        return Ok(Output::line("no gateway is in its target yet")?);
    }
    let names = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let row = |preview: &Preview| {
        let Preview { gateway, fetch_bytes, add, restart, keep, remove, .. } = preview;
        vec![gateway.clone(), size(*fetch_bytes), names(add), names(restart), names(keep), names(remove)]
    };
    let rows: Vec<_> = previews.iter().map(row).collect();
    Output::line(&format!("\n{}", table(&["GATEWAY", "FETCH", "ADD", "RESTART", "KEEP", "REMOVE"], &rows)))?;
    for Preview { gateway, uncompiled, .. } in previews.iter().filter(|preview| !preview.uncompiled.is_empty()) {
        let names = names(uncompiled);
        Output::line(&format!(
            "\n{gateway} has no compiler, and no native code for it was published of {names}: it would refuse this"
        ))?;
    }
    if !args.allow_removal && previews.iter().any(|preview| !preview.remove.is_empty()) {
        Output::line("\nnothing is removed without `--allow-removal`: `tidegate deploy` will ask for it")?;
    }
    Ok(())
}

/// What an operator puts their name to.
pub(super) fn document(title: &str, deployment: &Deployment) -> anyhow::Result<()> {
    let Deployment { floor, expires_ms, .. } = deployment;
    Output::line(&format!("{title}: back to {floor} at the lowest, to be begun until {}", time(*expires_ms)))?;
    for artifact in &deployment.artifacts {
        let release: String = artifact.release.hex().chars().take(12).collect();
        let grants: Vec<String> = artifact.capabilities.0.iter().map(ToString::to_string).collect();
        let granted = if grants.is_empty() { String::new() } else { format!(", granted {}", grants.join(", ")) };
        Output::line(&format!("  {artifact} (release {release}){granted}"))?;
        for (key, value) in &artifact.settings {
            Output::line(&format!("    {key} = {value}"))?;
        }
    }
    for (name, settings) in &deployment.streams {
        Output::line(&format!("  stream {name}: {}", serde_json::to_string(settings)?))?;
    }
    Ok(())
}

/// Nothing is taken from a gateway by leaving a line out.
pub(super) fn refuse_removal(deployment: &Deployment, previews: &[Preview]) -> Result<(), Failure> {
    let losing: Vec<&Preview> = previews.iter().filter(|preview| !preview.remove.is_empty()).collect();
    let Some(first) = losing.first() else { return Ok(()) };
    let (gateway, names) = (&first.gateway, first.remove.join(", "));
    let more = if losing.len() > 1 { format!(", and something from {} more", losing.len() - 1) } else { String::new() };
    let what = format!("deployment {deployment} would remove {names} from {gateway}{more}");
    Err(Failure::wrong(what, "name it in the deployment, or say `--allow-removal`; `--preview` shows all gateways"))
}
