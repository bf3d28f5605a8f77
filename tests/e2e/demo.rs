//! The main job, as anyone can see it.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

/// While events flow, a better model is deployed and a bad version rolled back, a forged one refused, the uplink cut and the agent killed.
#[test]
fn the_demo_accounts_for_everything() -> anyhow::Result<()> {
    let verdict = accounts_for_everything("--once", "160")?;
    let [first, better] = verdict["models"].as_array().context("no models")?.as_slice() else {
        anyhow::bail!("two models were asked: {verdict:#}");
    };
    let number = |model: &Value, key: &str| model[key].as_f64().unwrap_or_default();
    assert!(number(better, "windows") > 10.0, "{verdict:#}");
    assert!(number(better, "accuracy") > number(first, "accuracy") + 0.1, "{verdict:#}");
    Ok(())
}

/// Killed five times, each link cut, the disk full three times, in one round.
#[test]
fn the_demo_accounts_for_everything_under_torture() -> anyhow::Result<()> {
    accounts_for_everything("--torture", "80").map(drop)
}

fn accounts_for_everything(how: &str, rate: &str) -> anyhow::Result<Value> {
    let output =
        Command::new(e2e::tidegate()?).args(["demo", how, "--json", "--rate", rate]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let verdict: Value = serde_json::from_slice(&output.stdout).with_context(|| said.clone().into_owned())?;
    assert!(output.status.success(), "{verdict:#}\n{said}");
    let number = |key: &str| verdict[key].as_f64().unwrap_or_default();
    let last = verdict["models"].as_array().and_then(|models| models.last()).context("no model was asked")?;
    assert!(last["accuracy"].as_f64() >= Some(0.90), "{verdict:#}");
    assert_eq!(last["accuracy"], last["accuracy_in_process"], "{verdict:#}");
    assert_eq!(number("agree"), number("windows_expected"), "{verdict:#}");
    assert_eq!(number("handled"), number("sent"), "{verdict:#}");
    assert_eq!(number("arrived"), number("committed"), "{verdict:#}");
    assert!(number("replayed") > 0.0, "the uplink was cut on the way: {verdict:#}");
    Ok(verdict)
}
