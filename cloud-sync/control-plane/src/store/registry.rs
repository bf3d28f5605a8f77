//! Roots, and what was published.

use async_trait::async_trait;
use sync_protocol::name::{AliasName, ArtifactName};
use sync_protocol::{Digest, Envelope, Kind, Release};

use super::{Page, Result};
use crate::audit::Entry;

/// A release with its envelope.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Of what is signed.
    pub digest: Digest,
    /// As it was received.
    pub envelope: Envelope,
    /// Unix time.
    pub received_ms: u64,
}

/// Where an alias points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasRow {
    /// Of what.
    pub kind: Kind,
    /// Of which.
    pub name: ArtifactName,
    /// The alias.
    pub alias: AliasName,
    /// Its version now.
    pub version: String,
    /// Unix time.
    pub changed_ms: u64,
}

/// One tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRow {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// Roots of trust, releases, aliases and tags.
#[async_trait]
pub trait Registry: Send + Sync + std::fmt::Debug {
    /// All roots, from the first.
    async fn roots(&self) -> Result<Vec<Envelope>>;
    /// Adds root `version`, which must be the next one.
    async fn add_root(&self, version: u64, envelope: &Envelope, entry: &Entry) -> Result<()>;

    /// Adds a release; the very same again changes nothing (`false`). Another one under its name and version is a conflict.
    async fn add_release(&self, digest: Digest, release: &Release, envelope: &Envelope, entry: &Entry) -> Result<bool>;
    /// One release.
    async fn release(&self, digest: Digest) -> Result<Option<Published>>;
    /// Those of a kind and name, or all, in the order in which they came.
    async fn releases(&self, kind: Option<Kind>, name: Option<&ArtifactName>, page: &Page) -> Result<Vec<Published>>;

    /// Points an alias to a version.
    async fn set_alias(&self, row: &AliasRow, entry: &Entry) -> Result<()>;
    /// All aliases, or those of one artifact.
    async fn aliases(&self, of: Option<(Kind, &ArtifactName)>, page: &Page) -> Result<Vec<AliasRow>>;

    /// Replaces all tags of a version.
    async fn set_tags(&self, of: (Kind, &ArtifactName, &str), tags: &[TagRow], entry: &Entry) -> Result<()>;
    /// The tags of a version.
    async fn tags(&self, of: (Kind, &ArtifactName, &str)) -> Result<Vec<TagRow>>;

    /// Whether a release refers to the blob.
    async fn refers_to(&self, blob: Digest) -> Result<bool>;
    /// Whether a deployment for `gateway` or one of its groups needs the blob.
    async fn may_fetch(&self, gateway: &str, blob: Digest) -> Result<bool>;
    /// Every blob that a release refers to.
    async fn blobs(&self) -> Result<Vec<Digest>>;
}
