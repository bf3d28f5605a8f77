//! The main job, as anyone can see it.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

#[test]
fn the_demo_accounts_for_everything() -> anyhow::Result<()> {
    accounts_for_everything("--once", "160")
}

/// Killed five times, each link cut, the disk full three times, in one round.
#[test]
fn the_demo_accounts_for_everything_under_torture() -> anyhow::Result<()> {
    accounts_for_everything("--torture", "80")
}

fn accounts_for_everything(how: &str, rate: &str) -> anyhow::Result<()> {
    let output =
        Command::new(e2e::tidegate()?).args(["demo", how, "--json", "--rate", rate]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let verdict: Value = serde_json::from_slice(&output.stdout).with_context(|| said.clone().into_owned())?;
    assert!(output.status.success(), "{verdict:#}\n{said}");
    let number = |key: &str| verdict[key].as_f64().unwrap_or_default();
    assert!(number("accuracy") >= 0.90, "{verdict:#}");
    assert_eq!(number("accuracy"), number("accuracy_in_process"), "{verdict:#}");
    assert_eq!(number("agree"), number("windows_expected"), "{verdict:#}");
    assert_eq!(number("handled"), number("sent"), "{verdict:#}");
    assert_eq!(number("arrived"), number("committed"), "{verdict:#}");
    assert!(number("replayed") > 0.0, "the uplink was cut on the way: {verdict:#}");
    Ok(())
}
