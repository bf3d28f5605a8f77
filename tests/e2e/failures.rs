//! What becomes of events that a function cannot handle, and of everybody else meanwhile.

use std::time::Duration;

use e2e::site::guest;
use e2e::{Device, Guest, Mosquitto, Site};
use serde_json::{Value, json};

const PUBLISHES: &str = "capabilities = [\"mqtt:publish:results/#\"]";

/// Handles everything but `x`, which it traps on, `s`, where it never returns, and `r`, which it rejects.
fn fragile() -> Guest {
    Guest::forward("results/1")
        .but_on(b'x', "unreachable")
        .but_on(b's', "(loop (br 0))")
        .but_on(b'r', "(return (call $fail (i32.const 1) (i32.const 2048) (i32.const 7)))")
}

/// Dead letters, as the uplink of their stream sends them.
async fn with_dead_letters(more: &str) -> anyhow::Result<(Site, Mosquitto, Device)> {
    let cloud = Mosquitto::start().await?;
    let console = Device::connect(cloud.port()).await?;
    console.subscribe("site/#", 1).await?;
    let config = format!(
        "[mqtt.cloud]\nurl = \"{}\"\n[stream.dead-letters]\nuplink = {{ mqtt = \"cloud\", topic = \"site/{{stream}}\" }}\nbatch = {{ max_records = 1, max_wait = \"50ms\" }}\n{}",
        cloud.url(),
        guest("fragile", "sensors/#", &format!("{PUBLISHES}\n{more}")),
    );
    Ok((Site::with_guests(&config, &[("fragile", fragile())]).await?, cloud, console))
}

async fn letter(console: &Device) -> anyhow::Result<Value> {
    let envelope: Value = serde_json::from_slice(&console.next().await?.payload)?;
    Ok(envelope["data"].clone())
}

#[tokio::test]
async fn each_way_to_fail_has_a_dead_letter_that_says_which() -> anyhow::Result<()> {
    let (site, _cloud, console) = with_dead_letters("timeout = \"1s\"\nretry = { attempts = 1 }").await?;
    for (payload, outcome) in [("x", "trapped"), ("s", "timed-out"), ("r", "rejected")] {
        site.device.publish("sensors/1", payload, 1).await?;
        let letter = letter(&console).await?;
        assert_eq!(
            (&letter["function"], &letter["outcome"], &letter["attempts"]),
            (&json!("fragile"), &json!(outcome), &json!(1)),
            "{letter:#}"
        );
        assert_eq!(
            (&letter["event"]["subject"], &letter["event"]["type"]),
            (&json!("sensors/1"), &json!("mqtt.message"))
        );
        assert_eq!(letter["event"]["data_base64"].as_str().map(str::len), Some(4));
        // The agent, and the function, live.
        site.device.publish("sensors/1", "ok", 1).await?;
        assert_eq!(site.device.next().await?.text(), "ok");
    }
    Ok(())
}

/// A poisoned event is tried again, becomes a dead letter, and does not hold up those behind it.
#[tokio::test]
async fn a_poisoned_event_does_not_hold_up_the_others() -> anyhow::Result<()> {
    let (mut site, _cloud, console) = with_dead_letters("retry = { attempts = 3 }\nconcurrency = 1").await?;
    site.device.publish("sensors/1", "x", 1).await?;
    for n in 0..100 {
        site.device.publish("sensors/1", format!("{n}"), 1).await?;
    }
    let others = tokio::time::timeout(Duration::from_secs(10), site.device.take(100)).await??;
    assert_eq!(others.len(), 100);
    let letter = letter(&console).await?;
    assert_eq!((&letter["outcome"], &letter["attempts"]), (&json!("trapped"), &json!(3)), "{letter:#}");
    let status = site.agent.status()?;
    let function = super::function(&status, "fragile");
    assert_eq!((&function["retries"], &function["dead_letters"]), (&json!(2), &json!(1)));
    // It was acknowledged with its dead letter on disk: a restart does not bring it back.
    site.agent.stop()?;
    site.agent.resume().await?;
    site.device.publish("sensors/1", "after", 1).await?;
    assert_eq!(site.device.next().await?.text(), "after");
    assert_eq!(super::function(&site.agent.status()?, "fragile")["received"], 1);
    Ok(())
}

/// One function that spins, with all its instances, starves neither the other nor the agent.
#[tokio::test]
async fn a_function_that_spins_does_not_starve_another() -> anyhow::Result<()> {
    let config = format!(
        "{}{}",
        guest("spin", "spin/#", "timeout = \"20s\"\nconcurrency = 8\nretry = { attempts = 1 }"),
        guest("quick", "quick/#", PUBLISHES)
    );
    let guests = [("spin", Guest::raw("(loop (br 0)) unreachable", "")), ("quick", Guest::forward("results/quick"))];
    let site = Site::with_guests(&config, &guests).await?;
    for _ in 0..8 {
        site.device.publish("spin/1", "", 1).await?;
    }
    e2e::until("all of them to spin", async || {
        site.agent.status().is_ok_and(|status| super::function(&status, "spin")["busy"].as_u64() >= Some(2))
    })
    .await?;
    for n in 0..20 {
        site.device.publish("quick/1", format!("{n}"), 1).await?;
        let message = tokio::time::timeout(Duration::from_secs(5), site.device.next()).await??;
        assert_eq!(message.text(), n.to_string());
    }
    Ok(())
}

/// The returned value goes where `on_success` says, a failure where `on_failure` says: to MQTT, a stream and a function each.
#[tokio::test]
async fn outcomes_go_to_their_destinations() -> anyhow::Result<()> {
    let destinations = |topic: &str, stream: &str, function: &str| {
        format!(
            r#"[{{ mqtt = {{ topic = "results/{topic}/{{function}}" }} }}, {{ stream = "{stream}" }}, {{ function = "{function}" }}]"#
        )
    };
    let first = format!(
        "{PUBLISHES}\nretry = {{ attempts = 1 }}\non_success = {}\non_failure = {}",
        destinations("done", "done", "second"),
        destinations("failed", "failed", "second"),
    );
    let config = format!(
        "[stream.done]\n[stream.failed]\n{}[[function]]\nname = \"second\"\nbundle = \"second\"\n{PUBLISHES}\n",
        guest("first", "sensors/#", &first)
    );
    let guests = [("first", Guest::echo().but_on(b'x', "unreachable")), ("second", Guest::forward("results/second"))];
    let site = Site::with_guests(&config, &guests).await?;

    site.device.publish("sensors/1", "fine", 1).await?;
    let mut heard = site.device.take(2).await?;
    heard.sort_by(|a, b| a.topic.cmp(&b.topic));
    let heard: Vec<_> = heard.iter().map(|message| (message.topic.as_str(), message.text())).collect();
    assert_eq!(heard, [("results/done/first", "fine".to_owned()), ("results/second", "fine".to_owned())]);

    site.device.publish("sensors/1", "x", 1).await?;
    let mut heard = site.device.take(2).await?;
    heard.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!(heard.iter().map(|m| m.topic.as_str()).collect::<Vec<_>>(), ["results/failed/first", "results/second"]);
    for message in heard {
        assert_eq!(serde_json::from_str::<Value>(&message.text())?["outcome"], "trapped");
    }
    let status = site.agent.status()?;
    for stream in ["done", "failed", "dead-letters"] {
        assert_eq!(super::stream(&status, stream)["records"], 1, "{stream}");
    }
    Ok(())
}

/// Two functions that publish on each other's topics: the hop limit ends it, with a dead letter that says why.
#[tokio::test]
async fn a_circle_of_functions_ends() -> anyhow::Result<()> {
    let config = format!(
        "{}{}",
        guest("ping", "ping/#", "capabilities = [\"mqtt:publish:pong/1\"]"),
        guest("pong", "pong/#", "capabilities = [\"mqtt:publish:ping/1\"]"),
    );
    let site =
        Site::with_guests(&config, &[("ping", Guest::forward("pong/1")), ("pong", Guest::forward("ping/1"))]).await?;
    site.device.publish("ping/1", "ball", 1).await?;
    e2e::until("the circle to end", async || {
        site.agent.status().is_ok_and(|status| super::stream(&status, "dead-letters")["records"] == 1)
    })
    .await?;
    let played = |status: &Value, name: &str| super::function(status, name)["received"].as_u64().unwrap_or(0);
    let status = site.agent.status()?;
    let before = played(&status, "ping") + played(&status, "pong");
    assert!((16..=18).contains(&before), "{before} events");
    assert!(site.agent.log().contains("in a circle"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = site.agent.status()?;
    assert_eq!(played(&status, "ping") + played(&status, "pong"), before);
    Ok(())
}
