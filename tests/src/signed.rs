//! Deployments as their operators sign them, and the files in which they are carried.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;
use sync_protocol::deployment::{Artifact, Deployment, Policy, Target};
use sync_protocol::desired::DeploymentRef;
use sync_protocol::name::{ArtifactName, GatewayName};
use sync_protocol::{
    Blob, DesiredAnswer, Digest, Envelope, Kind, NativeCode, Release, Role, RoleKeys, Root, SecretKey,
};
use tidegate::boot;

use crate::Guest;

/// Unix time far ahead.
const NEVER_MS: u64 = 4_000_000_000_000;
/// Unix time at which all is signed.
const SIGNED_MS: u64 = 1_790_000_000_000;

/// Those who may sign for one fleet, and what they have published.
#[derive(Debug)]
pub struct Signers {
    root: Envelope,
    publisher: SecretKey,
    operator: SecretKey,
    folder: tempfile::TempDir,
}

impl Signers {
    /// With keys of their own.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn new() -> anyhow::Result<Self> {
        let [root, publisher, operator, online] =
            [SecretKey::generate()?, SecretKey::generate()?, SecretKey::generate()?, SecretKey::generate()?];
        let keys = |key: &SecretKey| RoleKeys::new([key.public()], 1);
        let roles = BTreeMap::from([
            (Role::Root, keys(&root)),
            (Role::Publisher, keys(&publisher)),
            (Role::Operator, keys(&operator)),
            (Role::Online, keys(&online)),
        ]);
        let root = Envelope::sign(
            &Root { version: 1, expires_ms: NEVER_MS, roles, agents: Some(keys(&publisher)) },
            &[&root],
        )?;
        let folder = tempfile::Builder::new().prefix("signed-").tempdir()?;
        std::fs::write(folder.path().join("root.json"), root.to_pretty())?;
        Ok(Self { root, publisher, operator, folder })
    }

    /// `[cloud]` of a gateway that trusts them, and takes files.
    pub fn cloud(&self) -> String {
        format!("[cloud]\nroot = \"{}\"\n", self.folder.path().join("root.json").display())
    }

    /// The first root.
    pub const fn root(&self) -> &Envelope {
        &self.root
    }

    /// A deployment for gateway `test`.
    pub fn deployment(&self, number: u64) -> Draft<'_> {
        Draft {
            signers: self,
            number,
            artifacts: Vec::new(),
            releases: Vec::new(),
            blobs: BTreeMap::new(),
            native: Vec::new(),
            streams: BTreeMap::new(),
            policy: Policy { probation_ms: 1_000, invocations_min: 5, ..Policy::default() },
        }
    }
}

/// A deployment that is being put together.
#[derive(Debug)]
pub struct Draft<'a> {
    signers: &'a Signers,
    number: u64,
    artifacts: Vec<Artifact>,
    releases: Vec<Envelope>,
    blobs: BTreeMap<String, Vec<u8>>,
    native: Vec<NativeCode>,
    streams: BTreeMap<String, Value>,
    policy: Policy,
}

impl Draft<'_> {
    /// With native code, which the next release has signed.
    #[must_use]
    pub fn native(mut self, target: &str, compatibility: &str, code: Vec<u8>) -> Self {
        let blob = Blob { digest: Digest::of(&code), bytes: code.len() as u64 };
        let (target, compatibility) = (target.to_owned(), compatibility.to_owned());
        self.native.push(NativeCode { target, compatibility, blob });
        self.blobs.insert(blob.digest.hex(), code);
        self
    }

    /// With a guest that may publish on `results/#`, triggered by `filter`.
    ///
    /// # Errors
    /// When its bundle cannot be made.
    pub fn function(self, name: &str, version: &str, guest: &Guest, filter: &str) -> anyhow::Result<Self> {
        let settings = serde_json::json!({ "trigger": [{ "mqtt": { "filter": filter } }] });
        self.function_with(name, version, guest, "", &settings)
    }

    /// With a guest, `more` of its function.toml, and settings of the operator.
    ///
    /// # Errors
    /// When its bundle cannot be made.
    pub fn function_with(
        self,
        name: &str,
        version: &str,
        guest: &Guest,
        more: &str,
        settings: &Value,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(self.signers.folder.path())?;
        let bundle = folder.path().join(name);
        guest.write(&bundle, version)?;
        std::fs::write(bundle.join("event.json"), "1")?;
        let manifest = bundle.join("function.toml");
        std::fs::write(&manifest, std::fs::read_to_string(&manifest)? + more)?;
        let archive = folder.path().join("bundle.tar.zst");
        tidegate::store::pack(&bundle, &archive)?;
        self.bundle(Kind::Function, name, version, &archive, &["mqtt:publish:results/#", "keyvalue"], settings)
    }

    /// With an agent, built for this machine. It has eight seconds to find its brokers.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn agent(self, version: &str, binary: &Path) -> anyhow::Result<Self> {
        let draft = self.native(boot::TARGET, boot::FLAVOUR, std::fs::read(binary)?);
        let draft = draft.policy(|policy| policy.probation_ms = 4_000);
        draft.bundle(Kind::Agent, "tidegate", version, binary, &[], &Value::Null)
    }

    /// With a bundle file of any kind.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bundle(
        mut self,
        kind: Kind,
        name: &str,
        version: &str,
        archive: &Path,
        capabilities: &[&str],
        settings: &Value,
    ) -> anyhow::Result<Self> {
        let bytes = std::fs::read(archive)?;
        let blob = Blob { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
        let capabilities: Vec<_> = capabilities.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let capabilities = sync_protocol::capability::Capabilities(capabilities);
        let (name, version) = (ArtifactName::parse(name)?, version.parse()?);
        let release = Release {
            kind,
            name: name.clone(),
            version,
            blob,
            capabilities: capabilities.clone(),
            models: Vec::new(),
            minimum: None,
            native: std::mem::take(&mut self.native),
            published_ms: SIGNED_MS,
        };
        let envelope = Envelope::sign(&release, &[&self.signers.publisher])?;
        let settings = settings.as_object().cloned().unwrap_or_default().into_iter().collect();
        let version = release.version;
        self.artifacts.push(Artifact { kind, name, version, release: envelope.digest()?, capabilities, settings });
        self.releases.push(envelope);
        self.blobs.insert(blob.digest.hex(), bytes);
        Ok(self)
    }

    /// With a stream.
    #[must_use]
    pub fn stream(mut self, name: &str, settings: Value) -> Self {
        self.streams.insert(name.to_owned(), settings);
        self
    }

    /// Judged otherwise.
    #[must_use]
    pub fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.policy);
        self
    }

    /// Has other bytes in its file than were signed, where `change` says so; none, where it empties them.
    #[must_use]
    pub fn carrying(mut self, mut change: impl FnMut(&mut Vec<u8>)) -> Self {
        self.blobs.values_mut().for_each(&mut change);
        self.blobs.retain(|_, bytes| !bytes.is_empty());
        self
    }

    /// The bytes of its bundles.
    pub fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.blobs.values()
    }

    /// Spoils the bytes of each bundle, whose digests were signed already.
    #[must_use]
    pub fn with_other_bytes(self) -> Self {
        self.carrying(|bytes| bytes.last_mut().into_iter().for_each(|byte| *byte ^= 1))
    }

    /// Signs it, by its operator.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(&self) -> anyhow::Result<(DeploymentRef, DesiredAnswer)> {
        let deployment = Deployment {
            target: Target::Gateway(GatewayName::parse("test")?),
            number: self.number,
            floor: 0,
            created_ms: SIGNED_MS,
            expires_ms: NEVER_MS,
            artifacts: self.artifacts.clone(),
            streams: self.streams.clone(),
            policy: self.policy,
            comment: String::new(),
        };
        let envelope = Envelope::sign(&deployment, &[&self.signers.operator])?;
        let reference = DeploymentRef { number: self.number, digest: envelope.digest()? };
        let answer =
            DesiredAnswer { deployment: Some(envelope), releases: self.releases.clone(), ..Default::default() };
        Ok((reference, answer))
    }

    /// Writes the file that `tidegate apply` takes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self) -> anyhow::Result<PathBuf> {
        self.file_of(&self.sign()?.1)
    }

    /// The same with another answer in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file_of(&self, answer: &DesiredAnswer) -> anyhow::Result<PathBuf> {
        let path = self.signers.folder.path().join(format!("deployment-{}.tar", self.number));
        let mut archive = tar::Builder::new(std::fs::File::create(&path)?);
        let mut append = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes)
        };
        append("deployment.json", &serde_json::to_vec(answer)?)?;
        for (hex, bytes) in &self.blobs {
            append(&format!("blobs/{hex}"), bytes)?;
        }
        archive.finish().context("the file cannot be written")?;
        Ok(path)
    }
}
