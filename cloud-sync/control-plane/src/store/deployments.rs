//! What was deployed, and which of it is desired.

use async_trait::async_trait;
use sync_protocol::desired::{DeploymentRef, Request};
use sync_protocol::name::GatewayName;
use sync_protocol::{Deployment, Digest, Envelope, KeyId, Target};

use super::{Page, Result};
use crate::audit::Entry;

/// A deployment with its envelope.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployed {
    /// Number and digest.
    pub reference: DeploymentRef,
    /// As it was received.
    pub envelope: Envelope,
    /// Unix time.
    pub received_ms: u64,
}

/// What a target should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetState {
    /// Which.
    pub target: Target,
    /// What it should run; `None`: no longer anything of its own.
    pub number: Option<u64>,
    /// The highest floor that was ever desired: nothing below it runs there again.
    pub floor: u64,
    /// Unix time at which that was chosen.
    pub changed_ms: u64,
}

/// The newest signed desired document of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Signed {
    /// Its sequence.
    pub sequence: u64,
    /// Digest of what it says beside its sequence and times.
    pub content: Digest,
    /// Whose signature it has.
    pub key: KeyId,
    /// The document.
    pub envelope: Envelope,
    /// Unix time.
    pub issued_ms: u64,
    /// Unix time.
    pub expires_ms: u64,
}

/// Deployments, targets, desired documents.
#[async_trait]
pub trait Deployments: Send + Sync + std::fmt::Debug {
    /// Adds a deployment; the very same again changes nothing (`false`). A number that is not above all others of its target is a conflict.
    async fn add_deployment(
        &self,
        digest: Digest,
        deployment: &Deployment,
        envelope: &Envelope,
        entry: &Entry,
    ) -> Result<bool>;
    /// One by its number.
    async fn deployment(&self, target: &Target, number: u64) -> Result<Option<Deployed>>;
    /// One by its digest.
    async fn deployment_by_digest(&self, digest: Digest) -> Result<Option<Deployed>>;
    /// Those of a target, or all, in the order in which they came.
    async fn deployments(&self, target: Option<&Target>, page: &Page) -> Result<Vec<Deployed>>;
    /// The highest number of a target; 0 when it has none.
    async fn highest_number(&self, target: &Target) -> Result<u64>;

    /// Makes a deployment the desired one of its target, or none.
    async fn set_desired(&self, target: &Target, number: Option<u64>, now_ms: u64, entry: &Entry) -> Result<()>;
    /// What a target should run.
    async fn target(&self, target: &Target) -> Result<Option<TargetState>>;
    /// What a gateway should run: of its own target when it has one, else of that group of it which was pointed to last.
    async fn desired_of(&self, gateway: &GatewayName) -> Result<Option<Deployed>>;

    /// The newest desired document that was signed for a gateway.
    async fn signed(&self, gateway: &GatewayName) -> Result<Option<Signed>>;
    /// Keeps a newer one, unless another has been kept since (`false`).
    async fn keep_signed(&self, gateway: &GatewayName, signed: &Signed) -> Result<bool>;

    /// Asks a gateway for something until `until_ms`; one request of a kind at a time, the newest counts.
    async fn ask(&self, gateway: &GatewayName, request: &Request, until_ms: u64, entry: &Entry) -> Result<()>;
    /// What it is asked for now.
    async fn asked(&self, gateway: &GatewayName, now_ms: u64) -> Result<Vec<Request>>;
}
