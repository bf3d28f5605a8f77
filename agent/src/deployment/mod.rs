//! What others deploy to this gateway: taken in, tried, watched, kept or rolled back.
//!
//! [`state`] decides and does nothing; [`worker`] does what the state says and decides nothing. In between: [`folder`] remembers, [`merge`]
//! reads a deployment as more of gateway.toml, [`native`] says which native code fits, [`stage`] makes it ready, [`watch`] judges it, [`report`] tells the control plane, [`file`]
//! reads one from a stick; [`agents`] brings what it says of the agent itself into the boot record.
//!
//! # Promises
//! - At any time the deployment that was kept last serves, or the one on trial; never neither, and never one that was given up.
//! - What was decided is on disk before anything is done about it; what is done can be done again after a crash.
//! - Going back needs no network and no compiler.
//! - Tests of what is staged reach nothing but a folder that goes with them.

mod agents;
mod book;
mod file;
mod folder;
mod merge;
mod native;
mod report;
pub(crate) mod stage;
mod state;
mod watch;
mod worker;

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sync_client::{Cloud, Follower, Now, SyncConfig};
use sync_protocol::Digest;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::report::{Progress, Report, Running as RunningNow};
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::agents::AgentStatus;
use self::agents::Agents;
use self::book::Book;
pub(crate) use self::file::check as check_file;
pub use self::file::{Applied, ApplyError};
use self::folder::Folder;
pub(crate) use self::merge::Deployed;
use self::native::Native;
pub(crate) use self::report::last_errors;
use self::stage::{Bench, Fit, Running, Shelf};
use self::state::Input;
use self::worker::{Command, Wires, Worker};
use crate::boot::{Another, Boot};
use crate::clock::Clock;
use crate::config::{CloudConfig, Config, ModelConfig};
use crate::inference::Models;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::runtime::Runtime;
use crate::telemetry::LogRing;

/// Commands that may wait for the task.
const COMMANDS_MAX: usize = 16;
/// How old the figures of a report may be.
const FIGURES_AGE: Duration = Duration::from_secs(30);
/// How long the task may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What `GET /v1/deployment` answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// How far the deployment is that is under way, or how the last one ended.
    pub progress: Option<Progress>,
    /// The deployment that serves; none: gateway.toml alone.
    pub active: Option<DeploymentRef>,
    /// The one that a rollback returns to.
    pub kept: Option<DeploymentRef>,
    /// All that runs.
    pub running: Vec<RunningNow>,
    /// What of the deployment gateway.toml has of its own.
    #[serde(default)]
    pub hidden: Vec<String>,
    /// Why what should serve does not, or why what is wanted next stands still.
    #[serde(default)]
    pub broken: Option<String>,
    /// How it stands with the control plane; none: deployments come from files only.
    #[serde(default)]
    pub link: Option<String>,
    /// Which agent runs; none: no other than the packaged one was ever deployed.
    #[serde(default)]
    pub agent: Option<AgentStatus>,
    /// Why the last thing that the control plane wanted was refused; empty: it was not.
    #[serde(default)]
    pub refused: String,
}

/// What deployments need of the agent.
pub(crate) trait Host: Send + Sync {
    /// gateway.toml as it was read last.
    fn base(&self) -> Arc<Config>;

    /// The functions that serve.
    fn running(&self) -> Running;

    /// The models that serve.
    fn models(&self) -> Vec<ModelConfig>;

    /// What runs, in words of a report.
    fn running_now(&self) -> Vec<RunningNow>;

    /// What is wrong with the agent's health.
    fn unhealthy(&self) -> Vec<String>;

    /// Everything else that a report says.
    fn report(&self) -> Report;

    /// Has `deployed` serve beside gateway.toml, or gateway.toml alone. On an error what served goes on as it was.
    fn serve(&self, deployed: Option<Arc<Deployed>>) -> BoxFuture<'_, anyhow::Result<Option<Fit>>>;

    /// Components whose compiled code must stay, beside those that serve.
    fn keep_compiled(&self, digests: Vec<Arc<str>>);
}

/// What was on disk when the agent started.
#[derive(Debug)]
pub(crate) struct Opened {
    book: Book,
    follower: Option<Follower>,
    config: CloudConfig,
}

/// The running part.
#[derive(Debug)]
pub(crate) struct Deployer {
    commands: mpsc::Sender<Command>,
    status: channel::Receiver<Arc<DeploymentStatus>>,
    cloud: Cloud,
    follows: bool,
    native: Native,
    clock: Clock,
    /// Blobs that are being brought in for a deployment which nobody knows of yet.
    pinned: Arc<Mutex<BTreeSet<Digest>>>,
    /// One file at a time.
    applying: tokio::sync::Mutex<()>,
    /// Another agent has to run.
    another: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Opens what is on disk; `None` when nobody may deploy to this gateway, and nobody ever did.
///
/// # Errors
/// When something on disk cannot be used; [`Another`], when another agent has to run.
pub(crate) fn open(config: &Config, limits: &Arc<Limits>, clock: &Clock, boot: Boot) -> anyhow::Result<Option<Opened>> {
    let state_dir = &config.gateway.state_dir;
    let folder = state_dir.join("deployment");
    let Some(cloud_config) = config.cloud.clone().or_else(|| folder.is_dir().then(CloudConfig::default)) else {
        return Ok(None);
    };
    let (follower, cloud) = Follower::open(sync_config(config, &cloud_config), now(clock)).context("[cloud]")?;
    let shelf = Shelf { blobs: cloud.blobs().clone(), bundles: state_dir.join("bundles"), limits: Arc::clone(limits) };
    let agents = Agents::open(boot, state_dir);
    let mut book = Book::new(Folder::open(&folder)?, shelf, cloud, clock.clone(), agents);
    book.take(Input::Started);
    if let Some((deployment, reason)) =
        book.state.on_trial().and_then(|on_trial| Some((on_trial, book.agents.failure(Some(on_trial))?)))
    {
        book.take(Input::Unfit { deployment, reason });
    }
    // A disk that takes nothing is no reason not to serve what is on it.
    if book.write().is_ok() {
        // Why another one cannot run is told as long as that lasts.
        if let Ok(true) = book.another() {
            return Err(Another.into());
        }
    }
    let follower = cloud_config.url.is_some().then_some(follower);
    Ok(Some(Opened { book, follower, config: cloud_config }))
}

fn sync_config(config: &Config, cloud: &CloudConfig) -> SyncConfig {
    SyncConfig {
        state: config.gateway.state_dir.clone(),
        url: cloud.url.clone().unwrap_or_default(),
        gateway: config.gateway_name(),
        claim_token: cloud.claim_token_file.clone(),
        root: cloud.root.clone(),
        certificate: cloud.cert.clone().zip(cloud.key.clone()),
        ca: cloud.ca.clone(),
        sign_requests: cloud.sign_requests,
        report_every: cloud.report_every.0,
        limits: sync_client::Limits::default(),
    }
}

/// Time as the other crate takes it.
fn now(clock: &Clock) -> Now {
    let clock = clock.clone();
    Arc::new(move || clock.is_plausible().then(|| clock.now_ms()))
}

impl Opened {
    /// What must serve beside `base`; `None` is gateway.toml alone.
    pub(crate) fn fit(&mut self, base: &Config) -> Option<Fit> {
        self.book.fit(base)
    }

    /// `fit` cannot be made to serve. Whether there is another one to ask for.
    pub(crate) fn unfit(&mut self, fit: &Fit, error: &anyhow::Error) -> bool {
        self.book.unfit(fit.deployed.reference(), error)
    }

    /// `fit` serves.
    pub(crate) fn serves(&mut self, fit: Option<&Fit>) {
        self.book.serves(fit);
    }

    /// Components whose compiled code must stay, beside those that serve.
    pub(crate) fn spare_code(&mut self, base: &Config) -> Vec<Arc<str>> {
        self.book.spare_code(base)
    }

    /// The control plane, for the streams that drain to it.
    pub(crate) fn cloud(&self) -> Cloud {
        self.book.cloud.clone()
    }

    /// Follows the control plane from now on, and takes files.
    pub(crate) fn start(self, host: Arc<dyn Host>, tools: Tools) -> Deployer {
        let Self { book, follower, config } = self;
        let Tools { runtime, models, metrics, logs } = tools;
        let (clock, cloud, follows) = (book.clock.clone(), book.cloud.clone(), follower.is_some());
        let scratch = book.folder.path().to_owned();
        let native = Native::new(&runtime, config.native_code);
        let (shelf, its) = (book.shelf.clone(), native.clone());
        let agents = book.agents.clone();
        let bench = Bench { shelf, runtime, native: its, agents, models, clock: clock.clone(), scratch };
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (status, told) = channel::channel(Arc::new(book.status(host.running_now())));
        let (stop, tasks, pinned) = (CancellationToken::new(), TaskTracker::new(), Arc::default());
        let another = CancellationToken::new();
        if let Some(follower) = follower {
            let reporter = report::Reporter {
                host: Arc::clone(&host),
                status: told.clone(),
                every: FIGURES_AGE.min(config.report_every.0),
            };
            let reports = reporter.start(&tasks, &stop);
            tasks.spawn(follower.run(reports, stop.clone()));
            let logs = report::Logs { cloud: cloud.clone(), ring: logs, clock: clock.clone() };
            tasks.spawn(logs.run(stop.clone()));
        }
        let wires = Wires { commands: receiver, status, pinned: Arc::clone(&pinned), another: another.clone() };
        let worker = Worker::new(book, bench, host, metrics, follows, wires);
        tasks.spawn(worker.run());
        tasks.close();
        Deployer {
            commands,
            status: told,
            cloud,
            follows,
            native,
            clock,
            pinned,
            applying: tokio::sync::Mutex::default(),
            another,
            stop,
            tasks,
        }
    }
}

/// What of the agent deployments use themselves.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) runtime: Runtime,
    pub(crate) models: Arc<Models>,
    pub(crate) metrics: Metrics,
    pub(crate) logs: LogRing,
}

impl Deployer {
    /// How it stands.
    pub(crate) fn status(&self) -> DeploymentStatus {
        let link = self.follows.then(|| self.cloud.link().borrow().to_string());
        let refused = self.cloud.refused().borrow().clone();
        DeploymentStatus { link, refused, ..DeploymentStatus::clone(&self.status.borrow()) }
    }

    /// Says when another agent has to run.
    pub(crate) fn another(&self) -> CancellationToken {
        self.another.clone()
    }

    /// gateway.toml was read again: what would not fit may.
    pub(crate) async fn reloaded(&self) {
        // The task only ends with the agent.
        let _ = self.commands.send(Command::Reloaded).await;
    }

    /// Takes a deployment file, and has its deployment run.
    ///
    /// # Errors
    /// With why it was refused; then nothing has changed.
    pub(crate) async fn apply(&self, archive: Box<dyn Read + Send>) -> Result<Applied, ApplyError> {
        let _one_at_a_time = self.applying.lock().await;
        let running = self.status.borrow().active;
        let (cloud, native) = (self.cloud.clone(), self.native.clone());
        let source = file::Source { cloud, native, follows: self.follows, now_ms: now(&self.clock)(), running };
        let applied = source.take(archive, &self.pinned).await;
        let applied = match applied {
            Ok((accepted, applied)) => {
                let (done, begun) = oneshot::channel();
                let told = self.commands.send(Command::Accepted(Arc::new(accepted), done)).await;
                match (told, begun.await) {
                    (Ok(()), Ok(Ok(()))) => Ok(applied),
                    (Ok(()), Ok(Err(why))) => Err(ApplyError::Unable(why)),
                    _ => Err(ApplyError::Unable("the agent is stopping".to_owned())),
                }
            }
            Err(error) => Err(error),
        };
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clear();
        applied
    }

    /// Ends what is under way; it goes on at the next start.
    pub(crate) async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        let told = self.commands.send(Command::Stop(done)).await.is_ok();
        if told {
            let _ = tokio::time::timeout(STOP_PATIENCE, stopped).await;
        }
        self.stop.cancel();
        let _ = tokio::time::timeout(STOP_PATIENCE, self.tasks.wait()).await;
    }
}
