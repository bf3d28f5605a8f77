//! `tidegate demo`: the whole main job on one machine, with everything going wrong that does on a real one.
//!
//! Watches send recorded motion over MQTT, the agent's function windows it and asks the model, activities are appended to a
//! stream, the uplink takes them to the cloud. Function and model come from a control plane: on the way a better model is deployed,
//! a bad version is rolled back, a forged one refused, the uplink is cut and the agent is killed. The ledger then has to account for
//! every sample and every record. With `--torture` more goes wrong, and more often, on a gateway that nobody deploys to.

mod acts;
mod cloud;
mod ledger;
pub mod link;
mod mishap;
mod recording;
mod site;
mod stage;
mod verdict;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use self::acts::Stagehand;
use self::ledger::Ledger;
use self::recording::Recording;
use self::site::Site;
use self::stage::Stage;
use self::verdict::{Expected, Reign, Verdict};
use self::view::View;
use super::Failure;
use crate::broker::{self, Broker, Incoming, OnMessage, Subscription};
use crate::clock::Clock;
use crate::config::MqttConfig;
use crate::limits::Limits;
use crate::name::{BrokerName, GatewayName};
use crate::net::Net;
use crate::receipt::Receipt;
use crate::topic::TopicFilter;

/// Shows the whole main job on this machine, with versions deployed, the uplink cut and the agent killed on the way; nothing to install
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
    super::needs_compiler("the demo compiles its function")?;
    let clock = Clock::system();
    // A gateway's build has no control plane in it, and torture is the gateway's.
    let managed = cfg!(feature = "control-plane") && !args.torture;
    let plan = match managed {
        true => mishap::LOOP,
        false if args.torture => mishap::TORTURE,
        false => mishap::USUAL,
    };
    let mut view = View::new(clock.instant());
    let recording = Recording::load()?;
    if !args.json {
        let way = match managed {
            true => "a better model is deployed, the uplink is cut, the agent is killed, a bad version is\nrolled back, and a forged one refused".to_owned(),
            false if args.torture => mishap::account(plan),
            false => "the uplink is cut, and the agent is killed".to_owned(),
        };
        view.paragraph(&format!(
            "Four watches replay recorded motion over MQTT: {} samples, {} windows. A function asks a\n\
             model what each window shows and appends it to a stream, which an uplink takes to the cloud.\n\
             On the way {way}.\n",
            recording.samples.len(),
            recording.cases().len(),
        ));
        if managed {
            view.say(
                clock.instant(),
                "starting a control plane; the function and its first model are published and deployed",
            );
        }
    }
    let mut site = Site::build(managed).await?;
    if !args.json {
        view.say(clock.instant(), &format!("starting the agent in {}", site.folder().display()));
    }
    let expected = Expected::of(&recording, &site.models()).await?;
    let mut hand = site.cloud.as_ref().map(|cloud| Stagehand::new(Arc::clone(&cloud.laptop)));
    site.start_agent().await?;

    let ledger = Ledger::default();
    let sensors = connect(&site, "sensors", site.local.address(), &clock)?;
    let cloud = connect(&site, "console", site.broker.address(), &clock)?;
    let arrivals = Subscription { filter: TopicFilter::parse("site/#")?, qos: 1 };
    cloud.subscribe(vec![arrivals], Arc::new(Arrivals(ledger.clone())));
    cloud.link().wait_for(|link| *link == broker::Link::Ready).await?;

    let mut all_well = true;
    let mut earlier_runs = 0;
    let mut reign = Reign::default();
    for round in 0_u64.. {
        let mut stage = Stage {
            args,
            // What people do they do once; outages come again.
            plan: if round > 0 && managed { mishap::USUAL } else { plan },
            recording: &recording,
            expected: &expected,
            ledger: &ledger,
            sensors: &sensors,
            clock: &clock,
            hand: hand.as_mut(),
            earlier_runs,
            revival: None,
            reign,
        };
        stage.play(&mut site, &mut view, round).await?;
        let rested = stage.rest(&site, &mut view, round).await;
        (earlier_runs, reign) = (stage.earlier_runs, stage.reign);
        let verdict = Verdict::of(&ledger, &expected, reign, &rested, plan, round + 1);
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
    site.stop().await?;
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
