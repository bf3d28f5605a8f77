//! Components of `wasi:http` behind function URLs, as other hosts run them.

use anyhow::Context as _;
use e2e::{Agent, Guest, http};
use serde_json::json;

use super::urls::{get, url, with_urls};

const GUIDE: &str = include_str!("../../docs/guides/function-urls.md");
const SHAPE: &str = "event_shape = \"wasi-http\"";

/// Answers with `text` as a page.
fn says(text: &str) -> Guest {
    let bytes = text.len();
    let body = format!(
        "(local.set $i (call $fields))
         (call $fields_append (local.get $i) (i32.const 2048) (i32.const 12) (i32.const 2060) (i32.const 24) (i32.const 1024))
         (local.set $stream (call $begin (local.get $out) (local.get $i) (i32.const 200)))
         (call $write_all (local.get $stream) (i32.const 2084) (i32.const {bytes}))
         (call $end (local.get $stream))"
    );
    Guest::takes_requests(&body, &format!("content-typetext/html; charset=utf-8{text}"))
}

#[tokio::test]
async fn the_guides_component_of_wasi_http_answers() -> anyhow::Result<()> {
    let section = GUIDE.split("\n## Components of `wasi:http`\n").nth(1).context("no section")?;
    let block = |kind: &str, nth: usize| {
        section.split(&format!("```{kind}\n")).nth(nth).and_then(|rest| rest.split("```").next()).context("no block")
    };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let mut agent = Agent::prepare(&block("toml", 2)?.replace("127.0.0.1:8470", &address.to_string()))?;
    let bundle = agent.folder().join("hello");
    std::fs::create_dir_all(bundle.join("events"))?;
    for (file, content) in [
        ("function.toml", format!("{}{}", block("toml", 1)?, block("toml", 3)?).as_bytes()),
        ("hello.wasm", &says("<p>hello").component()),
        ("events/you.json", block("json", 1)?.as_bytes()),
        ("events/you.result.json", block("json", 2)?.as_bytes()),
    ] {
        std::fs::write(bundle.join(file), content)?;
    }
    let built = std::process::Command::new(e2e::tidegate()?).arg("build").arg(&bundle).output()?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    agent.resume().await?;
    let reply = get(address, "/fn/hello/you", &[]).await?;
    assert_eq!((reply.status, &*reply.body), (200, "<p>hello"));
    assert!(reply.head.contains("content-type: text/html; charset=utf-8"), "{}", reply.head);
    // Its pages are as strange to the console as those of any function.
    assert!(reply.head.contains("content-security-policy: sandbox"), "{}", reply.head);
    assert_eq!(
        super::function(&agent.status()?, "hello")["triggers"],
        json!(["http ANY /hello", "http ANY /hello/{rest+}"])
    );
    Ok(())
}

#[tokio::test]
async fn a_component_of_wasi_http_is_called_with_the_request_itself() -> anyhow::Result<()> {
    let cors = "cors = { allow_origins = [\"https://app.example\"] }";
    let trigger = format!("path = \"/echo/{{rest+}}\", {SHAPE}, {cors}, token_file = \"hook.token\"");
    let (agent, address) = with_urls(
        "",
        &url("echo", "concurrency = 4\ntimeout = \"60s\"", &trigger),
        &[("echo", Guest::echoes_requests())],
    )
    .await?;

    let headers = ["Authorization: Bearer for callers", "Origin: https://app.example", "X-One: 1", "X-One: 2"];
    let reply = http::request(address, "PATCH /fn/echo/a%20b?x=1&x=%26", &headers, "hello").await?;
    assert_eq!((reply.status, &*reply.body), (201, "hello"), "{}", reply.head);
    for line in [
        "x-path: /echo/a%20b?x=1&x=%26",
        "x-method: 8",
        "x-one: 1",
        "x-one: 2",
        "access-control-allow-origin: https://app.example",
    ] {
        assert!(reply.head.contains(line), "{line}: {}", reply.head);
    }
    // What was for the gateway stays there; what is between neighbours too.
    for line in ["for callers", "host:"] {
        assert!(!reply.head.contains(line), "{line}: {}", reply.head);
    }
    assert_eq!(get(address, "/fn/echo/a", &[]).await?.status, 401);

    // Each of many has its own answer, to the last byte.
    let calls = (0..12).map(|n| async move {
        let body = n.to_string().repeat(900_000 / (1 + n / 10));
        let reply =
            http::request(address, "POST /fn/echo/large", &["Authorization: Bearer for callers"], &body).await?;
        anyhow::ensure!((reply.status, &reply.body) == (201, &body), "{n}: {}", reply.head);
        Ok(())
    });
    calls.collect::<tokio::task::JoinSet<_>>().join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
    let runs = "tidegate_function_invocations_total{function=\"echo\",outcome=\"succeeded\"}";
    assert_eq!(agent.metric(runs).await?, 13);
    Ok(())
}

#[tokio::test]
async fn a_component_of_wasi_http_that_fails_costs_its_caller_only() -> anyhow::Result<()> {
    let sends = "(drop (call $send (i32.const 2048) (i32.const 11)))";
    let cases = [
        ("traps", "", "unreachable", 502, "trapped: it reached unreachable code"),
        ("loops", "timeout = \"200ms\"", "(loop (br 0))", 504, "was stopped at its timeout of 200 ms"),
        ("silent", "", "", 502, "gave bad output: it returned without a response"),
        ("sends", "", sends, 502, "refused: GET https://example.com/: functions get no outgoing HTTP"),
    ];
    let trigger = |name: &str| format!("path = \"/{name}\", {SHAPE}");
    let functions: String = cases.iter().map(|(name, keys, ..)| url(name, keys, &trigger(name))).collect();
    let guests: Vec<_> =
        cases.iter().map(|(name, _, body, ..)| (*name, Guest::takes_requests(body, "example.com"))).collect();
    let (agent, address) = with_urls("", &functions, &guests).await?;
    for (name, _, _, status, why) in cases {
        let reply = get(address, &format!("/fn/{name}"), &[]).await?;
        assert_eq!(reply.status, status, "{name}: {}", reply.body);
        assert!(!reply.body.contains("wasi"), "a stranger is told nothing of the function: {}", reply.body);
        assert!(agent.log().contains(why), "{name}: {}", agent.log());
    }
    Ok(())
}
