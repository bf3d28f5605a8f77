//! What `tidegate doctor` finds, on a gateway where something is wrong.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use e2e::site::fahrenheit;
use e2e::{Agent, Mosquitto};
use serde_json::Value;

/// What is found about something, and how bad it is.
fn found<'a>(findings: &'a Value, about: &str) -> Option<(&'a str, &'a str)> {
    let finding = findings["findings"].as_array()?.iter().find(|finding| finding["about"] == about)?;
    Some((finding["verdict"].as_str()?, finding["what"].as_str()?))
}

fn run(agent: &Agent, options: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(e2e::tidegate()?);
    Ok(command.arg("doctor").arg("--config").arg(agent.config()).args(options).stdin(Stdio::null()).output()?)
}

/// Its exit status, and what it prints as JSON.
fn doctor(agent: &Agent) -> anyhow::Result<(Option<i32>, Value)> {
    let ended = run(agent, &["--json"])?;
    Ok((ended.status.code(), serde_json::from_slice(&ended.stdout)?))
}

#[tokio::test]
async fn the_doctor_asks_the_agent_that_runs() -> anyhow::Result<()> {
    let broker = Mosquitto::start().await?;
    let config = format!("[mqtt.local]\nurl = \"mqtt://127.0.0.1:{}\"\n{}", broker.port(), fahrenheit(""));
    let agent = Agent::start(&config).await?;
    agent.hears("local").await?;
    let (status, findings) = doctor(&agent)?;
    assert_eq!(found(&findings, "agent").map(|found| found.0), Some("ok"), "{findings}");
    assert_eq!(found(&findings, "broker local").map(|found| found.0), Some("ok"), "{findings}");
    let is_fine =
        findings["findings"].as_array().is_some_and(|all| all.iter().all(|found| found["verdict"] != "error"));
    assert_eq!(status, Some(i32::from(!is_fine)), "{findings}");
    Ok(())
}

#[tokio::test]
async fn the_doctor_tries_what_an_agent_that_does_not_run_would_need() -> anyhow::Result<()> {
    let (broker, taken) = (Mosquitto::start().await?, TcpListener::bind("127.0.0.1:0")?);
    let nobody = e2e::free_port()?;
    let config = format!(
        "[api]\nlisten = \"{}\"\n[mqtt.local]\nurl = \"mqtt://127.0.0.1:{}\"\n[mqtt.old]\nurl = \"mqtt://127.0.0.1:{}\"\nversion = 3\n[mqtt.away]\nurl = \"mqtt://127.0.0.1:{nobody}\"\n{}",
        taken.local_addr()?,
        broker.port(),
        broker.port(),
        fahrenheit("")
    );
    let agent = Agent::prepare(&config)?;
    let (status, findings) = doctor(&agent)?;
    assert_eq!(status, Some(1), "{findings}");
    for lets_in in ["broker local", "broker old"] {
        assert_eq!(found(&findings, lets_in).map(|found| found.0), Some("ok"), "{findings}");
    }
    let (verdict, what) = found(&findings, "broker away").unwrap_or_default();
    assert_eq!(verdict, "error", "{findings}");
    assert!(what.contains("refused"), "{what}");
    let (verdict, what) = found(&findings, "agent").unwrap_or_default();
    assert_eq!(verdict, "error", "{findings}");
    assert!(what.contains("in use"), "{what}");
    // People read the same, with what to do below.
    let told = run(&agent, &[])?;
    let text = String::from_utf8(told.stdout)?;
    assert!(text.contains("\nERROR") && text.contains("\n  hint: "), "{text}");
    assert!(String::from_utf8(told.stderr)?.contains("2 things are wrong on this gateway"), "{text}");
    Ok(())
}

#[tokio::test]
async fn the_doctor_looks_at_the_machine_when_the_configuration_is_wrong() -> anyhow::Result<()> {
    let agent = Agent::prepare("[mqtt.local]\nurl = 7\n")?;
    let (status, findings) = doctor(&agent)?;
    assert_eq!(status, Some(1));
    let (verdict, what) = found(&findings, "configuration").unwrap_or_default();
    assert_eq!(verdict, "error");
    assert!(what.contains("mqtt.local.url"), "{what}");
    assert!(found(&findings, "memory").is_some(), "{findings}");
    Ok(())
}
