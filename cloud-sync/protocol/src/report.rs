//! What a gateway says of itself: `POST /v1/gateways/{id}/reported`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::desired::DeploymentRef;
use crate::name::ArtifactName;
use crate::release::Kind;

/// How far a gateway is with a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Accepted, not begun.
    Queued,
    /// Fetching what is missing.
    Downloading,
    /// Verified, compiled and tested; not running yet.
    Staged,
    /// Running; on probation until `kept`.
    Active,
    /// Given up before it ran.
    Failed,
    /// It ran, was found bad, and what ran before runs again.
    RolledBack,
}

impl Phase {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Downloading => "downloading",
            Self::Staged => "staged",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One deployment's phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Which.
    pub deployment: DeploymentRef,
    /// How far.
    pub phase: Phase,
    /// Whether probation is over (active).
    pub kept: bool,
    /// Why it failed or was rolled back; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Bytes fetched of those that were missing (downloading).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<(u64, u64)>,
    /// Unix time at which the phase began.
    pub since_ms: u64,
}

/// A version that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: ArtifactName,
    /// Its version.
    pub version: String,
    /// Whether gateway.toml has it, not a deployment.
    pub local: bool,
}

/// The whole of it; the control plane keeps the newest as the shadow's `reported`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// New with each start of the agent: two that alternate under one name are clones.
    pub boot: String,
    /// Grows within a boot.
    pub sequence: u64,
    /// Unix time of the gateway; `None` while its clock was never set.
    pub time_ms: Option<u64>,
    /// The agent's version.
    pub agent: String,
    /// What native code must be compiled for to run on it: `x86_64-unknown-linux-gnu`, `pulley32`, ….
    pub target: String,
    /// Whether it compiles what has no native code for it.
    #[serde(default = "compiles")]
    pub compiles: bool,
    /// Version of the root that it trusts.
    pub root: u64,
    /// Sequence of the newest desired document that it accepted.
    pub desired_sequence: u64,
    /// The deployment that is under way or was the last one.
    pub progress: Option<Progress>,
    /// The deployment that runs.
    pub active: Option<DeploymentRef>,
    /// What runs.
    pub running: Vec<Running>,
    /// Empty when it is healthy; else why not.
    pub unhealthy: Vec<String>,
    /// Why the last desired document was refused; empty when none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
    /// Figures by name: memory, disk, streams' depth, counters by function.
    pub figures: BTreeMap<String, u64>,
    /// The last errors, newest first.
    pub last_errors: Vec<String>,
    /// What the gateway says in the shadow beside the above; users' own keys.
    #[serde(default)]
    pub shadow: Value,
    /// Log lines that were asked for, as the local API gives them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Value>,
}

/// What a gateway does that does not say.
const fn compiles() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::Phase;

    #[test]
    fn a_phase_is_shown_as_it_is_in_json() {
        use Phase::{Active, Downloading, Failed, Queued, RolledBack, Staged};
        for phase in [Queued, Downloading, Staged, Active, Failed, RolledBack] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.to_string());
        }
    }
}
