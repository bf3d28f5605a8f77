//! Functions that a timer starts.

use e2e::{Guest, Site};

#[tokio::test]
async fn every_second_means_every_second() -> anyhow::Result<()> {
    let config = r#"
[[function]]
name = "beat"
bundle = "beat"
capabilities = ["mqtt:publish:results/#"]
[[function.trigger]]
schedule = { every = "1s" }
"#;
    let site = Site::with_guests(config, &[("beat", Guest::forward("results/beat"))]).await?;
    let started = std::time::Duration::from_millis(site.agent.status()?["uptime_ms"].as_u64().unwrap_or(0));
    site.device.take(3).await?;
    let uptime = std::time::Duration::from_millis(site.agent.status()?["uptime_ms"].as_u64().unwrap_or(0));
    let beats = super::function(&site.agent.status()?, "beat")["received"].as_u64().unwrap_or(0);
    assert!(uptime - started > std::time::Duration::from_millis(1_000), "three beats within {:?}", uptime - started);
    assert!(beats <= uptime.as_secs() + 2, "{beats} beats in {uptime:?}");
    Ok(())
}
