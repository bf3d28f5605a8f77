//! What the control plane asks of one gateway.

use serde::{Deserialize, Serialize};

use crate::envelope::{Document, Envelope};
use crate::limits::{ANSWER_BYTES_MAX, ARTIFACTS_MAX, DESIRED_BYTES_MAX, ROOTS_MAX};
use crate::name::{GatewayName, GroupName};
use crate::refused::Refused;
use crate::verified::at_most;
use crate::{Digest, canonical};

/// Which deployment one gateway should run now, signed by the on-line key: the part of TUF's timestamp and snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Whom it is for.
    pub gateway: GatewayName,
    /// The groups that the gateway belongs to.
    pub groups: Vec<GroupName>,
    /// Grows with each change for this gateway; an older one is refused.
    pub sequence: u64,
    /// Number of the deployment; `None`: nothing was deployed yet.
    pub deployment: Option<DeploymentRef>,
    /// Unix time.
    pub issued_ms: u64,
    /// Unix time. Past it nothing new is begun on its word.
    pub expires_ms: u64,
    /// What somebody asked the gateway for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<Request>,
}

impl Document for Desired {
    const TYPE: &'static str = "desired";
    const BYTES_MAX: usize = DESIRED_BYTES_MAX;
}

/// One deployment, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentRef {
    /// Its number.
    pub number: u64,
    /// [`Envelope::digest`] of it.
    pub digest: Digest,
}

/// What an operator wants of a gateway beside its deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Request {
    /// Send log lines until `until_ms`.
    Logs {
        /// Unix time.
        until_ms: u64,
        /// Lowest level, as in `[log]`.
        level: String,
    },
    /// Try again a deployment that the gateway has rolled back.
    TryAgain {
        /// Which.
        deployment: Digest,
    },
}

/// What `GET /v1/gateways/{id}/desired` answers, and what a deployment file holds beside the blobs: all that is needed to verify it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredAnswer {
    /// Roots newer than the one that the caller names, in order.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "canonical::at_most::<_, _, ROOTS_MAX>"
    )]
    pub roots: Vec<Envelope>,
    /// [`Desired`]; a file on a stick may come without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Envelope>,
    /// [`crate::Deployment`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<Envelope>,
    /// [`crate::Release`], one for each artifact of the deployment.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "canonical::at_most::<_, _, ARTIFACTS_MAX>"
    )]
    pub releases: Vec<Envelope>,
}

impl DesiredAnswer {
    /// Reads one; nothing is verified yet.
    ///
    /// # Errors
    /// When it is malformed or too large.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        at_most("the answer", bytes.len(), "bytes", ANSWER_BYTES_MAX)?;
        serde_json::from_slice(bytes)
            .map_err(|error| Refused::Malformed { document: "the answer".to_owned(), why: error.to_string() })
    }
}
