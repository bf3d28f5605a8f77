//! What an invocation wants done is one transaction: what it wrote and what it published are kept together, whatever dies.

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::site::guest;
use e2e::{Agent, Device, Guest, Link, Mosquitto, Site};
use serde_json::Value;

use super::send;

/// Publishes that wait in the outbox of a broker.
fn waiting(status: &Value, broker: &str) -> Option<u64> {
    let outboxes = status["outboxes"].as_array().map(Vec::as_slice).unwrap_or_default();
    outboxes.iter().find(|outbox| outbox["broker"] == broker)?["publishes"].as_u64()
}

/// `[[function]]` with a guest, heard at QoS 0.
fn heard_once(name: &str, filter: &str, more: &str) -> String {
    guest(name, filter, more).replace(" }\n", ", qos = 0 }\n")
}

/// The link is cut and the agent killed with -9, again and again under load, so that commits end in every way. Events of QoS 0 do
/// not come again: whatever is in the stream was committed once, and its publish must have arrived; so must nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_arrives_when_its_record_was_committed_and_only_then() -> anyhow::Result<()> {
    const EVENTS: u64 = 8_000;
    const PER_SECOND: u64 = 1_000;
    const KILLS: u64 = 6;
    let broker = Mosquitto::start().await?;
    let link = Link::to(([127, 0, 0, 1], broker.port()).into()).await?;
    let auditor = Device::connect(broker.port()).await?;
    auditor.subscribe("results/#", 1).await?;
    auditor.subscribe("records/#", 1).await?;
    let both = "on_success = [{ stream = \"readings\" }, { mqtt = { topic = \"results/1\", qos = 1 } }]";
    let config = format!(
        "[mqtt.local]\nurl = \"mqtt://{}\"\n[stream.readings]\nuplink = {{ mqtt = \"local\", topic = \"records/1\" }}\n{}",
        link.address(),
        heard_once("both", "sensors/#", both),
    );
    let mut agent = Agent::prepare(&config)?;
    Guest::echo().write(&agent.folder().join("both"), "1.0.0")?;
    agent.resume().await?;
    agent.hears("local").await?;

    let sensor = Device::connect(broker.port()).await?;
    let load = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for seq in 0..EVENTS {
            if seq % (PER_SECOND / 100) == 0 {
                ticks.tick().await;
            }
            sensor.publish("sensors/1", e2e::site::reading("press-1", seq), 0).await?;
        }
        anyhow::Ok(())
    });
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(900 + 37 * kill)).await;
        if kill % 2 == 0 {
            // What is committed from here on cannot be confirmed.
            link.cut();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        agent.kill()?;
        link.restore();
        agent.resume().await?;
        agent.hears("local").await?;
    }
    load.await??;
    e2e::until("all that was committed to leave", async || {
        agent.status().is_ok_and(|status| {
            waiting(&status, "local") == Some(0) && super::stream(&status, "readings")["records"] == 0
        })
    })
    .await?;

    let (mut records, mut publishes, mut repeats) = (BTreeSet::new(), BTreeSet::new(), 0);
    e2e::until("each record's publish to be heard", async || {
        for message in auditor.rest() {
            let Ok(seq) = super::seq(&message.payload) else { continue };
            let heard = if message.topic == "records/1" { &mut records } else { &mut publishes };
            repeats += u64::from(!heard.insert(seq));
        }
        records == publishes
    })
    .await
    .map_err(|error| {
        let (lost, extra) = (records.difference(&publishes).count(), publishes.difference(&records).count());
        anyhow::anyhow!("{error}: {lost} records without their publish, {extra} publishes without their record")
    })?;
    assert!(records.len() as u64 > EVENTS / 4, "only {} events were handled", records.len());
    println!("{} of {EVENTS} events handled in spite of {KILLS} kills, {repeats} repeats", records.len());
    Ok(())
}

/// The broker that results go to is away all the time: events that write are settled all the same, nothing is handled twice, and
/// the publishes arrive in the order of their commits when the broker is back, a kill later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_holds_up_no_event_that_writes() -> anyhow::Result<()> {
    const EVENTS: u64 = 600;
    let mut away = Mosquitto::start().await?;
    let auditor = Device::faithful(away.port(), "auditor").await?;
    auditor.subscribe("late/#", 1).await?;
    away.stop()?;
    let both = "concurrency = 1\non_success = [{ stream = \"kept\" }, { mqtt = { broker = \"away\", topic = \"late/1\", qos = 1 } }]";
    let config = format!("[mqtt.away]\nurl = \"{}\"\n[stream.kept]\n{}", away.url(), guest("both", "sensors/#", both));
    let mut site = Site::with_guests(&config, &[("both", Guest::echo())]).await?;
    send(&site.device, "sensors/press-1", 0..EVENTS, 1_000).await?;
    e2e::until("all to be settled", async || {
        site.agent.status().is_ok_and(|status| {
            let local = status["brokers"].as_array().and_then(|all| all.iter().find(|b| b["name"] == "local").cloned());
            waiting(&status, "away") == Some(EVENTS) && local.is_some_and(|local| local["in_flight"] == 0)
        })
    })
    .await?;
    // The broker's acknowledgements are on their way when the agent says so.
    tokio::time::sleep(Duration::from_millis(200)).await;
    site.agent.kill()?;
    site.agent.resume().await?;
    site.agent.hears("local").await?;

    away.resume().await?;
    for seq in 0..EVENTS {
        assert_eq!(super::seq(&auditor.next().await?.payload)?, seq);
    }
    e2e::until("the outbox to be empty", async || {
        site.agent.status().is_ok_and(|status| waiting(&status, "away") == Some(0))
    })
    .await?;
    let status = site.agent.status()?;
    assert_eq!(super::function(&status, "both")["received"], 0, "settled events came again");
    assert_eq!(super::stream(&status, "kept")["newest_sequence"], EVENTS);
    Ok(())
}

/// More is published than the outbox of a broker that is away may hold: nothing is dropped, what has no room waits where it came
/// from, and all of it arrives when the broker is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_keeps_events_at_their_source() -> anyhow::Result<()> {
    const EVENTS: u64 = 90;
    const BUDGET: u64 = 64 << 20;
    let mut away = Mosquitto::start().await?;
    let auditor = Device::faithful(away.port(), "auditor").await?;
    auditor.subscribe("late/#", 1).await?;
    away.stop()?;
    let both = "on_success = [{ stream = \"kept\" }, { mqtt = { broker = \"away\", topic = \"late/1\", qos = 1 } }]";
    let config = format!(
        "[mqtt.away]\nurl = \"{}\"\n[stream.kept]\nmax_bytes = \"2 MiB\"\n{}",
        away.url(),
        guest("both", "sensors/#", both)
    );
    let site = Site::with_guests(&config, &[("both", Guest::echo())]).await?;
    for seq in 0..EVENTS {
        site.device.publish("sensors/1", format!(r#"{{"seq":{seq},"pad":"{}"}}"#, "x".repeat(900_000)), 1).await?;
    }
    let held = || -> anyhow::Result<(u64, u64)> {
        let status = site.agent.status()?;
        let outbox = status["outboxes"].as_array().and_then(|all| all.iter().find(|o| o["broker"] == "away").cloned());
        let outbox = outbox.unwrap_or_default();
        Ok((outbox["publishes"].as_u64().unwrap_or(0), outbox["bytes"].as_u64().unwrap_or(0)))
    };
    e2e::until("the outbox to be full", async || held().is_ok_and(|(_, bytes)| bytes > BUDGET - (1 << 20))).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (publishes, bytes) = held()?;
    assert!(publishes < EVENTS && bytes <= BUDGET, "{publishes} publishes with {bytes} bytes");

    away.resume().await?;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < EVENTS {
        let message = auditor.next().await.map_err(|error| anyhow::anyhow!("{} came: {error}", seen.len()))?;
        seen.insert(super::seq(&message.payload)?);
    }
    assert_eq!(super::stream(&site.agent.status()?, "dead-letters")["records"], 0);
    Ok(())
}

/// A broker goes from gateway.toml with publishes in its outbox: `status` says so, and they leave when it is back.
#[tokio::test]
async fn a_broker_that_is_removed_keeps_its_outbox() -> anyhow::Result<()> {
    let mut away = Mosquitto::start().await?;
    let auditor = Device::faithful(away.port(), "auditor").await?;
    auditor.subscribe("late/#", 1).await?;
    away.stop()?;
    let to_away = "on_success = [{ stream = \"kept\" }, { mqtt = { broker = \"away\", topic = \"late/1\", qos = 1 } }]";
    let with = format!("[mqtt.away]\nurl = \"{}\"\n[stream.kept]\n{}", away.url(), guest("both", "sensors/#", to_away));
    let site = Site::with_guests(&with, &[("both", Guest::echo())]).await?;
    site.device.publish("sensors/1", "{\"seq\":1}", 1).await?;
    let holds = async |n| {
        e2e::until("the outbox", async || site.agent.status().is_ok_and(|s| waiting(&s, "away") == Some(n))).await
    };
    holds(1).await?;

    site.configure("[stream.kept]\n")?;
    let told = site.agent.tell(&["reload"])?;
    assert!(told.contains("broker `away`: removed, 1 publish waits on disk until it is back"), "{told}");
    assert!(site.agent.tell(&["status"])?.contains("waits until the broker is in gateway.toml again"));
    holds(1).await?;

    site.configure(&with)?;
    site.agent.tell(&["reload"])?;
    away.resume().await?;
    assert_eq!(super::seq(&auditor.next().await?.payload)?, 1);
    holds(0).await
}

/// A broker that refuses a publish for good does not hold up the others: it is a dead letter, and a replay publishes it.
#[tokio::test]
async fn a_refused_publish_is_a_dead_letter_and_holds_up_no_other() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let acl = folder.path().join("acl");
    std::fs::write(
        &acl,
        "topic readwrite sensors/#\ntopic readwrite results/#\ntopic readwrite device/#\ntopic read secret/#\n",
    )?;
    let config = format!("allow_anonymous true\nacl_file {}\n", acl.display());
    let mut broker = Mosquitto::with(&config).await?;
    let device = Device::connect(broker.port()).await?;
    device.subscribe("results/#", 1).await?;
    let to_both = r#"on_success = [{ stream = "kept" }, { mqtt = { topic = "secret/1", qos = 1 } }, { mqtt = { topic = "results/1", qos = 1 } }]"#;
    let text =
        format!("[mqtt.local]\nurl = \"{}\"\n[stream.kept]\n{}", broker.url(), guest("both", "sensors/#", to_both));
    let agent = Agent::prepare(&text)?;
    Guest::echo().write(&agent.folder().join("both"), "1.0.0")?;
    let mut agent = agent;
    agent.resume().await?;
    agent.hears("local").await?;

    device.publish("sensors/1", "1", 1).await?;
    device.publish("sensors/1", "2", 1).await?;
    let heard: Vec<_> = device.take(2).await?.iter().map(e2e::Message::text).collect();
    assert_eq!(heard, ["1", "2"], "they do not wait for the refused ones before them");
    e2e::until("the refused ones to be given up on", async || {
        agent
            .status()
            .is_ok_and(|s| super::stream(&s, "dead-letters")["records"] == 2 && waiting(&s, "local") == Some(0))
    })
    .await?;
    let letters: Value = serde_json::from_str(&agent.tell(&["dead-letters", "--json"])?)?;
    let first = &letters[0];
    assert_eq!(
        (&first["outcome"], &first["attempts"], &first["topic"]),
        (&"refused".into(), &1.into(), &"secret/1".into())
    );
    assert!(first["reason"].as_str().is_some_and(|why| why.to_lowercase().contains("authori")), "{first:#}");

    // The operator opens the topic, and has it published again.
    std::fs::write(&acl, "topic readwrite #\n")?;
    broker.stop()?;
    broker.resume().await?;
    let device = Device::connect(broker.port()).await?;
    device.subscribe("secret/#", 1).await?;
    agent.hears("local").await?;
    agent.tell(&["dead-letters", "replay", "--all"])?;
    let heard: Vec<_> = device.take(2).await?.iter().map(e2e::Message::text).collect();
    assert_eq!(heard, ["1", "2"]);
    Ok(())
}
