//! A fleet's keys and documents, and one gateway of it.

use std::collections::BTreeMap;

use sync_protocol::capability::Capabilities;
use sync_protocol::deployment::Policy;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::name::{ArtifactName, GatewayName, GroupName};
use sync_protocol::{
    Artifact, Blob, Deployment, Desired, DesiredAnswer, Digest, Document, Envelope, Kind, PublicKey, Refused, Release,
    Role, RoleKeys, Root, SecretKey, Target, Trust, Verified,
};

pub(crate) const DAY: u64 = 24 * 3600 * 1000;
/// 2026-11-22.
pub(crate) const NOW: u64 = 1_795_305_600_000;

/// A key that is the same in every run.
pub(crate) fn key(seed: u8) -> SecretKey {
    use base64::Engine as _;
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    SecretKey::from_pem(&format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")).unwrap()
}

fn public(keys: &[SecretKey]) -> impl Iterator<Item = PublicKey> {
    keys.iter().map(SecretKey::public)
}

pub(crate) fn gateway(name: &str) -> GatewayName {
    GatewayName::parse(name).unwrap()
}

pub(crate) fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

pub(crate) fn artifact(name: &str) -> ArtifactName {
    ArtifactName::parse(name).unwrap()
}

pub(crate) fn capabilities(texts: &[&str]) -> Capabilities {
    Capabilities(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// Everybody who signs. Two of three holders of root keys, two of two operators, one publisher.
pub(crate) struct Signers {
    pub(crate) roots: Vec<SecretKey>,
    pub(crate) publishers: Vec<SecretKey>,
    pub(crate) operators: Vec<SecretKey>,
    pub(crate) online: Vec<SecretKey>,
}

impl Signers {
    /// Those of the fleet of this number, with keys of their own.
    pub(crate) fn of_fleet(fleet: u8) -> Self {
        let keys = |from: u8, count: u8| (from..from + count).map(|n| key(n + 20 * fleet)).collect();
        Self { roots: keys(1, 3), publishers: keys(5, 1), operators: keys(7, 2), online: keys(9, 1) }
    }

    pub(crate) fn root(&self, version: u64) -> Root {
        let roles = [
            (Role::Root, RoleKeys::new(public(&self.roots), 2)),
            (Role::Publisher, RoleKeys::new(public(&self.publishers), 1)),
            (Role::Operator, RoleKeys::new(public(&self.operators), 2)),
            (Role::Online, RoleKeys::new(public(&self.online), 1)),
        ];
        Root { version, expires_ms: NOW + 365 * DAY, roles: BTreeMap::from(roles), agents: None }
    }

    pub(crate) fn signed_root(&self, version: u64) -> Envelope {
        sign(&self.root(version), &self.roots[..2])
    }

    pub(crate) fn release(&self, release: &Release) -> Envelope {
        sign(release, &self.publishers)
    }

    pub(crate) fn deployment(&self, deployment: &Deployment) -> Envelope {
        sign(deployment, &self.operators)
    }

    pub(crate) fn desired(&self, desired: &Desired) -> Envelope {
        sign(desired, &self.online)
    }
}

pub(crate) fn sign<T: Document>(document: &T, keys: &[SecretKey]) -> Envelope {
    Envelope::sign(document, &keys.iter().collect::<Vec<_>>()).unwrap()
}

/// A function that may publish below `results/`.
pub(crate) fn function(name: &str, version: &str) -> Release {
    let code = format!("{name} {version}").into_bytes();
    Release {
        kind: Kind::Function,
        name: artifact(name),
        version: version.parse().unwrap(),
        blob: Blob { digest: Digest::of(&code), bytes: code.len() as u64 },
        capabilities: capabilities(&["mqtt:publish:results/#", "keyvalue"]),
        models: Vec::new(),
        minimum: None,
        native: Vec::new(),
        published_ms: NOW - DAY,
    }
}

pub(crate) fn model(name: &str, version: &str) -> Release {
    Release { kind: Kind::Model, capabilities: Capabilities::default(), ..function(name, version) }
}

/// Deployment `number` of a target with these releases, and the envelopes of them.
pub(crate) fn deployment(
    signers: &Signers,
    target: Target,
    number: u64,
    releases: &[Release],
) -> (Deployment, Vec<Envelope>) {
    let envelopes: Vec<Envelope> = releases.iter().map(|release| signers.release(release)).collect();
    let artifacts = releases.iter().zip(&envelopes).map(|(release, envelope)| Artifact {
        kind: release.kind,
        name: release.name.clone(),
        version: release.version.clone(),
        release: envelope.digest().unwrap(),
        capabilities: Capabilities::default(),
        settings: BTreeMap::new(),
    });
    let deployment = Deployment {
        target,
        number,
        floor: 1,
        created_ms: NOW - DAY,
        expires_ms: NOW + 30 * DAY,
        artifacts: artifacts.collect(),
        streams: BTreeMap::new(),
        policy: Policy::default(),
        comment: String::new(),
    };
    (deployment, envelopes)
}

pub(crate) fn presses() -> Target {
    Target::Group(group("presses"))
}

pub(crate) fn reference(deployment: &Envelope) -> DeploymentRef {
    let number = deployment.unverified::<Deployment>().unwrap().number;
    DeploymentRef { number, digest: deployment.digest().unwrap() }
}

/// Gateway `press-1` of group `presses`, and who signs for it.
pub(crate) struct Site {
    pub(crate) signers: Signers,
    pub(crate) trust: Trust,
    pub(crate) now_ms: Option<u64>,
    pub(crate) running: Option<DeploymentRef>,
    sequence: u64,
}

impl Site {
    pub(crate) fn new() -> Self {
        let signers = Signers::of_fleet(0);
        let root = signers.signed_root(1);
        let mut trust = Trust::anchor(&root, &root.digest().unwrap()).unwrap();
        trust.provisioned(&[group("presses")]);
        Self { signers, trust, now_ms: Some(NOW), running: None, sequence: 0 }
    }

    /// What the control plane would sign next for this gateway.
    pub(crate) fn desired(&mut self, deployment: Option<DeploymentRef>) -> Desired {
        self.sequence += 1;
        Desired {
            gateway: gateway("press-1"),
            groups: vec![group("presses")],
            sequence: self.sequence,
            deployment,
            issued_ms: NOW,
            expires_ms: NOW + 14 * DAY,
            requests: Vec::new(),
        }
    }

    /// A whole answer that asks for this deployment, once it was `change`d and signed.
    pub(crate) fn answer_with(
        &mut self,
        number: u64,
        releases: &[Release],
        change: impl FnOnce(&mut Deployment),
    ) -> DesiredAnswer {
        let (mut deployment, releases) = deployment(&self.signers, presses(), number, releases);
        change(&mut deployment);
        let deployment = self.signers.deployment(&deployment);
        self.answer_for(deployment, releases)
    }

    pub(crate) fn answer_for(&mut self, deployment: Envelope, releases: Vec<Envelope>) -> DesiredAnswer {
        let desired = self.desired(Some(reference(&deployment)));
        let desired = Some(self.signers.desired(&desired));
        DesiredAnswer { roots: Vec::new(), desired, deployment: Some(deployment), releases }
    }

    /// Deployment `number` with function `oven` of version `number.0.0`.
    pub(crate) fn answer(&mut self, number: u64) -> DesiredAnswer {
        self.answer_with(number, &[function("oven", &format!("{number}.0.0"))], |_| ())
    }

    pub(crate) fn verify(&self, answer: &DesiredAnswer) -> Result<Verified, Refused> {
        self.trust.verify(&gateway("press-1"), answer, self.now_ms, self.running.as_ref())
    }

    /// Takes it over, and runs it.
    #[track_caller]
    pub(crate) fn run(&mut self, answer: &DesiredAnswer) -> Verified {
        let verified = self.verify(answer).unwrap();
        self.trust.accept(&verified);
        if let Some(deployment) = &verified.deployment {
            self.trust.keep(deployment);
            self.running = Some(deployment.reference());
        }
        verified
    }

    /// The reason for which it is refused.
    #[track_caller]
    pub(crate) fn refuses(&self, answer: &DesiredAnswer) -> Refused {
        self.verify(answer).unwrap_err()
    }

    /// The reason for which new roots are refused, after which everything is as it was.
    #[track_caller]
    pub(crate) fn refuses_roots(&mut self, roots: &[Envelope]) -> Refused {
        let before = self.trust.clone();
        let refused = self.trust.update_roots(roots).unwrap_err();
        assert_eq!(self.trust, before, "a refused root leaves nothing behind");
        refused
    }

    /// What is left of it after a restart.
    pub(crate) fn restart(&mut self) {
        self.trust = serde_json::from_str(&serde_json::to_string(&self.trust).unwrap()).unwrap();
    }
}

/// The name of the reason.
#[track_caller]
pub(crate) fn assert_reason(refused: &Refused, reason: &str) {
    let shown = format!("{refused:?}");
    assert!(shown.split([' ', '{']).next() == Some(reason), "{reason} expected, but {refused} ({shown})");
}

/// The same with something changed in its JSON, which its signatures then do not cover.
pub(crate) fn tampered(envelope: &Envelope, change: impl FnOnce(&mut serde_json::Value)) -> Envelope {
    let mut json = serde_json::to_value(envelope).unwrap();
    change(&mut json["signed"]);
    serde_json::from_value(json).unwrap()
}
