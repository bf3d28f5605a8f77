//! Results wait on the gateway's disk while there is no link to the cloud.

use anyhow::Context as _;
use e2e::site::guest;
use e2e::{Device, Guest, Link, Mosquitto, Site};
use serde_json::Value;

use super::send;

/// The uplink is cut, the agent is killed meanwhile, and the link comes back: each result arrives, in the order of the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_survive_an_outage_and_a_kill_in_order() -> anyhow::Result<()> {
    const EVENTS: u64 = 600;
    let cloud = Mosquitto::start().await?;
    let link = Link::to(([127, 0, 0, 1], cloud.port()).into()).await?;
    let console = Device::connect(cloud.port()).await?;
    console.subscribe("site/#", 1).await?;
    let config = format!(
        r#"
[mqtt.cloud]
url = "mqtt://{link}"
[stream.readings]
uplink = {{ mqtt = "cloud", topic = "site/{{gateway}}/{{stream}}" }}
batch = {{ max_records = 50, max_wait = "100ms" }}
{function}"#,
        link = link.address(),
        function = guest("keep", "sensors/#", "capabilities = [\"stream:readings\"]\nconcurrency = 1"),
    );
    let mut site = Site::with_guests(&config, &[("keep", Guest::append("readings"))]).await?;

    send(&site.device, "sensors/press-1", 0..EVENTS / 3, 1_000).await?;
    link.cut();
    send(&site.device, "sensors/press-1", EVENTS / 3..EVENTS / 2, 1_000).await?;
    site.agent.kill()?;
    send(&site.device, "sensors/press-1", EVENTS / 2..EVENTS * 2 / 3, 1_000).await?;
    site.agent.resume().await?;
    send(&site.device, "sensors/press-1", EVENTS * 2 / 3..EVENTS, 1_000).await?;
    e2e::until("all to be on the gateway's disk", async || {
        let committed = |status: Value| super::stream(&status, "readings")["newest_sequence"].as_u64();
        let handled = |status: &Value| super::function(status, "keep")["queued"] == 0;
        site.agent.status().is_ok_and(|status| handled(&status) && committed(status) >= Some(EVENTS))
    })
    .await?;
    assert!(!link.is_up());
    link.restore();

    let (mut next, mut data, mut replayed) = (1, std::collections::BTreeSet::new(), 0);
    while (data.len() as u64) < EVENTS {
        let message = console.next().await.with_context(|| format!("{} of {EVENTS} readings arrived", data.len()))?;
        assert_eq!(message.topic, "site/test/readings");
        let envelope: Value = serde_json::from_slice(&message.payload)?;
        let sequence = envelope["sequence"].as_u64().context("no sequence")?;
        // What was under way at the cut may come again; nothing is left out, nothing comes before its turn.
        assert!(sequence <= next, "record {sequence} came before {next}");
        next = next.max(sequence + 1);
        replayed += u64::from(envelope["replayed"] == true);
        data.insert(super::seq(&message.payload)?);
    }
    assert!(replayed > 0, "what waited for the link says so");
    e2e::until("the gateway's disk to be free", async || {
        site.agent.status().is_ok_and(|status| super::stream(&status, "readings")["records"] == 0)
    })
    .await
}
