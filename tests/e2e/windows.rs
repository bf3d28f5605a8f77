//! Several events that a function gets as one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use e2e::site::guest;
use e2e::{Agent, Device, Guest, Message, Site, http};
use serde_json::{Value, json};

use super::{function, send};

const GUIDE: &str = include_str!("../../docs/guides/windows.md");
const PUBLISHES: &str = "capabilities = [\"mqtt:publish:results/#\"]";

/// The events of a window.
fn items(message: &Message) -> anyhow::Result<Vec<Value>> {
    Ok(serde_json::from_slice(&message.payload)?)
}

/// What the events of a window say at `field`.
fn values(message: &Message, field: &str) -> anyhow::Result<Vec<u64>> {
    Ok(items(message)?.iter().filter_map(|item| item["data"][field].as_u64()).collect())
}

/// The next `n` windows, by their first events: a function may work on several at a time.
async fn take(device: &Device, n: usize) -> anyhow::Result<Vec<Message>> {
    let mut windows = device.take(n).await?;
    windows.sort_by_key(|window| values(window, "n").ok());
    Ok(windows)
}

/// Waits until so many events of `name` wait for their windows.
async fn wait_for(agent: &Agent, name: &str, windowed: u64) -> anyhow::Result<()> {
    let holds = async || agent.status().is_ok_and(|status| function(&status, name)["windowed"] == windowed);
    let waited = e2e::until("the events to wait", holds).await;
    waited.map_err(|error| error.context(format!("{}; {}", agent.status().unwrap_or_default(), agent.log())))
}

async fn publish(device: &Device, topic: &str, numbers: impl Iterator<Item = u64>) -> anyhow::Result<()> {
    for n in numbers {
        device.publish(topic, json!({ "n": n }).to_string(), 1).await?;
    }
    Ok(())
}

/// With the config of the guide: by count, sliding, of what passed a filter, by a field.
#[tokio::test]
async fn several_events_reach_a_function_as_one() -> anyhow::Result<()> {
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    // On a machine that is busy ten seconds may pass between any two events, and a minute is long.
    let config = config.replace("\"10s\"", "\"1h\"").replace("\"1m\"", "\"200ms\"");
    let site = Site::with_guests(&config, &[("functions/hall", Guest::forward("results/hall"))]).await?;

    publish(&site.device, "hall/1/vibration", 0..100).await?;
    publish(&site.device, "hall/2/vibration", 0..49).await?;
    let windows = take(&site.device, 2).await?;
    for (window, first) in windows.iter().zip([0, 50]) {
        assert_eq!(values(window, "n")?, (first..first + 50).collect::<Vec<_>>());
        let items = items(window)?;
        assert!(items.iter().all(|item| item["subject"] == "hall/1/vibration" && item["source"] == "mqtt:local"));
        assert!(items.iter().all(|item| item["type"] == "mqtt.message" && item["time"].is_string()));
    }
    publish(&site.device, "hall/1/current", 0..70).await?;
    for (window, first) in take(&site.device, 3).await?.iter().zip([0, 10, 20]) {
        assert_eq!(values(window, "n")?, (first..first + 50).collect::<Vec<_>>());
    }
    for n in 0..105 {
        let machine = if n % 21 == 20 { "b" } else { "a" };
        site.device.publish("hall/counter", json!({ "n": n, "machine": machine }).to_string(), 1).await?;
    }
    let of_a: Vec<_> = (0..105).filter(|n| n % 21 != 20).collect();
    assert_eq!(values(&site.device.next().await?, "n")?, of_a);
    // Of each topic those that have not filled a window, and the 40 that the next one slides over.
    wait_for(&site.agent, "hall", 49 + 40 + 5).await?;

    for (topic, temperature) in
        [("hall/1/climate", 20), ("hall/2/climate", 30), ("hall/1/climate", 20), ("hall/1/climate", 21)]
    {
        site.device.publish(topic, json!({ "temperature": temperature }).to_string(), 1).await?;
    }
    let mut temperatures = Vec::new();
    while temperatures.len() < 3 {
        temperatures.extend(values(&site.device.next().await?, "temperature")?);
    }
    temperatures.sort_unstable();
    assert_eq!(temperatures, [20, 21, 30], "each that changed, whichever window it fell into");

    let shown = site.agent.tell(&["status"])?;
    assert!(shown.contains("mqtt local hall/+/current in windows of 50 events, every 10 events"), "{shown}");
    assert_eq!(site.agent.metric("tidegate_function_windows_total{function=\"hall\",end=\"count\"}").await?, 6);
    // What waits too.
    let acknowledged = async || site.agent.status().is_ok_and(|status| status["brokers"][0]["in_flight"] == 0);
    e2e::until("all to be acknowledged", acknowledged).await
}

/// SIGKILL again and again in the middle of windows under load: each event that was acknowledged is in a window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_of_an_agent_that_is_killed_lack_nothing() -> anyhow::Result<()> {
    const EVENTS: u64 = 3_000;
    const KILLS: u32 = 4;
    let function = guest("gather", "sensors/+/temp", PUBLISHES);
    let config = function + "window = { count = 30, every = 20, time = \"300ms\" }\n";
    let mut site = Site::with_guests(&config, &[("gather", Guest::forward("results/gather"))]).await?;
    let sensor = Device::connect(site.broker.port()).await?;
    let load = tokio::spawn(async move {
        send(&sensor, "sensors/press-1/temp", 0..EVENTS, 500).await?;
        sensor.delivered(EVENTS).await
    });
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        site.agent.kill()?;
        site.agent.resume().await?;
    }
    load.await??;
    let mut heard = BTreeSet::new();
    while (heard.len() as u64) < EVENTS {
        let window = site.device.next().await.map_err(|error| {
            let lost: Vec<_> = (0..EVENTS).filter(|seq| !heard.contains(seq)).take(20).collect();
            error.context(format!("{} of {EVENTS} came; lost: {lost:?} …", heard.len()))
        })?;
        let seqs = values(&window, "seq")?;
        assert!(!seqs.is_empty() && seqs.len() <= 30, "{seqs:?}");
        heard.extend(seqs);
    }
    wait_for(&site.agent, "gather", 0).await
}

/// A window that was begun before a stop is filled after it, and its events come once and in order.
#[tokio::test]
async fn a_window_goes_on_after_a_restart() -> anyhow::Result<()> {
    let config = guest("gather", "numbers/+", PUBLISHES) + "window = { count = 5 }\n";
    let mut site = Site::with_guests(&config, &[("gather", Guest::forward("results/gather"))]).await?;
    publish(&site.device, "numbers/a", 0..8).await?;
    publish(&site.device, "numbers/b", 0..1).await?;
    assert_eq!(values(&site.device.next().await?, "n")?, [0, 1, 2, 3, 4]);
    wait_for(&site.agent, "gather", 4).await?;
    site.agent.stop()?;
    site.agent.resume().await?;
    site.agent.hears("local").await?;
    wait_for(&site.agent, "gather", 4).await?;
    publish(&site.device, "numbers/a", 8..10).await?;
    assert_eq!(values(&site.device.next().await?, "n")?, [5, 6, 7, 8, 9]);
    site.agent.kill()?;
    site.agent.resume().await?;
    site.agent.hears("local").await?;
    publish(&site.device, "numbers/b", 1..5).await?;
    loop {
        // What was let go of a moment before the kill may come again.
        let values = values(&site.device.next().await?, "n")?;
        if values != [5, 6, 7, 8, 9] {
            assert_eq!(values, [0, 1, 2, 3, 4]);
            return Ok(());
        }
    }
}

/// Another window takes over what waits; without one it is delivered as it is; without the function it waits for that.
#[tokio::test]
async fn a_reload_loses_nothing_of_what_waits() -> anyhow::Result<()> {
    let plain = guest("gather", "numbers", PUBLISHES);
    let with = |window: &str| format!("{plain}window = {{ {window} }}\n");
    let site = Site::with_guests(&with("count = 100"), &[("gather", Guest::forward("results/gather"))]).await?;
    // What is published when this returns is for the triggers of `config`.
    let reload = async |config: &str| -> anyhow::Result<()> {
        site.configure(config)?;
        site.agent.tell(&["reload"])?;
        site.agent.hears("local").await
    };
    publish(&site.device, "numbers", 0..12).await?;
    wait_for(&site.agent, "gather", 12).await?;
    reload(&with("count = 5")).await?;
    let windows = take(&site.device, 2).await?;
    assert_eq!(values(&windows[0], "n")?, [0, 1, 2, 3, 4]);
    assert_eq!(values(&windows[1], "n")?, [5, 6, 7, 8, 9]);
    wait_for(&site.agent, "gather", 2).await?;

    reload(&plain).await?;
    assert_eq!(values(&site.device.next().await?, "n")?, [10, 11]);
    publish(&site.device, "numbers", 12..13).await?;
    assert_eq!(site.device.next().await?.text(), "{\"n\":12}");

    reload(&with("count = 3")).await?;
    publish(&site.device, "numbers", 13..15).await?;
    wait_for(&site.agent, "gather", 2).await?;
    reload("").await?;
    let unclaimed = async || {
        site.agent.status().is_ok_and(|status| status["unclaimed"] == json!([{ "function": "gather", "events": 2 }]))
    };
    e2e::until("the events to wait for their function", unclaimed).await?;
    reload(&with("count = 3")).await?;
    wait_for(&site.agent, "gather", 2).await?;
    publish(&site.device, "numbers", 15..16).await?;
    assert_eq!(values(&site.device.next().await?, "n")?, [13, 14, 15]);
    Ok(())
}

/// Each window of a function has each event, beside the function itself when one of its triggers has none.
#[tokio::test]
async fn an_event_is_in_each_window_that_is_for_it() -> anyhow::Result<()> {
    let trigger = "[[function.trigger]]\nmqtt = { filter = \"numbers\" }\n";
    let config = guest("gather", "numbers", PUBLISHES)
        + &format!("{trigger}window = {{ count = 2 }}\n{trigger}window = {{ count = 3 }}\n");
    let site = Site::with_guests(&config, &[("gather", Guest::forward("results/gather"))]).await?;
    publish(&site.device, "numbers", 0..6).await?;
    let mut sizes: BTreeMap<usize, u64> = BTreeMap::new();
    for message in site.device.take(6 + 3 + 2).await? {
        let size = if message.payload.starts_with(b"[") { items(&message)?.len() } else { 0 };
        *sizes.entry(size).or_default() += 1;
    }
    assert_eq!(sizes, BTreeMap::from([(0, 6), (2, 3), (3, 2)]));
    Ok(())
}

/// Lines of a file, and events over HTTP, whose sender need not wait for the window.
#[tokio::test]
async fn sources_and_posted_events_are_gathered_alike() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    std::fs::write(&log, "")?;
    let function = |name: &str, trigger: &str| {
        format!("[[function]]\nname = \"{name}\"\nbundle = \"{name}\"\n{PUBLISHES}\n[[function.trigger]]\n{trigger}\n")
    };
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let config = [
        format!("[api]\nlisten = \"{address}\"\n[source.log]\ntail = {{ file = {log:?}, from = \"start\" }}\n"),
        function("lines", "tail = { source = \"log\" }\nwindow = { count = 3 }"),
        function("posted", "event = { kind = \"door\" }\nwindow = { count = 2, per = \"house\" }"),
    ];
    let guests = [("lines", Guest::forward("results/lines")), ("posted", Guest::forward("results/posted"))];
    let site = Site::with_guests(&config.concat(), &guests).await?;
    std::fs::OpenOptions::new().append(true).open(&log)?.write_all(b"up\ndown\nup\nagain\n")?;
    let lines: Vec<_> = items(&site.device.next().await?)?.iter().map(|item| item["data"].clone()).collect();
    assert_eq!(lines, ["up", "down", "up"]);

    for (id, house) in ["a", "b", "a"].into_iter().enumerate() {
        let event = json!({
            "specversion": "1.0", "id": id.to_string(), "source": "/test", "type": "door", "house": house, "data": id,
        });
        let headers = ["Content-Type: application/cloudevents+json"];
        let reply = http::request(address, "POST /v1/events?wait=60s", &headers, &event.to_string()).await?;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body.contains("\"settled\":true"), "{reply:?}");
    }
    let posted: Vec<_> = items(&site.device.next().await?)?.iter().map(|item| item["id"].clone()).collect();
    assert_eq!(posted, ["0", "2"]);
    Ok(())
}

/// By the trigger of its own bundle, with no window code in it.
#[tokio::test]
async fn the_example_gets_windows_by_its_own_function_toml() -> anyhow::Result<()> {
    let bundle = e2e::example("vibration");
    let grant = "capabilities = [\"mqtt:publish:shaking/#\"]";
    let site = Site::with(&format!("[[function]]\nname = \"vibration\"\nbundle = {bundle:?}\n{grant}\n")).await?;
    site.device.subscribe("shaking/#", 1).await?;
    for n in 0..100 {
        let g = if n % 2 == 0 { "0.5" } else { "-0.5" };
        site.device.publish("vibration/press-1", format!("{{\"g\":{g}}}"), 1).await?;
    }
    // On a machine that is busy ten seconds may pass meanwhile.
    let mut samples = 0;
    while samples < 100 {
        let shaking: Value = serde_json::from_slice(&site.device.next().await?.payload)?;
        assert_eq!((&shaking["rms"], &shaking["peak"]), (&json!(0.5), &json!(0.5)));
        samples += shaking["samples"].as_u64().unwrap_or(0);
    }
    assert_eq!(samples, 100);
    Ok(())
}
