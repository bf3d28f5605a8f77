//! What was given up on can be looked at, tried again and dropped.

use e2e::site::guest;
use e2e::{Guest, Site};
use serde_json::{Value, json};

const CONFIG: &str = "capabilities = [\"mqtt:publish:results/#\"]\nretry = { attempts = 1 }";

/// A site with function `fragile`, which traps on payloads that begin with `x`, and a dead letter for each of `payloads`.
async fn with_letters(payloads: &[&str]) -> anyhow::Result<Site> {
    let fragile = Guest::forward("results/1").but_on(b'x', "unreachable");
    let site = Site::with_guests(&guest("fragile", "sensors/#", CONFIG), &[("fragile", fragile)]).await?;
    for (payload, n) in payloads.iter().zip(1..) {
        site.device.publish("sensors/1", *payload, 1).await?;
        holds(&site, n).await?;
    }
    Ok(site)
}

async fn holds(site: &Site, n: u64) -> anyhow::Result<()> {
    e2e::until("the dead letters", async || {
        site.agent.status().is_ok_and(|status| super::stream(&status, "dead-letters")["records"] == n)
    })
    .await
}

/// The function learns to handle what it could not.
fn mend(site: &Site) -> anyhow::Result<()> {
    Guest::forward("results/1").write(&site.bundle("fragile"), "1.0.1")?;
    site.agent.tell(&["reload"]).map(drop)
}

fn list(site: &Site) -> anyhow::Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&site.agent.tell(&["dead-letters", "list", "--json"])?)?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

#[tokio::test]
async fn dead_letters_are_listed_and_shown() -> anyhow::Result<()> {
    let site = with_letters(&["x{}", "x \u{fc}"]).await?;
    let letters = list(&site)?;
    let told =
        |letter: &Value| ["id", "function", "version", "attempts", "outcome", "topic"].map(|key| letter[key].clone());
    assert_eq!(
        told(&letters[0]),
        [json!(1), json!("fragile"), json!("1.0.0"), json!(1), json!("trapped"), json!("sensors/1")]
    );
    assert_eq!(letters.len(), 2);
    let table = site.agent.tell(&["dead-letters"])?;
    assert!(table.starts_with("ID ") && table.contains("sensors/1") && table.contains("trapped"), "{table}");
    assert_eq!(site.agent.tell(&["dead-letters", "--function", "other"])?, "no dead letters\n");

    let shown: Value = serde_json::from_str(&site.agent.tell(&["dead-letters", "show", "2", "--json"])?)?;
    let event = &shown["event"];
    assert_eq!(
        (&event["source"], &event["type"], &event["data_text"]),
        (&json!("mqtt:local"), &json!("mqtt.message"), &json!("x \u{fc}"))
    );
    let shown = site.agent.tell(&["dead-letters", "show", "2"])?;
    assert!(shown.starts_with("dead letter 2 of fragile 1.0.0") && shown.ends_with("\nx \u{fc}\n"), "{shown}");

    for (arguments, status) in [(&["show", "3"][..], 2), (&["replay", "3"], 2), (&["drop", "x"], 2), (&["replay"], 2)] {
        let failed = site.agent.command(&[&["dead-letters"][..], arguments].concat())?;
        assert_eq!(failed.status.code(), Some(status), "{arguments:?}: {failed:?}");
    }
    Ok(())
}

/// The letter is gone when its replay is committed: neither a second replay nor a kill brings the event twice or loses it.
#[tokio::test]
async fn a_dead_letter_is_handled_once_more_and_no_more() -> anyhow::Result<()> {
    let mut site = with_letters(&["x1"]).await?;
    mend(&site)?;
    let both = {
        let agent = &site.agent;
        std::thread::scope(|scope| {
            let replay = || scope.spawn(|| agent.command(&["dead-letters", "replay", "1"]));
            [replay(), replay()].map(|thread| thread.join())
        })
    };
    let mut codes = Vec::new();
    for output in both {
        let output = output.map_err(|_| anyhow::anyhow!("a replay panicked"))??;
        codes.push(output.status.code());
    }
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(2)], "one of them finds it gone");
    assert_eq!(site.device.next().await?.text(), "x1");
    holds(&site, 0).await?;

    // It is done with: nothing is left that a restart would bring back.
    site.agent.stop()?;
    site.agent.resume().await?;
    site.device.publish("sensors/1", "after", 1).await?;
    assert_eq!(site.device.next().await?.text(), "after");
    Ok(())
}

#[tokio::test]
async fn a_replay_survives_a_kill() -> anyhow::Result<()> {
    let mut site = with_letters(&["x1", "x2", "x3"]).await?;
    mend(&site)?;
    assert_eq!(site.agent.tell(&["dead-letters", "replay", "--all"])?, "replayed 3 dead letters\n");
    site.agent.kill()?;
    site.agent.resume().await?;
    let mut heard = std::collections::BTreeSet::new();
    while heard.len() < 3 {
        heard.insert(site.device.next().await?.text());
    }
    holds(&site, 0).await
}

/// What cannot be handled still is a dead letter again; what nobody wants can be dropped.
#[tokio::test]
async fn a_replay_that_fails_is_a_dead_letter_again() -> anyhow::Result<()> {
    let site = with_letters(&["x1", "x2"]).await?;
    site.agent.tell(&["dead-letters", "replay", "1"])?;
    e2e::until("the new letter", async || {
        list(&site).is_ok_and(|all| all.iter().map(|l| &l["id"]).eq([&json!(2), &json!(3)]))
    })
    .await?;
    assert_eq!(site.agent.tell(&["dead-letters", "drop", "2"])?, "dropped 1 dead letter\n");
    assert_eq!(site.agent.tell(&["dead-letters", "drop", "--all", "--function", "other"])?, "dropped 0 dead letters\n");
    assert_eq!(
        site.agent.tell(&["dead-letters", "drop", "--all", "--json"])?.replace([' ', '\n'], ""),
        r#"{"dropped":[3]}"#
    );
    assert_eq!(list(&site)?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_function_that_is_gone_stays() -> anyhow::Result<()> {
    let site = with_letters(&["x1"]).await?;
    site.configure("")?;
    site.agent.tell(&["reload"])?;
    let refused = site.agent.command(&["dead-letters", "replay", "1"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said.contains("`fragile`, which does not run") && said.contains("hint: add function `fragile`"), "{said}");
    assert_eq!(list(&site)?.len(), 1);
    Ok(())
}
