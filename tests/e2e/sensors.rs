//! What the sensors of a gateway say, in a tree as `/sys` has it.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use e2e::{Guest, Site};
use serde_json::Value;

use super::sources::{hears, source};

const GUIDE: &str = include_str!("../../docs/guides/sensors.md");

fn write(root: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    for (file, text) in files {
        let file = root.join(file);
        fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
        fs::write(file, format!("{text}\n"))?;
    }
    Ok(())
}

async fn next(site: &Site) -> anyhow::Result<(String, f64, String)> {
    let message = site.device.next().await.with_context(|| site.agent.log())?;
    let value: Value = serde_json::from_slice(&message.payload)?;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    Ok((text("name"), value["value"].as_f64().context("there is no value")?, text("unit")))
}

/// With the config of the guide, but for the tree and the rate: the zones at a rate, the chips when one is too hot, and when it is back.
#[tokio::test]
async fn sensors_are_read_at_a_rate_and_thresholds_are_told_once() -> anyhow::Result<()> {
    let tree = tempfile::tempdir()?;
    let root = tree.path();
    write(
        root,
        &[
            ("class/thermal/thermal_zone0/type", "cpu-thermal"),
            ("class/thermal/thermal_zone0/temp", "48123"),
            ("class/thermal/thermal_zone1/temp", "cold"),
            ("class/hwmon/hwmon0/name", "nvme"),
            ("class/hwmon/hwmon0/temp1_label", "Composite"),
            ("class/hwmon/hwmon0/temp1_input", "60850"),
        ],
    )?;
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    let config = config.replace("preset", &format!("root = {root:?}, preset"));
    let config = config.replace("\"10s\"", "\"300ms\"").replace("\"2s\"", "\"50ms\"");
    let site = Site::with_guests(&config, &[("functions/health", Guest::forward("results/health"))]).await?;

    let zone = ("cpu-thermal".to_owned(), 48.123, "°C".to_owned());
    assert_eq!((next(&site).await?, next(&site).await?), (zone.clone(), zone.clone()), "the other one is no number");
    let status = site.agent.status()?;
    let trouble = source(&status, "heat")["trouble"].to_string();
    assert!(trouble.contains("thermal_zone1/temp` says `cold`, which is no number"), "{status}");

    // Only what is beyond, and only once.
    let mut chip = Vec::new();
    for (millicelsius, told) in [("85000", None), ("86000", Some(86.0)), ("81000", None), ("80000", Some(80.0))] {
        write(root, &[("class/hwmon/hwmon0/temp1_input", millicelsius)])?;
        let events = source(&site.agent.status()?, "overheat")["events"].clone();
        if let Some(told) = told {
            while chip.last().is_none_or(|last| *last != told) {
                let (name, value, _) = next(&site).await?;
                chip.extend((name == "nvme/Composite").then_some(value));
            }
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            assert_eq!(source(&site.agent.status()?, "overheat")["events"], events, "{millicelsius} is not told");
        }
    }
    assert_eq!(chip, [86.0, 80.0]);

    // A zone that goes and comes back.
    let (folder, away) = (root.join("class/thermal/thermal_zone0"), root.join("away"));
    fs::rename(&folder, &away)?;
    fs::remove_dir_all(root.join("class/thermal/thermal_zone1"))?;
    let is_missed = async || {
        let status = site.agent.status().unwrap_or_default();
        source(&status, "heat")["trouble"].to_string().contains("there is no such sensor")
    };
    e2e::until("the zone to be missed", is_missed).await?;
    write(&away, &[("temp", "50000")])?;
    fs::rename(&away, &folder)?;
    while next(&site).await?.1 != 50.0 {}
    let well = async || site.agent.status().is_ok_and(|status| source(&status, "heat")["trouble"].is_null());
    e2e::until("all to be well", well).await
}

const SENSOR: &str = "class/hwmon/hwmon0/temp1_input";

/// A site whose chip is at 86 °C, where 85 is too hot.
async fn too_hot(tree: &Path, every: &str) -> anyhow::Result<Site> {
    write(tree, &[("class/hwmon/hwmon0/name", "nvme"), (SENSOR, "86000")])?;
    let config = format!(
        "[source.heat]\nsysfs = {{ preset = \"hwmon\", root = {tree:?}, every = \"{every}\", above = 85 }}\n{}",
        hears("health", "sysfs", "heat", "mqtt:publish:results/#")
    );
    let site = Site::with_guests(&config, &[("health", Guest::forward("results/health"))]).await?;
    assert_eq!(next(&site).await?.1, 86.0);
    Ok(site)
}

#[tokio::test]
async fn what_was_told_to_be_beyond_is_told_to_be_back_after_a_restart() -> anyhow::Result<()> {
    let tree = tempfile::tempdir()?;
    let mut site = too_hot(tree.path(), "20ms").await?;
    let state = site.agent.folder().join("state/sources/heat");
    e2e::until("it to be kept", async || state.exists()).await?;
    site.agent.kill()?;
    write(tree.path(), &[(SENSOR, "40000")])?;
    site.agent.resume().await?;
    // What is told may be told again.
    while next(&site).await?.1 != 40.0 {}
    e2e::until("it to be forgotten", async || fs::read_to_string(&state).is_ok_and(|kept| kept == "{}\n")).await
}

/// The sensors are looked at again in an hour: nothing was written since the event was told.
#[tokio::test]
async fn a_kill_right_behind_an_event_loses_no_crossing() -> anyhow::Result<()> {
    let tree = tempfile::tempdir()?;
    let mut site = too_hot(tree.path(), "1h").await?;
    site.agent.kill()?;
    write(tree.path(), &[(SENSOR, "40000")])?;
    site.agent.resume().await?;
    // Who was told of 86, perhaps once more, is told that it is over.
    while next(&site).await?.1 != 40.0 {}
    Ok(())
}
