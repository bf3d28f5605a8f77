//! The brokers that a gateway may have, and how it is let in.

use std::time::Duration;

use anyhow::Context as _;
use e2e::site::{fahrenheit, guest, reading};
use e2e::{Agent, Device, Guest, Mosquitto, Site};
use rumqttc::v5::MqttOptions;

#[path = "../../agent/tests/support/certificates.rs"]
#[expect(clippy::unwrap_used, unreachable_pub, reason = "the agent's own tests share it")]
mod certificates;

use certificates::Authority;

/// A second listener beside the one for devices, with these lines.
async fn with_listener(lines: &str, folder: &std::path::Path) -> anyhow::Result<(Mosquitto, u16)> {
    let port = e2e::free_port()?;
    let lines = lines.replace("{files}", &folder.display().to_string());
    let config = format!("allow_anonymous true\nlistener {port} 127.0.0.1\n{lines}\n");
    Ok((Mosquitto::with(&format!("per_listener_settings true\n{config}")).await?, port))
}

/// One reading goes through.
async fn serves(port: u16) -> anyhow::Result<()> {
    let device = Device::connect(port).await?;
    device.subscribe("results/#", 1).await?;
    device.publish("sensors/press-1/temp", reading("press-1", 1), 1).await?;
    assert_eq!(super::seq(&device.next().await?.payload)?, 1);
    Ok(())
}

#[tokio::test]
async fn a_user_with_a_password_is_let_in_and_a_wrong_one_is_told() -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let passwords = files.path().join("passwords");
    let made = std::process::Command::new("mosquitto_passwd")
        .arg("-b")
        .arg("-c")
        .arg(&passwords)
        .args(["agent", "s3cret"])
        .status()?;
    assert!(made.success());
    let (broker, port) = with_listener("allow_anonymous false\npassword_file {files}/passwords", files.path()).await?;
    std::fs::write(files.path().join("right"), "s3cret\n")?;
    std::fs::write(files.path().join("wrong"), "secret\n")?;
    let config = |password: &str| {
        format!(
            "[mqtt.local]\nurl = \"mqtt://127.0.0.1:{port}\"\nusername = \"agent\"\npassword_file = \"{}\"\n{}",
            files.path().join(password).display(),
            fahrenheit("")
        )
    };
    let agent = Agent::start(&config("wrong")).await?;
    e2e::until("the refusal to be told", async || {
        let told = agent.status().map(|status| status["brokers"][0]["last_error"].to_string());
        told.is_ok_and(|told| told.to_lowercase().contains("authori"))
    })
    .await?;
    agent.configure(&config("right"))?;
    agent.tell(&["reload"])?;
    agent.hears("local").await?;
    serves(broker.port()).await
}

#[tokio::test]
async fn tls_with_a_client_certificate() -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let authority = Authority::new(files.path(), "ca");
    authority.issue("broker");
    let (cert, key) = authority.issue("agent");
    let lines = "allow_anonymous false\ncafile {files}/ca.pem\ncertfile {files}/broker.pem\nkeyfile {files}/broker.key\nrequire_certificate true\nuse_identity_as_username true";
    let (broker, port) = with_listener(lines, files.path()).await?;
    let config = format!(
        "[mqtt.local]\nurl = \"mqtts://127.0.0.1:{port}\"\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"\n{function}",
        ca = files.path().join("ca.pem").display(),
        cert = cert.display(),
        key = key.display(),
        function = fahrenheit(""),
    );
    let agent = Agent::start(&config).await?;
    agent.hears("local").await?;
    serves(broker.port()).await
}

/// Each event goes to one of the two, both get some, none is lost.
#[tokio::test]
async fn two_agents_share_a_subscription() -> anyhow::Result<()> {
    const EVENTS: u64 = 200;
    let broker = Mosquitto::start().await?;
    let device = Device::connect(broker.port()).await?;
    device.subscribe("results/#", 1).await?;
    let trigger = "[[function.trigger]]\nmqtt = { filter = \"$share/hall/sensors/+/temp\" }";
    let config =
        |id: &str| format!("[mqtt.local]\nurl = \"{}\"\nclient_id = \"{id}\"\n{}", broker.url(), fahrenheit(trigger));
    let agents = [Agent::start(&config("one")).await?, Agent::start(&config("two")).await?];
    for agent in &agents {
        agent.hears("local").await?;
    }
    super::send(&device, "sensors/press-1/temp", 0..EVENTS, 1_000).await?;
    let heard = super::hear(&device, EVENTS).await?;
    assert!(heard.values().all(|times| *times == 1));
    let received = |agent: &Agent| -> anyhow::Result<u64> {
        super::function(&agent.status()?, "fahrenheit")["received"].as_u64().context("no number")
    };
    let shares = [received(&agents[0])?, received(&agents[1])?];
    assert_eq!(shares[0] + shares[1], EVENTS);
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    Ok(())
}

/// What comes from one broker leaves by another.
#[tokio::test]
async fn one_broker_triggers_and_another_hears() -> anyhow::Result<()> {
    let (field, office) = (Mosquitto::start().await?, Mosquitto::start().await?);
    let config = format!(
        r#"
[mqtt.local]
url = "{office}"
[mqtt.field]
url = "{field}"
[[function]]
name = "relay"
bundle = "relay"
on_success = [{{ mqtt = {{ broker = "local", topic = "office/{{gateway}}/{{function}}", qos = 2 }} }}]
[[function.trigger]]
mqtt = {{ broker = "field", filter = "sensors/#", qos = 2 }}
"#,
        office = office.url(),
        field = field.url(),
    );
    let mut agent = Agent::prepare(&config)?;
    Guest::echo().write(&agent.folder().join("relay"), "1.0.0")?;
    agent.resume().await?;
    agent.hears("field").await?;
    let console = Device::connect(office.port()).await?;
    console.subscribe("office/#", 2).await?;
    let sensor = Device::connect(field.port()).await?;
    sensor.publish("sensors/1", "21.5", 2).await?;
    let message = console.next().await?;
    assert_eq!((message.topic.as_str(), message.text().as_str()), ("office/test/relay", "21.5"));
    Ok(())
}

/// The embedded broker is `mqtt.local`; users stay within what they were given.
#[tokio::test]
async fn the_embedded_broker_serves_its_users() -> anyhow::Result<()> {
    let port = e2e::free_port()?;
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("password"), "s3cret\n")?;
    let password = files.path().join("password");
    let config = format!(
        r#"
[embedded_broker]
listen = "127.0.0.1:{port}"
[embedded_broker.users.press]
password_file = "{password}"
publish = ["sensors/press-1/#", "device/ready"]
subscribe = ["results/#"]
{function}"#,
        password = password.display(),
        function = fahrenheit(""),
    );
    let agent = Agent::start(&config).await?;
    agent.hears("local").await?;
    let press = |password: &str| {
        let mut options = MqttOptions::new(format!("press-{password}"), "127.0.0.1", port);
        options.set_credentials("press", password);
        options
    };
    assert!(Device::with(press("guessed")).await.is_err());
    assert!(Device::connect(port).await.is_err(), "nobody without a name");
    let device = Device::with(press("s3cret")).await?;
    device.subscribe("results/#", 1).await?;
    device.publish("sensors/press-1/temp", reading("press-1", 1), 1).await?;
    assert_eq!(super::seq(&device.next().await?.payload)?, 1);
    // Not its own topic: refused, and never handled.
    device.publish("sensors/press-2/temp", reading("press-2", 2), 1).await?;
    device.publish("sensors/press-1/temp", reading("press-1", 3), 1).await?;
    assert_eq!(super::seq(&device.next().await?.payload)?, 3);
    Ok(())
}

#[tokio::test]
async fn an_embedded_broker_serves_without_users_on_loopback() -> anyhow::Result<()> {
    let port = e2e::free_port()?;
    let config = format!("[embedded_broker]\nlisten = \"127.0.0.1:{port}\"\n{}", fahrenheit(""));
    let agent = Agent::start(&config).await?;
    agent.hears("local").await?;
    serves(port).await
}

/// Out of file handles the agent cannot connect: it says so, not in every line of its log, and connects when there are some.
#[tokio::test]
async fn out_of_file_handles_the_agent_goes_on() -> anyhow::Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let mut site = Site::with(&fahrenheit("")).await?;
    let pid = site.agent.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let maximum = files_maximum(pid.context("it runs")?)?;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum })?;
    site.broker.stop()?;
    site.broker.resume().await?;
    e2e::until("the agent to say why", async || site.agent.log().contains("Too many open files")).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(site.agent.is_running());
    let told = site.agent.log().matches("Too many open files").count();
    assert!(told <= 10, "told {told} times");
    prlimit(pid, Resource::Nofile, before)?;
    site.agent.hears("local").await?;
    serves(site.broker.port()).await
}

fn files_maximum(pid: rustix::process::Pid) -> anyhow::Result<Option<u64>> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero()))?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no such limit")?;
    Ok(files.split_whitespace().nth(1).and_then(|hard| hard.parse().ok()))
}

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_is_found_later() -> anyhow::Result<()> {
    let mut broker = Mosquitto::start().await?;
    broker.stop()?;
    let mut agent = Agent::prepare(&format!(
        "[mqtt.local]\nurl = \"{}\"\n{}",
        broker.url(),
        guest("echo", "sensors/#", "on_success = [{ mqtt = { topic = \"results/1\" } }]")
    ))?;
    Guest::echo().write(&agent.folder().join("echo"), "1.0.0")?;
    agent.resume().await?;
    assert_eq!(agent.status()?["brokers"][0]["connected"], false);
    broker.resume().await?;
    agent.hears("local").await?;
    serves(broker.port()).await
}
