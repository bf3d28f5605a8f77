//! The boot record: a few words on disk by which it is known, before anything else is read, which agent is to run.

use semver::Version;
use serde::{Deserialize, Serialize};
use sync_protocol::Digest;
use sync_protocol::desired::DeploymentRef;

/// Starts of an agent on trial, none of them ended in order, after which the one before runs again.
pub(crate) const STARTS_MAX: u32 = 3;
/// What this code writes and reads. Another one is no record: the packaged agent runs.
const FORMAT: u32 = 1;

/// A deployed agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// Its release's.
    pub(crate) version: Version,
    /// Of the binary, as its publishers have signed it.
    pub(crate) digest: Digest,
}

/// Which agent: a deployed one, or the packaged one.
pub(crate) type Which = Option<Build>;

/// An agent that is to show that it comes up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) agent: Which,
    /// The deployment on trial, which names it.
    pub(crate) deployment: DeploymentRef,
    /// Since it last ended in order.
    pub(crate) starts: u32,
}

/// An agent that did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) agent: Which,
    /// None: it was not on trial.
    pub(crate) deployment: Option<DeploymentRef>,
    pub(crate) reason: String,
}

/// All of it. What it says follows from the state of deployments ([`Record::follow`]); only what befell an agent at its start is first known here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    /// Runs unless another one is on trial.
    pub(crate) good: Which,
    pub(crate) trial: Option<Trial>,
    pub(crate) failed: Option<Failed>,
}

impl Default for Record {
    fn default() -> Self {
        Self { format: FORMAT, good: None, trial: None, failed: None }
    }
}

impl Record {
    /// Reads one.
    ///
    /// # Errors
    /// With why it is none.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.format == FORMAT { Ok(record) } else { Err(format!("it is of format {}", record.format)) }
    }

    /// Which agent is to be started now. One on trial is counted: the record must be on disk before it starts.
    pub(crate) fn choose(&mut self, packaged: &Version) -> Which {
        if self.trial.as_ref().is_some_and(|trial| trial.starts >= STARTS_MAX) {
            self.give_up(format!("it was started {STARTS_MAX} times and did not stay"));
        }
        let chosen = match &mut self.trial {
            Some(trial) => {
                trial.starts += 1;
                trial.agent.clone()
            }
            None => self.good.clone(),
        };
        newer(chosen, packaged)
    }

    /// Which agent is to run, nothing being counted.
    pub(crate) fn wanted(&self) -> &Which {
        self.trial.as_ref().map_or(&self.good, |trial| &trial.agent)
    }

    /// The agent on trial, or else the one that should run, cannot.
    pub(crate) fn give_up(&mut self, reason: String) {
        let (agent, deployment) = match self.trial.take() {
            Some(trial) => (trial.agent, Some(trial.deployment)),
            None => (self.good.clone(), None),
        };
        self.failed = Some(Failed { agent, deployment, reason });
    }

    /// Brings it into line with deployments: the agent of the one that was kept, and of the one on trial. Whether it has changed.
    pub(crate) fn follow(&mut self, kept: Which, trial: Option<(DeploymentRef, Which)>) -> bool {
        let before = self.clone();
        let trial = trial.filter(|(_, agent)| *agent != kept);
        self.good = kept;
        self.trial = trial.map(|(deployment, agent)| {
            let same = |trial: &Trial| trial.deployment == deployment && trial.agent == agent;
            let starts = self.trial.as_ref().filter(|trial| same(trial)).map_or(0, |trial| trial.starts);
            Trial { agent, deployment, starts }
        });
        // Who is on trial again was asked for again.
        let again = |failed: &mut Failed| self.trial.as_ref().is_some_and(|t| Some(t.deployment) == failed.deployment);
        self.failed.take_if(again);
        *self != before
    }

    /// The agent ends in order. Whether it has changed.
    pub(crate) fn stopped(&mut self) -> bool {
        self.trial.as_mut().is_some_and(|trial| std::mem::take(&mut trial.starts) > 0)
    }
}

/// What is packaged is the least that runs: who administers a gateway is not taken back by a deployment.
pub(crate) fn newer(which: Which, packaged: &Version) -> Which {
    which.filter(|build| build.version.cmp_precedence(packaged).is_ge())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(version: &str) -> Which {
        Some(Build { version: version.parse().unwrap(), digest: Digest::of(version.as_bytes()) })
    }

    fn deployment(number: u64) -> DeploymentRef {
        DeploymentRef { number, digest: Digest::of(&number.to_be_bytes()) }
    }

    const PACKAGED: Version = Version::new(1, 0, 0);

    #[test]
    fn an_agent_on_trial_is_started_three_times_and_then_the_one_before() {
        let mut record = Record { good: agent("1.1.0"), ..Record::default() };
        assert!(record.follow(agent("1.1.0"), Some((deployment(7), agent("1.2.0")))));
        for _ in 0..STARTS_MAX {
            assert_eq!(record.choose(&PACKAGED), agent("1.2.0"));
        }
        assert_eq!(record.choose(&PACKAGED), agent("1.1.0"));
        let failed = record.failed.clone().unwrap();
        assert_eq!((failed.agent, failed.deployment), (agent("1.2.0"), Some(deployment(7))));
        assert_eq!(record.choose(&PACKAGED), agent("1.1.0"), "it is not tried again");
    }

    #[test]
    fn a_start_that_ended_in_order_does_not_count() {
        let mut record = Record::default();
        record.follow(None, Some((deployment(7), agent("1.2.0"))));
        for _ in 0..3 * STARTS_MAX {
            assert_eq!(record.choose(&PACKAGED), agent("1.2.0"));
            assert!(record.stopped());
        }
    }

    #[test]
    fn a_newer_package_wins_over_what_was_deployed() {
        let mut record = Record { good: agent("1.1.0"), ..Record::default() };
        assert_eq!(record.choose(&Version::new(1, 1, 0)), agent("1.1.0"));
        assert_eq!(record.choose(&Version::new(1, 2, 0)), None);
    }

    #[test]
    fn the_record_follows_deployments_and_keeps_count() {
        let mut record = Record::default();
        let trial = || Some((deployment(7), agent("1.2.0")));
        assert!(record.follow(None, trial()));
        record.choose(&PACKAGED);
        assert!(!record.follow(None, trial()), "the count stays");
        assert!(record.follow(agent("1.2.0"), None), "it was kept");
        assert_eq!((record.good.clone(), record.trial.clone()), (agent("1.2.0"), None));
        assert!(!record.follow(agent("1.2.0"), Some((deployment(8), agent("1.2.0")))), "the same agent needs no trial");
        assert!(record.follow(agent("1.2.0"), Some((deployment(9), None))), "the packaged one does, too");
        record.choose(&PACKAGED);
        assert_eq!(*record.wanted(), None);
    }

    #[test]
    fn what_was_given_up_is_tried_again_when_it_is_on_trial_again() {
        let mut record = Record::default();
        record.follow(None, Some((deployment(7), agent("1.2.0"))));
        record.give_up("it did not start".to_owned());
        assert!(!record.follow(None, None));
        assert!(record.failed.is_some(), "it is told");
        assert!(record.follow(None, Some((deployment(7), agent("1.2.0")))));
        assert_eq!(record.failed, None);
    }

    #[test]
    fn a_record_of_another_format_is_none() {
        let text = serde_json::to_string(&Record::default()).unwrap();
        assert_eq!(Record::parse(text.as_bytes()), Ok(Record::default()));
        assert!(Record::parse(text.replace("\"format\":1", "\"format\":2").as_bytes()).is_err());
        assert!(Record::parse(b"").is_err());
    }
}
