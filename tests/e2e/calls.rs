//! Functions that are called: from the command line, over HTTP, by CloudEvents. And what is seen of them.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use e2e::site::{fahrenheit, guest, reading};
use e2e::{Agent, Guest, Site, http};
use serde_json::{Value, json};

use super::field::Port;

const JSON: &str = "Content-Type: application/json";

/// `fahrenheit` behind the API on TCP, without a broker for devices.
async fn with_api(more: &str) -> anyhow::Result<(Site, SocketAddr)> {
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let site = Site::with(&format!("[api]\nlisten = \"{address}\"\n{}{more}", fahrenheit(""))).await?;
    Ok((site, address))
}

#[tokio::test]
async fn invoke_answers_with_what_the_handler_returned() -> anyhow::Result<()> {
    let site = Site::with(&fahrenheit("")).await?;
    let event = site.agent.folder().join("event.json");
    std::fs::write(&event, reading("press-1", 1))?;
    let event = event.display().to_string();
    let told: Value = serde_json::from_str(&site.agent.tell(&["invoke", "fahrenheit", "--event", &event])?)?;
    assert_eq!((&told["seq"], &told["temperature_f"]), (&json!(1), &json!(69.8)));
    assert_eq!(super::seq(&site.device.next().await?.payload)?, 1, "what it publishes is published");

    site.agent.tell(&["invoke", "fahrenheit:1.0.0", "--event", &event])?;
    let other = site.agent.command(&["invoke", "fahrenheit:2.0.0", "--event", &event])?;
    assert_eq!(other.status.code(), Some(2), "{other:?}");
    let unknown = site.agent.command(&["invoke", "celsius", "--event", &event])?;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("`celsius`"), "{unknown:?}");

    std::fs::write(site.agent.folder().join("event.json"), "{}")?;
    let rejected = site.agent.command(&["invoke", "fahrenheit", "--event", &event])?;
    assert_eq!(rejected.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&rejected.stderr).contains("missing field"), "{rejected:?}");
    Ok(())
}

#[tokio::test]
async fn invoke_without_waiting_leaves_the_rest_to_the_agent() -> anyhow::Result<()> {
    let (site, address) = with_api("").await?;
    let event = site.agent.folder().join("event.json");
    std::fs::write(&event, reading("press-1", 2))?;
    site.agent.tell(&["invoke", "fahrenheit", "--async", "--event", &event.display().to_string()])?;
    assert_eq!(super::seq(&site.device.next().await?.payload)?, 2);
    let head = "POST /v1/functions/fahrenheit/invocations?type=event";
    let reply = http::request(address, head, &[JSON], &reading("press-1", 3)).await?;
    assert_eq!(reply.status, 202, "{}", reply.body);
    assert_eq!(super::seq(&site.device.next().await?.payload)?, 3);
    Ok(())
}

#[tokio::test]
async fn a_function_is_called_over_http() -> anyhow::Result<()> {
    let (_site, address) = with_api("").await?;
    let head = "POST /v1/functions/fahrenheit/invocations";
    let reply = http::request(address, head, &[JSON], &reading("press-1", 4)).await?;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.head.to_lowercase().contains("tidegate-outcome: succeeded"), "{}", reply.head);
    assert_eq!(super::seq(reply.body.as_bytes())?, 4);
    let rejected = http::request(address, head, &[JSON], "{}").await?;
    assert_eq!(rejected.status, 422, "{}", rejected.body);
    let unknown = http::request(address, "POST /v1/functions/celsius/invocations", &[JSON], "{}").await?;
    assert_eq!(unknown.status, 404);
    assert!(serde_json::from_str::<Value>(&unknown.body)?["hint"].is_string(), "{}", unknown.body);
    Ok(())
}

#[tokio::test]
async fn cloud_events_reach_the_functions_that_want_them() -> anyhow::Result<()> {
    let press = r#"
[[function]]
name = "press"
bundle = "press"
capabilities = ["mqtt:publish:results/#"]
[[function.trigger]]
event = { kind = "com.example.*", source = "/press/*" }
"#;
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let config = format!("[api]\nlisten = \"{address}\"\n{press}");
    let site = Site::with_guests(&config, &[("press", Guest::forward("results/press"))]).await?;

    let structured = "Content-Type: application/cloudevents+json";
    let event = |id: &str, kind: &str| json!({ "specversion": "1.0", "id": id, "source": "/press/1", "type": kind, "data": { "speed": 3 } });
    let reply =
        http::request(address, "POST /v1/events", &[structured], &event("1", "com.example.started").to_string())
            .await?;
    assert_eq!(
        (reply.status, serde_json::from_str::<Value>(&reply.body)?),
        (202, json!({ "ids": ["1"], "functions": ["press"] }))
    );
    assert_eq!(serde_json::from_str::<Value>(&site.device.next().await?.text())?, json!({ "speed": 3 }));

    let binary = [
        "ce-specversion: 1.0",
        "ce-id: 2",
        "ce-source: /press/2",
        "ce-type: com.example.stopped",
        "Content-Type: text/plain",
    ];
    let reply = http::request(address, "POST /v1/events?wait=10s", &binary, "stopped").await?;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(site.device.next().await?.text(), "stopped");

    let batch = json!([event("3", "com.example.a"), event("4", "com.example.b")]).to_string();
    let reply = http::request(
        address,
        "POST /v1/events?wait=10s",
        &["Content-Type: application/cloudevents-batch+json"],
        &batch,
    )
    .await?;
    assert_eq!(reply.status, 200, "{}", reply.body);
    site.device.take(2).await?;

    let nobody = http::request(address, "POST /v1/events", &[structured], &event("5", "org.other").to_string()).await?;
    assert_eq!(nobody.status, 404, "{}", nobody.body);
    let malformed = http::request(address, "POST /v1/events", &[structured], r#"{"specversion":"1.0"}"#).await?;
    assert_eq!(malformed.status, 400, "{}", malformed.body);
    assert_eq!(site.device.rest(), []);
    Ok(())
}

#[tokio::test]
async fn a_token_keeps_strangers_out_and_the_socket_needs_none() -> anyhow::Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let agent = Agent::prepare(&format!("[api]\nlisten = \"{address}\"\ntoken_file = \"token\"\n"))?;
    std::fs::write(agent.folder().join("token"), "open-sesame\n")?;
    let mut agent = agent;
    agent.resume().await?;
    assert_eq!(http::request(address, "GET /v1/status", &[], "").await?.status, 401);
    assert_eq!(http::request(address, "GET /v1/status", &["Authorization: Bearer guess"], "").await?.status, 401);
    assert_eq!(http::request(address, "GET /v1/status", &["Authorization: Bearer open-sesame"], "").await?.status, 200);
    assert_eq!(http::request(address, "GET /healthz", &[], "").await?.status, 200);
    agent.status()?;
    Ok(())
}

/// `logs -f` goes on with what a function says.
#[tokio::test]
async fn followed_logs_show_what_a_function_says() -> anyhow::Result<()> {
    let says = "(call $say (i32.const 2048) (i32.const 13)) (call $answer (i32.const 2048) (i32.const 0))";
    let config = guest("oven", "oven/#", "");
    let site = Site::with_guests(&config, &[("oven", Guest::raw(says, "oven too hot\\0a"))]).await?;
    let mut follow = Command::new(e2e::tidegate()?)
        .args(["logs", "--follow", "--function", "oven", "--json", "--socket"])
        .arg(site.agent.folder().join("state/tidegate.sock"))
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(follow.stdout.take().ok_or_else(|| anyhow::anyhow!("no stdout"))?);
    let reader = tokio::task::spawn_blocking(move || {
        lines.lines().map_while(Result::ok).find(|line| line.contains("oven too hot"))
    });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    site.device.publish("oven/1", "{}", 1).await?;
    let line = tokio::time::timeout(e2e::PATIENCE, reader).await;
    follow.kill()?;
    follow.wait()?;
    let line: Value = serde_json::from_str(&line??.unwrap_or_default())?;
    assert_eq!((&line["function"], &line["message"]), (&json!("oven"), &json!("oven too hot")));
    Ok(())
}

#[tokio::test]
async fn status_tells_what_runs_and_what_it_did() -> anyhow::Result<()> {
    let site = Site::with(&fahrenheit("")).await?;
    for seq in 0..5 {
        site.device.publish("sensors/press-1/temp", reading("press-1", seq), 1).await?;
        site.device.next().await?;
    }
    let status = site.agent.status()?;
    let function = super::function(&status, "fahrenheit");
    assert_eq!(status["gateway"], "test");
    assert_eq!((&function["version"], &function["received"]), (&json!("1.0.0"), &json!(5)));
    assert_eq!(function["invocations"], json!({ "succeeded": 5 }));
    assert_eq!((&function["idle"], &function["busy"], &function["queued"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!((&status["brokers"][0]["name"], &status["brokers"][0]["received"]), (&json!("local"), &json!(5)));
    let text = site.agent.tell(&["status"])?;
    assert!(text.contains("fahrenheit") && text.contains("local"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_shown_what_a_payload_says_and_does_not_obey_it() -> anyhow::Result<()> {
    const PAYLOAD: &str = "a\u{1b}[2J\u{9b}H\tb";
    let folder = tempfile::tempdir()?;
    let (bundle, event) = (folder.path().join("echo"), folder.path().join("event"));
    Guest::echo().write(&bundle, "1.0.0")?;
    std::fs::write(&event, PAYLOAD)?;
    let invoke = |stdout: Stdio| -> anyhow::Result<Vec<u8>> {
        let mut invoke = Command::new(e2e::tidegate()?);
        invoke.args(["invoke", "--bundle"]).arg(&bundle).arg("--event").arg(&event);
        Ok(invoke.stdin(Stdio::null()).stdout(stdout).output()?.stdout)
    };
    assert_eq!(invoke(Stdio::piped())?, PAYLOAD.as_bytes(), "in a pipe it is as it was");

    let port = Port::new()?;
    let terminal = std::fs::File::options().read(true).write(true).open(port.path())?;
    invoke(terminal.into())?;
    let mut shown = Vec::new();
    let mut read = port.device()?.try_clone()?;
    read.set_read_timeout(e2e::PATIENCE)?;
    while !shown.ends_with(b"\n") {
        let mut chunk = [0; 256];
        let bytes = read.read(&mut chunk)?;
        shown.extend_from_slice(&chunk[..bytes]);
    }
    assert_eq!(String::from_utf8(shown)?.trim_end(), "a\\u{1b}[2J\\u{9b}H\tb");
    Ok(())
}
