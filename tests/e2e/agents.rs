//! The agent itself is deployed: another one takes over without losing an event, and one that does not come up, or not well, does not stay.
//! Whoever starts again what has ended, as a service manager does, is played by the tests.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Device, Guest, Signers, Site};
use serde_json::Value;
use sync_protocol::report::Phase;
use tidegate::boot;
use tidegate::deployment::AgentStatus;

use super::deployment::{FILTER, apply, comes_to, served, site};
use super::managed::{hears, kept, managed};
use super::send;

/// The agent as somebody could have built it anew: what it does is the same, its bytes are others.
fn rebuilt(folder: &Path, version: &str) -> anyhow::Result<PathBuf> {
    let binary = folder.join(format!("tidegate-{version}"));
    let stripped = Command::new("strip").arg("-o").arg(&binary).arg(e2e::tidegate()?).status()?;
    anyhow::ensure!(stripped.success(), "strip ended with {stripped}");
    std::fs::write(&binary, [std::fs::read(&binary)?, version.as_bytes().to_vec()].concat())?;
    Ok(binary)
}

/// Something that says its version as an agent does, and then does `what`. How often it was started is the length of `starts` beside it.
fn broken(folder: &Path, what: &str) -> anyhow::Result<PathBuf> {
    let (binary, starts) = (folder.join("broken"), folder.join("starts"));
    let text = format!("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nprintf x >> '{}'\n{what}\n", starts.display());
    std::fs::write(&binary, text)?;
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))?;
    Ok(binary)
}

fn starts(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("starts")).map_or(0, |file| file.len())
}

async fn agent(site: &Site) -> anyhow::Result<AgentStatus> {
    site.agent.deployment().await?.agent.context("no agent was deployed")
}

/// What the process runs, by its file's name.
fn binary(site: &Site) -> anyhow::Result<String> {
    let pid = site.agent.pid().context("no agent runs")?;
    let binary = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(binary.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// Another agent takes over under load, and gives way to the packaged one again: every event is served, and each is what was deployed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_takes_over_without_losing_an_event() -> anyhow::Result<()> {
    const EVENTS: u64 = 3_000;
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let mut site = site(&signers).await?;
    let guest = Guest::forward("results/hall");
    let draft = |number: u64| signers.deployment(number).function("hall", "1.0.0", &guest, FILTER);
    apply(&site, &draft(1)?.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    let packaged = binary(&site)?;
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/1", 0..EVENTS, 200).await?;
        sensor.delivered(EVENTS).await
    });

    apply(&site, &draft(2)?.agent("99.0.0", &rebuilt(folder.path(), "99.0.0")?)?.file()?).await?;
    comes_to(&site, 2, Phase::Active, true).await?;
    let status = agent(&site).await?;
    assert_eq!((status.version.as_str(), status.deployed, status.trial_starts), ("99.0.0", true, None));
    assert_eq!(binary(&site)?.len(), 64, "it is named by its digest");
    site.agent.kill()?;
    site.agent.resume().await?;
    assert_eq!(binary(&site)?.len(), 64, "it runs after a restart, too");

    apply(&site, &draft(3)?.policy(|policy| policy.probation_ms = 4_000).file()?).await?;
    comes_to(&site, 3, Phase::Active, true).await?;
    assert_eq!(site.agent.deployment().await?.agent, None, "none is deployed any more");
    assert_eq!(binary(&site)?, packaged);

    load.await??;
    let heard = super::hear(&site.device, EVENTS).await?;
    assert_eq!(heard.len() as u64, EVENTS);
    let binaries = std::fs::read_dir(site.agent.folder().join("state/agent"))?.count();
    assert_eq!(binaries, 1, "nothing but the boot record is left");
    Ok(())
}

/// One that ends at once is started three times. Then what was kept serves on the agent before, and it is not tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_at_its_start_is_rolled_back() -> anyhow::Result<()> {
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let mut site = site(&signers).await?;
    let good = signers.deployment(1).function("hall", "1.0.0", &Guest::forward("results/good"), FILTER)?;
    apply(&site, &good.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    let bad = signers.deployment(2).function("hall", "2.0.0", &Guest::forward("results/bad"), FILTER)?;
    apply(&site, &bad.agent("99.0.0", &broken(folder.path(), "exit 1")?)?.file()?).await?;
    e2e::until("the deployed agent to end", async || !site.agent.is_running()).await?;
    while site.agent.resume().await.is_err() {
        anyhow::ensure!(starts(folder.path()) <= 3, "it is started for ever");
    }
    let status = comes_to(&site, 2, Phase::Failed, false).await?;
    let reason = status.progress.map(|progress| progress.reason).unwrap_or_default();
    assert!(reason.contains("agent 99.0.0 did not come up: it was started 3 times"), "{reason}");
    assert_eq!(starts(folder.path()), 3);
    assert_eq!(served(&site).await?, "results/good");
    let said = site.agent.tell(&["status"])?;
    assert!(said.contains("the last one did not stay: it was started 3 times"), "{said}");
    site.agent.kill()?;
    site.agent.resume().await?;
    assert_eq!((served(&site).await?.as_str(), starts(folder.path())), ("results/good", 3));
    Ok(())
}

/// One that hangs, and is killed by whoever watches it, is rolled back as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_is_rolled_back() -> anyhow::Result<()> {
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let mut site = site(&signers).await?;
    let good = signers.deployment(1).function("hall", "1.0.0", &Guest::forward("results/good"), FILTER)?;
    apply(&site, &good.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    let bad = signers.deployment(2).agent("99.0.0", &broken(folder.path(), "exec sleep 3600")?)?;
    apply(&site, &bad.file()?).await?;
    for start in 1..=3 {
        let hangs = e2e::until("it to hang", async || starts(folder.path()) == start);
        if start == 1 {
            hangs.await?;
        } else {
            tokio::select! {
                ready = site.agent.resume() => anyhow::bail!("start {start} is ready: {ready:?}"),
                hangs = hangs => hangs?,
            }
        }
        site.agent.kill()?;
    }
    site.agent.resume().await?;
    comes_to(&site, 2, Phase::Failed, false).await?;
    assert_eq!(served(&site).await?, "results/good");
    Ok(())
}

/// What cannot run on this machine is found out before anything is changed.
#[tokio::test]
async fn an_agent_that_cannot_run_here_is_not_tried() -> anyhow::Result<()> {
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let site = site(&signers).await?;
    let pid = site.agent.pid();
    let no_program = folder.path().join("no-program");
    std::fs::write(&no_program, "no program")?;
    apply(&site, &signers.deployment(1).agent("99.0.0", &no_program)?.file()?).await?;
    let status = comes_to(&site, 1, Phase::Failed, false).await?;
    let reason = status.progress.map(|progress| progress.reason).unwrap_or_default();
    assert!(reason.contains("agent/tidegate 99.0.0 cannot be started on this gateway"), "{reason}");

    let other = std::fs::read(&no_program)?;
    let other = signers.deployment(2).native("sparc-unknown-none", boot::FLAVOUR, other);
    let other = other.bundle(sync_protocol::Kind::Agent, "tidegate", "99.0.1", &no_program, &[], &Value::Null)?;
    apply(&site, &other.file()?).await?;
    let status = comes_to(&site, 2, Phase::Failed, false).await?;
    let reason = status.progress.map(|progress| progress.reason).unwrap_or_default();
    assert!(reason.contains("was not built for this gateway"), "{reason}");
    assert_eq!(site.agent.pid(), pid);
    Ok(())
}

/// Killed at whatever moment, again and again while agents take over from each other, a gateway comes to what was deployed last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_killed_while_its_agent_changes_comes_to_what_was_deployed() -> anyhow::Result<()> {
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let mut site = site(&signers).await?;
    let binaries = [rebuilt(folder.path(), "99.0.0")?, rebuilt(folder.path(), "99.0.1")?];
    for number in 1..=5_u64 {
        let binary = &binaries[usize::from(number % 2 == 0)];
        let version = if number % 2 == 0 { "99.0.1" } else { "99.0.0" };
        let draft = signers.deployment(number).agent(version, binary)?;
        let draft =
            draft.function("hall", &format!("1.{number}.0"), &Guest::forward(&format!("results/{number}")), FILTER)?;
        apply(&site, &draft.file()?).await?;
        // While it is staged, stops, is chosen, starts, or is watched.
        tokio::time::sleep(Duration::from_millis(150 * number)).await;
        site.agent.kill()?;
        site.agent.resume().await?;
        comes_to(&site, number, Phase::Active, true).await?;
        assert_eq!(agent(&site).await?.version, version);
        site.device.rest();
        assert_eq!(served(&site).await?, format!("results/{number}"));
    }
    Ok(())
}

/// A binary that the disk has spoilt is not run: what was kept serves on the packaged agent, and on its own again from the next start on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_the_disk_has_spoilt_is_not_run() -> anyhow::Result<()> {
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let mut site = site(&signers).await?;
    let packaged = binary(&site)?;
    let draft = signers.deployment(1).agent("99.0.0", &rebuilt(folder.path(), "99.0.0")?)?;
    apply(&site, &draft.function("hall", "1.0.0", &Guest::forward("results/hall"), FILTER)?.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    let deployed = binary(&site)?;
    assert_eq!(deployed.len(), 64);
    site.agent.kill()?;
    let slot = site.agent.folder().join("state/agent").join(&deployed);
    std::fs::remove_file(&slot)?;
    std::fs::write(&slot, "#!/bin/sh\nexit 0\n")?;
    std::fs::set_permissions(&slot, std::fs::Permissions::from_mode(0o755))?;
    site.agent.resume().await?;
    assert_eq!((binary(&site)?, served(&site).await?.as_str()), (packaged, "results/hall"));
    let said = site.agent.tell(&["status"])?;
    assert!(said.contains("was changed on this gateway's disk"), "{said}");
    site.agent.kill()?;
    site.agent.resume().await?;
    assert_eq!((binary(&site)?, served(&site).await?.as_str()), (deployed, "results/hall"));
    Ok(())
}

/// To a service manager it is one process, which was ready, and is ready again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_sees_one_process() -> anyhow::Result<()> {
    let (signers, folder) = (Signers::new()?, tempfile::tempdir()?);
    let address = folder.path().join("notify");
    let notified = UnixDatagram::bind(&address)?;
    notified.set_nonblocking(true)?;
    let mut heard = Vec::new();
    let mut hears = |word: &str| {
        let mut bytes = [0; 1024];
        while let Ok(count) = notified.recv(&mut bytes) {
            heard.extend(String::from_utf8_lossy(&bytes[..count]).lines().map(str::to_owned));
        }
        heard.iter().filter(|line| *line == word).count()
    };
    let address = address.display().to_string();
    let variables = [("NOTIFY_SOCKET", address.as_str()), ("WATCHDOG_USEC", "1000000")];
    let site = Site::in_environment(&signers.cloud(), &[], &variables).await?;
    let pid = site.agent.pid();
    e2e::until("the agent to be ready", async || hears("READY=1") == 1).await?;
    let draft = signers.deployment(1).agent("99.0.0", &rebuilt(folder.path(), "99.0.0")?)?;
    apply(&site, &draft.file()?).await?;
    e2e::until("the next one to be ready", async || hears("READY=1") == 2).await?;
    let before = hears("WATCHDOG=1");
    e2e::until("it to keep the watchdog quiet", async || hears("WATCHDOG=1") > before).await?;
    assert_eq!((hears("STOPPING=1"), site.agent.pid()), (0, pid));
    assert_eq!(binary(&site)?.len(), 64);
    Ok(())
}

/// From the publisher's laptop to the gateway: nobody may sign agents until the root says who; a good one is kept and seen, one that loses the
/// control plane is rolled back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_updates_its_agents() -> anyhow::Result<()> {
    let (plane, site) = managed("").await?;
    let laptop = plane.laptop().to_owned();
    let publish = |version: &str, binary: &Path| {
        let path = binary.display().to_string();
        plane.tell(&["publish", &path, "--kind", "agent", "--version", version, "--build", boot::TARGET]).map(drop)
    };
    let deploy = |version: &str, probation: &str, more: &[&str]| {
        let policy = format!("[policy]\nprobation = \"{probation}\"\n");
        plane.deploy(
            &format!("gateway = \"test\"\n[agent]\nname = \"tidegate\"\nversion = \"{version}\"\n{policy}"),
            more,
        )
    };
    let good = rebuilt(&laptop, "99.0.0")?;
    let refused = publish("99.0.0", &good).unwrap_err().to_string();
    assert!(refused.contains("the root of trust lets nobody sign those"), "{refused}");
    let home = laptop.join("config/tidegate");
    let [root, publisher] = ["root.json", "keys/publisher.pub"].map(|file| home.join(file).display().to_string());
    plane.tell(&["keygen", "root", "--from", &root, "--agents", &publisher, "--send"])?;
    publish("99.0.0", &good)?;
    deploy("99.0.0", "20s", &["--preview"])?;
    // Twice that is the time in which it has to reach the control plane.
    deploy("99.0.0", "20s", &[])?;
    kept(&plane, &site, 1).await?;
    let runs = |gateway: &Value| {
        let running = gateway["report"]["running"].as_array().cloned().unwrap_or_default();
        running.iter().any(|r| r["kind"] == "agent" && r["version"] == "99.0.0")
    };
    hears(&plane, "the agent to be reported", runs).await?;

    // It comes up, and cannot reach the control plane: its gateway.toml names another one.
    let config = std::fs::read_to_string(site.agent.config())?;
    let elsewhere = site.agent.folder().join("elsewhere.toml");
    let port = e2e::free_port()?;
    let url = format!("https://{}", plane.address());
    std::fs::write(&elsewhere, config.replace(&url, &format!("https://127.0.0.1:{port}")))?;
    let what = format!("exec '{}' run --config '{}'", good.display(), elsewhere.display());
    publish("100.0.0", &broken(&laptop, &what)?)?;
    deploy("100.0.0", "1s", &[])?;
    let rolled_back = hears(&plane, "the agent to be rolled back", |gateway| {
        gateway["progress"]["phase"] == "rolled-back" && gateway["progress"]["deployment"]["number"] == 2
    });
    let gateway = rolled_back.await.with_context(|| site.agent.log())?;
    let reason = gateway["progress"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the control plane is not reached"), "{reason}");
    hears(&plane, "the agent before", runs).await?;
    Ok(())
}
