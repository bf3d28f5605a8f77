//! Who may call: tokens of people, claims and certificates of gateways; and the audit log.

use async_trait::async_trait;
use sync_protocol::Digest;
use sync_protocol::name::{GatewayName, GroupName};

use super::{Page, Result};
use crate::audit::Entry;
use crate::auth::Role;

/// A person's token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Which one.
    pub id: String,
    /// Whose.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of its secret.
    pub secret: Digest,
    /// Unix time.
    pub created_ms: u64,
    /// Unix time past which it is not taken any more.
    pub expires_ms: Option<u64>,
    /// Unix time at which it was used last, to the minute.
    pub used_ms: Option<u64>,
    /// Unix time since which it is not taken any more.
    pub revoked_ms: Option<u64>,
}

/// A claim, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRow {
    /// Which one.
    pub id: String,
    /// SHA-256 of its secret.
    pub secret: Digest,
    /// How many gateways it lets in.
    pub uses_max: u64,
    /// How many it has let in.
    pub uses: u64,
    /// Groups of those that it lets in.
    pub groups: Vec<GroupName>,
    /// What their names begin with. With it a name that is taken gets a number, without it the gateway is refused.
    pub name_prefix: Option<String>,
    /// The gateway whose name and place the one machine that it lets in takes over.
    pub replaces: Option<GatewayName>,
    /// Unix time.
    pub created_ms: u64,
    /// Unix time past which it lets nobody in.
    pub expires_ms: u64,
    /// Unix time since which it lets nobody in.
    pub revoked_ms: Option<u64>,
}

/// What a gateway wants by a claim.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// [`ClaimRow::id`].
    pub claim: &'a str,
    /// SHA-256 of the secret that it knows.
    pub secret: Digest,
    /// SHA-256 of its nonce.
    pub nonce: Digest,
    /// SHA-256 of its public key.
    pub key: Digest,
    /// The name that it wants.
    pub name: &'a GatewayName,
    /// Unix time.
    pub now_ms: u64,
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub name: GatewayName,
    /// Its groups.
    pub groups: Vec<GroupName>,
}

/// Why it gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// No such claim, or another secret: which of the two is not told.
    #[error("the claim token is not known here")]
    Unknown,
    /// Its time is over.
    #[error("claim {0} has expired")]
    Expired(String),
    /// It was revoked.
    #[error("claim {0} was revoked")]
    Revoked(String),
    /// All its uses are used.
    #[error("claim {0} has let in all the {1} gateways that it may")]
    UsedUp(String, u64),
    /// The name is another gateway's.
    #[error("there is a gateway `{0}` already")]
    NameTaken(GatewayName),
    /// The nonce was used with another key: somebody has copied a request.
    #[error("this request was made before, with another key")]
    AnotherKey,
    /// It was let in before, and revoked since.
    #[error("gateway `{0}` was revoked since")]
    GatewayRevoked(GatewayName),
}

/// A certificate of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// SHA-256 of its DER.
    pub fingerprint: Digest,
    /// Whose.
    pub gateway: GatewayName,
    /// Whether the control plane's own authority signed it.
    pub ours: bool,
    /// Unix time.
    pub not_after_ms: u64,
    /// Unix time.
    pub added_ms: u64,
    /// Unix time since which it does not count: its own revocation, or its gateway's.
    pub revoked_ms: Option<u64>,
}

/// A line of the audit log as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts from 1.
    pub id: u64,
    /// The [`Entry`] as JSON, exactly as it was hashed.
    pub entry: String,
    /// Over the hash before it and the entry, in hexadecimal.
    pub hash: String,
}

/// Tokens, claims, certificates, the audit log.
#[async_trait]
pub trait Access: Send + Sync + std::fmt::Debug {
    /// Adds a token.
    async fn add_token(&self, token: &TokenRow, entry: &Entry) -> Result<()>;
    /// One of them.
    async fn token(&self, id: &str) -> Result<Option<TokenRow>>;
    /// By id.
    async fn tokens(&self, page: &Page) -> Result<Vec<TokenRow>>;
    /// Notes that it was used.
    async fn token_used(&self, id: &str, now_ms: u64) -> Result<()>;
    /// Takes it back.
    async fn revoke_token(&self, id: &str, entry: &Entry) -> Result<()>;

    /// Adds a claim.
    async fn add_claim(&self, claim: &ClaimRow, entry: &Entry) -> Result<()>;
    /// By id.
    async fn claims(&self, page: &Page) -> Result<Vec<ClaimRow>>;
    /// Takes it back; who is in stays in.
    async fn revoke_claim(&self, id: &str, entry: &Entry) -> Result<()>;
    /// Lets a gateway in, or says why not. A wish with a nonce that was granted before gets the same again and costs no use.
    async fn grant(&self, wish: &Wish<'_>) -> Result<Result<Grant, NotGranted>>;

    /// Notes a certificate by which a gateway is known from now on.
    async fn add_certificate(&self, certificate: &CertificateRow, entry: &Entry) -> Result<()>;
    /// One of them.
    async fn certificate(&self, fingerprint: Digest) -> Result<Option<CertificateRow>>;
    /// Those of a gateway that are not revoked, newest first.
    async fn certificates(&self, gateway: &GatewayName) -> Result<Vec<CertificateRow>>;

    /// Notes the start of the agent that speaks under a name; `true` when it is now noticed that two do.
    async fn notice_boot(&self, gateway: &GatewayName, boot: &str, now_ms: u64) -> Result<bool>;
    /// Unix time at which it was noticed that two machines speak under this name.
    async fn cloned_ms(&self, gateway: &GatewayName) -> Result<Option<u64>>;

    /// The audit log behind line `after`, oldest first.
    async fn audit(&self, after: u64, limit: u64) -> Result<Vec<AuditRow>>;
}
