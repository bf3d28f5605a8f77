//! What a target runs, as its operator signs it.

use std::collections::BTreeMap;
use std::fmt;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Digest;
use crate::capability::Capabilities;
use crate::envelope::Document;
use crate::limits::DEPLOYMENT_BYTES_MAX;
use crate::name::{ArtifactName, GatewayName, GroupName};
use crate::release::Kind;

/// Whom a deployment is for. In text `group/presses` or `gateway/press-hall-3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// All gateways of a group.
    Group(GroupName),
    /// One gateway.
    Gateway(GatewayName),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => write!(f, "group/{name}"),
            Self::Gateway(name) => write!(f, "gateway/{name}"),
        }
    }
}

/// Immutable and numbered. What a gateway ran before and is not in here is uninstalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Whom it is for.
    pub target: Target,
    /// Grows within a target.
    pub number: u64,
    /// The lowest number that the target may go back to once it has seen this one: what is below is superseded for good.
    pub floor: u64,
    /// Unix time at which it was signed, by the operator's clock.
    pub created_ms: u64,
    /// Unix time. Past it, gateways that have not accepted it yet refuse it; those that have may run it, and go back to it.
    pub expires_ms: u64,
    /// Functions, models, layers and runtimes, each by its exact version.
    pub artifacts: Vec<Artifact>,
    /// Streams, with the keys of `[stream.NAME]` in gateway.toml, which wins over these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, Value>,
    /// How a gateway judges it.
    #[serde(default)]
    pub policy: Policy,
    /// Why, for those who read it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

impl Document for Deployment {
    const TYPE: &'static str = "deployment";
    const BYTES_MAX: usize = DEPLOYMENT_BYTES_MAX;
}

/// `7 of group/presses`.
impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number, self.target)
    }
}

/// One version within a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: ArtifactName,
    /// Its version.
    pub version: Version,
    /// Of the [`crate::Release`] that it is: [`crate::Envelope::digest`].
    pub release: Digest,
    /// What is granted (functions); within the release's ceiling.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Keys of `[[function]]` or `[[model]]` in gateway.toml, which replace the bundle's own: triggers, timeout, environment, ….
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Value>,
}

/// `function/oven 1.2.0`.
impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.kind, self.name, self.version)
    }
}

/// Deadlines and what counts as broken, in milliseconds and per cent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Longest that fetching may take while there is a link.
    pub download_deadline_ms: u64,
    /// Longest that verifying, compiling and testing may take.
    pub stage_deadline_ms: u64,
    /// How long it is watched before it is kept.
    pub probation_ms: u64,
    /// Share of failed invocations of a changed function above which it is rolled back.
    pub failed_percent_max: u8,
    /// Fewest invocations from which that share is judged.
    pub invocations_min: u64,
    /// How many times slower at p99 than before it may be; 0: not judged.
    pub slower_times_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            download_deadline_ms: 24 * 3600 * 1000,
            stage_deadline_ms: 10 * 60 * 1000,
            probation_ms: 5 * 60 * 1000,
            failed_percent_max: 10,
            invocations_min: 20,
            slower_times_max: 10,
        }
    }
}
