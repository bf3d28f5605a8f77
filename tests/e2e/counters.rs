//! Key-values are exact, however many instances of a function read and write them at the same time.

use std::time::Duration;

use e2e::site::guest;
use e2e::{Agent, Device, Guest, Mosquitto};

use super::send;

/// Counts events under one key, slowly enough for its instances to get into each other's way; on `q` it returns the count.
fn counter() -> Guest {
    Guest::raw(
        "(if (i32.eqz (i32.load (i32.const 1300))) (then
            (call $open (i32.const 2048) (i32.const 1) (i32.const 1400))
            (i32.store (i32.const 1300) (i32.load (i32.const 1404)))))
         (if (i32.eq (i32.load8_u (call $data (local.get $event))) (i32.const 113)) (then
            (call $get (i32.load (i32.const 1300)) (i32.const 2049) (i32.const 1) (i32.const 1440))
            (return (call $answer (i32.load (i32.const 1448)) (i32.load (i32.const 1452))))))
         (call $increment (i32.load (i32.const 1300)) (i32.const 2049) (i32.const 1) (i64.const 1) (i32.const 1408))
         (if (i32.load8_u (i32.const 1408)) (then unreachable))
         (loop $again
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const 300000))))
         (call $answer (i32.const 0) (i32.const 0))",
        "cn",
    )
}

/// An agent with the counter, eight instances at a time, and `more` keys of it.
async fn counting(broker: &Mosquitto, more: &str) -> anyhow::Result<Agent> {
    let more = format!("capabilities = [\"keyvalue\"]\nconcurrency = 8\n{more}");
    let config = format!("[mqtt.local]\nurl = \"{}\"\n{}", broker.url(), guest("counter", "sensors/#", &more));
    let mut agent = Agent::prepare(&config)?;
    counter().write(&agent.folder().join("counter"), "1.0.0")?;
    std::fs::write(agent.folder().join("query"), "q")?;
    agent.resume().await?;
    agent.hears("local").await?;
    Ok(agent)
}

fn count(agent: &Agent) -> anyhow::Result<String> {
    let query = agent.folder().join("query").display().to_string();
    Ok(agent.tell(&["invoke", "counter", "--event", &query])?.trim_end().to_owned())
}

/// Waits until nothing is left to do, and tells what was counted.
async fn counted(agent: &Agent, events: u64) -> anyhow::Result<String> {
    e2e::until("all events to be handled", async || {
        let status = agent.status().unwrap_or_default();
        let function = super::function(&status, "counter");
        let is_idle = function["queued"] == 0 && function["busy"] == 0;
        let in_flight = status["brokers"][0]["in_flight"] == 0;
        is_idle && in_flight && count(agent).is_ok_and(|count| count.parse().is_ok_and(|count: u64| count >= events))
    })
    .await?;
    count(agent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_is_exact_with_eight_instances() -> anyhow::Result<()> {
    const EVENTS: u64 = 4_000;
    let broker = Mosquitto::start().await?;
    let agent = counting(&broker, "").await?;
    let sensor = Device::connect(broker.port()).await?;
    send(&sensor, "sensors/press-1", 0..EVENTS, 20_000).await?;
    assert_eq!(counted(&agent, EVENTS).await?, EVENTS.to_string());
    let status = agent.status()?;
    let conflicts = super::function(&status, "counter")["conflicts"].as_u64();
    assert!(conflicts > Some(0), "no two instances were in each other's way");
    Ok(())
}

/// Killed with -9 under load: the broker sends events again, and idempotency has each counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_is_exact_over_kills() -> anyhow::Result<()> {
    const EVENTS: u64 = 5_000;
    const KILLS: u32 = 5;
    let broker = Mosquitto::start().await?;
    let mut agent = counting(&broker, "idempotency = { key = [\"/seq\"], window = \"10m\" }").await?;
    let sensor = Device::connect(broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/press-1", 0..EVENTS, 1_000).await?;
        sensor.delivered(EVENTS).await
    });
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(500) + Duration::from_millis(61) * kill).await;
        agent.kill()?;
        agent.resume().await?;
    }
    load.await??;
    assert_eq!(counted(&agent, EVENTS).await?, EVENTS.to_string());
    Ok(())
}
