//! Events that have to wait: for another attempt, for their turn, for room, for one that is the same.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::site::guest;
use e2e::{Agent, Device, Guest, Mosquitto, Site};
use serde_json::Value;

const PUBLISHES: &str = "capabilities = [\"mqtt:publish:results/#\"]";

/// Publishes its payload, but asks for another attempt before `attempt` when the payload begins with `x`.
fn stubborn(attempt: u32) -> Guest {
    let before = format!("(i32.lt_u (i32.load (i32.add (local.get $event) (i32.const 104))) (i32.const {attempt}))");
    let body = format!("(if {before} (then (return (call $fail (i32.const 0) (i32.const 2048) (i32.const 7)))))");
    Guest::forward("results/1").but_on(b'x', &body)
}

/// Publishes its payload on `topic` after a while.
fn slow(topic: &str, ms: u64) -> Guest {
    let wait = format!("(call $block (call $after (i64.const {})))", ms * 1_000_000);
    let rest = "(call $answer (call $data (local.get $event)) (call $data_bytes (local.get $event)))";
    let publish = format!(
        "(drop (call $publish (i32.const 2048) (i32.const {}) (call $data (local.get $event)) (call $data_bytes (local.get $event))))",
        topic.len()
    );
    Guest::raw(&format!("{wait}{publish}{rest}"), topic)
}

async fn number(agent: &Agent, what: &str, function: &str, key: &str, wanted: u64) -> anyhow::Result<()> {
    let holds = |status: &Value| super::function(status, function)[key] == wanted;
    e2e::until(what, async || agent.status().is_ok_and(|status| holds(&status))).await
}

/// SIGKILL while retries wait: all of them are tried again, with their attempts counted.
#[tokio::test]
async fn an_agent_that_is_killed_resumes_what_waits() -> anyhow::Result<()> {
    const EVENTS: u64 = 20;
    let config = guest("stubborn", "sensors/#", &format!("{PUBLISHES}\nretry = {{ attempts = 5 }}"));
    let mut site = Site::with_guests(&config, &[("stubborn", stubborn(4))]).await?;
    for n in 0..EVENTS {
        site.device.publish(&format!("sensors/{n}"), format!("x{n}"), 1).await?;
    }
    // The third attempt comes after a second at least.
    e2e::until("the second attempts", async || {
        site.agent.status().is_ok_and(|status| {
            let function = super::function(&status, "stubborn");
            function["retries"].as_u64() == Some(2 * EVENTS) && function["parked"] == EVENTS
        })
    })
    .await?;
    site.agent.kill()?;
    site.agent.resume().await?;
    let mut came: Vec<_> = site.device.take(20).await?.iter().map(e2e::Message::text).collect();
    came.sort();
    came.dedup();
    assert_eq!(came.len() as u64, EVENTS);
    number(&site.agent, "nothing to wait", "stubborn", "parked", 0).await?;
    let status = site.agent.status()?;
    let function = super::function(&status, "stubborn");
    // Of the attempts that were left, one failed, and a second one that was not on disk yet; without any on disk there would be three.
    assert!(function["retries"].as_u64() < Some(2 * EVENTS), "{function:#}");
    assert_eq!(function["received"], 0, "the broker had nothing to send again");
    Ok(())
}

/// While a poisoned event waits, thousands behind it are handled and acknowledged, with a window of 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_event_holds_up_no_acknowledgements() -> anyhow::Result<()> {
    const EVENTS: usize = 2_000;
    let broker = Mosquitto::with("allow_anonymous true\nmax_queued_messages 0\n").await?;
    let device = Device::connect(broker.port()).await?;
    device.subscribe("results/#", 1).await?;
    let agent = Agent::prepare("")?;
    stubborn(99).write(&agent.folder().join("stubborn"), "1.0.0")?;
    let function = guest("stubborn", "sensors/#", &format!("{PUBLISHES}\nretry = {{ attempts = 9 }}"));
    agent.configure(&format!("[mqtt.local]\nurl = \"{}\"\nversion = 3\n{function}", broker.url()))?;
    let mut agent = agent;
    agent.resume().await?;
    agent.hears("local").await?;
    device.publish("sensors/1", "x", 1).await?;
    for n in 0..EVENTS {
        device.publish("sensors/2", n.to_string(), 1).await?;
    }
    assert_eq!(device.take(EVENTS).await?.len(), EVENTS);
    e2e::until("all acknowledged", async || agent.status().is_ok_and(|status| status["brokers"][0]["in_flight"] == 0))
        .await?;
    assert_eq!(super::function(&agent.status()?, "stubborn")["parked"], 1);
    Ok(())
}

/// A burst of 3,000 events within a second at a function that takes 2 ms for each, behind a mosquitto that queues 1,000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_at_a_slow_function_is_not_lost_at_a_default_broker() -> anyhow::Result<()> {
    const EVENTS: u64 = 3_000;
    let broker = Mosquitto::with("allow_anonymous true\n").await?;
    let hearer = Mosquitto::start().await?;
    let auditor = Device::connect(hearer.port()).await?;
    auditor.subscribe("results/#", 1).await?;
    let agent = Agent::prepare("")?;
    slow("results/1", 2).write(&agent.folder().join("slow"), "1.0.0")?;
    let brokers = format!("[mqtt.sensors]\nurl = \"{}\"\n[mqtt.local]\nurl = \"{}\"\n", broker.url(), hearer.url());
    let function = guest("slow", "sensors/#", &format!("{PUBLISHES}\nconcurrency = 1"));
    let function = function.replace("filter = \"sensors/#\"", "filter = \"sensors/#\", broker = \"sensors\"");
    agent.configure(&format!("{brokers}{function}"))?;
    let mut agent = agent;
    agent.resume().await?;
    agent.hears("sensors").await?;
    let sensor = Device::connect(broker.port()).await?;
    super::send(&sensor, "sensors/press-1/temp", 0..EVENTS, 3_000).await?;
    sensor.delivered(EVENTS).await?;
    super::hear(&auditor, EVENTS).await?;
    let status = agent.status()?;
    assert!(super::function(&status, "slow")["spilled"].as_u64() > Some(0), "{status:#}");
    Ok(())
}

/// Eight instances, events that fail at first, and a kill in the middle: no event of a topic is handled before an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_keep_their_order_over_retries_and_a_kill() -> anyhow::Result<()> {
    const TOPICS: usize = 4;
    const EVENTS: usize = 150;
    let more = format!("{PUBLISHES}\norder = \"topic\"\nconcurrency = 8\nretry = {{ attempts = 5 }}");
    let mut site = Site::with_guests(&guest("stubborn", "sensors/+", &more), &[("stubborn", stubborn(2))]).await?;
    let sensor = Device::faithful(site.broker.port(), "sensor").await?;
    let load = tokio::spawn(async move {
        for n in 0..EVENTS {
            for topic in 0..TOPICS {
                let fails = if n % 37 == topic { "x" } else { "" };
                sensor.publish(&format!("sensors/{topic}"), format!("{fails}{topic}.{n}"), 1).await?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sensor.delivered((TOPICS * EVENTS) as u64).await
    });
    tokio::time::sleep(Duration::from_millis(600)).await;
    site.agent.kill()?;
    site.agent.resume().await?;
    load.await??;
    let mut heard: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    while heard.values().map(Vec::len).sum::<usize>() < TOPICS * EVENTS {
        let text = site.device.next().await?.text();
        let (topic, n) = text.trim_start_matches('x').split_once('.').unwrap_or_default();
        let (topic, n) = (topic.parse()?, n.parse()?);
        let of_topic = heard.entry(topic).or_default();
        // What comes twice was in flight at the kill.
        if !of_topic.contains(&n) {
            of_topic.push(n);
        }
    }
    for (topic, order) in heard {
        assert!(order.is_sorted(), "topic {topic}: {order:?}");
    }
    Ok(())
}

/// The first event had to wait on disk, so its publish waits there for a broker that is away; the second needs no disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_does_not_overtake_that_of_an_earlier_event_of_its_topic() -> anyhow::Result<()> {
    let mut away = Mosquitto::start().await?;
    let auditor = Device::faithful(away.port(), "auditor").await?;
    auditor.subscribe("late/#", 1).await?;
    away.stop()?;
    let late = "on_success = [{ mqtt = { broker = \"away\", topic = \"late/1\", qos = 1 } }]";
    let more = format!("{PUBLISHES}\norder = \"topic\"\n{late}");
    let config = format!("[mqtt.away]\nurl = \"{}\"\n{}", away.url(), guest("stubborn", "sensors/+", &more));
    let site = Site::with_guests(&config, &[("stubborn", stubborn(2))]).await?;
    let succeeds = async |n: u64| {
        let holds = |status: &Value| super::function(status, "stubborn")["invocations"]["succeeded"] == n;
        e2e::until("it to run", async || site.agent.status().is_ok_and(|status| holds(&status))).await
    };
    site.device.publish("sensors/1", "x1", 1).await?;
    succeeds(1).await?;
    site.device.publish("sensors/1", "2", 1).await?;
    succeeds(2).await?;
    away.resume().await?;
    assert_eq!([auditor.next().await?.text(), auditor.next().await?.text()], ["x1", "2"]);
    Ok(())
}

/// Each reading comes twice, and the agent dies in between: each is kept once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_run_once_across_a_kill() -> anyhow::Result<()> {
    const EVENTS: u64 = 400;
    let more = "capabilities = [\"stream:readings\"]\nidempotency = { key = [\"topic\", \"/seq\"] }";
    let config = format!("[stream.readings]\n{}", guest("keep", "sensors/#", more));
    let mut site = Site::with_guests(&config, &[("keep", Guest::append("readings"))]).await?;
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        for seq in 0..EVENTS {
            for _ in 0..2 {
                sensor.publish("sensors/press-1", e2e::site::reading("press-1", seq), 1).await?;
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        sensor.delivered(2 * EVENTS).await
    });
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        site.agent.kill()?;
        site.agent.resume().await?;
    }
    load.await??;
    e2e::until("all kept", async || {
        site.agent.status().is_ok_and(|status| {
            let idle = status["brokers"][0]["in_flight"] == 0 && super::function(&status, "keep")["queued"] == 0;
            idle && super::stream(&status, "readings")["records"].as_u64() >= Some(EVENTS)
        })
    })
    .await?;
    assert_eq!(super::stream(&site.agent.status()?, "readings")["records"], EVENTS);
    Ok(())
}
