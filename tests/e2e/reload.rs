//! A changed configuration is applied while events flow; a wrong one changes nothing.

use std::time::Duration;

use e2e::site::{fahrenheit, guest, reading};
use e2e::{Device, Guest, Site};
use serde_json::Value;

use super::{function, hear, send};

const PUBLISHES: &str = "capabilities = [\"mqtt:publish:results/#\"]";

/// New versions take over again and again under load: each event is served once, by one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_version_takes_over_without_dropping_an_event() -> anyhow::Result<()> {
    const EVENTS: u64 = 3_000;
    let config = guest("hall", "sensors/#", PUBLISHES);
    let site = Site::with_guests(&config, &[("hall", Guest::forward("results/v0"))]).await?;
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/1", 0..EVENTS, 1_000).await?;
        sensor.delivered(EVENTS).await
    });
    for version in 1..=4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Guest::forward(&format!("results/v{version}")).write(&site.bundle("hall"), &format!("1.{version}.0"))?;
        let told = site.agent.tell(&["reload"])?;
        assert!(told.contains(&format!("1.{version}.0")), "{told}");
    }
    load.await??;
    let (mut versions, mut served) = (std::collections::BTreeSet::new(), std::collections::BTreeMap::new());
    for message in site.device.take(usize::try_from(EVENTS)?).await? {
        *served.entry(super::seq(&message.payload)?).or_insert(0) += 1;
        versions.insert(message.topic);
    }
    assert_eq!(served.len() as u64, EVENTS);
    assert_eq!(versions.len(), 5, "{versions:?}");
    Ok(())
}

/// The model is exchanged while events flow: the new file serves, no event fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_replaced_while_events_flow() -> anyhow::Result<()> {
    let motion = e2e::example("motion");
    let config = |tests: &str| {
        format!(
            r#"
[stream.activities]
[[model]]
name = "motion"
file = "motion.onnx"
{tests}
[[function]]
name = "motion"
bundle = "{bundle}"
capabilities = ["model:motion", "stream:activities", "keyvalue"]
"#,
            bundle = motion.display()
        )
    };
    let original = std::fs::read(motion.join("models/motion.onnx"))?;
    let site = {
        // The model must be there before the agent starts.
        let site = Site::with("").await?;
        std::fs::write(site.agent.folder().join("motion.onnx"), &original)?;
        std::fs::copy(motion.join("models/motion.tests.json"), site.agent.folder().join("motion.tests.json"))?;
        site.configure(&config("tests = \"motion.tests.json\""))?;
        site.agent.tell(&["reload"])?;
        site.agent.hears("local").await?;
        site
    };
    let sensor = Device::connect(site.broker.port()).await?;
    let samples = 1_000_u64;
    let load = tokio::spawn(async move {
        for seq in 0..samples {
            let sample = format!(
                r#"{{"device":"w1","seq":{seq},"ts":1,"ax":0.1,"ay":0.2,"az":0.3,"gx":0.4,"gy":0.5,"gz":0.6}}"#
            );
            sensor.publish("wrist/w1/imu", sample, 1).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        sensor.delivered(samples).await
    });
    let digest = || -> anyhow::Result<String> { Ok(site.agent.status()?["models"][0]["digest"].to_string()) };
    let before = digest()?;
    tokio::time::sleep(Duration::from_millis(300)).await;

    // An unknown field at the end: the same model, another file.
    let mut other = original.clone();
    other.extend([0xfa, 0x7f, 0x01, b'x']);
    std::fs::write(site.agent.folder().join("motion.onnx"), &other)?;
    let told = site.agent.tell(&["reload"])?;
    assert!(told.contains("model `motion`: changed"), "{told}");
    let replaced = digest()?;
    assert_ne!(replaced, before);

    // One that answers differently does not pass its tests; one that is no model does not load. Both change nothing.
    for wrong in [std::fs::read(e2e::repository().join("tests/models/row-means.onnx"))?, b"no model".to_vec()] {
        std::fs::write(site.agent.folder().join("motion.onnx"), wrong)?;
        let refused = site.agent.command(&["reload"])?;
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("motion"), "{refused:?}");
        assert_eq!(digest()?, replaced);
    }
    load.await??;
    e2e::until("all samples to be handled", async || {
        site.agent.status().is_ok_and(|status| {
            let motion = function(&status, "motion");
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            number(&motion["invocations"]["succeeded"]) == samples + number(&motion["conflicts"])
        })
    })
    .await?;
    assert_eq!(super::stream(&site.agent.status()?, "activities")["records"], samples / 100);
    Ok(())
}

/// What cannot be applied is refused with its reason, and what ran goes on.
#[tokio::test]
async fn a_wrong_configuration_changes_nothing() -> anyhow::Result<()> {
    let good = guest("hall", "sensors/#", PUBLISHES);
    let site = Site::with_guests(&good, &[("hall", Guest::forward("results/1"))]).await?;
    let served = async |payload: &str| -> anyhow::Result<()> {
        site.device.publish("sensors/1", payload, 1).await?;
        assert_eq!(site.device.next().await?.text(), payload);
        Ok(())
    };
    let refused = |what: &str| -> anyhow::Result<()> {
        let output = site.agent.command(&["reload"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(what) && said.contains("hint:"), "{said}");
        Ok(())
    };
    served("before").await?;

    site.configure(&good.replace("bundle", "bundel"))?;
    refused("bundle")?;
    served("after a key that is unknown").await?;

    site.configure(&format!("{good}\n[[function.trigger]]\nmqtt = {{ filter = \"a/#/b\" }}"))?;
    refused("a/#/b")?;
    served("after a filter that is none").await?;

    site.configure(&good)?;
    std::fs::write(site.bundle("hall").join("guest.wasm"), "no component")?;
    refused("hall")?;
    served("after a bundle that is broken").await?;

    std::fs::remove_dir_all(site.bundle("hall"))?;
    refused("hall")?;
    served("after a bundle that is gone").await?;
    assert_eq!(function(&site.agent.status()?, "hall")["version"], "1.0.0");
    Ok(())
}

/// A function that did not change keeps its warm instance, and its numbers, when another does.
#[tokio::test]
async fn what_did_not_change_is_not_touched() -> anyhow::Result<()> {
    let config = format!("{}{}", guest("steady", "steady/#", PUBLISHES), guest("moving", "moving/#", PUBLISHES));
    let guests = [("steady", Guest::forward("results/steady")), ("moving", Guest::forward("results/moving"))];
    let site = Site::with_guests(&config, &guests).await?;
    for n in 1..=3 {
        site.device.publish("steady/1", "1", 1).await?;
        site.device.next().await?;
        Guest::forward("results/moving").write(&site.bundle("moving"), &format!("1.{n}.0"))?;
        let told = site.agent.tell(&["reload"])?;
        assert!(told.contains("moving") && !told.contains("steady"), "{told}");
    }
    let status = site.agent.status()?;
    let steady = function(&status, "steady");
    assert_eq!((&steady["received"], &steady["cold_starts"]), (&3.into(), &1.into()));
    assert_eq!(status["brokers"][0]["reconnects"], 0);
    Ok(())
}

/// Triggers that are added are heard; those that are removed are not, nor after the next start.
#[tokio::test]
async fn triggers_come_and_go() -> anyhow::Result<()> {
    let on = |filters: &[&str]| {
        let triggers: String =
            filters.iter().map(|f| format!("[[function.trigger]]\nmqtt = {{ filter = \"{f}\" }}\n")).collect();
        fahrenheit(&triggers)
    };
    let mut site = Site::with(&on(&["sensors/a/temp"])).await?;
    let published =
        async |site: &Site, topic: &str, seq: u64| site.device.publish(topic, reading("press-1", seq), 1).await;
    published(&site, "sensors/b/temp", 1).await?;
    published(&site, "sensors/a/temp", 2).await?;
    assert_eq!(super::seq(&site.device.next().await?.payload)?, 2);

    site.configure(&on(&["sensors/a/temp", "sensors/b/temp"]))?;
    site.agent.tell(&["reload"])?;
    heard(&site, "sensors/b/temp", 3).await?;

    site.configure(&on(&["sensors/b/temp"]))?;
    site.agent.tell(&["reload"])?;
    heard(&site, "sensors/b/temp", 4).await?;
    published(&site, "sensors/a/temp", 5).await?;
    heard(&site, "sensors/b/temp", 6).await?;
    site.agent.stop()?;
    published(&site, "sensors/a/temp", 7).await?;
    published(&site, "sensors/b/temp", 8).await?;
    site.agent.resume().await?;
    assert_eq!(super::seq(&site.device.next().await?.payload)?, 8);
    assert_eq!(site.device.rest(), []);
    Ok(())
}

/// A reading on a topic whose subscription may just be under way is heard once it is there.
async fn heard(site: &Site, topic: &str, seq: u64) -> anyhow::Result<()> {
    let deadline = std::time::Duration::from_millis(500);
    for _ in 0..20 {
        site.device.publish(topic, reading("press-1", seq), 1).await?;
        if let Ok(message) = tokio::time::timeout(deadline, site.device.next()).await {
            assert_eq!(super::seq(&message?.payload)?, seq);
            // Those that were published before it was heard.
            tokio::time::sleep(Duration::from_millis(100)).await;
            site.device.rest();
            return Ok(());
        }
    }
    anyhow::bail!("nothing was heard of {topic}")
}

/// Events that wait while the configuration changes are served too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_that_change_nothing_cost_nothing() -> anyhow::Result<()> {
    const EVENTS: u64 = 1_000;
    let site = Site::with(&fahrenheit("")).await?;
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/press-1/temp", 0..EVENTS, 1_000).await?;
        sensor.delivered(EVENTS).await
    });
    for _ in 0..5 {
        let told = site.agent.tell(&["reload"])?;
        assert!(!told.contains("fahrenheit"), "{told}");
    }
    load.await??;
    assert!(hear(&site.device, EVENTS).await?.values().all(|times| *times == 1));
    Ok(())
}
