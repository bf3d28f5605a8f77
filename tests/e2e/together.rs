//! A function and the model that it runs change as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::{ControlPlane, Device};
use serde_json::{Value, json};

use super::managed::{hears, kept, managed};

/// Wearers of watches, whose samples come in turn.
const DEVICES: u64 = 8;

/// Publishes version 1.`number`.0 of the example `motion` and of `model`, and deploys both; results go to `results/v<number>`.
fn deploy(plane: &ControlPlane, number: u64, model: &str) -> anyhow::Result<()> {
    let (example, bundle, version) = (e2e::example("motion"), plane.laptop().join("motion"), format!("1.{number}.0"));
    std::fs::create_dir_all(bundle.join("events"))?;
    for entry in std::fs::read_dir(example.join("events"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), bundle.join("events").join(entry.file_name()))?;
    }
    std::fs::copy(example.join("motion.wasm"), bundle.join("motion.wasm"))?;
    let manifest = std::fs::read_to_string(example.join("function.toml"))?;
    let manifest = manifest.replace("version = \"1.0.0\"", &format!("version = \"{version}\""));
    let manifest = manifest.replace("capabilities = [", "capabilities = [\"mqtt:publish:results/#\", ");
    std::fs::write(bundle.join("function.toml"), manifest)?;
    let file = example.join("models").join(model).display().to_string();
    plane.tell(&["publish", &file, "--name", "motion", "--version", &version])?;
    plane.tell(&["publish", "motion", "--model", &format!("motion={file}")])?;
    let text = format!(
        "gateway = \"test\"\n[[function]]\nname = \"motion\"\nversion = \"{version}\"\n\
         capabilities = [\"model:motion\", \"stream:activities\", \"keyvalue\", \"mqtt:publish:results/#\"]\n\
         on_success = [{{ mqtt = {{ topic = \"results/v{number}\" }} }}]\n[[model]]\nname = \"motion\"\nversion = \"{version}\"\n\
         [stream.activities]\nmax_bytes = \"8 MiB\"\n[policy]\nprobation = \"1s\"\nslower_times_max = 0\n"
    );
    plane.deploy(&text, &[])
}

/// A hundred samples of somebody who stands still.
fn window() -> anyhow::Result<Vec<Value>> {
    let tests = std::fs::read(e2e::example("motion").join("models/motion.tests.json"))?;
    let tests: Value = serde_json::from_slice(&tests)?;
    let data = tests.pointer("/tests/0/inputs/window/data").and_then(Value::as_array).context("a window")?;
    let axes = ["ax", "ay", "az", "gx", "gy", "gz"];
    let sample =
        |values: &[Value]| axes.iter().zip(values).map(|(axis, value)| ((*axis).to_owned(), value.clone())).collect();
    Ok(data.chunks(axes.len()).map(|values| Value::Object(sample(values))).collect())
}

/// Under load, over an activation and a rollback: the old function with the old model, or the new with the new, never a mixture.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_and_its_model_switch_as_one() -> anyhow::Result<()> {
    let (plane, site) = managed("").await?;
    deploy(&plane, 1, "motion-first.onnx")?;
    kept(&plane, &site, 1).await?;
    site.agent.hears("local").await?;
    let (sensor, window) = (Device::connect(site.broker.port()).await?, window()?);
    let enough = Arc::<AtomicBool>::default();
    let told = Arc::clone(&enough);
    let load = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for n in 0_u64.. {
            let (device, seq) = (n % DEVICES, n / DEVICES);
            if told.load(Ordering::Relaxed) && seq.is_multiple_of(100) && device == 0 {
                sensor.delivered(n).await?;
                return anyhow::Ok(seq / 100 * DEVICES);
            }
            if device == 0 {
                ticks.tick().await;
            }
            let mut sample = window[usize::try_from(seq % 100)?].clone();
            sample["device"] = json!(format!("watch-{device}"));
            (sample["seq"], sample["ts"]) = (json!(seq), json!(1_790_000_000_000_u64 + seq));
            sensor.publish(&format!("wrist/{device}/imu"), sample.to_string(), 1).await?;
        }
        unreachable!("numbers do not end")
    });
    let pause = || tokio::time::sleep(Duration::from_millis(1_500));
    pause().await;
    deploy(&plane, 2, "motion.onnx")?;
    kept(&plane, &site, 2).await?;
    pause().await;
    plane.tell(&["rollback", "--gateway", "test", "--to", "1"])?;
    hears(&plane, "the old ones to be back", |gateway| gateway["active"]["number"] == 1).await?;
    pause().await;
    enough.store(true, Ordering::Relaxed);
    let windows = load.await??;

    let (mut seen, mut results) = (BTreeMap::<String, BTreeMap<String, u64>>::new(), 0);
    while results < windows {
        let message = site.device.next().await.with_context(|| format!("{results} of {windows}: {seen:?}"))?;
        // Most samples end no window, and come to nothing.
        if !message.payload.is_empty() {
            let activity: Value = serde_json::from_slice(&message.payload)?;
            *seen.entry(message.topic).or_default().entry(activity["confidence"].to_string()).or_default() += 1;
            results += 1;
        }
    }
    println!("{windows} windows: {seen:?}");
    let confidences: Vec<&String> = seen.values().flat_map(BTreeMap::keys).collect();
    ensure!(seen.len() == 2 && confidences.len() == 2, "a mixture: {seen:?}");
    ensure!(confidences[0] != confidences[1], "the models do not differ: {seen:?}");
    Ok(())
}
