//! What a function does not see of its triggers' events, and what becomes of that.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::Context as _;
use e2e::site::guest;
use e2e::{Agent, Device, Guest, Site, http};
use serde_json::{Value, json};

use super::function;

const GUIDE: &str = include_str!("../../docs/guides/filters.md");
const PUBLISHES: &str = "capabilities = [\"mqtt:publish:results/#\"]";

fn number(function: &Value, key: &str) -> u64 {
    function[key].as_u64().unwrap_or(0)
}

/// Where the API listens.
fn api() -> anyhow::Result<(String, SocketAddr)> {
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    Ok((format!("[api]\nlisten = \"{address}\"\n"), address))
}

/// Waits until `name` has seen or left out `seen + left_out` events, and so many of each.
async fn has_seen(agent: &Agent, name: &str, seen: u64, left_out: u64) -> anyhow::Result<()> {
    let status = || agent.status().unwrap_or_default();
    let count = || {
        let status = status();
        let function = function(&status, name);
        (number(function, "received"), number(function, "filtered"))
    };
    let came = e2e::until("the events", async || {
        let (received, filtered) = count();
        received + filtered >= seen + left_out
    });
    came.await.with_context(|| format!("{}; {}", function(&status(), name), agent.log()))?;
    assert_eq!(count(), (seen, left_out), "seen and left out: {}", status());
    Ok(())
}

async fn all_are_acknowledged(agent: &Agent) -> anyhow::Result<()> {
    let acknowledged = async || agent.status().is_ok_and(|status| status["brokers"][0]["in_flight"] == 0);
    e2e::until("all to be acknowledged", acknowledged).await
}

/// With the config of the guide.
#[tokio::test]
async fn only_what_matters_reaches_a_function() -> anyhow::Result<()> {
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    // On a machine that is busy a second may pass between any two events.
    let config = config.replace("1/s", "1/h");
    let (api, address) = api()?;
    let hall = ("functions/hall", Guest::forward("results/hall"));
    let site = Site::with_guests(&format!("{api}{config}"), &[hall]).await?;
    let events = [
        ("hall/1/climate", r#"{"temperature":20}"#, true),
        ("hall/1/climate", r#"{"temperature":20.4}"#, false),
        ("hall/2/climate", r#"{"temperature":20.4}"#, true),
        ("hall/1/climate", r#"{"temperature":20.6}"#, true),
        ("hall/1/climate", r#"{"temperature":20.2}"#, false),
        ("hall/1/climate", r#"{"temperature":null}"#, true),
        ("hall/1/door", r#"{"state":"open","battery":81}"#, true),
        ("hall/1/door", r#"{"state":"open","battery":80}"#, false),
        ("hall/1/door", r#"{"state":"shut","battery":80}"#, true),
        ("hall/1/vibration", r#"{"g":1}"#, true),
        ("hall/1/vibration", r#"{"g":2}"#, false),
        ("hall/2/vibration", r#"{"g":3}"#, true),
    ];
    for (topic, payload, _) in events {
        site.device.publish(topic, payload, 1).await?;
    }
    has_seen(&site.agent, "hall", 8, 4).await?;
    let heard: BTreeSet<_> = site.device.take(8).await?.iter().map(|message| message.text()).collect();
    let expected: BTreeSet<_> = events.iter().filter(|event| event.2).map(|event| event.1.to_owned()).collect();
    assert_eq!(heard, expected);

    let status = site.agent.status()?;
    assert_eq!(number(function(&status, "hall"), "unfiltered"), 1, "{status}");
    let shown = site.agent.tell(&["status"])?;
    assert!(shown.contains("mqtt local hall/+/climate (changed /temperature by more than 0.5)"), "{shown}");
    let metrics = http::request(address, "GET /metrics", &[], "").await?.body;
    let line = "tidegate_function_events_filtered_total{function=\"hall\",reason=\"deadband\"} 2";
    assert!(metrics.contains(line), "{metrics}");

    // Those too that nobody has seen.
    all_are_acknowledged(&site.agent).await
}

/// What one function does not see another one does, and a device waits for neither longer than for what was seen.
#[tokio::test]
async fn a_filter_is_for_one_function_and_devices_are_acknowledged_all_the_same() -> anyhow::Result<()> {
    let port = e2e::free_port()?;
    let mut agent = Agent::prepare("")?;
    for (name, topic) in [("some", "results/some"), ("all", "results/all")] {
        Guest::forward(topic).write(&agent.folder().join(name), "1.0.0")?;
    }
    let functions = [
        guest("some", "sensors/#", PUBLISHES) + "only = { changed = \"payload\" }\n",
        guest("all", "sensors/#", PUBLISHES),
    ];
    agent.configure(&format!("[embedded_broker]\nlisten = \"127.0.0.1:{port}\"\n{}", functions.concat()))?;
    agent.resume().await?;
    agent.hears("local").await?;
    let device = Device::connect(port).await?;
    device.subscribe("results/#", 1).await?;
    let before = device.acknowledged();
    for payload in ["on", "on", "on", "off", "off"] {
        device.publish("sensors/door", payload, 1).await?;
    }
    device.delivered(before + 5).await?;
    let mut heard = Vec::new();
    for message in device.take(7).await? {
        heard.push((message.topic.clone(), message.text()));
    }
    let count = |topic: &str, text: &str| heard.iter().filter(|(t, x)| t == topic && x == text).count();
    assert_eq!([count("results/some", "on"), count("results/some", "off")], [1, 1], "{heard:?}");
    assert_eq!([count("results/all", "on"), count("results/all", "off")], [3, 2], "{heard:?}");
    has_seen(&agent, "some", 2, 3).await?;
    has_seen(&agent, "all", 5, 0).await
}

/// A new version, and other functions, change nothing for it; another filter begins anew, and so does another start.
#[tokio::test]
async fn a_reload_keeps_what_an_unchanged_filter_knows() -> anyhow::Result<()> {
    let config = |only: &str| guest("door", "door", PUBLISHES) + &format!("only = {{ {only} }}\n");
    let first = config("changed = \"/state\"");
    let guests = [("door", Guest::forward("results/door")), ("more", Guest::echo())];
    let mut site = Site::with_guests(&first, &guests).await?;
    let publish =
        async |site: &Site, state: u32| site.device.publish("door", format!("{{\"state\":{state}}}"), 1).await;
    publish(&site, 1).await?;
    has_seen(&site.agent, "door", 1, 0).await?;

    Guest::forward("results/new").write(&site.bundle("door"), "1.1.0")?;
    site.configure(&format!("{}{first}", guest("more", "more", "")))?;
    site.agent.tell(&["reload"])?;
    publish(&site, 1).await?;
    publish(&site, 2).await?;
    has_seen(&site.agent, "door", 2, 1).await?;

    site.configure(&config("changed = \"/state\", per = \"source\""))?;
    site.agent.tell(&["reload"])?;
    publish(&site, 2).await?;
    publish(&site, 2).await?;
    has_seen(&site.agent, "door", 3, 2).await?;

    all_are_acknowledged(&site.agent).await?;
    site.agent.stop()?;
    site.agent.resume().await?;
    site.agent.hears("local").await?;
    publish(&site, 2).await?;
    has_seen(&site.agent, "door", 1, 0).await
}

/// The function hangs at the first event, and the second one says the same. When the agent is killed then, neither is lost.
#[tokio::test]
async fn what_is_left_out_is_not_acknowledged_before_what_was_seen() -> anyhow::Result<()> {
    let more = format!("timeout = \"10m\"\n{PUBLISHES}");
    let config = guest("door", "door", &more) + "only = { changed = \"payload\" }\n";
    let hangs = Guest::forward("results/door").but_on(b'o', "(loop $for_ever (br $for_ever))");
    let mut site = Site::with_guests(&config, &[("door", hangs)]).await?;
    site.device.publish("door", "open", 1).await?;
    site.device.publish("door", "open", 1).await?;
    has_seen(&site.agent, "door", 1, 1).await?;
    assert_eq!(site.agent.status()?["brokers"][0]["in_flight"], 2);

    site.agent.kill()?;
    Guest::forward("results/door").write(&site.bundle("door"), "1.1.0")?;
    site.agent.resume().await?;
    assert_eq!(site.device.next().await?.text(), "open");
    has_seen(&site.agent, "door", 1, 1).await
}

/// Lines of a file, and events over HTTP.
#[tokio::test]
async fn sources_and_posted_events_are_filtered_alike() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    std::fs::write(&log, "")?;
    let function = |name: &str, trigger: &str| {
        format!("[[function]]\nname = \"{name}\"\nbundle = \"{name}\"\n{PUBLISHES}\n[[function.trigger]]\n{trigger}\n")
    };
    let (api, address) = api()?;
    let config = [
        api,
        format!("[source.log]\ntail = {{ file = {log:?}, from = \"start\" }}\n"),
        function("lines", "tail = { source = \"log\" }\nonly = { changed = \"payload\" }"),
        function("posted", "event = { kind = \"door\" }\nonly = { changed = \"/state\", per = \"house\" }"),
    ];
    let guests = [("lines", Guest::forward("results/lines")), ("posted", Guest::forward("results/posted"))];
    let site = Site::with_guests(&config.concat(), &guests).await?;
    std::fs::OpenOptions::new().append(true).open(&log)?.write_all(b"up\nup\ndown\nup\nup\n")?;
    has_seen(&site.agent, "lines", 3, 2).await?;

    for (id, (house, state)) in [("a", 1), ("a", 1), ("b", 1), ("a", 2)].into_iter().enumerate() {
        let event = json!({
            "specversion": "1.0", "id": id.to_string(), "source": "/test", "type": "door", "house": house,
            "data": { "state": state },
        });
        let headers = ["Content-Type: application/cloudevents+json"];
        let posted = "POST /v1/events?wait=60s";
        let reply = http::request(address, posted, &headers, &event.to_string()).await?;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body.contains("\"settled\":true"), "{reply:?}");
    }
    has_seen(&site.agent, "posted", 3, 1).await
}
