//! What is on disk of deployments, what was read of it, and what of it serves.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sync_client::Cloud;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::report::Running;
use sync_protocol::{Blob, Digest, Release, VerifiedDeployment};

use super::DeploymentStatus;
use super::agents::Agents;
use super::folder::Folder;
use super::native::Native;
use super::stage::{Fit, Shelf};
use super::state::{Input, State};
use crate::boot::{self, Which};
use crate::clock::Clock;
use crate::config::Config;
use crate::hint::Told;

/// All of it.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) folder: Folder,
    pub(super) shelf: Shelf,
    pub(super) cloud: Cloud,
    pub(super) clock: Clock,
    pub(super) state: State,
    pub(super) agents: Agents,
    /// What is on disk, when that is older.
    older: Option<State>,
    /// Why it cannot be written.
    stuck: Option<String>,
    /// Those that were read, verified and unpacked.
    pub(super) known: HashMap<DeploymentRef, VerifiedDeployment>,
    /// Digests of the components of those.
    pub(super) code: HashMap<DeploymentRef, Vec<Arc<str>>>,
    /// What was made to serve, and what of it gateway.toml hides.
    pub(super) serving: Option<DeploymentRef>,
    pub(super) hidden: Vec<String>,
    /// Why what must serve does not.
    pub(super) broken: Option<String>,
    /// Why the agent that should run does not.
    unable: Option<String>,
    /// What was unpacked again for that reason.
    pub(super) renewed: Option<DeploymentRef>,
}

impl Book {
    pub(super) fn new(folder: Folder, shelf: Shelf, cloud: Cloud, clock: Clock, agents: Agents) -> Self {
        let state = folder.load();
        Self {
            folder,
            shelf,
            cloud,
            clock,
            state,
            agents,
            older: None,
            stuck: None,
            known: HashMap::new(),
            code: HashMap::new(),
            serving: None,
            hidden: Vec::new(),
            broken: None,
            unable: None,
            renewed: None,
        }
    }

    /// Takes in what happened.
    pub(super) fn take(&mut self, input: Input) {
        let before = self.state.clone();
        if self.state.take(input, self.clock.now_ms()) {
            self.older.get_or_insert(before);
        }
    }

    /// Brings the state to disk. Nothing is done by a state that is not there, and nobody is told of it.
    ///
    /// # Errors
    /// With why it is not there.
    pub(super) fn write(&mut self) -> Result<(), String> {
        let Some(older) = &self.older else { return Ok(()) };
        if let Err(error) = self.folder.store(&self.state) {
            let why = format!("deployments stand still: {}", Told::of(&error).text());
            if self.stuck.as_ref() != Some(&why) {
                tracing::error!("{why}");
            }
            self.stuck = Some(why.clone());
            return Err(why);
        }
        let was = older.progress().map(|progress| (progress.deployment, progress.phase, progress.kept));
        (self.older, self.stuck) = (None, None);
        let Some(progress) = self.state.progress() else { return Ok(()) };
        let (deployment, phase, kept) = (progress.deployment.number, progress.phase, progress.kept);
        if was == Some((progress.deployment, phase, kept)) {
            return Ok(());
        }
        if progress.reason.is_empty() {
            tracing::info!(deployment, %phase, kept, "the deployment is in a new phase");
        } else {
            tracing::error!(deployment, %phase, reason = progress.reason, "deployment given up");
        }
        Ok(())
    }

    /// Whether what was decided last is on disk.
    pub(super) const fn is_written(&self) -> bool {
        self.older.is_none()
    }

    /// A deployment that was accepted, from memory or from disk.
    pub(super) fn verified(&mut self, deployment: DeploymentRef) -> anyhow::Result<VerifiedDeployment> {
        if let Some(known) = self.known.get(&deployment) {
            return Ok(known.clone());
        }
        let verified = self.cloud.trust().reverify(&self.folder.load_answer(deployment)?)?;
        self.known.insert(deployment, verified.clone());
        Ok(verified)
    }

    /// Whether another agent has to run, before anything else is done by what is on disk.
    ///
    /// # Errors
    /// With why that cannot be.
    pub(super) fn another(&mut self) -> anyhow::Result<bool> {
        let another = self.compare_agents();
        self.unable = another.as_ref().err().map(|error| Told::of(error).text());
        another
    }

    fn compare_agents(&mut self) -> anyhow::Result<bool> {
        if !self.agents.may_change() {
            return Ok(false);
        }
        let (kept, trial) = (self.state.kept(), self.state.on_trial());
        let mut agent = |deployment| {
            let verified = self.verified(deployment)?;
            Ok::<_, anyhow::Error>(self.agents.of(&verified))
        };
        let kept = kept.map(&mut agent).transpose()?.flatten();
        let trial = trial.map(|trial| Ok::<_, anyhow::Error>((trial, agent(trial)?))).transpose()?;
        self.agents.follow(kept, trial, &self.shelf.blobs)
    }

    /// What must serve, beside `base`; `None` is gateway.toml alone. What does not fit is given up on the way.
    pub(super) fn fit(&mut self, base: &Config) -> Option<Fit> {
        while let Some(deployment) = self.state.serves() {
            let fit = self.verified(deployment).and_then(|verified| self.shelf.fit(verified, base));
            match fit {
                Ok(fit) => {
                    self.code.insert(deployment, fit.code());
                    return Some(fit);
                }
                Err(error) if !self.unfit(deployment, &error) => return None,
                Err(_) => {}
            }
        }
        None
    }

    /// `deployment` cannot be made to serve. Whether there is another one, or another attempt is worth it.
    pub(super) fn unfit(&mut self, deployment: DeploymentRef, error: &anyhow::Error) -> bool {
        let reason = Told::of(error).causes.join(": ");
        if self.state.on_trial() == Some(deployment) {
            self.take(Input::Unfit { deployment, reason });
            // What is not written now is, before anything else is done.
            let _ = self.write();
            return true;
        }
        if self.renewed.replace(deployment) != Some(deployment)
            && let Ok(verified) = self.verified(deployment)
        {
            tracing::warn!(
                deployment = deployment.number,
                reason,
                "what was deployed cannot run, it is unpacked again"
            );
            blobs_of(&verified).for_each(|blob| self.shelf.remove(&blob.digest));
            return true;
        }
        tracing::error!(
            deployment = deployment.number,
            reason,
            "what was deployed cannot run: gateway.toml serves alone"
        );
        self.broken = Some(format!("deployment {} cannot run: {reason}", deployment.number));
        false
    }

    /// How it stands, by what is on disk; `running` is all that runs.
    pub(super) fn status(&self, running: Vec<Running>) -> DeploymentStatus {
        let state = self.older.as_ref().unwrap_or(&self.state);
        DeploymentStatus {
            progress: state.progress(),
            active: self.serving,
            kept: state.kept(),
            running,
            hidden: self.hidden.clone(),
            broken: self.broken.clone().or_else(|| self.stuck.clone()).or_else(|| self.unable.clone()),
            agent: self.agents.status(),
            ..DeploymentStatus::default()
        }
    }

    /// It serves now.
    pub(super) fn serves(&mut self, fit: Option<&Fit>) {
        self.serving = fit.map(|fit| fit.deployed.reference());
        self.hidden = fit.map(|fit| fit.hidden.iter().map(ToString::to_string).collect()).unwrap_or_default();
        if self.serving == self.state.serves() {
            (self.broken, self.renewed) = (None, None);
        }
    }

    /// Digests of components that must stay compiled: a rollback must not need a compiler.
    pub(super) fn spare_code(&mut self, base: &Config) -> Vec<Arc<str>> {
        let references: Vec<_> = self.state.references().collect();
        for deployment in &references {
            if !self.code.contains_key(deployment)
                && let Ok(verified) = self.verified(*deployment)
                && bundles_of(&verified).all(|bundle| self.shelf.is_unpacked(&bundle))
                && let Ok(fit) = self.shelf.fit(verified, base)
            {
                self.code.insert(*deployment, fit.code());
            }
        }
        self.code.retain(|deployment, _| references.contains(deployment));
        self.code.values().flatten().cloned().collect()
    }

    /// Removes what nothing needs any more.
    pub(super) async fn clean(&mut self, pinned: BTreeSet<Digest>, native: &Native) {
        let references: Vec<_> = self.state.references().collect();
        let mut needed = pinned;
        let mut agents: Vec<Which> = Vec::new();
        for deployment in &references {
            match self.verified(*deployment) {
                Ok(verified) => {
                    needed.extend(native.and_bundles(&verified).iter().map(|blob| blob.digest));
                    agents.push(self.agents.of(&verified));
                }
                // What cannot be read cannot say what it needs.
                Err(_) => return,
            }
        }
        let folder = self.folder.clone();
        for blob in folder.others(&references).iter().filter(|blob| !needed.contains(blob)) {
            self.shelf.remove(blob);
        }
        if let Err(error) = self.cloud.blobs().keep_only(needed).await {
            tracing::warn!(%error, "blobs that nothing needs stay for now");
        }
        self.agents.clean(agents.into_iter());
        self.folder.keep_only(&references);
        self.known.retain(|deployment, _| references.contains(deployment));
    }
}

/// The bytes that a deployment cannot do without.
pub(super) fn blobs_of(verified: &VerifiedDeployment) -> impl Iterator<Item = Blob> {
    let build = |release| boot::build_of(release).ok().map(|build| build.blob);
    verified.releases().iter().filter_map(move |release| release.bundle().or_else(|| build(release)))
}

/// What of them is unpacked.
pub(super) fn bundles_of(verified: &VerifiedDeployment) -> impl Iterator<Item = Blob> {
    verified.releases().iter().filter_map(Release::bundle)
}
