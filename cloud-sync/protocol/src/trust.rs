//! What a gateway trusts: the root, and what it remembers of what it accepted. The steps are those of the TUF specification 1.0, section 5.
//!
//! # Promises
//! - Nothing is taken over of what was refused; whatever came, what runs goes on.
//! - Time stops what is new, never what was accepted; no clock, right or wrong, leaves anything behind in here.
//! - What is remembered is the word of those who signed it: when a new root takes so many of their keys away that they would not suffice any
//!   more, it is forgotten. So whoever stole keys cannot lock a gateway out with the highest of all numbers.

mod composing;

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;
use serde::{Deserialize, Serialize};

pub use self::composing::Latest;
use crate::Digest;
use crate::deployment::{Deployment, Target};
use crate::desired::{DeploymentRef, Desired, DesiredAnswer};
use crate::envelope::Envelope;
use crate::key::KeyId;
use crate::limits::{ACCEPTED_MAX, KNOWN_RELEASES_MAX, ROOTS_MAX};
use crate::name::{GatewayName, GroupName};
use crate::refused::Refused;
use crate::root::{Role, RoleKeys, Root};
use crate::verified::{Read as _, Stored, Verified, VerifiedDeployment, at_most, digest, signers};

/// All of it; as JSON one file, which its owner writes before it acts on what it has accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Memory", into = "Memory")]
pub struct Trust {
    root: Root,
    memory: Memory,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    /// The newest root.
    root: Envelope,
    /// The newest desired document, and for whom that was.
    desired: Option<Newest>,
    /// The groups that it named; before the first, those of provisioning.
    groups: Vec<GroupName>,
    /// Lowest number that may run, by target.
    floors: BTreeMap<String, Word<u64>>,
    /// Deployments that were accepted, the last one last.
    accepted: Vec<Word<Accepted>>,
    /// Lowest version that may run, by kind and name.
    minimums: BTreeMap<String, Word<Version>>,
    /// Releases that were accepted, the last one last.
    releases: Vec<Word<Known>>,
    /// Newest time that an off-line signer wrote down.
    signed_ms: Option<Word<u64>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newest {
    gateway: GatewayName,
    sequence: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Accepted {
    target: Target,
    number: u64,
    digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    what: String,
    digest: Digest,
}

/// Something that was signed, and by whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Word<T> {
    value: T,
    signers: BTreeSet<KeyId>,
}

impl<T> Word<T> {
    /// Whether those who signed it would suffice today.
    fn stands(&self, keys: &RoleKeys) -> bool {
        self.signers.iter().filter(|signer| keys.keys.contains_key(signer)).count() >= keys.threshold
    }
}

impl<T: PartialOrd> Word<T> {
    /// The higher one, by whoever signed that.
    fn raise(held: &mut Option<Self>, new: Self) {
        if held.as_ref().is_none_or(|held| held.value < new.value) {
            *held = Some(new);
        }
    }
}

impl TryFrom<Memory> for Trust {
    type Error = Refused;
    fn try_from(memory: Memory) -> Result<Self, Refused> {
        Ok(Self { root: self_signed(&memory.root)?, memory })
    }
}

impl From<Trust> for Memory {
    fn from(trust: Trust) -> Self {
        trust.memory
    }
}

/// A root by its own word: enough for one that is pinned, or that was kept.
fn self_signed(envelope: &Envelope) -> Result<Root, Refused> {
    let root: Root = envelope.unverified().map_err(Refused::of("the root"))?;
    root.check()?;
    root.read(Role::Root, &format!("root {}", root.version), envelope)
}

impl Trust {
    /// Begins with `root`, of which the claim token or a file gave the digest `expected`.
    ///
    /// # Errors
    /// When it is another one, or not signed by its own root keys.
    pub fn anchor(root: &Envelope, expected: &Digest) -> Result<Self, Refused> {
        let offered = digest("the root", root)?;
        if offered != *expected {
            return Err(Refused::NotTheAnchor { expected: *expected, offered });
        }
        Self::try_from(Memory {
            root: root.clone(),
            desired: None,
            groups: Vec::new(),
            floors: BTreeMap::new(),
            accepted: Vec::new(),
            minimums: BTreeMap::new(),
            releases: Vec::new(),
            signed_ms: None,
        })
    }

    /// The groups that provisioning named. Once there was a desired document, only that says.
    pub fn provisioned(&mut self, groups: &[GroupName]) {
        if self.memory.desired.is_none() {
            self.memory.groups = groups.to_vec();
        }
    }

    /// The newest root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its version, to ask for what is newer.
    pub fn root_version(&self) -> u64 {
        self.root.version
    }

    /// Sequence of the newest desired document that was accepted; 0 before the first.
    pub fn desired_sequence(&self) -> u64 {
        self.memory.desired.as_ref().map_or(0, |newest| newest.sequence)
    }

    /// The groups that this gateway belongs to, as far as it knows.
    pub fn groups(&self) -> &[GroupName] {
        &self.memory.groups
    }

    /// Takes over new roots; to be called with an answer's roots before [`Trust::verify`]. All or nothing. Older ones are skipped, so a file may
    /// hold all of them. Whether the last has expired is judged when it is used (5.3.10).
    ///
    /// # Errors
    /// With what is wrong with one of them.
    pub fn update_roots(&mut self, roots: &[Envelope]) -> Result<(), Refused> {
        // 5.3.2: a bound on how many.
        at_most("the answer", roots.len(), "roots", ROOTS_MAX)?;
        let mut updated = self.clone();
        for envelope in roots {
            updated.update_root(envelope)?;
        }
        *self = updated;
        Ok(())
    }

    fn update_root(&mut self, envelope: &Envelope) -> Result<(), Refused> {
        let claimed: Root = envelope.unverified().map_err(Refused::of("a root"))?;
        if claimed.version < self.root.version || digest("a root", envelope)? == digest("the root", &self.memory.root)?
        {
            return Ok(());
        }
        // 5.3.5: no older one, no other of the same version, no gap. Said first, since after a gap the signatures tell nothing.
        if claimed.version != self.root.version + 1 {
            return Err(Refused::RootVersion { trusted: self.root.version, offered: claimed.version });
        }
        // 5.3.4: by the threshold of the root that is trusted, and by its own.
        let what = format!("root {}", claimed.version);
        let root: Root = self.root.read(Role::Root, &what, envelope)?;
        let root: Root = root.read(Role::Root, &what, envelope)?;
        root.check()?;
        // 5.3.11: who took the on-line keys may have counted as high as there are numbers.
        if self.root.roles.get(&Role::Online) != root.roles.get(&Role::Online) {
            self.memory.desired = None;
        }
        self.memory.forget_those_who_left(&root)?;
        // 5.3.6 to 5.3.8; its owner writes it down.
        self.memory.root = envelope.clone();
        self.root = root;
        Ok(())
    }

    /// Checks everything of `answer` for `gateway`, which runs `running`. Nothing changes.
    ///
    /// `now_ms` is Unix time; `None`: the clock was never set, and expiry is judged by the newest time that an off-line signer wrote down.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn verify(
        &self,
        gateway: &GatewayName,
        answer: &DesiredAnswer,
        now_ms: Option<u64>,
        running: Option<&DeploymentRef>,
    ) -> Result<Verified, Refused> {
        let now_ms = now_ms.unwrap_or_else(|| self.memory.signed_ms.as_ref().map_or(0, |newest| newest.value));
        // 5.3.10: the root.
        fresh(format!("root {}", self.root.version), self.root.expires_ms, now_ms)?;
        // 5.4 and 5.5: timestamp and snapshot, which are one document here.
        let desired = answer.desired.as_ref().map(|envelope| self.verify_desired(gateway, envelope, now_ms));
        let desired: Option<Desired> = desired.transpose()?;
        // 5.6: targets.
        let wanted = desired.as_ref().map(|desired| desired.deployment);
        let deployment = match (&answer.deployment, wanted) {
            (None, Some(None)) if answer.releases.is_empty() => None,
            (None, Some(None)) => return Err(Refused::Extraneous { what: "a release".to_owned() }),
            (Some(_), Some(None)) => return Err(Refused::Extraneous { what: "a deployment".to_owned() }),
            (None, Some(Some(wanted))) => {
                return Err(Refused::Missing { what: format!("deployment {}", wanted.number) });
            }
            (None, None) => return Err(Refused::Missing { what: "a deployment".to_owned() }),
            (Some(envelope), wanted) => {
                let deployment = self.root.verify_deployment(envelope, &answer.releases)?;
                let groups = desired.as_ref().map_or(&self.memory.groups, |desired| &desired.groups);
                self.check_deployment(gateway, groups, &deployment, now_ms, running)?;
                match wanted.flatten() {
                    Some(wanted) => chosen(&deployment, wanted)?,
                    None => self.check_order(&deployment, running)?,
                }
                Some(deployment)
            }
        };
        Ok(Verified::new(desired, deployment))
    }

    /// The desired document alone, when that holds: what the control plane asks for beside a deployment does not wait for a better one.
    pub fn heard(&self, gateway: &GatewayName, desired: &Envelope, now_ms: Option<u64>) -> Option<Desired> {
        let now_ms = now_ms.unwrap_or_else(|| self.memory.signed_ms.as_ref().map_or(0, |newest| newest.value));
        self.verify_desired(gateway, desired, now_ms).ok()
    }

    fn verify_desired(&self, gateway: &GatewayName, envelope: &Envelope, now_ms: u64) -> Result<Desired, Refused> {
        // 5.4.2: signatures.
        let desired: Desired = self.root.read(Role::Online, "the desired document", envelope)?;
        if desired.gateway != *gateway {
            return Err(Refused::WrongGateway { addressee: desired.gateway, gateway: gateway.clone() });
        }
        // 5.4.3: rollback. One that was counted for another name of this gateway does not count.
        if self.is_older(&desired) {
            return Err(Refused::Older { trusted: self.desired_sequence(), offered: desired.sequence });
        }
        // 5.4.4: freeze.
        fresh("the desired document".to_owned(), desired.expires_ms, now_ms)?;
        Ok(desired)
    }

    fn is_older(&self, desired: &Desired) -> bool {
        let newest = self.memory.desired.as_ref().filter(|newest| newest.gateway == desired.gateway);
        newest.is_some_and(|newest| desired.sequence < newest.sequence)
    }

    fn check_deployment(
        &self,
        gateway: &GatewayName,
        groups: &[GroupName],
        verified: &VerifiedDeployment,
        now_ms: u64,
        running: Option<&DeploymentRef>,
    ) -> Result<(), Refused> {
        let Deployment { target, number, .. } = verified.deployment();
        let (target, number) = (target.clone(), *number);
        let ours = match &target {
            Target::Gateway(name) => name == gateway,
            Target::Group(name) => groups.contains(name),
        };
        if !ours {
            return Err(Refused::WrongTarget { number, target, gateway: gateway.clone() });
        }
        if let Some(floor) = self.memory.floors.get(&target.to_string()).filter(|floor| number < floor.value) {
            return Err(Refused::Superseded { number, target, floor: floor.value });
        }
        let reference = verified.reference();
        let known = self.accepted_of(&target).find(|accepted| accepted.number == number);
        if let Some(known) = known.filter(|known| known.digest != reference.digest) {
            let what = format!("deployment {}", verified.deployment());
            return Err(Refused::Changed { what, known: known.digest, offered: reference.digest });
        }
        // 5.6.5: freeze, of what is new here only.
        if known.is_none() && running != Some(&reference) {
            fresh(format!("deployment {}", verified.deployment()), verified.deployment().expires_ms, now_ms)?;
        }
        for (artifact, release) in verified.artifacts() {
            let what = artifact.to_string();
            self.check_release(&what, artifact.release)?;
            let minimum = self.memory.minimums.get(&release.unversioned()).map(|minimum| &minimum.value);
            if let Some(minimum) = minimum.filter(|minimum| release.version.cmp_precedence(minimum).is_lt()) {
                return Err(Refused::BelowMinimum { artifact: what, minimum: minimum.clone() });
            }
        }
        Ok(())
    }

    /// One version has one content.
    fn check_release(&self, what: &str, offered: Digest) -> Result<(), Refused> {
        let known = self.memory.releases.iter().find(|known| known.value.what == what).map(|known| known.value.digest);
        match known.filter(|known| *known != offered) {
            Some(known) => Err(Refused::Changed { what: what.to_owned(), known, offered }),
            None => Ok(()),
        }
    }

    /// Without the control plane's word numbers only grow.
    fn check_order(&self, verified: &VerifiedDeployment, running: Option<&DeploymentRef>) -> Result<(), Refused> {
        let Deployment { target, number, .. } = verified.deployment();
        let runs = self.accepted_of(target).find(|accepted| running.is_some_and(|runs| runs.digest == accepted.digest));
        let newest = || self.accepted_of(target).map(|accepted| accepted.number).max();
        match runs.map(|runs| runs.number).or_else(newest) {
            Some(running) if *number < running => {
                Err(Refused::Behind { number: *number, target: target.clone(), running })
            }
            _ => Ok(()),
        }
    }

    /// What was accepted for `target` by the word of those who may still sign.
    fn accepted_of(&self, target: &Target) -> impl Iterator<Item = &Accepted> {
        let operators = self.root.roles.get(&Role::Operator);
        let standing = move |accepted: &&Word<Accepted>| operators.is_some_and(|keys| accepted.stands(keys));
        let accepted = self.memory.accepted.iter().filter(standing).map(|accepted| &accepted.value);
        accepted.filter(move |accepted| accepted.target == *target)
    }

    /// Remembers what was verified. To be written down before anything is done about it.
    pub fn accept(&mut self, verified: &Verified) {
        let passed = |desired: &&Desired| !self.is_older(desired);
        if let Some(desired) = verified.desired.as_ref().filter(passed) {
            self.memory.desired = Some(Newest { gateway: desired.gateway.clone(), sequence: desired.sequence });
            self.memory.groups.clone_from(&desired.groups);
        }
        let Some(verified) = &verified.deployment else { return };
        let operators = signers(&self.root, Role::Operator, &verified.envelope);
        let memory = &mut self.memory;
        memory.note_deployment(verified.deployment(), verified.reference().digest, operators);
        for (artifact, envelope) in verified.deployment().artifacts.iter().zip(&verified.release_envelopes) {
            let publishers = signers(&self.root, Role::Publisher, envelope);
            memory.note_release(Known { what: artifact.to_string(), digest: artifact.release }, publishers);
        }
    }

    /// Remembers that it was watched and found good: from now on the minimums of its releases hold.
    pub fn keep(&mut self, verified: &VerifiedDeployment) {
        let Some(publishers) = self.root.roles.get(&Role::Publisher) else { return };
        for (release, envelope) in verified.releases().iter().zip(&verified.release_envelopes) {
            let Some(minimum) = release.minimum.clone() else { continue };
            let word = Word { value: minimum, signers: signers(&self.root, Role::Publisher, envelope) };
            if word.stands(publishers) {
                let mut held = self.memory.minimums.remove(&release.unversioned());
                Word::raise(&mut held, word);
                self.memory.minimums.extend(held.map(|minimum| (release.unversioned(), minimum)));
            }
        }
    }

    /// A deployment that was accepted and kept as [`VerifiedDeployment::to_answer`], after a restart. It is the gateway's own state: who signed is
    /// not asked again, since the root may have changed and what runs goes on; neither are time, target, floors and minimums. That its parts
    /// belong together, by their digests, and that it is the one that was accepted under its number, is checked.
    ///
    /// # Errors
    /// When a part is missing or was changed.
    pub fn reverify(&self, answer: &DesiredAnswer) -> Result<VerifiedDeployment, Refused> {
        let envelope =
            answer.deployment.as_ref().ok_or_else(|| Refused::Missing { what: "a deployment".to_owned() })?;
        let stored = VerifiedDeployment::assemble(envelope, &answer.releases, &Stored)?;
        let (target, reference) = (&stored.deployment().target, stored.reference());
        let accepted = self.memory.accepted.iter().map(|accepted| &accepted.value);
        let named = accepted.filter(|accepted| (&accepted.target, accepted.number) == (target, reference.number));
        let digests: Vec<Digest> = named.map(|accepted| accepted.digest).collect();
        match digests.last() {
            Some(known) if !digests.contains(&reference.digest) => Err(Refused::Changed {
                what: format!("deployment {}", stored.deployment()),
                known: *known,
                offered: reference.digest,
            }),
            _ => Ok(stored),
        }
    }
}

impl Memory {
    fn note_deployment(&mut self, deployment: &Deployment, digest: Digest, operators: BTreeSet<KeyId>) {
        let Deployment { target, number, floor, created_ms, .. } = deployment;
        let word = |value| Word { value, signers: operators.clone() };
        let key = target.to_string();
        let mut held = self.floors.remove(&key);
        Word::raise(&mut held, word(*floor));
        self.floors.extend(held.map(|floor| (key, floor)));
        Word::raise(&mut self.signed_ms, word(*created_ms));

        let accepted = Accepted { target: target.clone(), number: *number, digest };
        self.accepted.retain(|earlier| earlier.value != accepted);
        self.accepted.push(Word { value: accepted, signers: operators });
        keep_newest(&mut self.accepted, ACCEPTED_MAX);
    }

    fn note_release(&mut self, release: Known, publishers: BTreeSet<KeyId>) {
        self.releases.retain(|earlier| earlier.value != release);
        self.releases.push(Word { value: release, signers: publishers });
        keep_newest(&mut self.releases, KNOWN_RELEASES_MAX);
    }

    fn forget_those_who_left(&mut self, root: &Root) -> Result<(), Refused> {
        let (operators, publishers) = (root.keys(Role::Operator)?, root.keys(Role::Publisher)?);
        self.floors.retain(|_, floor| floor.stands(operators));
        self.signed_ms.take_if(|newest| !newest.stands(operators));
        self.minimums.retain(|_, minimum| minimum.stands(publishers));
        self.releases.retain(|known| known.stands(publishers));
        Ok(())
    }
}

/// Drops the oldest beyond `max`.
fn keep_newest<T>(list: &mut Vec<T>, max: usize) {
    list.drain(..list.len().saturating_sub(max));
}

fn fresh(document: String, expired_ms: u64, now_ms: u64) -> Result<(), Refused> {
    if now_ms >= expired_ms { Err(Refused::Expired { document, expired_ms, now_ms }) } else { Ok(()) }
}

/// 5.6.2: the deployment is the one that the desired document names.
fn chosen(verified: &VerifiedDeployment, wanted: DeploymentRef) -> Result<(), Refused> {
    let show = |reference: DeploymentRef| format!("{} ({})", reference.number, reference.digest);
    let offered = verified.reference();
    if offered == wanted {
        return Ok(());
    }
    let (document, by) = ("the deployment".to_owned(), "the desired document");
    Err(Refused::Mixed { document, offered: show(offered), wanted: show(wanted), by })
}
