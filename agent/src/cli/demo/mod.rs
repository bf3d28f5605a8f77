//! `tidegate demo`: the whole main job on one machine, with everything going wrong that does on a real one.
//!
//! Watches send recorded motion over MQTT, the agent's function windows it and asks the model, activities are appended to a
//! stream, the uplink takes them to the cloud. On the way the uplink is cut and the agent is killed. The ledger then has to
//! account for every sample and every record. With `--torture` more goes wrong, and more often.

mod ledger;
pub mod link;
mod mishap;
mod recording;
mod site;
mod verdict;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use self::ledger::Ledger;
use self::mishap::{Mishap, Plan};
use self::recording::Recording;
use self::site::Site;
use self::verdict::Verdict;
use self::view::{Standing, View};
use super::Failure;
use crate::broker::{self, Broker, Incoming, OnMessage, Subscription};
use crate::clock::Clock;
use crate::config::MqttConfig;
use crate::invocation::Publish;
use crate::limits::Limits;
use crate::name::{BrokerName, GatewayName};
use crate::net::Net;
use crate::receipt::Receipt;
use crate::topic::TopicFilter;

/// Shows the whole main job on this machine, with the uplink cut and the agent killed on the way; nothing to install
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// End by itself after one round: status 0 when everything was accounted for, 1 when anything was lost
    #[arg(long)]
    once: bool,
    /// Samples per second of each watch; the recording was made at 10
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// One round in which the agent is killed again and again, its links are cut and flap, and its disk is full; ends by itself
    #[arg(long)]
    torture: bool,
    /// Print the verdict of each round as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// How long the agent stays dead.
const DEAD_FOR: Duration = Duration::from_millis(700);
/// Longest a round may take to come to rest once everything was sent.
const REST_PATIENCE: Duration = Duration::from_secs(60);
const DRAW_EVERY: Duration = Duration::from_millis(100);

pub(super) async fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let clock = Clock::system();
    let plan = if args.torture { mishap::TORTURE } else { mishap::USUAL };
    let mut view = View::new(clock.instant());
    let recording = Recording::load()?;
    let mut site = Site::build().await?;
    if !args.json {
        let way =
            if args.torture { mishap::account(plan) } else { "the uplink is cut, and the agent is killed".to_owned() };
        view.paragraph(&format!(
            "Four watches replay recorded motion over MQTT: {} samples, {} windows. A function asks a\n\
             model what each window shows and appends it to a stream, which an uplink takes to the cloud.\n\
             On the way {way}.\n",
            recording.samples.len(),
            recording.cases().len(),
        ));
        view.say(clock.instant(), &format!("starting the agent in {}", site.folder().display()));
    }
    let expected = verdict::in_process(&recording, site.model()).await?;
    site.start_agent().await?;

    let ledger = Ledger::default();
    let sensors = connect(&site, "sensors", site.local.address(), &clock)?;
    let cloud = connect(&site, "console", site.cloud.address(), &clock)?;
    let arrivals = Subscription { filter: TopicFilter::parse("site/#")?, qos: 1 };
    cloud.subscribe(vec![arrivals], Arc::new(Arrivals(ledger.clone())));
    cloud.link().wait_for(|link| *link == broker::Link::Ready).await?;

    let mut all_well = true;
    let mut earlier_runs = 0;
    for round in 0_u64.. {
        let mut stage = Stage {
            args,
            plan,
            recording: &recording,
            ledger: &ledger,
            sensors: &sensors,
            clock: &clock,
            earlier_runs,
            revival: None,
        };
        stage.play(&mut site, &mut view, round).await?;
        let rested = stage.rest(&site, &mut view, round).await;
        earlier_runs = stage.earlier_runs;
        let verdict = Verdict::of(&ledger, &expected, &rested, plan, round + 1);
        all_well &= verdict.all_accounted_for();
        if args.json {
            view.paragraph(&serde_json::to_string(&verdict)?);
        } else {
            view.paragraph(&verdict.to_string());
        }
        if args.once || args.torture || !all_well {
            break;
        }
    }
    if !all_well && !args.json {
        view.paragraph(&format!("The agent's log ends so:\n{}", site.said()));
    }
    site.stop_agent().await?;
    site.stop().await;
    if all_well {
        return Ok(());
    }
    Err(Failure::failed("the demo could not account for everything", "please report it, with what is printed above")
        .into())
}

/// A client of one of the demo's brokers.
fn connect(site: &Site, name: &str, address: SocketAddr, clock: &Clock) -> anyhow::Result<Broker> {
    let config = MqttConfig::to(format!("mqtt://{address}"));
    let (name, gateway) = (BrokerName::parse(name)?, GatewayName::parse("world")?);
    Ok(Broker::connect(name, &config, &gateway, site.folder(), &Limits::default(), clock.clone(), Net::real())?)
}

/// Writes what arrives at the cloud into the ledger.
struct Arrivals(Ledger);

impl OnMessage for Arrivals {
    fn on_message(&self, message: Incoming, receipt: Option<Receipt>) {
        self.0.arrived(&message.payload);
        if let Some(receipt) = receipt {
            receipt.keep();
        }
    }
}

/// What one round of the demo needs.
struct Stage<'a> {
    args: &'a DemoArgs,
    plan: Plan,
    recording: &'a Recording,
    ledger: &'a Ledger,
    sensors: &'a Broker,
    clock: &'a Clock,
    /// Runs of the function in the agent's lives that are over.
    earlier_runs: u64,
    /// When the agent that was killed is started again.
    revival: Option<Instant>,
}

impl Stage<'_> {
    /// Sends the recording at its pace, while the plan's mishaps happen.
    async fn play(&mut self, site: &mut Site, view: &mut View, round: u64) -> anyhow::Result<()> {
        let samples = &self.recording.samples;
        let per_second = f64::from(self.args.rate) * f64::from(self.recording.devices());
        let started = self.clock.instant();
        let mut next_draw = started;
        let mut mishaps = self.plan.iter().peekable();
        for (n, sample) in samples.iter().enumerate() {
            let due = started + Duration::from_secs(n as u64).div_f64(per_second);
            tokio::time::sleep_until(due).await;
            while let Some((_, mishap)) = mishaps.next_if(|(at, _)| n >= samples.len() * at / 100) {
                self.happens(*mishap, site, view, round).await?;
            }
            let now = self.clock.instant();
            if self.revival.is_some_and(|at| now >= at) {
                self.revive(site, view).await?;
            }
            self.send(sample, round).await;
            if now >= next_draw {
                next_draw = now + DRAW_EVERY;
                self.draw(site, view, round).await;
            }
        }
        if self.revival.is_some() {
            self.revive(site, view).await?;
        }
        Ok(())
    }

    async fn happens(&mut self, mishap: Mishap, site: &mut Site, view: &mut View, round: u64) -> anyhow::Result<()> {
        // Whatever befalls an agent befalls one that runs.
        if self.revival.is_some() {
            self.revive(site, view).await?;
        }
        match mishap {
            Mishap::CutUplink => site.link.cut(),
            Mishap::RestoreUplink => site.link.restore(),
            Mishap::CutBroker => site.wire.cut(),
            Mishap::RestoreBroker => site.wire.restore(),
            Mishap::FillDisk => site.fill_disk()?,
            Mishap::FreeDisk => site.free_disk()?,
            Mishap::Kill => {
                self.earlier_runs = self.standing(site, round).await.runs;
                site.kill_agent().await?;
                self.revival = Some(self.clock.instant() + DEAD_FOR);
            }
        }
        self.say(view, &mishap.to_string());
        Ok(())
    }

    async fn revive(&mut self, site: &mut Site, view: &mut View) -> anyhow::Result<()> {
        self.revival = None;
        site.start_agent().await?;
        self.say(view, "the agent runs again");
        Ok(())
    }

    async fn send(&self, sample: &recording::Sample, round: u64) {
        let seq = sample.seq + round * self.recording.samples_per_device();
        let [ax, ay, az, gx, gy, gz] = sample.axes;
        let ts = self.clock.now_ms();
        let device = &sample.device;
        let payload = json!({
            "device": device, "seq": seq, "ts": ts,
            "ax": ax, "ay": ay, "az": az, "gx": gx, "gy": gy, "gz": gz,
        });
        let (ledger, id) = (self.ledger.clone(), (device.clone(), seq));
        let acknowledged = Receipt::new(move |result| match result {
            Ok(()) => ledger.sent(id),
            Err(why) => ledger.books().malformed.push(format!("sample {id:?} was not taken: {why}")),
        });
        let publish = Publish {
            broker: None,
            topic: format!("wrist/{device}/imu").into(),
            data: payload.to_string().into(),
            qos: 1,
            retain: false,
            content_type: None,
            properties: Vec::new(),
        };
        self.sensors.publish(publish, acknowledged).await;
    }

    /// Waits until everything has been handled, committed and has arrived; says how things stand then, or when patience is over.
    async fn rest(&self, site: &Site, view: &mut View, round: u64) -> Standing {
        let patience = self.clock.instant() + REST_PATIENCE;
        loop {
            let standing = self.draw(site, view, round).await;
            let rested = {
                let books = self.ledger.books();
                let all = |n: usize| n == standing.samples;
                all(books.sent.len())
                    && all(books.handled.len())
                    && standing.waiting == Some(0)
                    && (mishap::fails_commits(self.plan) || standing.committed == Some(books.arrived.len() as u64))
            };
            if rested || self.clock.instant() > patience {
                return standing;
            }
            tokio::time::sleep(DRAW_EVERY).await;
        }
    }

    async fn standing(&self, site: &Site, round: u64) -> Standing {
        let status = site.status().await;
        let stream = status.as_ref().and_then(|s| s.streams.iter().find(|stream| stream.name.as_str() == "activities"));
        let runs = status
            .as_ref()
            .and_then(|s| s.functions.first())
            .map(|function| function.numbers.invocations.values().sum());
        Standing {
            samples: self.recording.samples.len() * usize::try_from(round + 1).unwrap_or(usize::MAX),
            runs: self.earlier_runs + runs.unwrap_or(0_u64),
            committed: stream.map(|stream| stream.newest_sequence),
            waiting: stream.map(|stream| stream.records),
            link_up: site.link.is_up(),
            disk_full: site.disk_is_full(),
            agent_up: status.is_some(),
        }
    }

    async fn draw(&self, site: &Site, view: &mut View, round: u64) -> Standing {
        let standing = self.standing(site, round).await;
        if !self.args.json {
            view.show(self.clock.instant(), standing, self.ledger);
        }
        standing
    }

    fn say(&self, view: &mut View, text: &str) {
        if !self.args.json {
            view.say(self.clock.instant(), text);
        }
    }
}
