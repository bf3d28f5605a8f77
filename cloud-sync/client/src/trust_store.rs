//! What this gateway trusts, on disk.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sync_protocol::deployment::Deployment;
use sync_protocol::desired::{DeploymentRef, Desired};
use sync_protocol::limits::ROOTS_MAX;
use sync_protocol::name::GatewayName;
use sync_protocol::trust::Trust;
use sync_protocol::verified::VerifiedDeployment;
use sync_protocol::{DesiredAnswer, Envelope, EnvelopeError, Refused};

use crate::files::{self, Readers};
use crate::identity::Identity;

/// Why something was not accepted, or what is trusted is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not to be trusted.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// Nothing is trusted yet.
    #[error("this gateway has no root of trust yet, so it can verify nothing")]
    NoRoot,
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What was verified and written down, and may be acted on.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// As it came, to be kept beside what becomes of it and verified again after a restart.
    pub answer: DesiredAnswer,
    /// What the control plane wants; `None` when it came on a stick without its word.
    pub desired: Option<Desired>,
    /// What is to run; `None` while nothing was deployed.
    pub deployment: Option<VerifiedDeployment>,
}

impl Accepted {
    /// The deployment's text, for those who show it.
    pub fn document(&self) -> Option<&Deployment> {
        self.deployment.as_ref().map(VerifiedDeployment::deployment)
    }
}

/// The one place where trust changes. What changed is on disk before anybody hears of it.
#[derive(Debug)]
pub struct TrustStore {
    path: PathBuf,
    trust: Mutex<Option<Trust>>,
}

impl TrustStore {
    /// What was kept in `folder`.
    ///
    /// # Errors
    /// When the file cannot be read. One that makes no sense is set aside: a gateway that trusts nobody for ever helps nobody.
    pub fn open(folder: &Path) -> Result<Self, TrustError> {
        let path = folder.join("trust.json");
        files::create_folder(folder).map_err(|source| TrustError::File {
            what: "write",
            path: path.clone(),
            source,
        })?;
        let json =
            files::read(&path).map_err(|source| TrustError::File { what: "read", path: path.clone(), source })?;
        let trust = json.and_then(|json| match serde_json::from_slice(&json) {
            Ok(trust) => Some(trust),
            Err(error) => {
                let aside = path.with_added_extension("damaged");
                tracing::error!(path = %path.display(), aside = %aside.display(), %error, "what was trusted is damaged, it is set aside");
                drop(std::fs::rename(&path, aside));
                None
            }
        });
        Ok(Self { path, trust: Mutex::new(trust) })
    }

    /// Begins with what is given when nothing is trusted yet.
    pub(crate) fn begin(&self, trust: Trust) -> Result<(), TrustError> {
        self.change(|held| match held {
            Some(_) => Ok(()),
            None => {
                *held = Some(trust);
                Ok(())
            }
        })
    }

    /// Begins with the first root of a file, when nothing is trusted yet: whoever put the file there is believed.
    ///
    /// # Errors
    /// When it does not hold by its own word, or cannot be kept.
    pub fn begin_with_root(&self, root: &Envelope) -> Result<(), TrustError> {
        self.begin(by_its_own_word(root)?)
    }

    /// Begins with what the identity was given, when the rest is lost. What was superseded meanwhile is forgotten with it.
    pub(crate) fn begin_with_identity(&self, identity: &Identity) -> Result<(), TrustError> {
        let Some((first, rest)) = identity.roots().split_first() else { return Ok(()) };
        if self.has_root() {
            return Ok(());
        }
        tracing::warn!(path = %self.path.display(), "what was trusted is lost, beginning with the root of provisioning");
        let mut trust = by_its_own_word(first)?;
        for roots in rest.chunks(ROOTS_MAX) {
            trust.update_roots(roots)?;
        }
        trust.provisioned(identity.groups());
        self.begin(trust)
    }

    /// Whether anything can be verified.
    pub fn has_root(&self) -> bool {
        self.peek(|_| ()).is_some()
    }

    /// Version of the root that is trusted; 0: none yet.
    pub fn root_version(&self) -> u64 {
        self.peek(Trust::root_version).unwrap_or(0)
    }

    /// Sequence of the newest desired document that was accepted.
    pub fn desired_sequence(&self) -> u64 {
        self.peek(Trust::desired_sequence).unwrap_or(0)
    }

    /// Verifies what came, by the control plane's word or on a stick, and remembers it. New roots are taken over even if the rest is refused.
    ///
    /// # Errors
    /// With why it was refused, or could not be written down; then it is not to be acted on.
    pub fn accept(
        &self,
        gateway: &GatewayName,
        answer: DesiredAnswer,
        now_ms: Option<u64>,
        running: Option<&DeploymentRef>,
    ) -> Result<Accepted, TrustError> {
        self.change(|held| {
            held.as_mut().ok_or(TrustError::NoRoot)?.update_roots(&answer.roots).map_err(TrustError::from)
        })?;
        let verified = self.change(|held| {
            let trust = held.as_mut().ok_or(TrustError::NoRoot)?;
            let verified = trust.verify(gateway, &answer, now_ms, running)?;
            trust.accept(&verified);
            Ok(verified)
        })?;
        Ok(Accepted { answer, desired: verified.desired, deployment: verified.deployment })
    }

    /// What would be accepted of what came; nothing is remembered.
    ///
    /// # Errors
    /// With why it would be refused.
    pub fn check(
        &self,
        gateway: &GatewayName,
        answer: &DesiredAnswer,
        now_ms: Option<u64>,
        running: Option<&DeploymentRef>,
    ) -> Result<Option<VerifiedDeployment>, TrustError> {
        let check = |trust: &Trust| {
            let mut trust = trust.clone();
            trust.update_roots(&answer.roots)?;
            Ok(trust.verify(gateway, answer, now_ms, running)?.deployment)
        };
        self.peek(check).ok_or(TrustError::NoRoot)?
    }

    /// What the control plane asks for beside a deployment, though that was refused; nothing is remembered.
    pub fn heard(&self, gateway: &GatewayName, desired: &Envelope, now_ms: Option<u64>) -> Option<Desired> {
        self.peek(|trust| trust.heard(gateway, desired, now_ms)).flatten()
    }

    /// Remembers that a deployment was kept: what its releases supersede never runs again.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn keep(&self, deployment: &VerifiedDeployment) -> Result<(), TrustError> {
        self.change(|held| {
            held.as_mut().ok_or(TrustError::NoRoot)?.keep(deployment);
            Ok(())
        })
    }

    /// What was accepted before a restart, from what was kept of it ([`Accepted::answer`]).
    ///
    /// # Errors
    /// When a part is missing or was changed.
    pub fn reverify(&self, answer: &DesiredAnswer) -> Result<VerifiedDeployment, TrustError> {
        self.peek(|trust| trust.reverify(answer)).ok_or(TrustError::NoRoot)?.map_err(TrustError::from)
    }

    fn peek<T>(&self, look: impl FnOnce(&Trust) -> T) -> Option<T> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    /// Changes a copy, writes it down if it differs, and only then has it count.
    fn change<T>(&self, change: impl FnOnce(&mut Option<Trust>) -> Result<T, TrustError>) -> Result<T, TrustError> {
        let mut held = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = held.clone();
        let result = change(&mut changed)?;
        if changed != *held {
            let file = |source| TrustError::File { what: "write", path: self.path.clone(), source };
            let json = serde_json::to_vec_pretty(&changed).map_err(|error| file(error.into()))?;
            files::write(&self.path, &json, Readers::All).map_err(file)?;
            *held = changed;
        }
        Ok(result)
    }
}

fn by_its_own_word(root: &Envelope) -> Result<Trust, Refused> {
    let malformed = |why: EnvelopeError| Refused::Malformed { document: "the root".to_owned(), why: why.to_string() };
    Trust::anchor(root, &root.digest().map_err(malformed)?)
}
