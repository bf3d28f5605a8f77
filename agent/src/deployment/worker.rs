//! Carries out what [`State`](super::state::State) says must be: one task, which takes in what happened, writes the state down, and then does what follows
//! from it. Whatever it does can be done again after a crash.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use sync_client::{Accepted, Cloud, Link};
use sync_protocol::desired::{DeploymentRef, Request};
use sync_protocol::{Digest, VerifiedDeployment};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::book::{Book, blobs_of};
use super::native::Native;
use super::stage::{Bench, Fit};
use super::state::{Input, Verdict, Work};
use super::watch::{Before, Watch};
use super::{DeploymentStatus, Host};
use crate::hint::Told;
use crate::metrics::Metrics;

/// How often time is looked at while something is under way.
const TICK: Duration = Duration::from_secs(1);
/// When the disk, or the gateway.toml beside a deployment, is looked at again after it would not do.
const RETRY: Duration = Duration::from_secs(30);

/// What the task is told.
#[derive(Debug)]
pub(super) enum Command {
    /// The control plane, or somebody here, wants a deployment.
    Accepted(Arc<Accepted>, oneshot::Sender<Result<(), String>>),
    /// gateway.toml was read again.
    Reloaded,
    /// The agent stops.
    Stop(oneshot::Sender<()>),
}

/// Work under way, which ends when it is dropped.
struct Job {
    work: Work,
    task: JoinHandle<Input>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What connects the task with those who ask something of it.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) status: watch::Sender<Arc<DeploymentStatus>>,
    /// Blobs that stay though nothing refers to them yet.
    pub(super) pinned: Arc<Mutex<BTreeSet<Digest>>>,
    /// Another agent has to run.
    pub(super) another: CancellationToken,
}

/// The task.
pub(super) struct Worker {
    book: Book,
    bench: Bench,
    host: Arc<dyn Host>,
    metrics: Metrics,
    /// Whether there is a control plane to fetch from.
    follows: bool,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Arc<DeploymentStatus>>,
    pinned: Arc<Mutex<BTreeSet<Digest>>>,
    another: CancellationToken,
    job: Option<Job>,
    watch: Option<(DeploymentRef, Watch)>,
    progress: watch::Sender<Option<(DeploymentRef, (u64, u64))>>,
    kept: Option<DeploymentRef>,
    cleaned: Option<Vec<DeploymentRef>>,
    looked: Instant,
    retry_at: Option<Instant>,
    agent_retry_at: Option<Instant>,
    /// What the control plane wants, while the disk does not take it.
    unbegun: Option<Arc<Accepted>>,
    /// Fetches again what the disk has lost of the deployment that must serve.
    mending: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("book", &self.book).finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(
        book: Book,
        bench: Bench,
        host: Arc<dyn Host>,
        metrics: Metrics,
        follows: bool,
        wires: Wires,
    ) -> Self {
        let Wires { commands, status, pinned, another } = wires;
        let looked = book.clock.instant();
        Self {
            book,
            bench,
            host,
            metrics,
            follows,
            commands,
            status,
            pinned,
            another,
            job: None,
            watch: None,
            progress: watch::Sender::default(),
            kept: None,
            cleaned: None,
            looked,
            retry_at: None,
            agent_retry_at: None,
            unbegun: None,
            mending: None,
        }
    }

    /// Runs until it is told to stop.
    pub(super) async fn run(mut self) {
        let mut accepted = self.book.cloud.accepted();
        let mut fetched = self.progress.subscribe();
        loop {
            self.settle().await;
            let waits =
                self.retry_at.or(self.agent_retry_at).is_some() || self.unbegun.is_some() || !self.book.is_written();
            let busy = self.book.state.is_busy() || waits;
            let job = self.job.as_mut().map(|job| &mut job.task);
            let mending = self.mending.as_mut();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Accepted(accepted, done)) => {
                        let taken = self.accepted(&accepted, true).and_then(|()| self.book.write());
                        // Who asked may have gone.
                        let _ = done.send(taken);
                    }
                    Some(Command::Reloaded) => self.retry_at = None,
                    Some(Command::Stop(done)) => {
                        self.job = None;
                        self.book.take(Input::Stopping);
                        self.book.agents.stopped();
                        // What is not written is found out again at the next start.
                        let _ = self.book.write();
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                changed = accepted.changed() => {
                    let newest = accepted.borrow_and_update().clone();
                    match (changed, newest) {
                        (Ok(()), Some(newest)) => self.wanted(newest),
                        (Ok(()), None) => {}
                        (Err(_), _) => return,
                    }
                }
                Ok(()) = fetched.changed() => {
                    if let Some((deployment, fetched)) = *fetched.borrow_and_update() {
                        self.book.take(Input::Fetching { deployment, fetched });
                    }
                }
                input = ended(job) => {
                    self.job = None;
                    self.book.take(input);
                }
                () = mended(mending) => {
                    (self.mending, self.retry_at, self.agent_retry_at, self.book.renewed) = (None, None, None, None);
                }
                () = tokio::time::sleep_until(self.looked + TICK), if busy => self.tick(),
            }
        }
    }

    /// Takes in what the control plane wants, now or when the disk does again.
    fn wanted(&mut self, accepted: Arc<Accepted>) {
        if let Err(why) = self.accepted(&accepted, false) {
            if self.unbegun.is_none() {
                tracing::error!("deployment not begun: {why}");
            }
            self.unbegun = Some(accepted);
        }
    }

    /// Takes in what should run. An error says why it is not on disk, and so not wanted.
    fn accepted(&mut self, accepted: &Accepted, by_hand: bool) -> Result<(), String> {
        let Some(verified) = &accepted.deployment else { return Ok(()) };
        let (deployment, policy) = (verified.reference(), verified.deployment().policy);
        let asked =
            |request: &Request| matches!(request, Request::TryAgain { deployment: of } if *of == deployment.digest);
        let desired = accepted.desired.as_ref().filter(|_| !by_hand);
        let try_again = by_hand || desired.is_some_and(|desired| desired.requests.iter().any(asked));
        let sequence = desired.map(|desired| desired.sequence);
        if !self.book.known.contains_key(&deployment) {
            let stored = self.book.folder.store_answer(deployment, &verified.to_answer());
            stored.map_err(|error| Told::of(&error).text())?;
            self.book.known.insert(deployment, verified.clone());
            // What could not be read may be what must serve.
            self.retry_at = None;
        }
        if !self.book.state.is_busy() {
            self.looked = self.book.clock.instant();
        }
        // Whatever waited for the disk is older.
        self.unbegun = None;
        self.book.take(Input::Wanted { deployment, policy, sequence, try_again });
        Ok(())
    }

    fn tick(&mut self) {
        let now = self.book.clock.instant();
        let elapsed_ms = u64::try_from((now - self.looked).as_millis()).unwrap_or(u64::MAX);
        self.looked = now;
        let link = !self.follows || *self.book.cloud.link().borrow() == Link::Connected;
        let verdict = match (&self.watch, self.book.state.yardstick(elapsed_ms)) {
            (Some((_, watch)), Some((before, policy, at_end))) => {
                let verdict = watch.judge(before, policy, at_end, &self.host.unhealthy());
                let lost = before.linked && !link && verdict == Verdict::Good;
                let why =
                    || Verdict::Doubtful("the control plane is not reached, as it was by the agent before".into());
                Some(if lost { why() } else { verdict })
            }
            _ => None,
        };
        self.book.take(Input::Tick { elapsed_ms, link, verdict });
    }

    /// Does what the state says, until it says nothing more.
    async fn settle(&mut self) {
        if let Some(accepted) = self.unbegun.clone() {
            self.wanted(accepted);
        }
        while self.book.write().is_ok() && self.step().await {}
        self.tell();
    }

    /// The next thing that follows from the state; `false` when there is nothing.
    async fn step(&mut self) -> bool {
        let now = self.book.clock.instant();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        // 0. What it runs on. Nothing of a deployment serves on the agent of another one.
        if self.agent_retry_at.is_none_or(|at| at <= now) {
            self.agent_retry_at = None;
            match self.book.another() {
                Ok(true) => {
                    self.another.cancel();
                    return false;
                }
                Ok(false) => {}
                Err(error) => return self.without_agent(&error),
            }
        }
        // 1. What serves.
        if self.book.serving != self.book.state.serves() && self.retry_at.is_none() {
            self.serve().await;
            return true;
        }
        let on_trial = self.book.state.on_trial();
        if self.watch.as_ref().map(|(deployment, _)| *deployment) != on_trial {
            let before = self.book.state.yardstick(0).map(|(before, ..)| before);
            self.watch = on_trial.zip(before).map(|(trial, before)| (trial, Watch::start(before, &self.metrics)));
            // Its probation begins when it serves.
            self.looked = now;
        }
        // 2. What is under way.
        let work = self.book.state.work();
        if self.job.as_ref().map(|job| job.work) != work {
            self.job = None;
            if let Some(work) = work {
                return self.begin(work);
            }
        }
        // 3. What was kept supersedes what its releases say.
        if let Some(kept) = self.book.state.kept().filter(|kept| self.kept != Some(*kept)) {
            let told = self.book.verified(kept).and_then(|verified| Ok(self.book.cloud.trust().keep(&verified)?));
            if let Err(error) = told {
                tracing::error!("what was superseded is not remembered: {}", Told::of(&error).text());
            }
            self.kept = Some(kept);
        }
        // 4. What nothing needs.
        let references: Vec<_> = self.book.state.references().collect();
        if self.cleaned.as_ref() != Some(&references) {
            let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.book.clean(pinned, &self.bench.native).await;
            let base = self.host.base();
            self.host.keep_compiled(self.book.spare_code(&base));
            self.cleaned = Some(references);
        }
        false
    }

    /// The agent of what must serve cannot run: what is on trial is given up, and what was kept serves on this one. Whether more follows at once.
    fn without_agent(&mut self, error: &anyhow::Error) -> bool {
        let reason = Told::of(error).causes.join(": ");
        if let Some(deployment) = self.book.state.on_trial() {
            self.book.take(Input::Unfit { deployment, reason });
            return true;
        }
        tracing::error!(reason, "the agent that was deployed does not run");
        self.agent_retry_at = Some(self.book.clock.instant() + RETRY);
        self.book.state.kept().into_iter().for_each(|kept| self.mend(kept));
        true
    }

    async fn serve(&mut self) {
        let Some(deployment) = self.book.state.serves() else {
            self.done(None, self.host.serve(None).await);
            return;
        };
        let base = self.host.base();
        let deployed = self.book.verified(deployment).and_then(|verified| self.book.shelf.fit(verified, &base));
        let served = match deployed {
            Ok(fit) => {
                self.book.code.insert(deployment, fit.code());
                self.host.keep_compiled(self.book.spare_code(&base));
                self.host.serve(Some(fit.deployed)).await
            }
            Err(error) => Err(error),
        };
        self.done(Some(deployment), served);
        if self.book.broken.is_some() && self.book.serving.is_some() {
            // What was given up must not go on in its place.
            let alone = self.host.serve(None).await;
            self.done(None, alone);
        }
    }

    fn done(&mut self, deployment: Option<DeploymentRef>, served: anyhow::Result<Option<Fit>>) {
        match (served, deployment) {
            (Ok(fit), _) => self.book.serves(fit.as_ref()),
            (Err(error), Some(deployment)) => {
                if !self.book.unfit(deployment, &error) {
                    self.retry_at = Some(self.book.clock.instant() + RETRY);
                    self.mend(deployment);
                }
            }
            (Err(error), None) => {
                tracing::error!("gateway.toml cannot serve alone: {}", Told::of(&error).text());
                self.retry_at = Some(self.book.clock.instant() + RETRY);
            }
        }
    }

    /// Has what is missing of `deployment`, which must serve, fetched again.
    fn mend(&mut self, deployment: DeploymentRef) {
        let Ok(verified) = self.book.verified(deployment) else { return };
        let (cloud, blobs) = (self.book.cloud.clone(), blobs_of(&verified).collect::<Vec<_>>());
        if !self.follows || self.mending.is_some() || cloud.blobs().missing_bytes(&blobs) == 0 {
            return;
        }
        self.mending = Some(tokio::spawn(async move {
            if let Err(error) = cloud.fetch(&blobs, |_, _| {}).await {
                tracing::error!(%error, "what the disk has lost of a deployment is not fetched again");
                tokio::time::sleep(RETRY).await;
            }
        }));
    }

    /// Begins `work`. Whether it is done already.
    fn begin(&mut self, work: Work) -> bool {
        let deployment = match work {
            Work::Fetch(deployment) | Work::Stage(deployment) | Work::Activate(deployment) => deployment,
        };
        let verified = match self.book.verified(deployment) {
            Ok(verified) => verified,
            Err(error) => {
                let reason = Told::of(&error).causes.join(": ");
                self.book.take(Input::Fetched { deployment, result: Err(reason.clone()) });
                self.book.take(Input::Staged { deployment, result: Err(reason) });
                return true;
            }
        };
        let task = match work {
            Work::Fetch(_) => {
                let (cloud, native) = (self.book.cloud.clone(), self.bench.native.clone());
                tokio::spawn(fetch(cloud, verified, native, self.follows, self.progress.clone()))
            }
            Work::Stage(_) => {
                let (bench, host) = (self.bench.clone(), Arc::clone(&self.host));
                tokio::spawn(async move {
                    let staged = async {
                        let (base, running) = (host.base(), host.running());
                        bench.stage(verified, &base, &running, &host.models()).await
                    };
                    let result = staged.await.map(drop).map_err(|error| Told::of(&error).causes.join(": "));
                    Input::Staged { deployment, result }
                })
            }
            Work::Activate(_) => {
                let (shelf, host, metrics) = (self.book.shelf.clone(), Arc::clone(&self.host), self.metrics.clone());
                // Only another agent can be at fault when the line is gone.
                let linked = self.follows
                    && *self.book.cloud.link().borrow() == Link::Connected
                    && self.book.agents.differs(&verified);
                tokio::spawn(async move {
                    let policy = verified.deployment().policy;
                    let (base, running, models) = (host.base(), host.running(), host.models());
                    // What does not fit any more shows when it is made to serve.
                    let names: Vec<_> = shelf.fit(verified, &base).map_or_else(
                        |_| Vec::new(),
                        |fit| fit.changed(&running, &models).map(|spec| spec.name.clone()).collect(),
                    );
                    let before = Before::of(&names, &metrics, host.unhealthy(), &policy);
                    Input::Activated { deployment, before: Before { linked, ..before } }
                })
            }
        };
        self.job = Some(Job { work, task });
        false
    }

    fn tell(&self) {
        let status = self.book.status(self.host.running_now());
        self.status.send_if_modified(|held| {
            let differs = **held != status;
            if differs {
                *held = Arc::new(status);
            }
            differs
        });
    }
}

/// What came of a job; never, when there is none.
async fn ended(task: Option<&mut JoinHandle<Input>>) -> Input {
    match task {
        Some(task) => match task.await {
            Ok(input) => input,
            // The process is ending, or it panicked: its deadline ends the step.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// The end of mending; never, when there is none.
async fn mended(task: Option<&mut JoinHandle<()>>) {
    match task {
        // However it ended, it is looked at again.
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

async fn fetch(
    cloud: Cloud,
    verified: VerifiedDeployment,
    native: Native,
    follows: bool,
    progress: watch::Sender<Option<(DeploymentRef, (u64, u64))>>,
) -> Input {
    let (deployment, bundles, code) =
        (verified.reference(), blobs_of(&verified).collect::<Vec<_>>(), native.blobs(&verified));
    let [missing, beside] = [&bundles, &code].map(|blobs| cloud.blobs().missing_bytes(blobs));
    let total = missing + if follows { beside } else { 0 };
    let told = |done| {
        progress.send_replace(Some((deployment, (done, total))));
    };
    let result = if follows || missing == 0 {
        cloud.fetch(&bundles, |done, _| told(done)).await.context("it could not be fetched")
    } else {
        Err(anyhow::anyhow!("bytes of it are missing, and there is no control plane to fetch them from"))
    };
    // What has the bundle can compile it: for native code no line is waited for.
    if result.is_ok() && follows && beside > 0 && *cloud.link().borrow() == Link::Connected {
        let mut had = missing;
        for blob in code {
            let bytes = cloud.blobs().missing_bytes(&[blob]);
            if let Err(error) = cloud.fetch(&[blob], |done, _| told(had + done)).await {
                tracing::warn!(deployment = deployment.number, %error, "native code cannot be fetched");
            }
            had += bytes;
        }
    }
    Input::Fetched { deployment, result: result.map_err(|error| Told::of(&error).causes.join(": ")) }
}
