//! What is deployed takes over without a loss, and what is bad does not stay. No network: every deployment comes in a file.

use std::time::Duration;

use e2e::site::guest;
use e2e::{Device, Guest, Signers, Site};
use serde_json::json;
use sync_protocol::report::Phase;
use tidegate::deployment::DeploymentStatus;

use super::{function, send};

pub(super) const FILTER: &str = "sensors/#";

/// A gateway that trusts `signers`, with nothing of its own.
pub(super) async fn site(signers: &Signers) -> anyhow::Result<Site> {
    Site::with(&signers.cloud()).await
}

/// Applies `file`, which must be taken.
pub(super) async fn apply(site: &Site, file: &std::path::Path) -> anyhow::Result<u64> {
    let reply = site.agent.apply(file).await?;
    anyhow::ensure!(reply.status.as_u16() == 202, "{}", String::from_utf8_lossy(&reply.body));
    Ok(serde_json::from_slice::<tidegate::deployment::Applied>(&reply.body)?.bytes)
}

/// Applies `file`, which must not be taken; says why.
pub(super) async fn refused(site: &Site, file: &std::path::Path) -> anyhow::Result<String> {
    let reply = site.agent.apply(file).await?;
    anyhow::ensure!(!reply.status.is_success(), "it was taken");
    Ok(String::from_utf8(reply.body.to_vec())?)
}

/// Waits until deployment `number` has come to `phase`.
pub(super) async fn comes_to(site: &Site, number: u64, phase: Phase, kept: bool) -> anyhow::Result<DeploymentStatus> {
    let mut last = None;
    let come = e2e::until("the deployment to get there", async || {
        last = site.agent.deployment().await.ok();
        let progress = last.as_ref().and_then(|status| status.progress.as_ref());
        progress.is_some_and(|p| p.deployment.number == number && p.phase == phase && p.kept == kept)
    });
    come.await.map_err(|error| error.context(format!("{last:?}")))?;
    last.ok_or_else(|| anyhow::anyhow!("no deployment"))
}

/// Publishes until somebody serves, and says what that answered with.
pub(super) async fn served(site: &Site) -> anyhow::Result<String> {
    for _ in 0..100 {
        site.device.publish("sensors/1", "1", 1).await?;
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(500), site.device.next()).await {
            return Ok(message?.topic);
        }
    }
    anyhow::bail!("nobody serves")
}

/// New versions take over one after the other under load: each event is served, by one of them, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_takes_over_without_dropping_an_event() -> anyhow::Result<()> {
    const EVENTS: u64 = 3_000;
    let signers = Signers::new()?;
    let site = site(&signers).await?;
    // Those in between are superseded on trial.
    let deploy = async |number: u64, kept: bool| -> anyhow::Result<()> {
        let (version, topic) = (format!("1.{number}.0"), format!("results/v{number}"));
        let draft = signers.deployment(number).function("hall", &version, &Guest::forward(&topic), FILTER)?;
        let draft = draft.policy(|policy| policy.probation_ms = if kept { 1_000 } else { 3_600_000 });
        apply(&site, &draft.file()?).await?;
        comes_to(&site, number, Phase::Active, kept).await.map(drop)
    };
    deploy(1, true).await?;
    served(&site).await?;
    site.device.rest();
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/1", 0..EVENTS, 1_000).await?;
        sensor.delivered(EVENTS).await
    });
    for number in 2..=4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        deploy(number, number == 4).await?;
    }
    load.await??;
    let (mut versions, mut times) = (std::collections::BTreeSet::new(), std::collections::BTreeMap::new());
    while times.len() < usize::try_from(EVENTS)? {
        let message = site.device.next().await?;
        if let Ok(seq) = super::seq(&message.payload) {
            *times.entry(seq).or_insert(0) += 1;
            versions.insert(message.topic);
        }
    }
    assert!(times.values().all(|times| *times == 1), "an event was served twice");
    assert!(versions.len() >= 3, "{versions:?}");
    Ok(())
}

/// The bytes that a change of one function of ten takes are those of that function.
#[tokio::test]
async fn only_what_changed_is_taken_and_touched() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let site = site(&signers).await?;
    let draft = |number: u64, newest: &str| {
        (0..10).try_fold(signers.deployment(number), |draft, n| {
            let version = if n == 7 { newest } else { "1.0.0" };
            let guest = Guest::forward(&format!("results/{n}/{version}"));
            draft.function(&format!("f{n}"), version, &guest, &format!("sensors/{n}"))
        })
    };
    let first = draft(1, "1.0.0")?;
    let all: usize = first.blobs().map(Vec::len).sum();
    assert_eq!(apply(&site, &first.file()?).await?, all as u64);
    comes_to(&site, 1, Phase::Active, true).await?;
    site.device.publish("sensors/3", "1", 1).await?;
    assert_eq!(site.device.next().await?.topic, "results/3/1.0.0");

    let second = draft(2, "1.1.0")?;
    let known: Vec<_> = first.blobs().collect();
    let changed: usize = second.blobs().filter(|bytes| !known.contains(bytes)).map(Vec::len).sum();
    assert_eq!(apply(&site, &second.file()?).await?, changed as u64);
    assert!(changed * 9 < all, "{changed} of {all} bytes");
    comes_to(&site, 2, Phase::Active, true).await?;
    for (topic, result) in [("sensors/3", "results/3/1.0.0"), ("sensors/7", "results/7/1.1.0")] {
        site.device.publish(topic, "1", 1).await?;
        assert_eq!(site.device.next().await?.topic, result);
    }
    // What did not change kept its warm instance.
    assert_eq!(function(&site.agent.status()?, "f3")["cold_starts"], 1);
    Ok(())
}

/// Traps, fails its own tests, or is slow: in each case what was kept serves again, and it is not tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_version_does_not_stay() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let mut site = site(&signers).await?;
    let good = signers.deployment(1).function("hall", "1.0.0", &Guest::forward("results/good"), FILTER)?;
    apply(&site, &good.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    for _ in 0..10 {
        assert_eq!(served(&site).await?, "results/good");
    }

    // It traps: found out by its invocations, each of which is tried again by the one before.
    let traps = signers.deployment(2).policy(|policy| policy.probation_ms = 3_600_000);
    let traps = traps.function("hall", "1.1.0", &Guest::raw("unreachable", ""), FILTER)?;
    apply(&site, &traps.file()?).await?;
    comes_to(&site, 2, Phase::Active, false).await?;
    for _ in 0..10 {
        site.device.publish("sensors/1", "1", 1).await?;
    }
    let status = comes_to(&site, 2, Phase::RolledBack, false).await?;
    let reason = status.progress.unwrap_or_else(|| unreachable!()).reason;
    assert!(reason.starts_with("function `hall` failed ") && reason.contains("more than 10%"), "{reason}");
    assert_eq!((status.active.map(|d| d.number), status.kept.map(|d| d.number)), (Some(1), Some(1)));
    assert_eq!(served(&site).await?, "results/good");

    // Its own test fails: it never serves.
    let untrue = "[[test]]\nevent = \"event.json\"\nexpect = { result = \"function.toml\" }\n";
    let settings = json!({ "trigger": [{ "mqtt": { "filter": FILTER } }] });
    let fails =
        signers.deployment(3).function_with("hall", "1.2.0", &Guest::forward("results/bad"), untrue, &settings)?;
    apply(&site, &fails.file()?).await?;
    let status = comes_to(&site, 3, Phase::Failed, false).await?;
    let reason = status.progress.unwrap_or_else(|| unreachable!()).reason;
    assert!(reason.starts_with("function `hall` 1.2.0 fails its test `event.json`: expected"), "{reason}");

    // An operator's mistake is told by its place.
    let wrong = json!({ "timeout": "3 hours", "trigger": [] });
    let mistake = signers.deployment(4).function_with("hall", "1.3.0", &Guest::forward("results/bad"), "", &wrong)?;
    apply(&site, &mistake.file()?).await?;
    let status = comes_to(&site, 4, Phase::Failed, false).await?;
    let reason = status.progress.unwrap_or_else(|| unreachable!()).reason;
    assert!(reason.contains("deployment 4: function[hall].timeout: `3 hours`"), "{reason}");

    // None of them comes back with a restart.
    site.agent.kill()?;
    site.agent.resume().await?;
    assert_eq!(served(&site).await?, "results/good");
    Ok(())
}

/// Many times slower than before: found out by its handler's times.
#[tokio::test]
async fn a_version_that_is_much_slower_is_rolled_back() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let site = site(&signers).await?;
    let fast = signers.deployment(1).function("hall", "1.0.0", &Guest::forward("results/fast"), FILTER)?;
    apply(&site, &fast.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    for _ in 0..6 {
        assert_eq!(served(&site).await?, "results/fast");
    }
    // Each event takes 50 ms.
    let sleeps = "(call $block (call $after (i64.const 50000000)))";
    let slow = Guest::forward("results/slow").but_on(b'1', sleeps);
    let slow =
        signers.deployment(2).policy(|policy| policy.probation_ms = 8_000).function("hall", "1.1.0", &slow, FILTER)?;
    apply(&site, &slow.file()?).await?;
    comes_to(&site, 2, Phase::Active, false).await?;
    for _ in 0..6 {
        assert_eq!(served(&site).await?, "results/slow");
    }
    let status = comes_to(&site, 2, Phase::RolledBack, false).await?;
    let reason = status.progress.unwrap_or_else(|| unreachable!()).reason;
    assert!(reason.contains("at p99, before it was"), "{reason}");
    assert_eq!(served(&site).await?, "results/fast");
    Ok(())
}

/// Not signed by those who may, spoilt on the way, for another gateway, not a deployment at all: refused, and nothing changes.
#[tokio::test]
async fn a_forged_or_spoilt_file_is_refused() -> anyhow::Result<()> {
    let (signers, strangers) = (Signers::new()?, Signers::new()?);
    let site = site(&signers).await?;
    let draft = |signers| -> anyhow::Result<_> {
        Signers::deployment(signers, 1).function("hall", "1.0.0", &Guest::forward("results/good"), FILTER)
    };
    let why = refused(&site, &draft(&strangers)?.file()?).await?;
    assert!(why.contains("signed by 0 of the keys"), "{why}");
    let why = refused(&site, &draft(&signers)?.with_other_bytes().file()?).await?;
    assert!(why.contains("has the digest"), "{why}");
    let (_, mut answer) = draft(&signers)?.sign()?;
    answer.releases.clear();
    let why = refused(&site, &draft(&signers)?.file_of(&answer)?).await?;
    assert!(why.contains("release"), "{why}");
    let nothing = site.agent.folder().join("nothing.tar");
    std::fs::write(&nothing, "no archive")?;
    let why = refused(&site, &nothing).await?;
    assert!(why.contains("no deployment file"), "{why}");
    assert_eq!(site.agent.deployment().await?.progress, None);
    assert_eq!(
        std::fs::read_dir(site.agent.folder().join("state/blobs"))?
            .filter(|file| { file.as_ref().is_ok_and(|file| file.metadata().is_ok_and(|file| file.len() > 0)) })
            .count(),
        0,
        "what was refused left bytes behind"
    );

    // The real one is taken all the same.
    apply(&site, &draft(&signers)?.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    assert_eq!(served(&site).await?, "results/good");
    Ok(())
}

/// gateway.toml wins over a deployment, stays beside it when it is read again, and is told about.
#[tokio::test]
async fn gateway_toml_and_a_deployment_stand_side_by_side() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let config = |topic: &str| {
        format!("{}{}", signers.cloud(), guest("mine", topic, "capabilities = [\"mqtt:publish:results/#\"]"))
    };
    let site = Site::with_guests(&config("mine/a"), &[("mine", Guest::forward("results/mine"))]).await?;
    let draft = signers.deployment(1).function("hall", "1.0.0", &Guest::forward("results/hall"), FILTER)?;
    let draft = draft.function("mine", "9.0.0", &Guest::forward("results/theirs"), "mine/#")?;
    apply(&site, &draft.file()?).await?;
    let status = comes_to(&site, 1, Phase::Active, true).await?;
    assert!(
        status.hidden[0].contains("function[mine]: gateway.toml has a function `mine` of its own"),
        "{:?}",
        status.hidden
    );
    site.configure(&config("mine/b"))?;
    site.agent.tell(&["reload"])?;
    assert_eq!(served(&site).await?, "results/hall");
    let running: Vec<_> =
        site.agent.deployment().await?.running.iter().map(|r| (r.name.to_string(), r.local)).collect();
    assert_eq!(running, [("hall".to_owned(), false), ("mine".to_owned(), true)]);
    Ok(())
}

/// SIGKILL at any moment of a deployment: old or new serves after the start, never neither, and it comes to its end by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_in_any_state_of_a_deployment_converges() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let mut site = site(&signers).await?;
    let draft = |number: u64| {
        let guest = Guest::forward(&format!("results/v{number}"));
        signers.deployment(number).function("hall", &format!("1.{number}.0"), &guest, FILTER)
    };
    apply(&site, &draft(1)?.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    assert_eq!(served(&site).await?, "results/v1");
    let state = site.agent.folder().join("state/deployment/state.json");
    let mut seen = std::collections::BTreeSet::new();
    for number in 2..=9 {
        apply(&site, &draft(number)?.file()?).await?;
        tokio::time::sleep(Duration::from_millis(number * 12 - 24)).await;
        site.agent.kill()?;
        let held: serde_json::Value = serde_json::from_slice(&std::fs::read(&state)?)?;
        seen.insert(held["next"]["step"].as_str().unwrap_or("on trial or kept").to_owned());
        site.agent.resume().await?;
        let first = served(&site).await?;
        let [old, new] = [number - 1, number].map(|number| format!("results/v{number}"));
        assert!(first == old || first == new, "{first} serves after a kill in {held}");
        comes_to(&site, number, Phase::Active, true).await?;
        assert_eq!(served(&site).await?, new);
    }
    println!("killed in: {seen:?}");
    Ok(())
}

/// As it is on disk at each step, right before anything was done about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_that_is_on_disk_is_gone_on_with() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let mut site = site(&signers).await?;
    let draft = |number: u64| {
        let guest = Guest::forward(&format!("results/v{number}"));
        signers.deployment(number).function("hall", &format!("1.{number}.0"), &guest, FILTER)
    };
    apply(&site, &draft(1)?.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    let path = site.agent.folder().join("state/deployment/state.json");
    for (number, step) in (2..).zip(["queued", "downloading", "staging", "staged", "trial"]) {
        let long = draft(number)?.policy(|policy| policy.probation_ms = 3_600_000);
        apply(&site, &long.file()?).await?;
        comes_to(&site, number, Phase::Active, false).await?;
        site.agent.kill()?;
        let mut held: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        held["trial"]["policy"]["probation_ms"] = json!(500);
        if step != "trial" {
            let trial = held["trial"].take();
            held["next"] = json!({
                "deployment": trial["deployment"], "policy": trial["policy"], "step": step,
                "since_ms": 1, "spent_ms": 0, "starts": 0, "fetched": [0, 0],
            });
        }
        std::fs::write(&path, serde_json::to_vec(&held)?)?;
        site.agent.resume().await?;
        let first = served(&site).await?;
        let [old, new] = [number - 1, number].map(|number| format!("results/v{number}"));
        assert!(first == old || first == new, "{first} serves after a crash in {step}");
        comes_to(&site, number, Phase::Active, true).await?;
        assert_eq!(served(&site).await?, new, "after a crash in {step}");
    }
    Ok(())
}

/// One that takes the agent down is rolled back by the starts that it costs, without a network.
#[tokio::test]
async fn an_agent_that_dies_again_and_again_rolls_back() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let mut site = site(&signers).await?;
    let draft = |number: u64| {
        let guest = Guest::forward(&format!("results/v{number}"));
        signers.deployment(number).function("hall", &format!("1.{number}.0"), &guest, FILTER)
    };
    apply(&site, &draft(1)?.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    let long = draft(2)?.policy(|policy| policy.probation_ms = 3_600_000);
    apply(&site, &long.file()?).await?;
    comes_to(&site, 2, Phase::Active, false).await?;
    for _ in 0..4 {
        site.agent.kill()?;
        site.agent.resume().await?;
    }
    let status = comes_to(&site, 2, Phase::RolledBack, false).await?;
    assert_eq!(status.active.map(|deployment| deployment.number), Some(1));
    assert_eq!(served(&site).await?, "results/v1");
    Ok(())
}
