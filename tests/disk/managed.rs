//! A gateway that a control plane manages, with its state on such a disk: the power goes while it is provisioned, and while versions are
//! fetched, tried, kept and rolled back. The control plane is real, and keeps its power.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::{Agent, ControlPlane, Device, Guest, Link, Mosquitto};
use fastrand::Rng;
use serde_json::Value;

use crate::agent::{events, kept};
use crate::disk::Disk;
use crate::image::Image;
use crate::number;

/// How long one deployment may take to come to its end on a disk that works.
const TRIAL: Duration = Duration::from_secs(8);
/// How long a start may take that is cut, too.
const START: Duration = Duration::from_secs(3);
/// Between two events.
const PACE: Duration = Duration::from_millis(40);
/// Every so many deployments is a bad one, and every so many sets a floor.
const BAD: u64 = 3;
const FLOOR: u64 = 4;

/// A control plane, a line to it, a gateway whose state is on `disk`, a sensor that never stops.
struct Site {
    disk: Disk,
    plane: ControlPlane,
    line: Link,
    agent: Agent,
    results: Device,
    broker: Mosquitto,
    rng: Rng,
    /// The number of the newest deployment, and of the one that serves.
    newest: u64,
    serves: u64,
    /// The lowest that it may go back to.
    floor: u64,
    /// What the gateway had on disk when it last came to rest: sequence of the desired document and floor; and its key.
    accepted: (u64, u64),
    key: Vec<u8>,
}

impl Site {
    /// Everything but the agent runs, and the agent has what it needs to be let in, once.
    async fn new(rng: Rng) -> anyhow::Result<Self> {
        let disk = Disk::mount();
        disk.insert(&Image::default());
        let (broker, plane) = (Mosquitto::start().await?, ControlPlane::start().await?);
        let line = Link::to(plane.address()).await?;
        let results = Device::connect(broker.port()).await?;
        results.subscribe("results/#", 1).await?;
        let agent = Agent::prepare("")?;
        let cloud = plane.claim(&agent, line.address())?;
        agent.configure(&format!("[mqtt.local]\nurl = \"{}\"\n[stream.kept]\n{cloud}", broker.url()))?;
        std::os::unix::fs::symlink(disk.path(), agent.folder().join("state"))?;
        let (key, newest) = (Vec::new(), 0);
        Ok(Self { disk, plane, line, agent, results, broker, rng, newest, serves: 0, floor: 0, accepted: (0, 0), key })
    }

    fn state(&self, file: &str) -> PathBuf {
        self.disk.path().join(file)
    }

    fn json(&self, file: &str) -> anyhow::Result<Value> {
        let bytes = std::fs::read(self.state(file)).with_context(|| file.to_owned())?;
        serde_json::from_slice(&bytes).with_context(|| file.to_owned())
    }

    /// What the control plane knows of the gateway.
    fn reported(&self) -> anyhow::Result<Value> {
        self.plane.fleet(&["show", "test"])
    }

    const fn is_bad(number: u64) -> bool {
        number.is_multiple_of(BAD)
    }

    /// Publishes the next version and has it wanted: it keeps each event in `kept` and tells its number, or traps.
    fn deploy(&mut self) -> anyhow::Result<()> {
        self.newest += 1;
        let (number, topic) = (self.newest, format!("results/v{}", self.newest));
        let data = "(call $data (local.get $event)) (call $data_bytes (local.get $event))";
        let good = Guest::raw(
            &format!(
                "(drop (call $append (i32.const 2048) (i32.const 4) {data}))
                 (drop (call $publish (i32.const 2052) (i32.const {}) {data})) (call $answer {data})",
                topic.len()
            ),
            &format!("kept{topic}"),
        );
        let guest = if Self::is_bad(number) { Guest::raw("unreachable", "") } else { good };
        let capabilities = ["stream:kept", "mqtt:publish:results/#"];
        self.plane.publish("hall", &format!("1.{number}.0"), &guest, &capabilities)?;
        if number.is_multiple_of(FLOOR) {
            self.floor = number - 2;
        }
        let text = format!(
            "gateway = \"test\"\n[[function]]\nname = \"hall\"\nversion = \"1.{number}.0\"\ncapabilities = {capabilities:?}\n\
             retry = {{ attempts = 100 }}\n[[function.trigger]]\nmqtt = {{ filter = \"sensors/#\" }}\n\
             [policy]\nprobation = \"1s\"\ninvocations_min = 3\nslower_times_max = 0\n"
        );
        self.plane.deploy(&text, &["--floor", &self.floor.to_string()])
    }

    /// Waits until the newest deployment was kept, or given up if it is a bad one, and the control plane knows.
    async fn comes_to_rest(&mut self) -> anyhow::Result<()> {
        let (number, is_bad) = (self.newest, Self::is_bad(self.newest));
        let serves = if is_bad { self.serves } else { number };
        let mut last = String::new();
        let rest = e2e::until("what is wanted", async || {
            let Ok(status) = self.agent.deployment().await else { return false };
            last = format!("{status:?}");
            let Some(progress) = &status.progress else { return false };
            let ended = progress.kept || progress.phase == sync_protocol::report::Phase::RolledBack;
            progress.deployment.number == number
                && ended
                && status.active.is_some_and(|active| active.number == serves)
                && status.broken.is_none()
        });
        rest.await.with_context(|| last)?;
        self.serves = serves;
        let mut last = Value::Null;
        let told = e2e::until("the control plane to hear of it", async || {
            last = self.reported().unwrap_or_default();
            let phase = if is_bad { "rolled-back" } else { "active" };
            let [active, progress] =
                ["/active/number", "/progress/deployment/number"].map(|at| last.pointer(at).cloned());
            active == Some(serves.into()) && progress == Some(number.into()) && last["progress"]["phase"] == phase
        });
        told.await.with_context(|| last.to_string())?;
        ensure!(last["cloned_ms"].is_null() && self.plane.fleet(&[])?.as_array().map(Vec::len) == Some(1), "{last}");
        self.accepted = self.accepted()?;
        ensure!(self.accepted.1 == self.floor, "the floor is {}, and not {}", self.accepted.1, self.floor);
        Ok(())
    }

    /// The sequence of the newest desired document that was accepted, and the floor.
    fn accepted(&self) -> anyhow::Result<(u64, u64)> {
        let trust = self.json("trust/trust.json")?;
        let sequence = trust.pointer("/desired/sequence").and_then(Value::as_u64);
        let floors = trust["floors"].as_object().into_iter().flatten();
        let floor = floors.filter_map(|(_, floor)| floor["value"].as_u64()).max().unwrap_or(0);
        Ok((sequence.with_context(|| trust.to_string())?, floor))
    }

    /// Cuts the power, and looks whether all that was promised or told is on what the disk holds then.
    fn cut(&mut self) -> anyhow::Result<()> {
        self.disk.switch_off();
        self.agent.kill()?;
        // No report is under way any more: what the control plane was told by now holds.
        let told = self.reported()?;
        let history = self.disk.history();
        self.disk.insert(&history.cut(history.moments(), self.rng.u64(..)));
        ensure!(std::fs::read(self.state("identity/key.pem"))? == self.key, "the key is another one");
        let promised = told["report"]["desired_sequence"].as_u64().unwrap_or(0).max(self.accepted.0);
        let (sequence, floor) = self.accepted()?;
        ensure!(sequence >= promised, "{promised} was accepted, and {sequence} is what it says now");
        ensure!(floor >= self.accepted.1, "the floor was {}, and is {floor}", self.accepted.1);
        let state = self.json("deployment/state.json")?;
        if told["progress"]["kept"] == true {
            let kept = state.pointer("/kept/deployment/number").and_then(Value::as_u64);
            let said = told["progress"]["deployment"]["number"].as_u64();
            ensure!(kept >= said, "it said that it had kept {said:?}, and has kept {kept:?}");
        }
        Ok(())
    }

    /// Starts with no control plane in reach, and sees who serves.
    async fn serves_alone(&mut self) -> anyhow::Result<()> {
        self.line.cut();
        if self.rng.u8(..3) == 0 {
            // Once more, while it gets over the first.
            self.disk.switch_off_after(self.rng.usize(..12));
            let _ = tokio::time::timeout(START, self.agent.resume()).await;
            self.cut()?;
        }
        self.agent.resume().await?;
        self.results.rest();
        let topic = self.results.next().await.context("nobody serves")?.topic;
        let [old, new] = [self.serves, self.newest].map(|number| format!("results/v{number}"));
        ensure!(topic == old || topic == new, "{topic} serves, and not {old} or {new}");
        self.line.restore();
        Ok(())
    }

    /// Has a sensor send event after event; counts them.
    async fn sense(&self) -> anyhow::Result<(Arc<AtomicU64>, tokio::task::JoinHandle<anyhow::Result<Device>>)> {
        let sensor = Device::faithful(self.broker.port(), "sensor").await?;
        let sent = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PACE);
            // `u64::MAX` says that it is enough.
            while let Ok(event) = counted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |sent| sent.checked_add(1)) {
                sensor.publish("sensors/1", event.to_string(), 1).await?;
                ticks.tick().await;
            }
            Ok(sensor)
        });
        Ok((sent, task))
    }
}

/// `TIDEGATE_DEPLOYMENT_CUTS` says how many; `TIDEGATE_SEED` draws others.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_managed_gateway_whose_power_is_cut_serves_and_comes_to_what_is_wanted() -> anyhow::Result<()> {
    let cuts = number("TIDEGATE_DEPLOYMENT_CUTS").unwrap_or(5);
    let mut site = Site::new(Rng::with_seed(number("TIDEGATE_SEED").unwrap_or(1))).await?;
    site.agent.resume().await?;
    site.plane.hears("test").await?;
    site.key = std::fs::read(site.state("identity/key.pem"))?;
    // The first one is not disturbed, and tells how often something is synced.
    let before = site.disk.syncs_beside_journal();
    site.deploy()?;
    site.comes_to_rest().await?;
    let syncs = site.disk.syncs_beside_journal() - before;
    let (sent, sensor) = site.sense().await?;
    for cut in 0..cuts {
        match site.rng.u8(..4) {
            0 => {}
            1 => site.disk.switch_off_after(site.rng.usize(..2 * syncs)),
            _ => site.disk.switch_off_after_beside_journal(site.rng.usize(..syncs)),
        }
        site.deploy()?;
        let patience = TRIAL.mul_f64(site.rng.f64().max(0.2));
        let off = tokio::time::timeout(patience, async {
            while !site.disk.is_off() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let _ = off.await;
        // For a while the agent has no disk, and must not promise anything.
        site.disk.switch_off();
        tokio::time::sleep(Duration::from_millis(site.rng.u64(..200))).await;
        let log = |site: &Site| {
            let log = site.agent.log();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        let context = |site: &Site| format!("cut {cut}, deployment {}; the agent's log:\n{}", site.newest, log(site));
        site.cut().with_context(|| context(&site))?;
        site.serves_alone().await.with_context(|| context(&site))?;
        site.comes_to_rest().await.with_context(|| context(&site))?;
    }
    let events_sent = sent.swap(u64::MAX, Ordering::SeqCst);
    let sensor = sensor.await??;
    sensor.delivered(events_sent).await?;
    let all = e2e::until("all events to be kept", async || kept(&site.agent) >= events_sent).await;
    let status = site.agent.status()?;
    site.agent.stop()?;
    let events = events(&site.disk)?;
    let lost: Vec<_> = (0..events_sent).filter(|event| !events.contains(event)).take(20).collect();
    ensure!(
        lost.is_empty(),
        "of {events_sent} events these are lost: {lost:?}; {all:?}: {status}\n{}",
        site.agent.log()
    );
    let log = site.agent.log();
    ensure!(!log.contains("panicked at"), "the agent panicked");
    println!("{cuts} power cuts in {syncs} syncs of {} deployments, {events_sent} events: 0 lost", site.newest);
    Ok(())
}

/// Its claim lets one gateway in, once. `TIDEGATE_DEPLOYMENT_CUTS` has the power go at each sync instead of a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_gateway_whose_power_is_cut_while_it_is_provisioned_is_let_in_as_one() -> anyhow::Result<()> {
    let mut rng = Rng::with_seed(number("TIDEGATE_SEED").unwrap_or(1));
    let mut site = Site::new(rng.fork()).await?;
    site.agent.resume().await?;
    site.plane.hears("test").await?;
    let syncs = site.disk.syncs_beside_journal();
    let mut cases: Vec<usize> = (0..syncs).collect();
    if number("TIDEGATE_DEPLOYMENT_CUTS").is_none() {
        rng.shuffle(&mut cases);
        cases.truncate(3);
    }
    for case in &cases {
        let mut site = Site::new(rng.fork()).await?;
        site.disk.switch_off_after_beside_journal(*case);
        // It may not come to be ready.
        let _ = tokio::time::timeout(START, site.agent.resume()).await;
        site.disk.switch_off();
        site.agent.kill()?;
        let history = site.disk.history();
        site.disk.insert(&history.cut(history.moments(), rng.u64(..)));
        let log = |site: &Site| format!("sync {case} of {syncs}:\n{}", site.agent.log());
        site.agent.resume().await.with_context(|| log(&site))?;
        site.plane.hears("test").await.with_context(|| log(&site))?;
        ensure!(site.plane.fleet(&[])?.as_array().map(Vec::len) == Some(1), "there are several gateways");
    }
    println!("power cut at {} of {syncs} syncs of provisioning: let in as one gateway", cases.len());
    Ok(())
}
