//! A gateway on two bad wires, between a broker that dies and a cloud that does not, and the audit of what came of each event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use e2e::wire::{State, Wire};
use e2e::{Agent, Device, Guest, Mosquitto};
use fastrand::Rng;
use serde_json::Value;

/// Saves what it must remember every 50 changes, so that a kill costs it little; what it loses all the same is not the agent's. With each
/// change it would write all that it holds, and on a busy machine be killed before it ever came to the end of that.
const BROKER: &str = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 100\n\
    persistence true\nautosave_interval 50\nautosave_on_changes true\n";
/// One event in so many fails at its first attempt.
const FAILS_EVERY: u64 = 17;

/// What all the sweeps run: append, publish, and fail now and then.
pub(super) fn guest() -> Guest {
    let (append, publish) = ("readings", "results/sweep");
    let body = "(drop (call $append (i32.const 2048) (i32.const 8) (call $data (local.get $event)) (call $data_bytes (local.get $event))))
        (drop (call $publish (i32.const 2056) (i32.const 13) (call $data (local.get $event)) (call $data_bytes (local.get $event))))
        (call $answer (i32.const 2048) (i32.const 0))";
    // The attempt is behind the event; a payload that begins with a space is one that fails at the first.
    let first = "(i32.eq (i32.load (i32.add (local.get $event) (i32.const 104))) (i32.const 1))";
    let fail = format!("(if {first} (then (return (call $fail (i32.const 0) (i32.const 2048) (i32.const 8)))))");
    Guest::raw(body, &format!("{append}{publish}")).but_on(b' ', &fail)
}

fn payload(seq: u64) -> String {
    let space = if seq.is_multiple_of(FAILS_EVERY) { " " } else { "" };
    format!(r#"{space}{{"seq":{seq}}}"#)
}

/// What was heard of one event at the cloud: how often each record of it came.
type Heard = BTreeMap<u64, BTreeMap<String, u64>>;

/// Everything of one sweep.
pub(super) struct Sweep {
    pub(super) broker: Mosquitto,
    pub(super) agent: Agent,
    /// Between the agent and its broker.
    pub(super) near: Wire,
    /// Between the agent and the cloud.
    pub(super) far: Wire,
    cloud: Mosquitto,
    console: Device,
    heard: Heard,
    sent: u64,
}

impl Sweep {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let (broker, cloud) = (Mosquitto::with(BROKER).await?, Mosquitto::start().await?);
        let (near, far) = (Wire::to(broker.port()).await?, Wire::to(cloud.port()).await?);
        let console = Device::connect(cloud.port()).await?;
        console.subscribe("site/#", 1).await?;
        let config = format!(
            r#"
[mqtt.local]
url = "{near}"
keep_alive = "5s"
[mqtt.cloud]
url = "{far}"
keep_alive = "5s"
[stream.readings]
uplink = {{ mqtt = "cloud", topic = "site/{{gateway}}/{{stream}}" }}
batch = {{ max_records = 100, max_wait = "100ms" }}
{function}"#,
            near = near.url(),
            far = far.url(),
            function = e2e::site::guest(
                "sweep",
                "sensors/#",
                "capabilities = [\"stream:readings\", \"mqtt:publish:results/#\"]\n\
                 retry = { attempts = 1000, max_age = \"1h\" }\n\
                 idempotency = { key = [\"topic\", \"/seq\"], window = \"1h\" }",
            ),
        );
        let mut agent = Agent::prepare(&config)?;
        guest().write(&agent.folder().join("sweep"), "1.0.0")?;
        agent.resume().await?;
        agent.hears("local").await?;
        Ok(Self { broker, agent, near, far, cloud, console, heard: Heard::new(), sent: 0 })
    }

    /// A sensor that sends `events` more, at its pace, whatever becomes of its broker.
    pub(super) fn send(&mut self, events: u64, per_second: u64) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        let (range, port) = (self.sent..self.sent + events, self.broker.port());
        self.sent += events;
        tokio::spawn(async move {
            let sensor = Device::faithful(port, &format!("sensor-{}", range.start)).await?;
            let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / per_second));
            for seq in range {
                ticks.tick().await;
                sensor.publish("sensors/1", payload(seq), 1).await?;
            }
            // What is under way goes with this value; the audit sends again what never reached the agent.
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        })
    }

    /// Something happens to one of the wires for a while, while the rest goes on.
    pub(super) async fn disturb(&self, random: &mut Rng) {
        let wire = if random.bool() { &self.near } else { &self.far };
        match random.u8(..4) {
            0 => wire.becomes(State::Cut),
            1 => wire.becomes(State::Slow(Duration::from_millis(random.u64(1..20)))),
            2 => wire.becomes(State::Dead),
            _ => {
                for _ in 0..random.u8(2..6) {
                    wire.becomes(State::Cut);
                    tokio::time::sleep(Duration::from_millis(random.u64(5..60))).await;
                    wire.becomes(State::Whole);
                    tokio::time::sleep(Duration::from_millis(random.u64(5..60))).await;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(50..400))).await;
        wire.becomes(State::Whole);
    }

    fn note(&mut self) -> anyhow::Result<()> {
        for message in self.console.rest() {
            let envelope: Value = serde_json::from_slice(&message.payload)?;
            let id = envelope["id"].as_str().context("a record without an id")?.to_owned();
            let records = self.heard.entry(e2e::seq(&message.payload)?).or_default();
            *records.entry(id).or_default() += 1;
        }
        Ok(())
    }

    /// Accounts for all that was sent: what the agent acknowledged is at the cloud and published, and nothing was done twice. What
    /// never reached the agent, because its broker forgot it, is sent again, until nothing is missing.
    pub(super) async fn audit(&mut self) -> anyhow::Result<String> {
        let (mut forgotten, mut rounds) = (0, 0);
        loop {
            self.all_acknowledged_arrives().await?;
            let missing: Vec<u64> = (0..self.sent).filter(|seq| !self.heard.contains_key(seq)).collect();
            if missing.is_empty() {
                break;
            }
            rounds += 1;
            anyhow::ensure!(rounds < 10, "{} events still do not reach the agent: {missing:?}", missing.len());
            forgotten += missing.len();
            let sensor = Device::connect(self.broker.port()).await?;
            for seq in &missing {
                sensor.publish("sensors/1", payload(*seq), 1).await?;
            }
            sensor.delivered(missing.len() as u64).await?;
        }
        let twice: Vec<_> = self.heard.iter().filter(|(_, records)| records.len() > 1).collect();
        anyhow::ensure!(twice.is_empty(), "{} events were done twice: {twice:?}", twice.len());
        let repeats: u64 = self.heard.values().flat_map(BTreeMap::values).map(|times| times - 1).sum();
        let status = self.agent.status()?;
        let letters =
            status["streams"].as_array().into_iter().flatten().find(|stream| stream["name"] == "dead-letters");
        anyhow::ensure!(letters.is_none_or(|letters| letters["records"] == 0), "dead letters: {letters:?}");
        Ok(format!(
            "{} events: 0 lost, 0 twice; {forgotten} that had not reached the agent were sent again, {repeats} records came to the cloud more than once",
            self.sent
        ))
    }

    /// Waits until it has, and the wires have been still for a while; then says what is lost.
    async fn all_acknowledged_arrives(&mut self) -> anyhow::Result<()> {
        let mut patience = e2e::PATIENCE;
        let still = Duration::from_millis(1_500);
        loop {
            let before = (self.heard.len(), self.near.seen().acknowledged.len());
            tokio::time::sleep(still).await;
            self.note()?;
            let seen = self.near.seen();
            let lost: BTreeSet<_> = seen.acknowledged.iter().filter(|seq| !self.heard.contains_key(seq)).collect();
            let unsaid: BTreeSet<_> = seen.acknowledged.difference(&seen.confirmed).collect();
            let is_still = before == (self.heard.len(), seen.acknowledged.len());
            if is_still && lost.is_empty() && unsaid.is_empty() && self.is_idle() {
                return Ok(());
            }
            patience = patience.checked_sub(still).with_context(|| {
                let some = |of: &BTreeSet<&u64>| of.iter().take(20).map(|seq| **seq).collect::<Vec<_>>();
                format!(
                    "{} events were acknowledged and are not at the cloud: {:?}…; {} were not published: {:?}…; the agent says {:#}\n{}",
                    lost.len(),
                    some(&lost),
                    unsaid.len(),
                    some(&unsaid),
                    self.agent.status().unwrap_or_default(),
                    self.agent.log().lines().rev().take(50).collect::<Vec<_>>().join("\n"),
                )
            })?;
        }
    }

    fn is_idle(&self) -> bool {
        self.agent.status().is_ok_and(|status| {
            let of = |what: &str| status[what].as_array().cloned().unwrap_or_default();
            of("functions").iter().all(|function| function["queued"] == 0 && function["busy"] == 0)
                && of("streams").iter().all(|stream| stream["records"] == 0)
                && of("outboxes").iter().all(|outbox| outbox["publishes"] == 0)
        })
    }

    /// Ends in order; an agent that cannot has a fault.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.agent.stop()?;
        self.cloud.stop()
    }
}
