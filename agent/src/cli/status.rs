//! `tidegate status`: what runs, and what it did.

use std::time::Duration;

use sync_protocol::desired::DeploymentRef;
use sync_protocol::report::Phase;

use super::connect::AgentArgs;
use super::output::{Output, size, table};
use crate::api::status::{Latency, Status};
use crate::deployment::{AgentStatus, DeploymentStatus};
use crate::readable::{duration, micros};

/// Shows what runs on the agent, and what it did
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let status: Status = args.agent.connect().await?.get("/v1/status").await?.json()?;
    if args.json {
        return Ok(Output::json(&status)?);
    }
    Ok(Output::line(&describe(&status))?)
}

fn describe(status: &Status) -> String {
    let up = Duration::from_secs(status.uptime_ms / 1000);
    let mut parts = vec![format!("{} runs tidegate {} since {}", status.gateway, status.version, duration(up))];
    parts.extend(status.deployment.as_ref().map(deployment));
    let functions = status.functions.iter().map(|f| {
        let failed: u64 = f.numbers.invocations.iter().filter(|(label, _)| *label != "succeeded").map(|(_, n)| n).sum();
        let succeeded =
            f.numbers.invocations.get("succeeded").copied().unwrap_or(0).saturating_sub(f.numbers.conflicts);
        vec![
            f.name.to_string(),
            f.version.clone(),
            f.numbers.filtered.to_string(),
            f.numbers.received.to_string(),
            succeeded.to_string(),
            failed.to_string(),
            f.numbers.dropped.to_string(),
            f.numbers.dead_letters.to_string(),
            f.queued.to_string(),
            f.parked.to_string(),
            f.numbers.windowed.to_string(),
            format!("{}+{}", f.busy, f.idle),
            latency(&f.numbers.handler),
            f.triggers.join(", "),
        ]
    });
    let head = [
        "FUNCTION",
        "VERSION",
        "FILTERED",
        "EVENTS",
        "OK",
        "FAILED",
        "DROPPED",
        "DEAD",
        "QUEUED",
        "PARKED",
        "WINDOWED",
        "BUSY+IDLE",
        "P50/P99",
        "TRIGGERS",
    ];
    parts.extend(section(&head, functions.collect()));
    let unclaimed = status.unclaimed.iter().map(|u| vec![u.function.to_string(), u.events.to_string()]);
    parts.extend(section(&["NOT IN GATEWAY.TOML", "ON DISK"], unclaimed.collect()));
    let brokers = status.brokers.iter().map(|b| {
        let state = match (b.connected, &b.last_error) {
            (true, _) => "connected".to_owned(),
            (false, Some(error)) => format!("away: {error}"),
            (false, None) => "connecting".to_owned(),
        };
        let numbers = [b.received, b.published, b.unconfirmed, b.reconnects];
        let head = [b.name.to_string(), b.url.clone()];
        head.into_iter().chain(numbers.map(|n| n.to_string())).chain([state]).collect()
    });
    parts.extend(section(
        &["BROKER", "URL", "RECEIVED", "PUBLISHED", "UNCONFIRMED", "RECONNECTS", "STATE"],
        brokers.collect(),
    ));
    let sources = status.sources.iter().map(|s| {
        let state = s.trouble.clone().unwrap_or_else(|| "well".to_owned());
        vec![s.name.to_string(), s.kind.clone(), s.events.to_string(), s.troubles.to_string(), state]
    });
    parts.extend(section(&["SOURCE", "KIND", "EVENTS", "TROUBLES", "STATE"], sources.collect()));
    // An empty outbox is the usual case, and nothing to look at.
    let outboxes = status.outboxes.iter().filter(|o| o.publishes > 0 || o.last_error.is_some()).map(|o| {
        let state = match (&o.last_error, o.configured) {
            (_, false) => "waits until the broker is in gateway.toml again".to_owned(),
            (Some(error), true) => error.clone(),
            (None, true) => "waits for the broker".to_owned(),
        };
        let bytes = format!("{} of {}", size(o.bytes), size(o.bytes_max));
        vec![o.broker.to_string(), o.publishes.to_string(), bytes, state]
    });
    parts.extend(section(&["OUTBOX", "PUBLISHES", "BYTES", "STATE"], outboxes.collect()));
    let streams = status.streams.iter().map(|s| {
        vec![
            s.name.to_string(),
            s.records.to_string(),
            format!("{} of {}", size(s.bytes), size(s.bytes_max)),
            s.newest_sequence.to_string(),
            s.acked_sequence.to_string(),
            (s.dropped_by_age + s.dropped_by_bytes + s.dropped_by_buffer + s.lost).to_string(),
            s.age_ms.map_or_else(|| "-".to_owned(), |age_ms| duration(Duration::from_millis(age_ms))),
            s.uplink.clone().unwrap_or_else(|| "-".to_owned()),
            s.draining.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ]
    });
    let head = ["STREAM", "RECORDS", "BYTES", "NEWEST", "ACKED", "DROPPED", "OLDEST", "UPLINK", "STATE"];
    parts.extend(section(&head, streams.collect()));
    let models = status.models.iter().map(|m| {
        let digest = m.digest.get(..12).unwrap_or(&m.digest).to_owned();
        vec![m.name.to_string(), digest, m.engine.clone(), m.run.count.to_string(), latency(&m.run)]
    });
    parts.extend(section(&["MODEL", "DIGEST", "ENGINE", "RUNS", "P50/P99"], models.collect()));
    parts.join("\n\n")
}

/// What is deployed, how far what comes next is, and what is wrong with it.
fn deployment(status: &DeploymentStatus) -> String {
    let number = |deployment: &DeploymentRef| deployment.number.to_string();
    let active = status.active.as_ref().map_or_else(|| "none".to_owned(), number);
    let link =
        status.link.as_ref().map_or_else(|| "from files only".to_owned(), |link| format!("control plane {link}"));
    let mut lines = vec![format!("deployment {active} serves; {link}")];
    if let Some(progress) = &status.progress {
        let phase = match (progress.phase, progress.kept) {
            (Phase::Queued, _) => "is queued".to_owned(),
            (Phase::Downloading, _) => {
                let (done, all) = progress.fetched.unwrap_or_default();
                format!("is on its way, {} of {}", size(done), size(all))
            }
            (Phase::Staged, _) => "is staged".to_owned(),
            (Phase::Active, false) => "is watched".to_owned(),
            (Phase::Active, true) => "is kept".to_owned(),
            (Phase::Failed, _) => format!("failed: {}", progress.reason),
            (Phase::RolledBack, _) => format!("was rolled back: {}", progress.reason),
        };
        lines.push(format!("deployment {} {phase}", progress.deployment.number));
    }
    lines.extend(status.agent.as_ref().map(agent));
    lines.extend(status.hidden.iter().cloned());
    lines.extend(status.broken.iter().cloned());
    if !status.refused.is_empty() {
        lines.push(format!("refused: {}", status.refused));
    }
    lines.join("\n")
}

/// Which agent runs, and whether it is to stay.
fn agent(agent: &AgentStatus) -> String {
    let AgentStatus { version, packaged, .. } = agent;
    let mut text = match agent.deployed {
        true => format!("agent {version} runs as it was deployed, in place of the packaged {packaged}"),
        false => format!("the packaged agent {packaged} runs"),
    };
    if let Some(starts) = agent.trial_starts {
        text += &format!(", on trial, start {starts}");
    }
    if let Some(failed) = &agent.failed {
        text += &format!("; the last one did not stay: {failed}");
    }
    text
}

fn section(head: &[&str], rows: Vec<Vec<String>>) -> Option<String> {
    (!rows.is_empty()).then(|| table(head, &rows))
}

fn latency(latency: &Latency) -> String {
    match (latency.p50_us, latency.p99_us) {
        (Some(p50), Some(p99)) => format!("{}/{}", micros(p50), micros(p99)),
        _ => "-".to_owned(),
    }
}
