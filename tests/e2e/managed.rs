//! A gateway that a control plane manages, and all that it sends there.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use e2e::{Agent, ControlPlane, Device, Guest, Mosquitto, Site};
use serde_json::Value;

const CAPABILITIES: [&str; 1] = ["mqtt:publish:results/#"];

/// A control plane, and a gateway of its fleet with nothing of its own but `more` of gateway.toml.
pub(super) async fn managed(more: &str) -> anyhow::Result<(ControlPlane, Site)> {
    let (plane, broker) = (ControlPlane::start().await?, Mosquitto::start().await?);
    let device = Device::connect(broker.port()).await?;
    device.subscribe("results/#", 2).await?;
    let agent = Agent::prepare("")?;
    let cloud = plane.claim(&agent, plane.address())?;
    let mut site = Site { broker, agent, device };
    site.configure(&format!("{more}\n{cloud}"))?;
    site.agent.resume().await?;
    plane.hears("test").await?;
    Ok((plane, site))
}

/// Publishes version 1.`number`.0 of `hall`, and deploys it.
fn deploy(plane: &ControlPlane, number: u64, guest: &Guest) -> anyhow::Result<()> {
    deploy_with(plane, number, guest, "probation = \"1s\"\ninvocations_min = 3\n")
}

/// The same, on trial by `policy`.
fn deploy_with(plane: &ControlPlane, number: u64, guest: &Guest, policy: &str) -> anyhow::Result<()> {
    plane.publish("hall", &format!("1.{number}.0"), guest, &CAPABILITIES)?;
    let text = format!(
        "gateway = \"test\"\n[[function]]\nname = \"hall\"\nversion = \"1.{number}.0\"\ncapabilities = {CAPABILITIES:?}\n\
         [[function.trigger]]\nmqtt = {{ filter = \"sensors/#\" }}\n[policy]\n{policy}"
    );
    plane.deploy(&text, &[])
}

/// Waits until the control plane has heard what `is` looks for.
pub(super) async fn hears(plane: &ControlPlane, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let heard = e2e::until(what, async || {
        last = plane.fleet(&["show", "test"]).unwrap_or_default();
        is(&last)
    });
    heard.await.with_context(|| last.to_string())?;
    Ok(last)
}

/// Waits until deployment `number` was kept, and the control plane knows.
pub(super) async fn kept(plane: &ControlPlane, site: &Site, number: u64) -> anyhow::Result<()> {
    let progress = |gateway: &Value| gateway["progress"]["deployment"]["number"] == number;
    let heard = hears(plane, "the deployment to be kept", |gateway| {
        progress(gateway) && gateway["progress"]["kept"] == true && gateway["active"]["number"] == number
    });
    heard.await.with_context(|| site.agent.log()).map(drop)
}

/// Publishes until somebody serves, and says what that answered with.
async fn served(site: &Site) -> anyhow::Result<String> {
    site.device.rest();
    for _ in 0..120 {
        site.device.publish("sensors/1", "1", 1).await?;
        if let Ok(message) = tokio::time::timeout(std::time::Duration::from_millis(500), site.device.next()).await {
            return Ok(message?.topic);
        }
    }
    anyhow::bail!("nobody serves:\n{}", site.agent.log())
}

/// A new disk in the old one's place, of which only the identity was saved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_alone_brings_a_gateway_back() -> anyhow::Result<()> {
    let (plane, mut site) = managed("").await?;
    deploy(&plane, 1, &Guest::forward("results/v1"))?;
    kept(&plane, &site, 1).await?;
    assert_eq!(served(&site).await?, "results/v1");
    let state = site.agent.folder().join("state");
    let key = std::fs::read(state.join("identity/key.pem"))?;
    site.agent.kill()?;
    for entry in std::fs::read_dir(&state)? {
        let path = entry?.path();
        match path.is_dir() {
            _ if path.ends_with("identity") => {}
            true => std::fs::remove_dir_all(path)?,
            false => std::fs::remove_file(path)?,
        }
    }
    // A claim lets it in no more: it has been used.
    site.agent.resume().await?;
    assert_eq!(served(&site).await?, "results/v1");
    kept(&plane, &site, 1).await?;
    is_the_same(&plane, &site, &key)
}

/// One gateway, with its key, and nobody takes it for two.
fn is_the_same(plane: &ControlPlane, site: &Site, key: &[u8]) -> anyhow::Result<()> {
    ensure!(std::fs::read(site.agent.folder().join("state/identity/key.pem"))? == key, "its key is another one");
    let fleet = plane.fleet(&[])?;
    let gateways = fleet.as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(gateways.len() == 1 && gateways[0]["cloned_ms"].is_null(), "{fleet}");
    Ok(())
}

/// What runs, how a bad version ended and why, what failed last, and the log while somebody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_does_is_seen_at_the_control_plane() -> anyhow::Result<()> {
    let (plane, site) = managed("").await?;
    deploy(&plane, 1, &Guest::forward("results/v1"))?;
    kept(&plane, &site, 1).await?;
    let running = |gateway: &Value| gateway["report"]["running"][0].clone();
    let gateway = hears(&plane, "what runs", |gateway| running(gateway)["version"] == "1.1.0").await?;
    assert_eq!(running(&gateway)["name"], "hall");

    deploy(&plane, 2, &Guest::raw("unreachable", ""))?;
    hears(&plane, "the bad version on trial", |gateway| gateway["active"]["number"] == 2).await?;
    let mut logs = plane.on_laptop(&["fleet", "logs", "test", "--minutes", "1", "--level", "warn"])?;
    let mut logs = logs.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    for _ in 0..5 {
        site.device.publish("sensors/1", "1", 1).await?;
    }
    let gateway = hears(&plane, "the rollback", |gateway| gateway["progress"]["phase"] == "rolled-back").await?;
    let reason = gateway["progress"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.starts_with("function `hall` failed "), "{reason}");
    hears(&plane, "the old version to be back", |gateway| {
        gateway["active"]["number"] == 1 && running(gateway)["version"] == "1.1.0"
    })
    .await?;
    let failed = |gateway: &Value| gateway["report"]["last_errors"].to_string().contains("deployment given up");
    hears(&plane, "what failed last", failed).await?;
    let lines = || plane.tell(&["fleet", "logs", "test", "--no-ask", "--json"]).unwrap_or_default();
    let shown = e2e::until("its log", async || lines().contains("deployment given up")).await;
    logs.kill()?;
    logs.wait()?;
    shown.with_context(lines)
}

/// A disk that takes nothing stops deployments where they are: nobody is told of what a power cut would undo, and all goes on when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_on_disk_is_not_told() -> anyhow::Result<()> {
    let (plane, site) = managed("").await?;
    deploy(&plane, 1, &Guest::forward("results/v1"))?;
    kept(&plane, &site, 1).await?;
    // Nothing can be written where there is no folder.
    let [folder, away] = ["deployment", "away"].map(|name| site.agent.folder().join("state").join(name));

    deploy_with(&plane, 2, &Guest::forward("results/v2"), "probation = \"5s\"\n")?;
    hears(&plane, "the new version on trial", |gateway| gateway["active"]["number"] == 2).await?;
    std::fs::rename(&folder, &away)?;
    let stands_still = |text: &str| text.contains("deployments stand still") && text.contains("state.json");
    e2e::until("somebody here to see it", async || site.agent.tell(&["status"]).is_ok_and(|text| stands_still(&text)))
        .await?;
    let status = site.agent.deployment().await?;
    assert_eq!(status.kept.map(|kept| kept.number), Some(1));
    assert_eq!(served(&site).await?, "results/v2");
    let gateway = hears(&plane, "why", |gateway| stands_still(&gateway["unhealthy"].to_string())).await?;
    assert_eq!(gateway["progress"]["kept"], false, "{gateway}");
    std::fs::rename(&away, &folder)?;
    kept(&plane, &site, 2).await?;

    std::fs::rename(&folder, &away)?;
    deploy(&plane, 3, &Guest::forward("results/v3"))?;
    e2e::until("it to be refused by the disk", async || site.agent.log().contains("deployment not begun")).await?;
    std::fs::rename(&away, &folder)?;
    kept(&plane, &site, 3).await?;
    assert_eq!(site.agent.deployment().await?.broken, None);
    Ok(())
}

/// One that runs so seldom that there are never enough runs to judge it by, and fails each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rare_function_that_never_succeeds_does_not_stay() -> anyhow::Result<()> {
    let (plane, site) = managed("").await?;
    deploy(&plane, 1, &Guest::forward("results/v1"))?;
    kept(&plane, &site, 1).await?;
    deploy_with(&plane, 2, &Guest::raw("unreachable", ""), "probation = \"5s\"\n")?;
    hears(&plane, "the bad version on trial", |gateway| gateway["active"]["number"] == 2).await?;
    site.device.publish("sensors/1", "1", 1).await?;
    let ended = |gateway: &Value| gateway["progress"]["phase"] == "rolled-back" || gateway["progress"]["kept"] == true;
    let gateway =
        hears(&plane, "its end", |gateway| gateway["progress"]["deployment"]["number"] == 2 && ended(gateway)).await?;
    let reason = gateway["progress"]["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("function `hall` failed "), "{}", gateway["progress"]);
    Ok(())
}

/// Off for so long that its certificate has expired: let in by its key, it is given a new one, and goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_certificate_has_expired_comes_back() -> anyhow::Result<()> {
    let (plane, mut site) = managed("").await?;
    deploy(&plane, 1, &Guest::forward("results/v1"))?;
    kept(&plane, &site, 1).await?;
    site.agent.stop()?;
    let (keys, identity) = (plane.laptop().join("cloud/keys"), site.agent.folder().join("state/identity"));
    let read = |folder: &Path, file: &str| std::fs::read_to_string(folder.join(file));
    let authority = rcgen::Issuer::from_ca_cert_pem(
        &read(&keys, "ca.pem")?,
        rcgen::KeyPair::from_pem(&read(&keys, "ca-key.pem")?)?,
    )?;
    let key = rcgen::KeyPair::from_pem(&read(&identity, "key.pem")?)?;
    let mut old = rcgen::CertificateParams::default();
    old.distinguished_name = rcgen::DistinguishedName::new();
    old.distinguished_name.push(rcgen::DnType::CommonName, "test");
    (old.not_before, old.not_after) = (rcgen::date_time_ymd(2024, 1, 1), rcgen::date_time_ymd(2025, 1, 1));
    old.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let expired = old.signed_by(&key, &authority)?.pem();
    std::fs::write(identity.join("certificate.pem"), &expired)?;
    deploy(&plane, 2, &Guest::forward("results/v2"))?;
    site.agent.resume().await?;
    kept(&plane, &site, 2).await?;
    assert_eq!(served(&site).await?, "results/v2");
    assert_ne!(read(&identity, "certificate.pem")?, expired);
    is_the_same(&plane, &site, read(&identity, "key.pem")?.as_bytes())
}
