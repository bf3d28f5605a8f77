//! Lists, as tables or as they come.

use serde_json::Value;
use sync_protocol::{Deployment, Envelope, Release, Root};

use crate::cli::deploy::TargetArgs;
use crate::cli::output::{Output, size, table, time};
use crate::cli::remote::Remote;

/// Which deployments.
#[derive(Debug, clap::Args)]
pub(super) struct DeploymentsArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// The value at a JSON pointer as a cell: times as people read them, lists with commas.
pub(super) fn cell(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::Number(number)) if pointer.ends_with("_ms") => number.as_u64().map_or_else(String::new, time),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(values)) if values.is_empty() => "-".to_owned(),
        Some(Value::Array(values)) => values.iter().map(|value| cell(value, "")).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

/// All of `path`, with these columns: heading and pointer.
pub(super) async fn plain(remote: &Remote, path: &str, columns: &[(&str, &str)], json: bool) -> anyhow::Result<()> {
    let items: Vec<Value> = remote.list(path).await?;
    if json {
        return Ok(Output::json(&items)?);
    }
    let rows = items.iter().map(|item| columns.iter().map(|(_, pointer)| cell(item, pointer)).collect()).collect();
    lines(&columns.iter().map(|(head, _)| *head).collect::<Vec<_>>(), rows)
}

fn lines(head: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    Ok(Output::line(&if rows.is_empty() { "none yet".to_owned() } else { table(head, &rows) })?)
}

pub(super) async fn gateways(remote: &Remote, json: bool) -> anyhow::Result<()> {
    let items: Vec<Value> = remote.list("gateways").await?;
    if json {
        return Ok(Output::json(&items)?);
    }
    let head = ["GATEWAY", "GROUPS", "DESIRED", "ACTIVE", "PHASE", "SINCE", "HEARD OF", "HEALTH"];
    let row = |gateway: &Value| {
        let kept = gateway.pointer("/progress/kept").and_then(Value::as_bool);
        let phase = match (cell(gateway, "/progress/phase"), cell(gateway, "/progress/reason")) {
            (phase, _) if phase == "active" && kept == Some(false) => "active, on probation".to_owned(),
            (phase, reason) if reason == "-" => phase,
            (phase, reason) => format!("{phase}: {reason}"),
        };
        let connected = gateway["connected"] == true;
        let heard = if connected { "now".to_owned() } else { cell(gateway, "/reported_ms") };
        let health = match (cell(gateway, "/revoked_ms"), cell(gateway, "/unhealthy")) {
            (revoked, _) if revoked != "-" => format!("revoked {revoked}"),
            (_, unhealthy) if unhealthy == "-" => "well".to_owned(),
            (_, unhealthy) => unhealthy,
        };
        vec![
            cell(gateway, "/name"),
            cell(gateway, "/groups"),
            cell(gateway, "/desired/number"),
            cell(gateway, "/active/number"),
            phase,
            cell(gateway, "/progress/since_ms"),
            heard,
            health,
        ]
    };
    lines(&head, items.iter().map(row).collect())
}

pub(super) async fn releases(remote: &Remote, json: bool) -> anyhow::Result<()> {
    let items: Vec<Value> = remote.list("releases").await?;
    if json {
        return Ok(Output::json(&items)?);
    }
    let mut rows = Vec::new();
    for item in &items {
        let release: Release = envelope(item)?.unverified()?;
        let native: Vec<&str> = release.native.iter().map(|native| native.target.as_str()).collect();
        rows.push(vec![
            release.kind.to_string(),
            release.name.to_string(),
            release.version.to_string(),
            size(release.blob.bytes),
            if native.is_empty() { "-".to_owned() } else { native.join(", ") },
            time(release.published_ms),
        ]);
    }
    lines(&["KIND", "NAME", "VERSION", "BYTES", "NATIVE CODE", "PUBLISHED"], rows)
}

pub(super) async fn deployments(remote: &Remote, args: &DeploymentsArgs, json: bool) -> anyhow::Result<()> {
    let target = args.target.target()?;
    let path = target.map_or_else(|| "deployments".to_owned(), |target| format!("deployments?target={target}"));
    let items: Vec<Value> = remote.list(&path).await?;
    if json {
        return Ok(Output::json(&items)?);
    }
    let mut rows = Vec::new();
    for item in &items {
        let deployment: Deployment = envelope(item)?.unverified()?;
        let artifacts: Vec<String> = deployment.artifacts.iter().map(ToString::to_string).collect();
        rows.push(vec![
            deployment.target.to_string(),
            deployment.number.to_string(),
            deployment.floor.to_string(),
            time(deployment.created_ms),
            if deployment.comment.is_empty() { "-".to_owned() } else { deployment.comment },
            artifacts.join(", "),
        ]);
    }
    lines(&["TARGET", "NUMBER", "FLOOR", "SIGNED", "COMMENT", "VERSIONS"], rows)
}

pub(super) async fn roots(remote: &Remote, json: bool) -> anyhow::Result<()> {
    let items: Vec<Envelope> = remote.list("roots").await?;
    if json {
        return Ok(Output::json(&items)?);
    }
    let mut rows = Vec::new();
    for item in &items {
        let root: Root = item.unverified()?;
        let roles = root.roles.iter().map(|(role, keys)| format!("{role} {} of {}", keys.threshold, keys.keys.len()));
        let (keys, digest) = (roles.collect::<Vec<_>>().join(", "), item.digest()?.to_string());
        rows.push(vec![root.version.to_string(), time(root.expires_ms), keys, digest]);
    }
    lines(&["ROOT", "UNTIL", "KEYS", "DIGEST"], rows)
}

pub(super) async fn audit(remote: &Remote, json: bool) -> anyhow::Result<()> {
    let columns = [
        ("WHEN", "/entry/at_ms"),
        ("WHO", "/entry/who"),
        ("DID", "/entry/did"),
        ("TO", "/entry/what"),
        ("DEPLOYMENT", "/entry/detail/deployment"),
    ];
    plain(remote, "audit", &columns, json).await
}

fn envelope(item: &Value) -> anyhow::Result<Envelope> {
    Ok(serde_json::from_value(item.get("envelope").cloned().unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::cell;

    #[test]
    fn a_cell_is_what_a_person_reads() {
        let item = json!({"name": "hall-3", "groups": ["a", "b"], "none": [], "report": null, "n": 7});
        let cells = ["/name", "/groups", "/none", "/report/phase", "/n"].map(|pointer| cell(&item, pointer));
        assert_eq!(cells, ["hall-3", "a, b", "-", "-", "7"]);
    }
}
