//! The agent as a part of deployments: made ready, and brought into the boot record as the state of deployments says.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sync_client::BlobStore;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::{Digest, Kind, Release, VerifiedDeployment};
use tokio::process::Command;

use crate::boot::{self, Boot, Build, Record, Slots, Which};
use crate::clock::aside;
use crate::hint::Told;

/// How long an agent may take to say which version it is: it is read from a slow disk for the first time.
const VERSION_PATIENCE: Duration = Duration::from_secs(60);

/// Which agent runs, and how it came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The version that runs: its release's, or the package's.
    pub version: String,
    /// Whether it was deployed, and is not the packaged one.
    pub deployed: bool,
    /// The version of the package.
    pub packaged: String,
    /// Starts of the one on trial since it last ended in order; none: none is on trial.
    pub trial_starts: Option<u32>,
    /// Why the last one that did not stay did not.
    pub failed: Option<String>,
}

/// What is on disk of agents.
#[derive(Clone, Debug)]
pub(crate) struct Agents {
    boot: Boot,
    slots: Slots,
    record: Record,
}

impl Agents {
    pub(super) fn open(boot: Boot, state_dir: &Path) -> Self {
        let slots = Slots::at(state_dir);
        let mut record = slots.load();
        // What runs has not failed for good.
        record.failed.take_if(|failed| failed.deployment.is_none() && failed.agent == *boot.running());
        Self { boot, slots, record }
    }

    /// Whether this agent can become another one.
    pub(super) const fn may_change(&self) -> bool {
        self.boot.may_change()
    }

    /// The agent that `verified` is to run on. A package that is newer than what is deployed wins.
    pub(super) fn of(&self, verified: &VerifiedDeployment) -> Which {
        let build = release_of(verified).and_then(|release| {
            let digest = boot::build_of(release).ok()?.blob.digest;
            Some(Build { version: release.version.clone(), digest })
        });
        boot::newer(build, self.boot.packaged())
    }

    /// Whether `verified` is to run on another agent than this one.
    pub(super) fn differs(&self, verified: &VerifiedDeployment) -> bool {
        self.of(verified) != *self.boot.running()
    }

    /// Why the agent of `on_trial` did not come up, if it did not.
    pub(super) fn failure(&self, on_trial: Option<DeploymentRef>) -> Option<String> {
        let failed = self.record.failed.as_ref()?;
        let which =
            failed.agent.as_ref().map_or("the packaged agent".to_owned(), |build| format!("agent {}", build.version));
        (on_trial.is_some() && failed.deployment == on_trial)
            .then(|| format!("{which} did not come up: {}", failed.reason))
    }

    /// Brings the record into line with what was kept and what is on trial. Whether another agent has to run now.
    ///
    /// # Errors
    /// When the record, or the other agent, cannot be brought to disk.
    pub(super) fn follow(
        &mut self,
        kept: Which,
        trial: Option<(DeploymentRef, Which)>,
        blobs: &BlobStore,
    ) -> anyhow::Result<bool> {
        let mut record = self.record.clone();
        if record.follow(kept, trial) {
            self.slots.store(&record)?;
            self.record = record;
        }
        let wanted = self.record.wanted();
        if let Some(build) = wanted.as_ref().filter(|build| !self.slots.has(&build.digest)) {
            self.take(build, blobs)?;
        }
        // One that did not start is tried again at the next start.
        let cannot =
            self.record.failed.as_ref().filter(|failed| failed.deployment.is_none() && failed.agent == *wanted);
        if let Some(failed) = cannot {
            bail!("the agent that was deployed does not start: {}", failed.reason);
        }
        Ok(wanted != self.boot.running())
    }

    /// The agent ends in order: its starts so far do not speak against it.
    pub(super) fn stopped(&mut self) {
        if self.may_change()
            && self.record.stopped()
            && let Err(error) = self.slots.store(&self.record)
        {
            tracing::warn!("this start will count: {}", Told::of(&error).text());
        }
    }

    /// Makes the agent of `verified` ready, and has it say its version: then its processor, its libraries and the disk's mode are right.
    ///
    /// # Errors
    /// With why it must not run here.
    pub(super) async fn stage(&self, verified: &VerifiedDeployment, blobs: &BlobStore) -> anyhow::Result<()> {
        let Some(release) = release_of(verified) else { return Ok(()) };
        boot::build_of(release)?;
        let Some(build) = self.of(verified).filter(|build| Some(build) != self.boot.running().as_ref()) else {
            return Ok(());
        };
        if !self.may_change() {
            bail!("this agent is part of another program, and cannot become {release}");
        }
        let (agents, blobs) = (self.clone(), blobs.clone());
        let binary = aside(move || agents.take(&build, &blobs)).await.context("a thread of the agent ended")??;
        let mut command = Command::new(binary);
        command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
        let said = tokio::time::timeout(VERSION_PATIENCE, command.output()).await;
        let said = said.with_context(|| format!("{release} does not say its version within {VERSION_PATIENCE:?}"))?;
        let said = said.with_context(|| format!("{release} cannot be started on this gateway"))?;
        if !said.status.success() {
            let complaint = String::from_utf8_lossy(&said.stderr);
            let complaint = complaint.lines().next().unwrap_or("it says nothing");
            bail!("{release} does not say its version, but ends with {}: {complaint}", said.status);
        }
        Ok(())
    }

    /// Removes the agents of all deployments but `wanted`.
    pub(super) fn clean(&self, wanted: impl Iterator<Item = Which>) {
        let all = wanted.chain([self.record.wanted().clone(), self.record.good.clone(), self.boot.running().clone()]);
        let digests: Vec<Digest> = all.flatten().map(|build| build.digest).collect();
        self.slots.keep_only(&digests);
    }

    /// How it stands; nothing while none was ever deployed.
    pub(super) fn status(&self) -> Option<AgentStatus> {
        let running = self.boot.running();
        (running.is_some() || self.record != Record::default()).then(|| AgentStatus {
            version: running.as_ref().map_or(self.boot.packaged(), |build| &build.version).to_string(),
            deployed: running.is_some(),
            packaged: self.boot.packaged().to_string(),
            trial_starts: self.record.trial.as_ref().map(|trial| trial.starts),
            failed: self.record.failed.as_ref().map(|failed| failed.reason.clone()),
        })
    }

    fn take(&self, build: &Build, blobs: &BlobStore) -> anyhow::Result<std::path::PathBuf> {
        let Some(blob) = blobs.get(&build.digest) else { bail!("the agent {} is not here", build.version) };
        self.slots.take(build, &blob).inspect_err(|_| blobs.remove(&build.digest))
    }
}

fn release_of(verified: &VerifiedDeployment) -> Option<&Release> {
    verified.releases().iter().find(|release| release.kind == Kind::Agent)
}
