//! What was verified: it can be made by the checks of this crate only.

use std::collections::{BTreeMap, BTreeSet};

use crate::Digest;
use crate::deployment::{Artifact, Deployment};
use crate::desired::{DeploymentRef, Desired, DesiredAnswer};
use crate::envelope::{Document, Envelope};
use crate::key::KeyId;
use crate::limits::{ARTIFACTS_MAX, BLOB_BYTES_MAX};
use crate::name::{ArtifactName, StreamName};
use crate::refused::Refused;
use crate::release::{Kind, Release};
use crate::root::{Role, Root};

/// Settings that only the signed part beside them may say: what runs, under which name, with which rights.
const SETTINGS_NEVER: [&str; 6] = ["name", "version", "bundle", "file", "tests", "capabilities"];

/// An answer of the control plane, or a deployment file, all of which holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Verified {
    /// What the control plane asks for; a file on a stick may come without.
    pub desired: Option<Desired>,
    /// What is to run; `None`: nothing was deployed yet.
    pub deployment: Option<VerifiedDeployment>,
}

impl Verified {
    pub(crate) fn new(desired: Option<Desired>, deployment: Option<VerifiedDeployment>) -> Self {
        Self { desired, deployment }
    }
}

/// A deployment with its releases: signed by those who may, complete, and within what its publishers allow.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedDeployment {
    reference: DeploymentRef,
    deployment: Deployment,
    releases: Vec<Release>,
    pub(crate) envelope: Envelope,
    pub(crate) release_envelopes: Vec<Envelope>,
}

impl VerifiedDeployment {
    /// Its number and digest.
    pub fn reference(&self) -> DeploymentRef {
        self.reference
    }

    /// What its operator signed.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// What the publishers signed, in the order of [`Deployment::artifacts`].
    pub fn releases(&self) -> &[Release] {
        &self.releases
    }

    /// Each artifact with its release.
    pub fn artifacts(&self) -> impl Iterator<Item = (&Artifact, &Release)> {
        self.deployment.artifacts.iter().zip(&self.releases)
    }

    /// As envelopes, to be kept; [`crate::Trust::reverify`] reads them back.
    pub fn to_answer(&self) -> DesiredAnswer {
        DesiredAnswer {
            deployment: Some(self.envelope.clone()),
            releases: self.release_envelopes.clone(),
            ..DesiredAnswer::default()
        }
    }

    /// Puts the parts together by their digests, each read by `read`, which says whether it is signed well enough.
    pub(crate) fn assemble(deployment: &Envelope, releases: &[Envelope], read: &impl Read) -> Result<Self, Refused> {
        // 1. Bounds, before anything is looked at.
        at_most("the answer", releases.len(), "releases", ARTIFACTS_MAX)?;
        // 2. The deployment, by its operators.
        let signed: Deployment = read.read(Role::Operator, "the deployment", deployment)?;
        let reference = DeploymentRef { number: signed.number, digest: digest("the deployment", deployment)? };
        at_most("the deployment", signed.artifacts.len(), "artifacts", ARTIFACTS_MAX)?;
        // 3. Exactly the releases that it names, each by its publishers.
        let mut offered = BTreeMap::new();
        for release in releases {
            let digest = digest("a release", release)?;
            if offered.insert(digest, release).is_some() {
                return Err(Refused::Twice { what: format!("release {digest}") });
            }
        }
        let mut verified = Vec::with_capacity(releases.len());
        let mut envelopes = Vec::with_capacity(releases.len());
        for artifact in &signed.artifacts {
            let what = || format!("the release of {artifact}");
            let envelope = offered.remove(&artifact.release).ok_or_else(|| Refused::Missing { what: what() })?;
            verified.push(read.read_release(&what(), envelope)?);
            envelopes.push(envelope.clone());
        }
        if let Some((digest, _)) = offered.first_key_value() {
            return Err(Refused::Extraneous { what: format!("release {digest}") });
        }
        // 4. What they say together.
        signed.check(&verified)?;
        Ok(Self {
            reference,
            deployment: signed,
            releases: verified,
            envelope: deployment.clone(),
            release_envelopes: envelopes,
        })
    }
}

/// How a part of a deployment is read.
pub(crate) trait Read {
    fn read<T: Document>(&self, role: Role, what: &str, envelope: &Envelope) -> Result<T, Refused>;

    fn read_release(&self, what: &str, envelope: &Envelope) -> Result<Release, Refused> {
        self.read(Role::Publisher, what, envelope)
    }
}

/// By the signatures that the root asks for.
impl Read for Root {
    fn read<T: Document>(&self, role: Role, what: &str, envelope: &Envelope) -> Result<T, Refused> {
        envelope.verify(self.keys(role)?).map_err(Refused::of(what))
    }

    /// An agent is all that a gateway does: to sign one takes more than to sign what runs in its sandbox.
    fn read_release(&self, what: &str, envelope: &Envelope) -> Result<Release, Refused> {
        let release: Release = self.read(Role::Publisher, what, envelope)?;
        if release.kind != Kind::Agent {
            return Ok(release);
        }
        let Some(agents) = &self.agents else { return Err(Refused::NoAgents { artifact: release.to_string() }) };
        envelope.verify(agents).map_err(Refused::of(format!("{what}, as one of the agent,")))
    }
}

/// Whatever its signatures: it was verified when it was accepted.
pub(crate) struct Stored;

impl Read for Stored {
    fn read<T: Document>(&self, _role: Role, what: &str, envelope: &Envelope) -> Result<T, Refused> {
        envelope.unverified().map_err(Refused::of(what))
    }
}

impl Root {
    /// A release, when its publishers have signed it.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn verify_release(&self, envelope: &Envelope) -> Result<Release, Refused> {
        let release = self.read_release("the release", envelope)?;
        release.check()?;
        Ok(release)
    }

    /// A deployment with its releases, in any order, when all are signed and fit together. What one gateway remembers is not asked.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn verify_deployment(
        &self,
        deployment: &Envelope,
        releases: &[Envelope],
    ) -> Result<VerifiedDeployment, Refused> {
        VerifiedDeployment::assemble(deployment, releases, self)
    }
}

impl Release {
    /// What every release must keep to, whoever signed it.
    ///
    /// # Errors
    /// With what it does not.
    pub fn check(&self) -> Result<(), Refused> {
        let malformed = |why: String| Refused::Malformed { document: format!("release {self}"), why };
        for blob in std::iter::once(&self.blob).chain(self.native.iter().map(|native| &native.blob)) {
            if blob.bytes > BLOB_BYTES_MAX {
                return Err(malformed(format!("a blob of {} bytes, more than {BLOB_BYTES_MAX}", blob.bytes)));
            }
        }
        if self.kind == Kind::Agent {
            if self.native.first().is_none_or(|first| first.blob != self.blob) {
                return Err(malformed("its blob is not the first of its builds".to_owned()));
            }
            let builds: BTreeSet<_> = self.native.iter().map(|build| (&build.target, &build.compatibility)).collect();
            if builds.len() < self.native.len() {
                return Err(malformed("two of its builds are for the same gateways".to_owned()));
            }
        }
        if let Some(minimum) = self.minimum.as_ref().filter(|minimum| minimum.cmp_precedence(&self.version).is_gt()) {
            return Err(malformed(format!("its minimum {minimum} is above itself, so that it could not run")));
        }
        Ok(())
    }
}

impl Deployment {
    /// What every deployment must keep to together with its `releases`, one for each artifact in that order, whoever signed them.
    ///
    /// # Errors
    /// With what it does not.
    pub fn check(&self, releases: &[Release]) -> Result<(), Refused> {
        let malformed = |why: String| Refused::Malformed { document: format!("deployment {self}"), why };
        if self.number == 0 || self.floor > self.number {
            return Err(malformed(format!("its number is {} and its floor {}", self.number, self.floor)));
        }
        if let Some(error) = self.streams.keys().find_map(|name| StreamName::parse(name).err()) {
            return Err(malformed(error.to_string()));
        }
        if self.policy.failed_percent_max > 100 {
            return Err(malformed(format!(
                "`failed_percent_max` is {}, more than 100",
                self.policy.failed_percent_max
            )));
        }
        if self.artifacts.len() != releases.len() {
            return Err(malformed(format!("{} artifacts and {} releases", self.artifacts.len(), releases.len())));
        }
        if self.artifacts.iter().filter(|artifact| artifact.kind == Kind::Agent).count() > 1 {
            return Err(Refused::Twice { what: "the agent".to_owned() });
        }
        let mut seen = BTreeSet::new();
        for (artifact, release) in self.artifacts.iter().zip(releases) {
            if !seen.insert((artifact.kind, &artifact.name)) {
                return Err(Refused::Twice { what: format!("{}/{}", artifact.kind, artifact.name) });
            }
            self.check_artifact(artifact, release)?;
        }
        Ok(())
    }

    fn check_artifact(&self, artifact: &Artifact, release: &Release) -> Result<(), Refused> {
        if (artifact.kind, &artifact.name, &artifact.version) != (release.kind, &release.name, &release.version) {
            return Err(Refused::WrongSoftware { wanted: artifact.to_string(), offered: release.to_string() });
        }
        release.check()?;
        if let Some(capability) = artifact.capabilities.0.iter().find(|granted| !release.capabilities.cover(granted)) {
            return Err(Refused::Widened { artifact: artifact.to_string(), capability: capability.clone() });
        }
        if let Some(key) = SETTINGS_NEVER.into_iter().find(|key| artifact.settings.contains_key(*key)) {
            return Err(Refused::Setting { artifact: artifact.to_string(), key: key.to_owned() });
        }
        let there =
            |model: &ArtifactName| self.artifacts.iter().any(|other| other.kind == Kind::Model && other.name == *model);
        match release.models.iter().find(|model| !there(model)) {
            Some(model) => Err(Refused::MissingModel { artifact: artifact.to_string(), model: model.clone() }),
            None => Ok(()),
        }
    }
}

/// Who of `role` has validly signed: whose word it is.
pub(crate) fn signers(root: &Root, role: Role, envelope: &Envelope) -> BTreeSet<KeyId> {
    root.keys(role).ok().and_then(|keys| envelope.valid_signers(keys).ok()).unwrap_or_default()
}

pub(crate) fn digest(what: &str, envelope: &Envelope) -> Result<Digest, Refused> {
    envelope.digest().map_err(Refused::of(what))
}

pub(crate) fn at_most(document: &str, count: usize, unit: &'static str, max: usize) -> Result<(), Refused> {
    if count > max { Err(Refused::TooMuch { document: document.to_owned(), count, unit, max }) } else { Ok(()) }
}
