//! What a deployment would change on one gateway: decided from what is known of both, without asking anybody.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use sync_protocol::name::{ArtifactName, GatewayName};
use sync_protocol::{Artifact, Blob, Deployment, Digest, Kind, Release};
use utoipa::ToSchema;

/// What would become of one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Preview {
    /// Which.
    #[schema(value_type = String)]
    pub gateway: GatewayName,
    /// Bytes that it would fetch.
    pub fetch_bytes: u64,
    /// The blobs that these are, by digest.
    #[schema(value_type = Vec<String>)]
    pub fetch: Vec<Digest>,
    /// What is new on it, as `function/oven 1.2.0`.
    pub add: Vec<String>,
    /// What would be replaced or restarted: another version, other settings or rights, or a model, layer or runtime of it that changes.
    pub restart: Vec<String>,
    /// What would go on untouched.
    pub keep: Vec<String>,
    /// What would be uninstalled.
    pub remove: Vec<String>,
}

/// A deployment with the releases of its artifacts.
#[derive(Clone, Copy, Debug)]
pub struct Complete<'a> {
    /// What is to run.
    pub deployment: &'a Deployment,
    /// By digest; one that is missing costs nothing to fetch.
    pub releases: &'a BTreeMap<Digest, Release>,
}

/// Compares `next` with what the gateway runs `now`. `native` is the gateway's target, when it has said it.
pub fn preview(gateway: &GatewayName, now: Option<Complete<'_>>, next: Complete<'_>, native: Option<&str>) -> Preview {
    let there: BTreeSet<Blob> = now.map(|now| blobs(now, native)).unwrap_or_default();
    let fetch: BTreeSet<Blob> = blobs(next, native).difference(&there).copied().collect();
    let before: BTreeMap<(Kind, &ArtifactName), &Artifact> = now.map(|now| by_name(now.deployment)).unwrap_or_default();
    let after = by_name(next.deployment);

    let changed = |kind, name: &ArtifactName| before.get(&(kind, name)) != after.get(&(kind, name));
    let runtimes = after.keys().chain(before.keys()).any(|(kind, name)| *kind == Kind::Runtime && changed(*kind, name));
    let (mut add, mut restart, mut keep) = (Vec::new(), Vec::new(), Vec::new());
    for artifact in &next.deployment.artifacts {
        let models = next.releases.get(&artifact.release).map(|release| release.models.as_slice()).unwrap_or_default();
        let models = models.iter().any(|model| changed(Kind::Model, model));
        let layers = artifact.settings.get("layers").and_then(Value::as_array).into_iter().flatten();
        let mut layers = layers.filter_map(|layer| ArtifactName::parse(layer.as_str()?).ok());
        let layers = layers.any(|layer| changed(Kind::Layer, &layer));
        let list = match before.get(&(artifact.kind, &artifact.name)) {
            None => &mut add,
            Some(before) if *before != artifact => &mut restart,
            // Which runtime a function needs stands in its bundle, which is not read here.
            Some(_) if artifact.kind == Kind::Function && (models || layers || runtimes) => &mut restart,
            Some(_) => &mut keep,
        };
        list.push(artifact.to_string());
    }
    let gone = before.iter().filter(|(key, _)| !after.contains_key(*key));
    Preview {
        gateway: gateway.clone(),
        fetch_bytes: fetch.iter().map(|blob| blob.bytes).sum(),
        fetch: fetch.iter().map(|blob| blob.digest).collect(),
        add,
        restart,
        keep,
        remove: gone.map(|(_, artifact)| artifact.to_string()).collect(),
    }
}

fn by_name(deployment: &Deployment) -> BTreeMap<(Kind, &ArtifactName), &Artifact> {
    deployment.artifacts.iter().map(|artifact| ((artifact.kind, &artifact.name), artifact)).collect()
}

fn blobs(complete: Complete<'_>, native: Option<&str>) -> BTreeSet<Blob> {
    let releases = complete.deployment.artifacts.iter().filter_map(|artifact| complete.releases.get(&artifact.release));
    let fits = |release: &Release| {
        let native = release.native.iter().filter(|code| Some(code.target.as_str()) == native);
        native.map(|code| code.blob).collect::<Vec<_>>()
    };
    releases.flat_map(|release| [release.blob].into_iter().chain(fits(release))).collect()
}
