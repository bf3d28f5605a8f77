//! What this laptop trusts: a root of trust that a person has pinned, the roots that followed it, and what was seen of what they let be signed.
//! A control plane that was broken into can then not have anybody sign what they did not mean.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sync_protocol::provision::ClaimToken;
use sync_protocol::trust::Latest;
use sync_protocol::{Deployment, Digest, Envelope, Refused, Release, Role, Root, SecretKey, Target, Trust};

use super::output::{Errors, Output, time};
use super::remote::Remote;
use super::{Failure, signing};
use crate::clock::Clock;
use crate::config::{Access, Environment};

/// Which root of trust counts here.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct TrustArgs {
    /// The root of trust that you have from somebody whom you trust; `root` in cloud.toml unless said
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
}

/// What a control plane shows of a target's deployments.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The newest that operators of today have signed.
    pub(super) newest: Option<Deployment>,
    /// Highest number of those that operators of an earlier root have signed, and those of today have not.
    pub(super) former: u64,
    /// Highest number of those that nobody has signed who may.
    pub(super) strange: u64,
}

/// What a laptop holds to be true. What it learns is kept with [`Laptop::keep`].
#[derive(Debug)]
pub(super) struct Laptop {
    trust: Trust,
    file: PathBuf,
    /// From the pinned one on, all that followed, as far as they are shown: by them it is known what was signed well once.
    roots: Vec<(Digest, Root)>,
    /// By target; beside `file`.
    unsent: BTreeMap<String, Unsent>,
}

/// A deployment that was signed here and written to a file: no control plane need know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unsent {
    number: u64,
    /// Number of the one before it that was not.
    sent: u64,
}

impl Laptop {
    /// By the root that was pinned, and those that the control plane shows to follow it.
    pub(super) async fn open(args: &TrustArgs, remote: &Remote) -> anyhow::Result<Self> {
        let access = Access::load(&Environment::of_process())?;
        let pinned = args.root.clone().unwrap_or(access.root);
        if !pinned.exists() {
            let what = "this laptop trusts no root yet, so it cannot tell who may sign what";
            let hint = "have somebody tell you its digest, not the control plane, and pin it: `tidegate fleet roots --trust sha256:…`; or name its file: `--root FILE`";
            return Err(Failure::wrong(what, hint).into());
        }
        let anchor = signing::read_envelope(&pinned)?;
        let mut laptop = Self::pinned(&anchor, &pinned)?;
        let shown: Vec<Envelope> = remote.list("roots").await?;
        for root in &shown {
            let followed = laptop.follow(root);
            followed.map_err(|refused| {
                let hint = format!(
                    "it may have been broken into: sign nothing before somebody has looked. If this is another fleet, name its own root with `--root FILE` instead of `{}`",
                    pinned.display()
                );
                let what = "the roots of the control plane do not follow the one that this laptop trusts";
                Failure::failed(what, hint).caused_by(refused)
            })?;
        }
        laptop.keep()?;
        let root = laptop.trust.root();
        let newest = shown.iter().filter_map(|root| Some(root.unverified::<Root>().ok()?.version)).max().unwrap_or(0);
        if newest < root.version {
            let hint = "hand in those that are missing: `tidegate fleet roots --add FILE`";
            Errors::line(&format!(
                "warning: the control plane has root {newest}, and this laptop root {}: {hint}",
                root.version
            ));
        }
        if root.expires_ms <= Clock::system().now_ms() {
            let what = format!(
                "root {} has expired on {}: no gateway takes anything new",
                root.version,
                time(root.expires_ms)
            );
            return Err(Failure::wrong(
                what,
                "have its holders sign the next: `tidegate keygen root --from FILE --send`",
            )
            .into());
        }
        Ok(laptop)
    }

    /// What was kept for the fleet whose root `pinned` is.
    fn pinned(root: &Envelope, pinned: &Path) -> anyhow::Result<Self> {
        let digest = root.digest().with_context(|| format!("`{}` is no root of trust", pinned.display()))?;
        let file = folder()?.join("trust").join(format!("{}.json", digest.hex()));
        let trust = match std::fs::read(&file) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| {
                let hint =
                    "move it away: then what this laptop has seen is forgotten, and begins with the pinned root again";
                Failure::wrong(format!("`{}` cannot be used: {error}", file.display()), hint)
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Trust::anchor(root, &digest).map_err(|refused| {
                let what = format!("`{}` is no root of trust to begin with: {refused}", pinned.display());
                Failure::wrong(what, refused.hint())
            })?,
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", file.display())),
        };
        let first = root.unverified().with_context(|| format!("`{}` is no root of trust", pinned.display()))?;
        let unsent = match std::fs::read(unsent_file(&file)) {
            // What cannot be read costs a warning that is not needed.
            Ok(json) => serde_json::from_slice(&json).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { trust, file, roots: vec![(digest, first)], unsent })
    }

    /// Takes over a root that is newer, and knows again one that is not.
    fn follow(&mut self, root: &Envelope) -> Result<(), Refused> {
        self.trust.update_roots(std::slice::from_ref(root))?;
        let known = root.unverified::<Root>().ok().filter(|known| known.version <= self.trust.root_version());
        if let (Some(known), Some((_, last)), Ok(digest)) = (known, self.roots.last(), root.digest()) {
            let signed = |by: &Root| by.keys(Role::Root).is_ok_and(|keys| root.verify::<Root>(keys).is_ok());
            if known.version == last.version + 1 && signed(last) && signed(&known) {
                self.roots.push((digest, known));
            }
        }
        Ok(())
    }

    /// Writes down what was seen.
    pub(super) fn keep(&self) -> anyhow::Result<()> {
        write(&self.file, &serde_json::to_vec_pretty(&self.trust)?)?;
        let unsent = unsent_file(&self.file);
        if self.unsent.is_empty() && !unsent.exists() {
            return Ok(());
        }
        write(&unsent, &serde_json::to_vec_pretty(&self.unsent)?)
    }

    /// Who may sign what, as of today.
    pub(super) fn root(&self) -> &Root {
        self.trust.root()
    }

    /// The newest deployment of `target` that operators have signed.
    pub(super) fn latest(&self, target: &Target) -> Option<Latest> {
        self.trust.latest(target)
    }

    /// The highest number of `target` that a control plane should know.
    pub(super) fn sent(&self, target: &Target) -> u64 {
        let latest = self.latest(target).map_or(0, |latest| latest.number);
        let unsent = self.unsent.get(&target.to_string()).filter(|unsent| unsent.number == latest);
        unsent.map_or(latest, |unsent| unsent.sent)
    }

    /// A release that the control plane shows, if its publishers have signed it.
    pub(super) fn release(&mut self, envelope: &Envelope) -> anyhow::Result<Release> {
        let refused = match self.trust.see_release(envelope) {
            Ok(release) => return Ok(release),
            Err(refused) => refused,
        };
        let by = |(_, root): &(Digest, Root)| root.verify_release(envelope).ok();
        match self.roots.iter().find_map(by) {
            Some(release) if matches!(refused, Refused::Signatures { .. }) => {
                let what = format!(
                    "{release} was signed by publishers of before, and those of root {} have not",
                    self.root().version
                );
                let hint = "publish the same files as a new version, signed by those of today";
                Err(Failure::failed(what, hint).caused_by(refused).into())
            }
            _ => Err(disbelieved("a release", refused)),
        }
    }

    /// Which of the deployments of a target that the control plane shows are to be believed.
    pub(super) fn deployments(&mut self, shown: &[Envelope]) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        let number = |envelope: &Envelope| envelope.unverified().map_or(0, |deployment: Deployment| deployment.number);
        let mut shown: Vec<(u64, &Envelope)> = shown.iter().map(|envelope| (number(envelope), envelope)).collect();
        shown.sort_by_key(|(number, _)| *number);
        for (number, envelope) in shown {
            match self.trust.see_deployment(envelope) {
                Ok(deployment) => seen.newest = Some(deployment),
                Err(Refused::Signatures { .. }) if self.was_signed(envelope) => seen.former = number,
                Err(Refused::Signatures { .. } | Refused::Malformed { .. }) => seen.strange = number,
                // Both were signed: the next one goes above them.
                Err(refused @ Refused::Changed { .. }) => Errors::line(&format!(
                    "warning: {refused}; perhaps somebody signed it again after the control plane was restored. Gateways that know the first refuse the second"
                )),
                Err(refused) => return Err(disbelieved("a deployment", refused)),
            }
        }
        if let Some(newest) = &seen.newest {
            let target = newest.target.to_string();
            self.unsent.retain(|of, unsent| *of != target || unsent.number > newest.number);
        }
        self.keep()?;
        Ok(seen)
    }

    /// Whether operators of an earlier root have signed it.
    fn was_signed(&self, envelope: &Envelope) -> bool {
        let by = |root: &Root| root.keys(Role::Operator).is_ok_and(|keys| envelope.verify::<Deployment>(keys).is_ok());
        self.roots.iter().any(|(_, root)| by(root))
    }

    /// Whether `key` may sign as `role` today.
    pub(super) fn check_key(&self, key: &SecretKey, role: Role) -> Result<(), Failure> {
        let root = self.trust.root();
        let (id, version) = (key.public().id(), root.version);
        if root.keys(role).is_ok_and(|keys| keys.keys.contains_key(&id)) {
            return Ok(());
        }
        let what = format!("key {id} may not sign as {role}: root {version} of trust does not list it");
        let hint = format!(
            "name another with `--key`, or have holders of root keys add it: `tidegate keygen root --from FILE --add {role}=FILE`"
        );
        Err(Failure::wrong(what, hint))
    }

    /// Whether exactly this is the newest of its target, with whatever signatures.
    pub(super) fn is_latest(&self, deployment: &Deployment, envelope: &Envelope) -> bool {
        self.latest(&deployment.target)
            .is_some_and(|latest| envelope.digest().is_ok_and(|digest| digest == latest.digest))
    }

    /// Remembers what was just signed here, to be sent or for a file.
    pub(super) fn signed(
        &mut self,
        deployment: &Deployment,
        envelope: &Envelope,
        for_file: bool,
    ) -> anyhow::Result<()> {
        let (number, sent) = (deployment.number, self.sent(&deployment.target));
        self.trust.see_deployment(envelope).map_err(|refused| Failure::wrong(refused.to_string(), refused.hint()))?;
        if !for_file {
            self.unsent.remove(&deployment.target.to_string());
        } else if number > sent {
            self.unsent.insert(deployment.target.to_string(), Unsent { number, sent });
        }
        self.keep()
    }
}

fn disbelieved(what: &str, refused: Refused) -> anyhow::Error {
    let hint = "the control plane may have been broken into: have somebody look at it; nothing was signed";
    Failure::failed(format!("the control plane shows {what} that is not to be believed"), hint)
        .caused_by(refused)
        .into()
}

/// Refuses a claim token whose root this laptop does not trust: new gateways would trust nothing else. Without a root of its own it can only tell.
pub(super) async fn check_claim(remote: &Remote, token: &ClaimToken) -> anyhow::Result<()> {
    if !Access::load(&Environment::of_process())?.root.exists() {
        Errors::line(&format!(
            "warning: this laptop trusts no root yet, so that the token's is the control plane's word: {}",
            token.root
        ));
        return Ok(());
    }
    let laptop = Laptop::open(&TrustArgs::default(), remote).await?;
    if laptop.roots.iter().any(|(known, _)| *known == token.root) {
        return Ok(());
    }
    let what = format!("the claim token names root {}, which this laptop does not trust", token.root);
    let hint = "the control plane may have been broken into: gateways that come in by this token would trust whoever signed that root";
    Err(Failure::failed(what, hint).into())
}

/// Pins the root with `digest` among those that the control plane has.
pub(super) async fn pin_by_digest(remote: &Remote, digest: Digest) -> anyhow::Result<()> {
    let shown: Vec<Envelope> = remote.list("roots").await?;
    let named = shown.iter().find(|root| root.digest().is_ok_and(|there| there == digest)).ok_or_else(|| {
        let hint = "compare the digest, and `--cloud`, with whoever told you";
        Failure::wrong(format!("the control plane has no root of trust {digest}"), hint)
    })?;
    let file = Access::load(&Environment::of_process())?.root;
    if file.exists() && signing::read_envelope(&file)?.digest()? != digest {
        let what = format!("`{}` is another root, which this laptop trusts already", file.display());
        let hint = "move it away if that is not to count any more; its followers are taken over by themselves";
        return Err(Failure::wrong(what, hint).into());
    }
    pin(named, &file)
}

/// Pins a root that its holder has signed here, unless one is pinned already.
pub(super) fn pin_own(root: &Envelope) -> anyhow::Result<()> {
    let environment = Environment::of_process();
    let file = Access::load(&environment)?.root;
    if file.exists() || Access::folder(&environment).is_none() {
        return Ok(());
    }
    pin(root, &file)
}

fn pin(root: &Envelope, file: &Path) -> anyhow::Result<()> {
    Laptop::pinned(root, file)?;
    write(file, format!("{}\n", root.to_pretty()).as_bytes())?;
    Ok(Output::line(&format!(
        "{} is what this laptop trusts from now on, and the roots that follow it",
        file.display()
    ))?)
}

fn folder() -> anyhow::Result<PathBuf> {
    Access::folder(&Environment::of_process()).ok_or_else(|| {
        let what = "there is no folder to remember in what was signed";
        Failure::wrong(what, "set HOME or XDG_CONFIG_HOME").into()
    })
}

fn unsent_file(trust: &Path) -> PathBuf {
    trust.with_extension("unsent.json")
}

/// All of it or nothing, whatever happens meanwhile.
fn write(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || {
        std::fs::create_dir_all(parent)?;
        let mut unfinished = tempfile::Builder::new().prefix(".trust-").tempfile_in(parent)?;
        std::io::Write::write_all(&mut unfinished, content)?;
        unfinished.as_file().sync_all()?;
        unfinished.persist(file).map_err(|error| error.error)
    };
    written().map(drop).with_context(|| format!("cannot write `{}`", file.display()))
}
