//! Runs one plan: the agent's lives one after the other, and what happens to the world meanwhile and between them.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::agent::{Agent, Ports};
use tidegate::api::AgentHandle;
use tidegate::api::status::Status;
use tidegate::clock::Clock;
use tidegate::net::Net;
use tidegate::runtime::{Compiler, Threads};
use tidegate::telemetry::LogRing;
use tokio::time::sleep;

use crate::broker::Broker;
use crate::check;
use crate::ledger::Ledger;
use crate::pipe::{Link, Links};
use crate::plan::{FUNCTIONS, Plan, Side, Step};
use crate::site::{Shop, Site};
use crate::world::{self, Life, Weather};

/// Virtual time before the plan begins: brokers are found, subscriptions made.
const PROLOGUE: Duration = Duration::from_secs(60);
/// Virtual time within which everything has to settle once the weather is calm.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// Nothing moves for so long: it has settled.
const QUIET: Duration = Duration::from_secs(300);
/// Longest time that a kill at some turn waits for that turn.
const KILL_WITHIN: Duration = Duration::from_secs(15);
/// The agent looks at its clock every second, and the disk may take its time.
const NOTED_WITHIN: Duration = Duration::from_secs(60);
/// Unix time in milliseconds at the beginning: November 2026.
const BEGINNING_MS: i64 = 1_795_000_000_000;

/// How a life ended.
enum End {
    /// The plan is through, and everything has settled.
    Settled(Box<Status>),
    Stopped,
    Killed,
}

struct Simulation<'a> {
    plan: Plan,
    site: Site<'a>,
    ledger: Arc<Ledger>,
    weather: Arc<Mutex<Weather>>,
    links: Vec<Arc<Link>>,
    /// An agent runs.
    alive: bool,
    /// When the clock was set last, and how far ahead within [`NOTED_WITHIN`].
    clock_set: Option<(Duration, u64)>,
    /// When a kill at a turn strikes all the same.
    kill_by: Option<Duration>,
    lives: u32,
}

/// What came of a simulation.
pub struct Report {
    pub violations: Vec<String>,
    pub lives: u32,
    /// Virtual time.
    pub elapsed: Duration,
    /// The same for each run of the same seed, as far as a simulation repeats.
    pub digest: u64,
}

pub fn run(seed: u64, shop: &Shop) -> anyhow::Result<Report> {
    let plan = Plan::of(seed);
    tracing::info!(target: "sim", "{plan}");
    // Back-offs and event ids draw from here.
    fastrand::seed(seed);
    world::panics();
    let ledger = Arc::new(Ledger::default());
    let broker = |name, options| Arc::new(Broker::new(name, options, Arc::clone(&ledger)));
    let links = vec![
        Arc::new(Link::new(broker("local", plan.local.clone()), seed ^ 1)),
        Arc::new(Link::new(broker("cloud", plan.cloud.clone()), seed ^ 2)),
    ];
    let weather = Weather {
        elapsed: Duration::ZERO,
        wall_ms: BEGINNING_MS,
        disk_us: (50, 2_000),
        rng: fastrand::Rng::with_seed(seed ^ 3),
        kill: None,
    };
    let mut simulation = Simulation {
        site: Site::new(shop, &plan)?,
        plan,
        ledger,
        weather: Arc::new(Mutex::new(weather)),
        links,
        alive: true,
        clock_set: None,
        kill_by: None,
        lives: 0,
    };
    let status = simulation.all_lives()?;
    check::at_the_end(&simulation.plan, &simulation.ledger, status.as_ref(), &simulation.site);
    let mut facts = simulation.ledger.facts();
    let violations: Vec<String> = facts.violations.drain(..).chain(world::panics()).collect();
    let elapsed = simulation.weather.lock().unwrap().elapsed;
    Ok(Report { violations, lives: simulation.lives, elapsed, digest: facts.digest(elapsed) })
}

impl Simulation<'_> {
    fn link(&self, side: Side) -> &Arc<Link> {
        &self.links[if side == Side::Local { 0 } else { 1 }]
    }

    /// One life after the other, until all has settled.
    fn all_lives(&mut self) -> anyhow::Result<Option<Status>> {
        loop {
            self.lives += 1;
            let (life, runtime) = Life::begin(&self.weather);
            set_current(Some(&life));
            let mut held = None;
            let end = runtime.block_on(self.live(&life, &mut held));
            let killed = matches!(end, Ok(End::Killed));
            self.end(&life, killed)?;
            drop(runtime);
            drop(held);
            set_current(None);
            if killed {
                self.site.use_copy()?;
            }
            self.site.share_code()?;
            match end {
                Ok(End::Settled(status)) => return Ok(Some(*status)),
                Ok(_) => self.live_without_agent(),
                Err(why) => {
                    self.ledger.violation(why);
                    return Ok(None);
                }
            }
        }
    }

    /// Ends a life, unless it has ended. Before, nothing of the agent may be dropped: it would wait for threads that wait for
    /// their turn.
    fn end(&mut self, life: &Life, killed: bool) -> anyhow::Result<()> {
        if life.is_over() {
            return Ok(());
        }
        self.alive = false;
        let now = life.elapsed().saturating_sub(PROLOGUE);
        if let Some((at, ahead_ms)) = self.clock_set.take()
            && now.saturating_sub(at) < NOTED_WITHIN
        {
            self.ledger.clock_is_unsure(ahead_ms);
        }
        for link in &self.links {
            link.cut();
            link.broker.lose_connections();
        }
        if killed {
            self.site.keep_copy()?;
        }
        life.end();
        Ok(())
    }

    /// Starts the agent and follows the plan. `held` is what must not be dropped before the life has ended.
    async fn live(&mut self, life: &Arc<Life>, held: &mut Option<Arc<dyn AgentHandle>>) -> Result<End, String> {
        let ports = Ports {
            clock: Clock::simulated(Arc::clone(life) as Arc<_>),
            net: Net::of(Arc::new(Links(self.links.clone()))),
            threads: Threads::OfTheCaller,
            compiler: Compiler::Here,
            logs: Some(LogRing::new(&self.plan.limits)),
            limits: self.plan.limits.clone(),
            boot: tidegate::boot::Boot::default(),
        };
        let config = self.site.config().map_err(|error| error.to_string())?;
        let mut start = pin!(Agent::start(config, ports));
        let started = tokio::select! {
            biased;
            () = life.killed.notified() => None,
            started = &mut start => Some(started),
        };
        let Some(started) = started else {
            let end = self.killed("while it starts");
            self.end(life, true).map_err(|error| error.to_string())?;
            return Ok(end);
        };
        let agent = started.map_err(|error| format!("the agent does not start: {error:#}"))?;
        let handle = agent.handle();
        *held = Some(Arc::clone(&handle));
        if self.lives == 1 {
            self.prologue(life).await?;
        }
        while let Some((&(at, n), _)) = self.plan.steps.first_key_value() {
            let wait = (PROLOGUE + at).min(self.kill_by.unwrap_or(Duration::MAX)).saturating_sub(life.elapsed());
            tokio::select! {
                biased;
                () = life.killed.notified() => return Ok(self.killed("as planned")),
                () = sleep(wait) => {}
            }
            if self.kill_by.is_some_and(|by| by <= life.elapsed()) {
                return Ok(self.killed("since its turn did not come"));
            }
            let Some(step) = self.plan.steps.remove(&(at, n)) else { continue };
            match step {
                Step::Kill => return Ok(self.killed("now")),
                Step::KillAt(turns, moment) => {
                    self.weather.lock().unwrap().kill = Some((turns, moment));
                    self.kill_by = Some(life.elapsed() + KILL_WITHIN);
                }
                Step::Stop => {
                    tracing::info!(target: "sim", "the agent is stopped");
                    return self.stop(life, agent).await;
                }
                Step::Reload => {
                    self.site.reconfigure(&self.plan).map_err(|error| error.to_string())?;
                    tracing::info!(target: "sim", "the configuration is reloaded");
                    tokio::select! {
                        biased;
                        () = life.killed.notified() => return Ok(self.killed("while it reloads")),
                        reloaded = handle.reload() => drop(reloaded.map_err(|why| format!("a reload failed: {why}"))?),
                    }
                }
                step => self.apply(at, step),
            }
        }
        self.epilogue(life, &*handle).await?;
        let status = handle.status();
        match self.stop(life, agent).await? {
            End::Stopped => Ok(End::Settled(Box::new(status))),
            other => Ok(other),
        }
    }

    fn killed(&mut self, when: &str) -> End {
        tracing::info!(target: "sim", when, "the agent is killed");
        self.kill_by = None;
        self.weather.lock().unwrap().kill = None;
        End::Killed
    }

    async fn stop(&mut self, life: &Life, agent: Agent) -> Result<End, String> {
        let stopped = tokio::select! {
            biased;
            () = life.killed.notified() => return Ok(self.killed("while it stops")),
            stopped = agent.run_until(std::future::ready(())) => stopped,
        };
        self.kill_by = None;
        self.weather.lock().unwrap().kill = None;
        stopped.map(|()| End::Stopped).map_err(|error| format!("the agent does not stop in order: {error:#}"))
    }

    /// Waits until the broker has the agent's subscriptions: before, what devices publish is for nobody.
    async fn prologue(&self, life: &Life) -> Result<(), String> {
        let local = &self.link(Side::Local).broker;
        while !FUNCTIONS.iter().all(|function| local.is_heard(&format!("{}0", function.topics))) {
            if life.elapsed() > PROLOGUE {
                return Err("the agent did not subscribe".to_owned());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Calm weather, until nothing moves any more.
    async fn epilogue(&self, life: &Life, agent: &dyn AgentHandle) -> Result<(), String> {
        tracing::info!(target: "sim", "calm");
        for link in &self.links {
            link.calm();
            link.broker.start();
        }
        self.weather.lock().unwrap().disk_us = (50, 2_000);
        let calm_since = life.elapsed();
        let mut quiet_since = None;
        loop {
            sleep(Duration::from_secs(1)).await;
            let open = check::open_ends(&agent.status(), &self.links);
            let now = life.elapsed();
            if open.is_empty() {
                if now - *quiet_since.get_or_insert(now) >= QUIET {
                    return Ok(());
                }
            } else {
                quiet_since = None;
                if now - calm_since > PATIENCE {
                    return Err(format!("nothing settles within {PATIENCE:?}: {}", open.join("; ")));
                }
            }
        }
    }

    /// What happens while no agent runs: it takes no time of the machine.
    fn live_without_agent(&mut self) {
        while let Some(((at, _), step)) = self.plan.steps.pop_first() {
            {
                let mut weather = self.weather.lock().unwrap();
                weather.elapsed = weather.elapsed.max(PROLOGUE + at);
            }
            match step {
                Step::Start => break,
                Step::Stop | Step::Kill | Step::KillAt(..) => {}
                Step::Reload => drop(self.site.reconfigure(&self.plan)),
                step => self.apply(at, step),
            }
        }
        self.alive = true;
    }

    fn apply(&mut self, at: Duration, step: Step) {
        match &step {
            Step::Publish(event) => {
                let taken = self.link(Side::Local).broker.take(&event.message());
                tracing::info!(target: "sim", event = event.id, topic = event.topic, program = event.program, taken, "a device publishes");
                if !taken {
                    self.plan.add(at + Duration::from_secs(1), step);
                }
                return;
            }
            Step::Start => return,
            step => tracing::info!(target: "sim", "{step:?}"),
        }
        match step {
            Step::Cut(side) => self.link(side).cut(),
            Step::CutAfter(side, bytes) => self.link(side).cut_after(bytes),
            Step::Stand(side, standing) => self.link(side).stand(standing),
            Step::FallSilent(side) => self.link(side).fall_silent(),
            Step::Stall(side, span) if self.alive => self.link(side).stall(span),
            Step::Delay(side, least, most) => self.link(side).delay(least, most),
            Step::StopBroker(side) => {
                self.link(side).broker.stop();
                self.link(side).cut();
            }
            Step::StartBroker(side) => self.link(side).broker.start(),
            Step::SetClock(by_ms) => {
                self.weather.lock().unwrap().wall_ms += by_ms;
                let ahead_ms = by_ms.max(0).unsigned_abs();
                if self.alive {
                    let before = self.clock_set.filter(|(before, _)| at.saturating_sub(*before) < NOTED_WITHIN);
                    self.clock_set = Some((at, ahead_ms + before.map_or(0, |(_, ahead_ms)| ahead_ms)));
                } else {
                    self.ledger.clock_is_unsure(ahead_ms);
                }
            }
            Step::Disk(least, most) => self.weather.lock().unwrap().disk_us = (least, most),
            _ => {}
        }
    }
}

static CURRENT: Mutex<Option<Arc<Life>>> = Mutex::new(None);

fn set_current(life: Option<&Arc<Life>>) {
    *CURRENT.lock().unwrap() = life.cloned();
}

/// Virtual time, for the trace.
#[derive(Clone, Copy, Debug)]
pub struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        match &*CURRENT.lock().unwrap() {
            Some(life) => write!(out, "{:>12.6}", life.elapsed().as_secs_f64() - PROLOGUE.as_secs_f64()),
            None => write!(out, "{:>12}", "-"),
        }
    }
}
