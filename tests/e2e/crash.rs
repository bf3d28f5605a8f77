//! What becomes of events when agent or broker die, or stop in order.

use std::time::Duration;

use e2e::site::fahrenheit;
use e2e::{Agent, Device, Mosquitto, Site};

use super::{hear, send};

/// Events in the long test, and how many of them the sensor sends in a second.
const EVENTS: u64 = 40_000;
const PER_SECOND: u64 = 1_000;
/// How often the agent dies meanwhile.
const KILLS: u64 = 12;
/// QoS 1 messages that the broker of the long test lets be under way to the agent.
const IN_FLIGHT: u64 = 100;

/// SIGKILL again and again under load: nothing is lost, and what comes twice was in flight at a kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_12_times_loses_nothing() -> anyhow::Result<()> {
    let config = format!("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages {IN_FLIGHT}\n");
    let broker = Mosquitto::with(&config).await?;
    let mut agent = Agent::start(&format!("[mqtt.local]\nurl = \"{}\"\n{}", broker.url(), fahrenheit(""))).await?;
    agent.hears("local").await?;
    let auditor = Device::connect(broker.port()).await?;
    auditor.subscribe("results/#", 1).await?;
    let sensor = Device::connect(broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/press-1/temp", 0..EVENTS, PER_SECOND).await?;
        sensor.delivered(EVENTS).await
    });

    let life = Duration::from_millis(1_000 * EVENTS / PER_SECOND / (KILLS + 1));
    for _ in 0..KILLS {
        tokio::time::sleep(life).await;
        agent.kill()?;
        agent.resume().await?;
    }
    load.await??;
    let mut heard = hear(&auditor, EVENTS).await?;
    agent.stop()?;
    for message in auditor.rest() {
        *heard.entry(super::seq(&message.payload)?).or_insert(0) += 1;
    }
    let repeats = heard.values().sum::<u64>() - EVENTS;
    assert_eq!(heard.len() as u64, EVENTS);
    assert!(repeats <= KILLS * IN_FLIGHT, "{repeats} repeats, more than {IN_FLIGHT} for each of {KILLS} kills");
    println!("{EVENTS} events, {KILLS} kills: 0 lost, {repeats} repeated");
    Ok(())
}

/// mosquitto, with persistence, is restarted twice under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_loses_nothing() -> anyhow::Result<()> {
    const EVENTS: u64 = 5_000;
    let mut broker = Mosquitto::start().await?;
    let agent = Agent::start(&format!("[mqtt.local]\nurl = \"{}\"\n{}", broker.url(), fahrenheit(""))).await?;
    let auditor = Device::faithful(broker.port(), "auditor").await?;
    auditor.subscribe("results/#", 1).await?;
    let sensor = Device::faithful(broker.port(), "sensor").await?;
    agent.hears("local").await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/press-1/temp", 0..EVENTS, 1_000).await?;
        sensor.delivered(EVENTS).await
    });
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        broker.stop()?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        broker.resume().await?;
    }
    load.await??;
    hear(&auditor, EVENTS).await?;
    Ok(())
}

/// SIGTERM under load: what was begun is finished and acknowledged, so that nothing is done again after the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_orderly_stop_nothing_is_repeated() -> anyhow::Result<()> {
    const EVENTS: u64 = 4_000;
    let mut site = Site::with(&fahrenheit("")).await?;
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/press-1/temp", 0..EVENTS, 1_000).await?;
        sensor.delivered(EVENTS).await
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        site.agent.stop()?;
        site.agent.resume().await?;
    }
    load.await??;
    let mut heard = hear(&site.device, EVENTS).await?;
    site.agent.stop()?;
    for message in site.device.rest() {
        *heard.entry(super::seq(&message.payload)?).or_insert(0) += 1;
    }
    let twice: Vec<_> = heard.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "repeated: {twice:?}");
    Ok(())
}
