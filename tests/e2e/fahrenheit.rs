//! The example does what its README says, through a real broker.

use e2e::Site;
use e2e::site::fahrenheit;
use serde_json::{Value, json};

async fn converts(version: u8, qos: u8) -> anyhow::Result<()> {
    let trigger = format!("[[function.trigger]]\nmqtt = {{ filter = \"sensors/+/temp\", qos = {qos} }}");
    // The first table of the text is still [mqtt.local].
    let site = Site::with(&format!("version = {version}\n{}", fahrenheit(&trigger))).await?;
    let readings = [(21.5, 70.7, false), (30.0, 86.0, false), (30.5, 86.9, true), (-40.0, -40.0, false)];
    for (seq, (celsius, ..)) in readings.iter().enumerate() {
        let reading = json!({ "device": "press-1", "ts": 1_790_000_000_000_u64, "seq": seq, "temperature": celsius });
        site.device.publish("sensors/press-1/temp", reading.to_string(), qos).await?;
    }
    let mut results = Vec::new();
    for message in site.device.take(readings.len()).await? {
        assert_eq!(message.topic, "results/press-1");
        results.push(serde_json::from_slice::<Value>(&message.payload)?);
    }
    results.sort_by_key(|result| result["seq"].as_u64());
    for (seq, (_, fahrenheit, anomaly)) in readings.iter().enumerate() {
        let expected = json!({ "device": "press-1", "seq": seq, "ts": 1_790_000_000_000_u64, "temperature_f": fahrenheit, "anomaly": anomaly });
        assert_eq!(results[seq], expected);
    }
    assert_eq!(site.device.rest(), [], "each event has one result");
    Ok(())
}

#[tokio::test]
async fn mqtt_5_at_most_once() -> anyhow::Result<()> {
    converts(5, 0).await
}

#[tokio::test]
async fn mqtt_5_at_least_once() -> anyhow::Result<()> {
    converts(5, 1).await
}

#[tokio::test]
async fn mqtt_5_exactly_once() -> anyhow::Result<()> {
    converts(5, 2).await
}

#[tokio::test]
async fn mqtt_3_at_most_once() -> anyhow::Result<()> {
    converts(3, 0).await
}

#[tokio::test]
async fn mqtt_3_at_least_once() -> anyhow::Result<()> {
    converts(3, 1).await
}

#[tokio::test]
async fn mqtt_3_exactly_once() -> anyhow::Result<()> {
    converts(3, 2).await
}

/// The configuration of the documentation, less what it says of files that a test does not have.
#[tokio::test]
async fn the_documented_configuration_runs() -> anyhow::Result<()> {
    let model = e2e::example("motion").join("models");
    let site = Site::with(&format!(
        r#"
[mqtt.cloud]
url = "mqtt://127.0.0.1:{unreachable}"

[inference]
runtime = "auto"

[stream.readings]
max_bytes = "64 MiB"
max_age = "7d"
priority = 1
when_full = "drop-oldest"
durability = "each"
uplink = {{ mqtt = "cloud", topic = "site/{{gateway}}/{{stream}}" }}
batch = {{ max_records = 500, max_wait = "60s" }}

[stream.failed]
max_bytes = "8 MiB"

[[model]]
name = "motion"
file = "{model}/motion.onnx"
tests = "{model}/motion.tests.json"

{function}
timeout = "3s"
memory = "64 MiB"
concurrency = 4
environment = {{ LIMIT = "30" }}
retry = {{ attempts = 3, max_age = "1h" }}
on_success = [{{ stream = "readings" }}]
on_failure = [{{ stream = "failed" }}]

[[function.trigger]]
mqtt = {{ filter = "sensors/+/temp", qos = 1 }}

[[function.trigger]]
schedule = {{ every = "5m" }}
"#,
        unreachable = e2e::free_port()?,
        model = model.display(),
        function = fahrenheit("").trim_end(),
    ))
    .await?;
    site.device.publish("sensors/press-1/temp", e2e::site::reading("press-1", 1), 1).await?;
    assert_eq!(super::seq(&site.device.next().await?.payload)?, 1);
    site.device.publish("sensors/press-1/temp", r#"{"device":"press-1"}"#, 1).await?;
    e2e::until("the dead letter", async || {
        site.agent.status().is_ok_and(|status| {
            super::stream(&status, "readings")["records"] == 1
                && super::stream(&status, "failed")["records"] == 1
                && super::stream(&status, "dead-letters")["records"] == 1
        })
    })
    .await
}
