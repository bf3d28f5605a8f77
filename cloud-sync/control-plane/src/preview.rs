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
    /// What would be replaced or restarted: another version, other settings or rights, or a model, layer or runtime of it that changes; all, when
    /// the agent changes.
    pub restart: Vec<String>,
    /// What would go on untouched.
    pub keep: Vec<String>,
    /// What would be uninstalled.
    pub remove: Vec<String>,
    /// Functions that it cannot run, because nobody compiled them for it and it has no compiler.
    pub uncompiled: Vec<String>,
}

/// What is known of the gateway's processor.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// What native code must be compiled for.
    pub target: &'a str,
    /// Whether it compiles what has none.
    pub compiles: bool,
}

/// A deployment with the releases of its artifacts.
#[derive(Clone, Copy, Debug)]
pub struct Complete<'a> {
    /// What is to run.
    pub deployment: &'a Deployment,
    /// By digest; one that is missing costs nothing to fetch.
    pub releases: &'a BTreeMap<Digest, Release>,
}

/// Compares `next` with what the gateway runs `now`. `machine` is what the gateway has said of itself.
pub fn preview(
    gateway: &GatewayName,
    now: Option<Complete<'_>>,
    next: Complete<'_>,
    machine: Option<Machine<'_>>,
) -> Preview {
    let native = machine.map(|machine| machine.target);
    let there: BTreeSet<Blob> = now.map(|now| blobs(now, native)).unwrap_or_default();
    let fetch: BTreeSet<Blob> = blobs(next, native).difference(&there).copied().collect();
    let before: BTreeMap<(Kind, &ArtifactName), &Artifact> = now.map(|now| by_name(now.deployment)).unwrap_or_default();
    let after = by_name(next.deployment);

    let changed = |kind, name: &ArtifactName| before.get(&(kind, name)) != after.get(&(kind, name));
    let runtimes = after.keys().chain(before.keys()).any(|(kind, name)| *kind == Kind::Runtime && changed(*kind, name));
    let agents = after.keys().chain(before.keys()).any(|(kind, name)| *kind == Kind::Agent && changed(*kind, name));
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
            // Another agent is another process: all that runs is started again.
            Some(_) if agents => &mut restart,
            // Which runtime a function needs stands in its bundle, which is not read here.
            Some(_) if artifact.kind == Kind::Function && (models || layers || runtimes) => &mut restart,
            Some(_) => &mut keep,
        };
        list.push(artifact.to_string());
    }
    let is_uncompiled = |artifact: &&Artifact| {
        let release = next.releases.get(&artifact.release).filter(|_| artifact.kind == Kind::Function);
        let Some((machine, release)) = machine.zip(release) else { return false };
        !machine.compiles && release.native.iter().all(|code| code.target != machine.target)
    };
    let uncompiled = next.deployment.artifacts.iter().filter(is_uncompiled);
    let gone = before.iter().filter(|(key, _)| !after.contains_key(*key));
    Preview {
        gateway: gateway.clone(),
        fetch_bytes: fetch.iter().map(|blob| blob.bytes).sum(),
        fetch: fetch.iter().map(|blob| blob.digest).collect(),
        add,
        restart,
        keep,
        remove: gone.map(|(_, artifact)| artifact.to_string()).collect(),
        uncompiled: uncompiled.map(ToString::to_string).collect(),
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
    releases.flat_map(|release| release.bundle().into_iter().chain(fits(release))).collect()
}

#[cfg(test)]
mod tests {
    use sync_protocol::capability::Capabilities;
    use sync_protocol::deployment::{Policy, Target};
    use sync_protocol::name::GroupName;
    use sync_protocol::release::NativeCode;

    use super::*;

    fn release(kind: Kind, name: &str, targets: &[&str]) -> Release {
        let blob = |text: &str| Blob { digest: Digest::of(text.as_bytes()), bytes: text.len() as u64 };
        let build = |target: &&str| NativeCode {
            target: (*target).to_owned(),
            compatibility: "full".to_owned(),
            blob: blob(target),
        };
        let native: Vec<_> = targets.iter().map(build).collect();
        Release {
            kind,
            name: ArtifactName::parse(name).unwrap(),
            version: "1.0.0".parse().unwrap(),
            blob: native.first().map_or_else(|| blob(name), |first| first.blob),
            capabilities: Capabilities::default(),
            models: Vec::new(),
            minimum: None,
            native,
            published_ms: 0,
        }
    }

    fn deployment(releases: &[Release]) -> (Deployment, BTreeMap<Digest, Release>) {
        let digest = |release: &Release| Digest::of(release.to_string().as_bytes());
        let artifacts = releases.iter().map(|release| Artifact {
            kind: release.kind,
            name: release.name.clone(),
            version: release.version.clone(),
            release: digest(release),
            capabilities: Capabilities::default(),
            settings: BTreeMap::new(),
        });
        let deployment = Deployment {
            target: Target::Group(GroupName::parse("presses").unwrap()),
            number: 1,
            floor: 1,
            created_ms: 0,
            expires_ms: 0,
            artifacts: artifacts.collect(),
            streams: BTreeMap::new(),
            policy: Policy::default(),
            comment: String::new(),
        };
        (deployment, releases.iter().map(|release| (digest(release), release.clone())).collect())
    }

    #[test]
    fn another_agent_restarts_all_and_one_build_of_it_is_fetched() {
        let (oven, agent) =
            (release(Kind::Function, "oven", &[]), release(Kind::Agent, "tidegate", &["arm", "x86-64"]));
        let (before, after) = (deployment(std::slice::from_ref(&oven)), deployment(&[oven, agent]));
        let complete = |(deployment, releases)| Complete { deployment, releases };
        let gateway = GatewayName::parse("press-1").unwrap();
        let now = complete((&before.0, &before.1));
        let machine = Machine { target: "x86-64", compiles: true };
        let shown = preview(&gateway, Some(now), complete((&after.0, &after.1)), Some(machine));
        assert_eq!(shown.add, ["agent/tidegate 1.0.0"]);
        assert_eq!(shown.restart, ["function/oven 1.0.0"]);
        assert_eq!(shown.fetch, [Digest::of(b"x86-64")]);
    }
}
