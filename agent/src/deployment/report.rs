//! What the gateway says of itself to the control plane, and the log lines that somebody there asked for.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sync_client::Cloud;
use sync_protocol::desired::Request;
use sync_protocol::report::Report;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{DeploymentStatus, Host};
use crate::clock::Clock;
use crate::telemetry::{LogRecord, LogRing};

/// Levels of log lines, the worst first.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
/// Errors in one report.
const ERRORS_MAX: usize = 10;
/// Lines that go together.
const GATHER: Duration = Duration::from_millis(500);

/// Keeps the newest report ready.
pub(super) struct Reporter {
    pub(super) host: Arc<dyn Host>,
    pub(super) status: watch::Receiver<Arc<DeploymentStatus>>,
    pub(super) every: Duration,
}

impl Reporter {
    /// Where the newest is found, until `stop`.
    pub(super) fn start(self, tasks: &TaskTracker, stop: &CancellationToken) -> watch::Receiver<Report> {
        let Self { host, mut status, every } = self;
        let compose = move |status: &DeploymentStatus| Report {
            progress: status.progress.clone(),
            active: status.active,
            running: status.running.clone(),
            ..host.report()
        };
        let (sender, receiver) = watch::channel(compose(&status.borrow()));
        let stop = stop.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = status.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(every) => {}
                }
                let report = compose(&status.borrow_and_update());
                sender.send_replace(report);
            }
        });
        receiver
    }
}

/// The last errors of the log, newest first.
pub(crate) fn last_errors(ring: &LogRing) -> Vec<String> {
    let (kept, _) = ring.follow(usize::MAX);
    let errors = kept.iter().rev().filter(|record| record.level == "error");
    errors.take(ERRORS_MAX).map(|record| record.text(false)).collect()
}

/// Sends log lines while somebody wants them.
pub(super) struct Logs {
    pub(super) cloud: Cloud,
    pub(super) ring: LogRing,
    pub(super) clock: Clock,
}

impl Logs {
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.serve() => {}
        }
    }

    async fn serve(&self) {
        let mut requests = self.cloud.requests();
        loop {
            let wanted = wanted(&requests.borrow_and_update());
            match wanted.filter(|(until_ms, _)| *until_ms > self.clock.now_ms()) {
                Some((until_ms, level)) => {
                    tokio::select! {
                        () = self.send(until_ms, level) => {
                            // Over; a later wish is another document.
                            if requests.changed().await.is_err() { return }
                        }
                        changed = requests.changed() => if changed.is_err() { return },
                    }
                }
                None => {
                    if requests.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Sends what is logged from now on, until `until_ms`.
    async fn send(&self, until_ms: u64, level: usize) {
        let (kept, mut follower) = self.ring.follow(usize::MAX);
        let value = |record: &LogRecord| serde_json::to_value(record).ok();
        let fits = |record: &LogRecord| {
            LEVELS.iter().position(|name| *name == record.level).is_none_or(|found| found <= level)
        };
        self.cloud.log(kept.iter().filter(|record| fits(record)).filter_map(|record| value(record)));
        let mut gathered: Vec<Value> = Vec::new();
        let mut due = self.clock.instant() + GATHER;
        while self.clock.now_ms() < until_ms {
            tokio::select! {
                record = follower.next() => match record {
                    Some(Ok(record)) if fits(&record) => gathered.extend(value(&record)),
                    Some(Ok(_)) => {}
                    Some(Err(missed)) => gathered.extend(value(&LogRecord::missed(self.clock.now_ms(), missed))),
                    None => return,
                },
                () = tokio::time::sleep_until(due) => {
                    due = self.clock.instant() + GATHER;
                    if !gathered.is_empty() {
                        self.cloud.log(std::mem::take(&mut gathered));
                    }
                }
            }
        }
    }
}

/// Until when lines are wanted, and down to which of [`LEVELS`].
fn wanted(requests: &[Request]) -> Option<(u64, usize)> {
    requests.iter().find_map(|request| match request {
        Request::Logs { until_ms, level } => {
            Some((*until_ms, LEVELS.iter().position(|name| name == level).unwrap_or(2)))
        }
        Request::TryAgain { .. } => None,
    })
}
