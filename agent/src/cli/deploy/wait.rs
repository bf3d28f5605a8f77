//! Follows a deployment on all gateways of its target to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use sync_protocol::report::{Phase, Progress};
use sync_protocol::{Digest, Target};
use tokio::time::Instant;

use crate::cli::Failure;
use crate::cli::output::{Errors, Output, time};
use crate::cli::remote::Remote;
use crate::clock::Clock;
use crate::units::Span;

/// Whether, and for how long, gateways are followed.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct WaitArgs {
    /// Follow the gateways until each has kept it, or has not
    #[arg(long)]
    pub(in crate::cli) wait: bool,
    /// How long to follow them
    #[arg(long, value_name = "TIME", default_value = "30m")]
    patience: String,
}

/// How often the gateways are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a gateway may say nothing of it before that is told.
const SILENT_FOR: Duration = Duration::from_secs(10);

/// A gateway as the control plane knows it.
#[derive(Clone, Debug, Deserialize)]
struct Gateway {
    name: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    progress: Option<Progress>,
    #[serde(default)]
    refused: String,
    #[serde(default)]
    revoked_ms: Option<u64>,
    #[serde(default)]
    reported_ms: Option<u64>,
    #[serde(default)]
    connected: bool,
}

impl Gateway {
    fn is_in(&self, target: &Target) -> bool {
        match target {
            Target::Gateway(name) => self.name == name.as_str(),
            Target::Group(name) => self.groups.iter().any(|group| group == name.as_str()),
        }
    }

    /// Why it may not have said anything of a deployment.
    fn why_silent(&self) -> String {
        match self.reported_ms {
            _ if !self.refused.is_empty() => format!("it refuses what it is told: {}", self.refused),
            _ if self.connected => "it is there, and has not begun".to_owned(),
            Some(reported_ms) => format!("not heard of since {}", time(reported_ms)),
            None => "never heard of".to_owned(),
        }
    }
}

/// Where one gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It has not said anything of this deployment.
    Silent,
    Under(Phase),
    Kept,
    Bad(Phase, String),
}

impl Standing {
    fn of(gateway: &Gateway, deployment: &Digest) -> Self {
        let progress = gateway.progress.as_ref();
        let Some(progress) = progress.filter(|progress| progress.deployment.digest == *deployment) else {
            return Self::Silent;
        };
        match progress.phase {
            Phase::Active if progress.kept => Self::Kept,
            Phase::Failed | Phase::RolledBack => Self::Bad(progress.phase, progress.reason.clone()),
            phase => Self::Under(phase),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Silent => "has not begun".to_owned(),
            Self::Under(phase) => match phase {
                Phase::Queued => "queued".to_owned(),
                Phase::Downloading => "downloading".to_owned(),
                Phase::Staged => "staged: verified, compiled, tested".to_owned(),
                _ => "active, on probation".to_owned(),
            },
            Self::Kept => "active, kept".to_owned(),
            Self::Bad(Phase::RolledBack, why) => format!("rolled back: {why}"),
            Self::Bad(_, why) => format!("failed: {why}"),
        }
    }

    const fn is_over(&self) -> bool {
        matches!(self, Self::Kept | Self::Bad(..))
    }
}

/// All gateways that are followed.
#[derive(Debug, Default)]
struct Followed {
    standings: BTreeMap<String, Standing>,
    /// Those of which it was told that they are silent.
    silent: BTreeSet<String>,
}

impl Followed {
    /// Takes in where `gateways` are, and says what has changed; `late`: each should have said something by now.
    fn look(&mut self, gateways: &[&Gateway], deployment: &Digest, late: bool) -> Vec<String> {
        let mut lines = Vec::new();
        self.standings.retain(|name, _| {
            let stays = gateways.iter().any(|gateway| gateway.name == *name);
            if !stays {
                lines.push(format!("{name} is not followed any more: it was revoked, or left the group"));
            }
            stays
        });
        for gateway in gateways {
            let (name, standing) = (&gateway.name, Standing::of(gateway, deployment));
            if standing == Standing::Silent && late && self.silent.insert(name.clone()) {
                lines.push(format!("waiting for {name}: {}", gateway.why_silent()));
            }
            if self.standings.get(name) != Some(&standing) {
                if standing != Standing::Silent {
                    lines.push(format!("{name}: {}", standing.describe()));
                }
                self.standings.insert(name.clone(), standing);
            }
        }
        lines
    }
}

/// Says each change, and ends when all gateways have kept the deployment.
///
/// # Errors
/// Status 1 when one of them has not, or patience is over.
pub(in crate::cli) async fn follow(
    remote: &Remote,
    target: &Target,
    deployment: &Digest,
    args: &WaitArgs,
) -> anyhow::Result<()> {
    let patience = Span::parse(&args.patience)
        .map_err(|error| Failure::wrong(error.to_string(), "write for example `--patience 30m`"))?;
    let clock = Clock::system();
    let begun: Instant = clock.instant();
    let until = begun + patience.0;
    let mut followed = Followed::default();
    loop {
        let gateways: Vec<Gateway> = remote.list("gateways").await?;
        let live = gateways.iter().filter(|gateway| gateway.revoked_ms.is_none());
        let meant: Vec<&Gateway> = live.filter(|gateway| gateway.is_in(target)).collect();
        for line in followed.look(&meant, deployment, clock.instant() > begun + SILENT_FOR) {
            Output::line(&line)?;
        }
        let told = &followed.standings;
        if told.is_empty() {
            let hint = "claim a gateway, or add one to the group: `tidegate fleet group`";
            return Err(Failure::failed(format!("no gateway is in {target}"), hint).into());
        }
        if told.values().all(Standing::is_over) {
            return end(told);
        }
        if clock.instant() > until {
            let open: Vec<_> = told.iter().filter(|(_, standing)| !standing.is_over()).collect();
            let list: Vec<String> = open.iter().map(|(name, at)| format!("{name} {}", at.describe())).collect();
            let refused = meant.iter().find(|gateway| !gateway.refused.is_empty());
            let why = |gateway: &&Gateway| format!("; {} refuses what it is told: {}", gateway.name, gateway.refused);
            let why = refused.map(why).unwrap_or_default();
            let hint = "they go on by themselves: `tidegate fleet` shows how far they are";
            let are = if open.len() == 1 { "is" } else { "are" };
            let what = format!("{} {are} not done after {patience}: {}{why}", open.len(), list.join(", "));
            return Err(Failure::failed(what, hint).into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn end(told: &BTreeMap<String, Standing>) -> anyhow::Result<()> {
    let bad: Vec<&String> =
        told.iter().filter(|(_, at)| matches!(at, Standing::Bad(..))).map(|(name, _)| name).collect();
    if bad.is_empty() {
        Errors::progress(&match told.len() {
            1 => "the gateway has kept it".to_owned(),
            all => format!("all {all} gateways have kept it"),
        });
        return Ok(());
    }
    let names: Vec<&str> = bad.iter().map(|name| name.as_str()).collect();
    let which = match (bad.len(), told.len()) {
        (_, 1) => "the gateway has".to_owned(),
        (1, all) => format!("1 of {all} gateways has"),
        (bad, all) => format!("{bad} of {all} gateways have"),
    };
    let mut hint = "what ran before runs again; mend it, publish the next version and deploy that".to_owned();
    if told.values().any(|at| matches!(at, Standing::Bad(Phase::RolledBack, _))) {
        hint += ". Events whose attempts were used up meanwhile run again by `tidegate dead-letters replay --all` on the gateway";
    }
    Err(Failure::failed(format!("{which} not kept it: {}", names.join(", ")), hint).into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn gateway(name: &str, more: Value) -> Gateway {
        let mut gateway = json!({ "name": name, "groups": ["halls"], "reported_ms": 1 });
        gateway.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(gateway).unwrap()
    }

    fn at(phase: &str, kept: bool) -> Value {
        let deployment = json!({ "number": 2, "digest": Digest::of(b"2") });
        json!({ "progress": { "deployment": deployment, "phase": phase, "kept": kept, "since_ms": 1 } })
    }

    fn look(followed: &mut Followed, gateways: &[Gateway], late: bool) -> Vec<String> {
        followed.look(&gateways.iter().collect::<Vec<_>>(), &Digest::of(b"2"), late)
    }

    #[test]
    fn each_change_is_told_once() {
        let mut followed = Followed::default();
        let gateways = [gateway("hall-1", at("queued", false)), gateway("hall-2", json!({}))];
        assert_eq!(look(&mut followed, &gateways, false), ["hall-1: queued"]);
        assert!(look(&mut followed, &gateways, false).is_empty());
        let gateways = [gateway("hall-1", at("active", true)), gateway("hall-2", at("active", false))];
        assert_eq!(look(&mut followed, &gateways, false), ["hall-1: active, kept", "hall-2: active, on probation"]);
    }

    #[test]
    fn who_stays_silent_is_named_once_with_the_reason() {
        let mut followed = Followed::default();
        let gateways = [
            gateway("hall-1", json!({})),
            gateway("hall-2", json!({ "reported_ms": null })),
            gateway("hall-3", json!({ "connected": true })),
            gateway("hall-4", json!({ "connected": true, "refused": "it is superseded for good" })),
            gateway("hall-5", at("queued", false)),
        ];
        assert_eq!(look(&mut followed, &gateways, false), ["hall-5: queued"]);
        let lines = look(&mut followed, &gateways, true);
        assert!(lines[0].starts_with("waiting for hall-1: not heard of since "), "{lines:?}");
        assert_eq!(
            lines[1..],
            [
                "waiting for hall-2: never heard of",
                "waiting for hall-3: it is there, and has not begun",
                "waiting for hall-4: it refuses what it is told: it is superseded for good",
            ]
        );
        assert!(look(&mut followed, &gateways, true).is_empty());
    }

    #[test]
    fn who_is_revoked_or_leaves_is_not_waited_for() {
        let mut followed = Followed::default();
        let gateways = [gateway("hall-1", at("active", true)), gateway("hall-2", json!({}))];
        look(&mut followed, &gateways, false);
        assert!(!followed.standings.values().all(Standing::is_over));
        let lines = look(&mut followed, &gateways[..1], false);
        assert_eq!(lines, ["hall-2 is not followed any more: it was revoked, or left the group"]);
        assert!(followed.standings.values().all(Standing::is_over));
    }

    #[test]
    fn the_end_says_how_many_have_not_kept_it() {
        let told = |bad: usize, kept: usize| {
            let standing =
                |n: usize| if n <= bad { Standing::Bad(Phase::RolledBack, "why".to_owned()) } else { Standing::Kept };
            let told = (1..=bad + kept).map(|n| (format!("hall-{n}"), standing(n))).collect();
            end(&told).map_err(|error| error.to_string())
        };
        assert_eq!(told(0, 1), Ok(()));
        assert_eq!(told(1, 0), Err("the gateway has not kept it: hall-1".to_owned()));
        assert_eq!(told(1, 2), Err("1 of 3 gateways has not kept it: hall-1".to_owned()));
        assert_eq!(told(2, 0), Err("2 of 2 gateways have not kept it: hall-1, hall-2".to_owned()));
    }
}
