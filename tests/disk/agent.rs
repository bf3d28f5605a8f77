//! The real agent with its state on such a disk: mosquitto gives it events at QoS 1, functions keep them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use e2e::site::guest;
use e2e::{Agent, Device, Guest, Mosquitto};
use fastrand::Rng;
use tidegate::clock::Clock;
use tidegate::journal::{Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::name::StreamName;

use crate::disk::Disk;
use crate::image::Image;
use crate::live::{Call, Failure};
use crate::number;

/// Longest that an agent may take for what takes a second.
const PATIENCE: Duration = Duration::from_secs(40);
/// Events between two cuts, and in a run of which one call fails.
const EVENTS: u64 = 25;
/// Calls that fail when not all do, and days at the same time.
const CASES: usize = 16;
const AT_ONCE: usize = 4;

/// A broker, an agent whose state is on `disk`, a sensor.
struct Site {
    disk: Disk,
    _broker: Mosquitto,
    agent: Agent,
    sensor: Device,
    sent: u64,
    /// Calls of the agent until it was stopped.
    calls: Vec<Call>,
}

impl Site {
    async fn new() -> anyhow::Result<Self> {
        let disk = Disk::mount();
        disk.insert(&Image::default());
        let broker = Mosquitto::start().await?;
        let sensor = Device::faithful(broker.port(), "sensor").await?;
        let agent = Agent::prepare("")?;
        Guest::append("kept").write(&agent.folder().join("keep"), "1.0.0")?;
        let keep = guest("keep", "sensors/#", "capabilities = [\"stream:kept\"]");
        agent.configure(&format!("[mqtt.local]\nurl = \"{}\"\n[stream.kept]\n{keep}", broker.url()))?;
        std::os::unix::fs::symlink(disk.path(), agent.folder().join("state"))?;
        Ok(Self { disk, _broker: broker, agent, sensor, sent: 0, calls: Vec::new() })
    }

    async fn send(&mut self, events: u64) -> anyhow::Result<()> {
        for _ in 0..events {
            self.sensor.publish("sensors/1", format!("{}", self.sent), 1).await?;
            self.sent += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Waits until all that was sent is kept, stops the agent, and looks. What the broker has not handed out by then comes in a
    /// next round.
    async fn all_is_kept(&mut self) -> anyhow::Result<()> {
        self.sensor.delivered(self.sent).await?;
        let mut missing = Vec::new();
        for _ in 0..3 {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while kept(&self.agent) < self.sent {
                anyhow::ensure!(
                    tokio::time::Instant::now() < deadline,
                    "it is stuck with {} of {}",
                    kept(&self.agent),
                    self.sent
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if let Err(refused) = self.agent.stop() {
                // Its last sync may have been the call that failed: then it says so.
                let log = self.agent.log();
                let said = ["os error 5)", "os error 24)", "os error 28)"].iter().any(|error| log.contains(error));
                anyhow::ensure!(said, "{refused:#}");
            }
            self.calls = self.disk.calls();
            self.disk.heal();
            let events = events(&self.disk)?;
            missing = (0..self.sent).filter(|event| !events.contains(event)).take(20).collect();
            if missing.is_empty() {
                return Ok(());
            }
            self.agent.resume().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        anyhow::bail!("of {} events these are lost: {missing:?}", self.sent)
    }

    /// Whether the agent panicked.
    fn no_panic(&self) -> anyhow::Result<()> {
        let log = self.agent.log();
        let panic = log.lines().find(|line| line.contains("panicked at"));
        anyhow::ensure!(panic.is_none(), "the agent panicked: {panic:?}");
        Ok(())
    }
}

/// How many records the agent says that it keeps.
pub(crate) fn kept(agent: &Agent) -> u64 {
    let status = agent.status().unwrap_or_default();
    let streams = status["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
    let stream = streams.iter().find(|stream| stream["name"] == "kept");
    stream.and_then(|stream| stream["records"].as_u64()).unwrap_or(0)
}

/// The events that the journal on `disk` has, read without the agent.
pub(crate) fn events(disk: &Disk) -> anyhow::Result<BTreeSet<u64>> {
    let kept = StreamName::parse("kept")?;
    let streams = BTreeMap::from([(kept.clone(), tidegate::config::StreamConfig::default())]);
    let config = JournalConfig { streams, limits: Arc::new(Limits::default()) };
    let journal = Journal::open(&disk.path().join("journal"), config, Clock::system())?;
    let records = journal.read(&kept, 0, usize::MAX, usize::MAX)?;
    records.iter().map(|record| Ok(std::str::from_utf8(&record.data)?.parse()?)).collect()
}

/// `TIDEGATE_AGENT_CUTS` says how many; `TIDEGATE_SEED` draws others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_power_is_cut_loses_no_event() -> anyhow::Result<()> {
    let cuts = number("TIDEGATE_AGENT_CUTS").unwrap_or(8);
    let mut rng = Rng::with_seed(number("TIDEGATE_SEED").unwrap_or(1));
    let mut site = Site::new().await?;
    site.agent.resume().await?;
    site.agent.hears("local").await?;
    for cut in 0..cuts {
        site.disk.switch_off_after(rng.usize(..EVENTS as usize));
        site.send(EVENTS).await?;
        let off = tokio::time::timeout(Duration::from_secs(5), async {
            while !site.disk.is_off() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if off.await.is_err() {
            site.disk.switch_off();
        }
        // For a while the agent has no disk, and must not acknowledge anything.
        tokio::time::sleep(Duration::from_millis(rng.u64(..200))).await;
        site.agent.kill()?;
        let history = site.disk.history();
        site.disk.insert(&history.cut(history.moments(), rng.u64(..)));
        site.agent.resume().await.with_context(|| format!("after cut {cut}"))?;
    }
    site.all_is_kept().await?;
    println!("{cuts} power cuts, {} events: 0 lost", site.sent);
    site.no_panic()
}

/// A start, some events, a stop; one call fails. Returns all calls that there were.
async fn day(fail: Option<(usize, Failure)>) -> anyhow::Result<Vec<Call>> {
    let mut site = Site::new().await?;
    if let Some((nth, failure)) = fail {
        site.disk.fail(nth, failure);
    }
    if let Err(refused) = site.agent.resume().await {
        // It may refuse to start on such a disk, and says why; the next start works.
        anyhow::ensure!(site.agent.log().contains("(os error "), "{refused:#}");
        site.agent.resume().await.context("the start after the one that failed")?;
    }
    site.agent.hears("local").await?;
    site.send(EVENTS).await?;
    site.all_is_kept().await.with_context(|| format!("failed: {:?}", site.disk.failed()))?;
    site.no_panic()?;
    Ok(site.calls)
}

/// `TIDEGATE_FAILURES=all` has every call fail instead of a part of them; `TIDEGATE_CALL` does one.
#[test]
fn an_agent_gets_over_any_call_that_fails_once() {
    let day = |fail| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(day(fail));
    let calls = day(None).expect("a day without a failure");
    let kinds = [Failure::Io, Failure::NoSpace, Failure::NoHandle];
    let fits = |call: Call| kinds.into_iter().filter(move |kind| kind.fits(call));
    let mut cases: Vec<(usize, Failure)> =
        (1..).zip(&calls).flat_map(|(nth, call)| fits(*call).map(move |kind| (nth, kind))).collect();
    if let Some(call) = number("TIDEGATE_CALL") {
        cases.retain(|(nth, _)| *nth as u64 == call);
    } else if !std::env::var("TIDEGATE_FAILURES").is_ok_and(|which| which == "all") {
        Rng::with_seed(number("TIDEGATE_SEED").unwrap_or(1)).shuffle(&mut cases);
        cases.truncate(CASES);
    }
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((nth, failure)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(why) = day(Some((*nth, *failure))) {
                let again = format!("TIDEGATE_CALL={nth} cargo test -p tidegate -p e2e --test disk an_agent_gets");
                failures.lock().unwrap().push(format!("call {nth}, {failure:?}: {why:#}\nrerun: {again}"));
            }
        }
    };
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    println!("{} failures of {} calls: {} were too much", cases.len(), calls.len(), failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
