//! Reports: one at a time, at once when it matters, else every so often, and always the newest.

use std::time::Duration;

use serde_json::Value;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::report::{Phase, Report};
use tokio::sync::watch;

use crate::Now;
use crate::back_off::BackOff;
use crate::cloud::Cloud;
use crate::error::SessionError;

/// What is told at once when it changes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Urgent {
    phase: Option<(DeploymentRef, Phase, bool, String)>,
    active: Option<DeploymentRef>,
    unhealthy: Vec<String>,
    refused: String,
    shadow: Value,
}

impl Urgent {
    fn of(report: &Report, refused: &str) -> Self {
        let phase = report.progress.as_ref();
        Self {
            phase: phase.map(|p| (p.deployment, p.phase, p.kept, p.reason.clone())),
            active: report.active,
            unhealthy: report.unhealthy.clone(),
            refused: refused.to_owned(),
            shadow: report.shadow.clone(),
        }
    }
}

/// Sends what the agent says of itself.
pub(crate) struct Reporter {
    cloud: Cloud,
    reports: watch::Receiver<Report>,
    refused: watch::Receiver<String>,
    every: Duration,
    now: Now,
    boot: String,
    sequence: u64,
    told: Urgent,
}

impl Reporter {
    pub(crate) fn new(cloud: Cloud, reports: watch::Receiver<Report>, every: Duration, now: Now) -> Self {
        let (refused, boot) = (cloud.refused(), format!("{:032x}", fastrand::u128(..)));
        Self { cloud, reports, refused, every, now, boot, sequence: 0, told: Urgent::default() }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut back_off = BackOff::new(self.cloud.limits());
        loop {
            let session = self.cloud.session().await;
            let report = self.compose();
            let sent = session.report(&report).await;
            match sent {
                Ok(delta) => {
                    back_off.reset();
                    self.told = Urgent::of(&report, &report.refused);
                    self.cloud.take_delta(delta);
                    tokio::time::sleep(self.cloud.limits().gap).await;
                    self.wait().await;
                }
                Err(error) => {
                    // What was refused for good would be again.
                    if !matches!(error, SessionError::Status { status: 400..=499, .. }) {
                        self.cloud.put_back(report.logs);
                    }
                    tracing::debug!(%error, "report not taken");
                    tokio::time::sleep(back_off.step(error.retry_after())).await;
                }
            }
        }
    }

    fn compose(&mut self) -> Report {
        self.sequence += 1;
        let report = self.reports.borrow_and_update().clone();
        let trust = self.cloud.trust();
        Report {
            boot: self.boot.clone(),
            sequence: self.sequence,
            time_ms: (self.now)(),
            root: trust.root_version(),
            desired_sequence: trust.desired_sequence(),
            refused: self.refused.borrow_and_update().clone(),
            logs: self.cloud.take_logs(),
            ..report
        }
    }

    /// Until there is something to tell.
    async fn wait(&mut self) {
        let due = tokio::time::sleep(self.every);
        tokio::pin!(due);
        loop {
            let news = Urgent::of(&self.reports.borrow_and_update(), &self.refused.borrow_and_update());
            if news != self.told {
                return;
            }
            tokio::select! {
                () = &mut due => return,
                () = self.cloud.logged() => return,
                changed = self.reports.changed() => if changed.is_err() {
                    // Nobody says anything any more.
                    (&mut due).await;
                    return;
                },
                _ = self.refused.changed() => {}
            }
        }
    }
}
