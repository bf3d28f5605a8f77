//! Decides what the gateway does with deployments, without I/O and without a clock.
//!
//! ```text
//!  wanted ─▶ queued ─▶ downloading ─▶ staging ─▶ staged ─▶ on trial ─▶ kept
//!               └───────────┴────────────┴─────────┴─▶ failed    └─▶ rolled back: what was kept before serves again
//! ```
//!
//! An [`Input`] changes the [`State`]; what is to be done then is a function of the state alone ([`State::serves`], [`State::work`],
//! [`State::references`]). So whoever carries it out writes the state down first, and after a crash at any point does the same again.
//!
//! # Promises
//! - [`State::serves`] is what was kept last, or what is on trial; a deployment that failed or was rolled back is neither.
//! - Once a deployment was kept, one is kept ever after.
//! - Each step ends: by its result, by its deadline, or because another deployment is wanted.
//! - What was given up is not tried again unless somebody asks for exactly that.

use serde::{Deserialize, Serialize};
use sync_protocol::deployment::Policy;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::report::{Phase, Progress};

use super::watch::Before;

/// Starts of the agent within one step, none of them after an orderly stop, beyond which the step is what ends it.
pub(super) const STARTS_MAX: u32 = 3;
/// Deployments of which it is remembered that they were given up.
const GIVEN_UP_MAX: usize = 16;
/// How exactly the time that a step has taken survives a crash: a write for each, while something is under way.
const SPENT_STEP_MS: u64 = 60_000;
/// How long doubts may last, in probations, before they count.
const DOUBT_PROBATIONS: u64 = 2;

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// Has passed its probation: what a rollback returns to. `None`: gateway.toml alone.
    kept: Option<Kept>,
    /// Serves, and is watched.
    trial: Option<Trial>,
    /// On its way.
    next: Option<Next>,
    /// Not tried again; the newest is the last.
    given_up: Vec<GivenUp>,
    /// What came to an end last.
    ended: Option<DeploymentRef>,
    /// Sequence of the desired document whose wish to try again was fulfilled.
    tried_again: u64,
    /// Whether the agent stopped in order.
    stopped: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    deployment: DeploymentRef,
    since_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Trial {
    deployment: DeploymentRef,
    policy: Policy,
    since_ms: u64,
    spent_ms: u64,
    starts: u32,
    before: Before,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Next {
    deployment: DeploymentRef,
    policy: Policy,
    step: Step,
    since_ms: u64,
    spent_ms: u64,
    starts: u32,
    /// Of those that were missing.
    fetched: (u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    Queued,
    Downloading,
    Staging,
    Staged,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct GivenUp {
    deployment: DeploymentRef,
    phase: Phase,
    reason: String,
    since_ms: u64,
}

/// What a look at the functions of a deployment on trial says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing speaks against it.
    Good,
    /// Something does, which may pass.
    Doubtful(String),
    /// It is broken.
    Bad(String),
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// The agent has started.
    Started,
    /// The agent stops in order.
    Stopping,
    /// A deployment that was verified should run.
    Wanted {
        deployment: DeploymentRef,
        policy: Policy,
        /// Sequence of the desired document that says so; `None`: somebody here says so.
        sequence: Option<u64>,
        /// Even if it was given up before.
        try_again: bool,
    },
    /// So many bytes of those that were missing are there.
    Fetching { deployment: DeploymentRef, fetched: (u64, u64) },
    /// All blobs are there, or can never be.
    Fetched { deployment: DeploymentRef, result: Result<(), String> },
    /// It was verified, compiled and tested.
    Staged { deployment: DeploymentRef, result: Result<(), String> },
    /// It is to serve now. How well those did whom it replaces.
    Activated { deployment: DeploymentRef, before: Before },
    /// It cannot be made to serve.
    Unfit { deployment: DeploymentRef, reason: String },
    /// Time has passed. Time without a link does not count for downloads.
    Tick { elapsed_ms: u64, link: bool, verdict: Option<Verdict> },
}

/// What is to be done for the deployment that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Fetch what is missing.
    Fetch(DeploymentRef),
    /// Verify, compile and test.
    Stage(DeploymentRef),
    /// Have it serve: [`Input::Activated`].
    Activate(DeploymentRef),
}

impl State {
    /// What must serve, `None` being gateway.toml alone.
    pub(crate) fn serves(&self) -> Option<DeploymentRef> {
        self.on_trial().or_else(|| self.kept())
    }

    /// What a rollback returns to.
    pub(crate) fn kept(&self) -> Option<DeploymentRef> {
        self.kept.as_ref().map(|kept| kept.deployment)
    }

    /// What is watched.
    pub(crate) fn on_trial(&self) -> Option<DeploymentRef> {
        self.trial.as_ref().map(|trial| trial.deployment)
    }

    /// How those did whom the one on trial has replaced, by what it is judged, and whether its probation is over `elapsed_ms` from the last look.
    pub(crate) fn yardstick(&self, elapsed_ms: u64) -> Option<(&Before, &Policy, bool)> {
        let trial = self.trial.as_ref()?;
        let spent_ms = trial.spent_ms.saturating_add(elapsed_ms);
        Some((&trial.before, &trial.policy, spent_ms >= trial.policy.probation_ms))
    }

    /// What must be done.
    pub(crate) fn work(&self) -> Option<Work> {
        let next = self.next.as_ref()?;
        Some(match next.step {
            Step::Queued | Step::Downloading => Work::Fetch(next.deployment),
            Step::Staging => Work::Stage(next.deployment),
            Step::Staged => Work::Activate(next.deployment),
        })
    }

    /// Whether time matters.
    pub(crate) const fn is_busy(&self) -> bool {
        self.next.is_some() || self.trial.is_some()
    }

    /// What must stay on disk.
    pub(crate) fn references(&self) -> impl Iterator<Item = DeploymentRef> {
        let next = self.next.as_ref().map(|next| next.deployment);
        [self.kept(), self.on_trial(), next].into_iter().flatten()
    }

    /// How far the deployment is that is under way, or how the last one ended.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let progress = |deployment, phase, since_ms| Progress {
            deployment,
            phase,
            kept: false,
            reason: String::new(),
            fetched: None,
            since_ms,
        };
        if let Some(next) = &self.next {
            let (phase, fetched) = match next.step {
                Step::Queued => (Phase::Queued, None),
                Step::Downloading | Step::Staging => (Phase::Downloading, Some(next.fetched)),
                Step::Staged => (Phase::Staged, None),
            };
            return Some(Progress { fetched, ..progress(next.deployment, phase, next.since_ms) });
        }
        if let Some(trial) = &self.trial {
            return Some(progress(trial.deployment, Phase::Active, trial.since_ms));
        }
        let ended = self.ended?;
        if let Some(given_up) = self.given_up(ended) {
            let reason = given_up.reason.clone();
            return Some(Progress { reason, ..progress(ended, given_up.phase, given_up.since_ms) });
        }
        let kept = self.kept.as_ref().filter(|kept| kept.deployment == ended)?;
        Some(Progress { kept: true, ..progress(ended, Phase::Active, kept.since_ms) })
    }

    /// Takes in what happened at `now_ms` (Unix time). Whether the state must be written down before anything is done by it.
    pub(crate) fn take(&mut self, input: Input, now_ms: u64) -> bool {
        let before = self.clone();
        self.apply(input, now_ms);
        before.coarse() != self.clone().coarse()
    }

    fn apply(&mut self, input: Input, now_ms: u64) {
        match input {
            Input::Started => self.started(now_ms),
            Input::Stopping => self.stopped = self.is_busy(),
            Input::Wanted { deployment, policy, sequence, try_again } => {
                self.wanted(deployment, policy, sequence, try_again, now_ms);
            }
            Input::Fetching { deployment, fetched } => {
                if let Some(next) = self.next(deployment, &[Step::Queued, Step::Downloading]) {
                    next.fetched = fetched;
                    next.step = Step::Downloading;
                }
            }
            Input::Fetched { deployment, result } => {
                let Some(next) = self.next(deployment, &[Step::Queued, Step::Downloading]) else { return };
                match result {
                    Ok(()) => next.enter(Step::Staging, now_ms),
                    Err(reason) => self.fail(reason, now_ms),
                }
            }
            Input::Staged { deployment, result } => {
                let Some(next) = self.next(deployment, &[Step::Staging]) else { return };
                match result {
                    Ok(()) => next.enter(Step::Staged, now_ms),
                    Err(reason) => self.fail(reason, now_ms),
                }
            }
            Input::Activated { deployment, before } => {
                let Some(next) = self.next(deployment, &[Step::Staged]) else { return };
                let policy = next.policy;
                self.next = None;
                // One that was on trial is neither kept nor given up: nobody knows how it would have ended.
                self.trial = Some(Trial { deployment, policy, since_ms: now_ms, spent_ms: 0, starts: 0, before });
            }
            Input::Unfit { deployment, reason } => {
                if self.on_trial() == Some(deployment) {
                    self.end_trial(Phase::Failed, reason, now_ms);
                }
            }
            Input::Tick { elapsed_ms, link, verdict } => self.tick(elapsed_ms, link, verdict, now_ms),
        }
    }

    fn wanted(&mut self, deployment: DeploymentRef, policy: Policy, sequence: Option<u64>, again: bool, now_ms: u64) {
        // A wish is fulfilled once, however often the document that has it comes.
        let again = again && sequence.is_none_or(|sequence| sequence > self.tried_again);
        if again {
            self.tried_again = self.tried_again.max(sequence.unwrap_or(0));
            self.given_up.retain(|given_up| given_up.deployment != deployment);
        }
        if self.next.as_ref().is_some_and(|next| next.deployment == deployment) {
            return;
        }
        self.next = None;
        if self.on_trial() == Some(deployment) {
            return;
        }
        if self.kept() == Some(deployment) {
            // The way back, by hand.
            self.trial = None;
            self.ended = Some(deployment);
            return;
        }
        if self.given_up(deployment).is_none() {
            let (step, since_ms) = (Step::Queued, now_ms);
            self.next = Some(Next { deployment, policy, step, since_ms, spent_ms: 0, starts: 0, fetched: (0, 0) });
        }
    }

    fn started(&mut self, now_ms: u64) {
        if std::mem::take(&mut self.stopped) {
            return;
        }
        if let Some(trial) = &mut self.trial {
            trial.starts += 1;
            if trial.starts > STARTS_MAX {
                let reason = format!("the agent ended {STARTS_MAX} times while it was watched");
                self.end_trial(Phase::RolledBack, reason, now_ms);
            }
        }
        if let Some(next) = self.next.as_mut().filter(|next| next.step == Step::Staging) {
            next.starts += 1;
            if next.starts > STARTS_MAX {
                self.fail(format!("the agent ended {STARTS_MAX} times while it was compiled and tested"), now_ms);
            }
        }
    }

    fn tick(&mut self, elapsed_ms: u64, link: bool, verdict: Option<Verdict>, now_ms: u64) {
        if let Some(next) = &mut self.next {
            let (counts, deadline_ms, what) = match next.step {
                Step::Queued | Step::Downloading => (link, next.policy.download_deadline_ms, "fetched"),
                Step::Staging | Step::Staged => (true, next.policy.stage_deadline_ms, "verified, compiled and tested"),
            };
            next.spent_ms = next.spent_ms.saturating_add(if counts { elapsed_ms } else { 0 });
            if next.spent_ms > deadline_ms {
                self.fail(format!("it was not {what} within {}", seconds(deadline_ms)), now_ms);
            }
        }
        let Some(trial) = &mut self.trial else { return };
        trial.spent_ms = trial.spent_ms.saturating_add(elapsed_ms);
        let probation_ms = trial.policy.probation_ms;
        match verdict {
            Some(Verdict::Bad(reason)) => self.end_trial(Phase::RolledBack, reason, now_ms),
            Some(Verdict::Doubtful(reason)) if trial.spent_ms >= probation_ms.saturating_mul(DOUBT_PROBATIONS) => {
                self.end_trial(Phase::RolledBack, reason, now_ms);
            }
            Some(Verdict::Good) if trial.spent_ms >= probation_ms => {
                let deployment = trial.deployment;
                self.kept = Some(Kept { deployment, since_ms: now_ms });
                self.trial = None;
                self.ended = Some(deployment);
            }
            _ => {}
        }
    }

    fn next(&mut self, deployment: DeploymentRef, steps: &[Step]) -> Option<&mut Next> {
        self.next.as_mut().filter(|next| next.deployment == deployment && steps.contains(&next.step))
    }

    fn fail(&mut self, reason: String, since_ms: u64) {
        if let Some(next) = self.next.take() {
            self.give_up(GivenUp { deployment: next.deployment, phase: Phase::Failed, reason, since_ms });
        }
    }

    fn end_trial(&mut self, phase: Phase, reason: String, since_ms: u64) {
        if let Some(trial) = self.trial.take() {
            self.give_up(GivenUp { deployment: trial.deployment, phase, reason, since_ms });
        }
    }

    fn give_up(&mut self, given_up: GivenUp) {
        self.ended = Some(given_up.deployment);
        self.given_up.retain(|other| other.deployment != given_up.deployment);
        self.given_up.push(given_up);
        let beyond = self.given_up.len().saturating_sub(GIVEN_UP_MAX);
        self.given_up.drain(..beyond);
    }

    fn given_up(&self, deployment: DeploymentRef) -> Option<&GivenUp> {
        self.given_up.iter().find(|given_up| given_up.deployment == deployment)
    }

    /// What must survive a crash.
    fn coarse(mut self) -> Self {
        if let Some(next) = &mut self.next {
            next.fetched = (0, 0);
            next.spent_ms -= next.spent_ms % SPENT_STEP_MS;
        }
        if let Some(trial) = &mut self.trial {
            trial.spent_ms -= trial.spent_ms % SPENT_STEP_MS;
        }
        self
    }
}

impl Next {
    fn enter(&mut self, step: Step, now_ms: u64) {
        // The deadline of staging is one for all of it.
        if step == Step::Staging {
            self.spent_ms = 0;
        }
        (self.step, self.since_ms) = (step, now_ms);
    }
}

fn seconds(ms: u64) -> String {
    crate::units::Span(std::time::Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests;
