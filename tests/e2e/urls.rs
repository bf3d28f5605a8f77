//! Functions behind URLs of their own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use e2e::wire::{State, Wire};
use e2e::{Agent, Device, Guest, Mosquitto, http};
use serde_json::{Value, json};

/// The first block of TOML of the guide.
const GUIDE: &str = include_str!("../../docs/guides/function-urls.md");

/// `[[function]]` with `keys`, behind the URL that `trigger` says.
pub(super) fn url(name: &str, keys: &str, trigger: &str) -> String {
    format!(
        "[[function]]\nname = \"{name}\"\nbundle = \"{name}\"\n{keys}\n[[function.trigger]]\nhttp = {{ {trigger} }}\n"
    )
}

/// An agent with these functions and guests, whose API listens on TCP; `api` are further keys of `[api]`.
pub(super) async fn with_urls(
    api: &str,
    functions: &str,
    guests: &[(&str, Guest)],
) -> anyhow::Result<(Agent, SocketAddr)> {
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let mut agent = Agent::prepare(&format!("[api]\nlisten = \"{address}\"\n{api}\n{functions}"))?;
    for (name, guest) in guests {
        guest.write(&agent.folder().join(name), "1.0.0")?;
    }
    for (name, secret) in [("api.token", "for operators\n"), ("hook.token", "for callers\n")] {
        std::fs::write(agent.folder().join(name), secret)?;
    }
    agent.resume().await?;
    Ok((agent, address))
}

/// Returns `value`, whatever it is called with.
fn says(value: &str) -> Guest {
    let body = format!("(call $answer (i32.const 2048) (i32.const {}))", value.len());
    Guest::raw(&body, &value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Takes so long for each request, and returns the body.
fn takes(time: Duration) -> Guest {
    let wait = format!("(call $block (call $after (i64.const {})))", time.as_nanos());
    Guest::raw(
        &format!("{wait}(call $answer (call $data (local.get $event)) (call $data_bytes (local.get $event)))"),
        "",
    )
}

pub(super) async fn get(address: SocketAddr, path: &str, headers: &[&str]) -> anyhow::Result<http::Reply> {
    http::request(address, &format!("GET {path}"), headers, "").await
}

#[tokio::test]
async fn the_guides_function_urls_answer() -> anyhow::Result<()> {
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).context("no config")?;
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let config = config.replace("127.0.0.1:8470", &address.to_string());
    let mut agent = Agent::prepare(&config)?;
    std::fs::write(agent.folder().join("hook.token"), "secret\n")?;
    for name in ["scale", "orders", "hook"] {
        Guest::echo().write(&agent.folder().join(name), "1.0.0")?;
    }
    agent.resume().await?;

    let scale = http::request(address, "POST /fn/scale", &[], "{\"grams\": 2}").await?;
    assert_eq!((scale.status, &*scale.body), (200, "{\"grams\": 2}"), "{}", scale.head);
    let order: Value = serde_json::from_str(&get(address, "/fn/orders/7?full=1", &[]).await?.body)?;
    assert_eq!((&order["rawPath"], &order["pathParameters"]), (&json!("/orders/7"), &json!({ "id": "7" })));
    assert_eq!(http::request(address, "POST /fn/hooks/weather", &[], "{}").await?.status, 401);
    let token = "Authorization: Bearer secret";
    assert_eq!(http::request(address, "POST /fn/hooks/weather", &[token], "{}").await?.status, 200);
    let triggers = super::function(&agent.status()?, "orders")["triggers"].clone();
    assert_eq!(triggers, json!(["http GET,DELETE /orders/{id}"]));
    assert_eq!(agent.metric("tidegate_function_url_responses_total{function=\"hook\",status=\"4xx\"}").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_function_url_answers_with_what_the_function_returned() -> anyhow::Result<()> {
    let functions = [
        url("echo", "", "path = \"/echo\", methods = [\"GET\", \"POST\"]"),
        url("page", "", "path = \"/pages/{name+}\""),
    ];
    let guests = [("echo", Guest::echo()), ("page", says("<p>a page"))];
    let (agent, address) = with_urls("", &functions.concat(), &guests).await?;

    let json = http::request(address, "POST /fn/echo", &[], "[1, 2]").await?;
    assert_eq!((json.status, &*json.body), (200, "[1, 2]"));
    assert!(json.head.contains("content-type: application/json"), "{}", json.head);
    assert!(json.head.contains("tidegate-invocation: "), "{}", json.head);
    let page = get(address, "/fn/pages/a/b", &[]).await?;
    assert_eq!((page.status, &*page.body), (200, "<p>a page"));
    // No browser takes it for a page, nor lets it do what the API's own page could.
    assert!(page.head.contains("content-type: text/plain; charset=utf-8"), "{}", page.head);
    assert!(page.head.contains("content-security-policy: sandbox"), "{}", page.head);
    // The function is asked, and only what it says of its page goes out.
    let head = http::request(address, "HEAD /fn/pages/a/b", &[], "").await?;
    assert_eq!((head.status, &*head.body), (200, ""));
    assert!(head.head.contains("content-length: 9"), "{}", head.head);

    let wrong = http::request(address, "DELETE /fn/echo", &[], "").await?;
    assert_eq!(wrong.status, 405);
    assert!(wrong.head.contains("allow: GET, POST"), "{}", wrong.head);
    for path in ["/fn", "/fn/", "/fn/echo/", "/fn/ech", "/fn/pages"] {
        assert_eq!(get(address, path, &[]).await?.status, 404, "{path}");
    }
    // A reload changes them at once.
    agent.configure(&format!("[api]\nlisten = \"{address}\"\n{}", url("echo", "", "path = \"/loud\"")))?;
    agent.tell(&["reload"])?;
    assert_eq!(get(address, "/fn/echo", &[]).await?.status, 404);
    assert_eq!(http::request(address, "PUT /fn/loud", &[], "1").await?.body, "1");
    Ok(())
}

#[tokio::test]
async fn a_function_url_speaks_the_providers_formats() -> anyhow::Result<()> {
    let functions = [
        url("v1", "", "path = \"/v1/{id}\", event_shape = \"apigw-v1\""),
        url("v2", "", "path = \"/v2/{id}\", event_shape = \"apigw-v2\""),
        url("made", "", "path = \"/made\", event_shape = \"apigw-v2\""),
    ];
    let made = r#"{"statusCode": 201, "headers": {"X-One": "1"}, "cookies": ["a=1", "b=2"], "body": "aGVsbG8=", "isBase64Encoded": true}"#;
    let guests = [("v1", Guest::echo()), ("v2", Guest::echo()), ("made", says(made))];
    let (agent, address) = with_urls("", &functions.concat(), &guests).await?;

    let headers =
        ["Cookie: a=1; b=2", "Accept: text/html", "Accept: text/plain", "Content-Type: application/octet-stream"];
    let reply = http::request(address, "PUT /fn/v2/a%20b?x=1&x=2&y=%26", &headers, "hello").await?;
    let event: Value = serde_json::from_str(&reply.body)?;
    assert_eq!(event["rawPath"], "/v2/a%20b");
    assert_eq!(event["pathParameters"], json!({ "id": "a b" }));
    assert_eq!(event["queryStringParameters"], json!({ "x": "1,2", "y": "&" }));
    assert_eq!(event["cookies"], json!(["a=1", "b=2"]));
    assert_eq!(event["headers"]["accept"], "text/html,text/plain");
    assert_eq!((&event["body"], &event["isBase64Encoded"]), (&json!("aGVsbG8="), &json!(true)));
    assert_eq!(event["requestContext"]["http"]["sourceIp"], "127.0.0.1");
    assert_eq!(event["requestContext"]["http"]["method"], "PUT");

    let reply = get(address, "/fn/made", &[]).await?;
    assert_eq!((reply.status, &*reply.body), (201, "hello"));
    for line in ["x-one: 1", "set-cookie: a=1", "set-cookie: b=2"] {
        assert!(reply.head.contains(line), "{}", reply.head);
    }

    // The event that is returned here is no answer.
    let reply = get(address, "/fn/v1/7", &[]).await?;
    assert_eq!(reply.status, 502);
    assert!(!reply.body.contains("statusCode"), "a stranger is told nothing of the function: {}", reply.body);
    assert!(agent.log().contains("function `v1`: what it returned is no answer to a request: it has no `statusCode`"));
    Ok(())
}

#[tokio::test]
async fn a_function_url_asks_for_its_token_or_the_apis() -> anyhow::Result<()> {
    let functions = [
        url("own", "", "path = \"/own\", event_shape = \"apigw-v2\", token_file = \"hook.token\""),
        url("api", "", "path = \"/api\""),
        url("open", "", "path = \"/open\", event_shape = \"apigw-v2\", auth = \"none\""),
    ];
    let guests = ["own", "api", "open"].map(|name| (name, Guest::echo()));
    let (agent, address) = with_urls("token_file = \"api.token\"", &functions.concat(), &guests).await?;
    let (operator, caller) = ("Authorization: Bearer for operators", "Authorization: bearer for callers");

    for (path, headers, status) in [
        ("/fn/own", &[][..], 401),
        ("/fn/own", &["Authorization: Bearer no"][..], 401),
        ("/fn/own", &[caller][..], 200),
        ("/fn/own", &[operator][..], 200),
        ("/fn/api", &[][..], 401),
        ("/fn/api", &[caller][..], 401),
        ("/fn/api", &[operator][..], 200),
        ("/fn/open", &[][..], 200),
        // Who may call a function may not operate the gateway.
        ("/v1/status", &[caller][..], 401),
        ("/v1/status", &[operator][..], 200),
    ] {
        assert_eq!(get(address, path, headers).await?.status, status, "{path} {headers:?}");
    }
    // What is for the gateway stays there; what is for the function reaches it.
    let seen = get(address, "/fn/own", &[operator]).await?.body;
    assert!(!seen.contains("for operators"), "{seen}");
    let seen = get(address, "/fn/open", &["Authorization: Basic eDp5"]).await?.body;
    assert!(seen.contains("Basic eDp5"), "{seen}");
    drop(agent);

    // Where nobody needs a token for the API either, one that a URL asks for is needed still.
    let (_agent, address) = with_urls("", &functions.concat(), &guests).await?;
    assert_eq!(get(address, "/fn/own", &[]).await?.status, 401);
    assert_eq!(get(address, "/fn/own", &[caller]).await?.status, 200);
    assert_eq!(get(address, "/fn/api", &[]).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_page_of_another_site_calls_only_where_cors_lets_it() -> anyhow::Result<()> {
    let cors = "cors = { allow_origins = [\"https://app.example\"], expose_headers = [\"x-total\"] }";
    let functions = [
        url("open", "", &format!("path = \"/open\", methods = [\"GET\", \"PUT\"], auth = \"none\", {cors}")),
        url("shut", "", "path = \"/shut\", auth = \"none\""),
    ];
    let guests = [("open", Guest::echo()), ("shut", Guest::echo())];
    let (agent, address) = with_urls("", &functions.concat(), &guests).await?;
    let (app, evil) = ("Origin: https://app.example", "Origin: https://evil.example");

    let asks = [app, "Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: content-type"];
    let asked = http::request(address, "OPTIONS /fn/open", &asks, "").await?;
    assert_eq!(asked.status, 204, "{}", asked.head);
    for line in [
        "access-control-allow-origin: https://app.example",
        "access-control-allow-methods: GET, PUT",
        "access-control-allow-headers: authorization, content-type",
        "access-control-max-age: 600",
        "vary: origin",
    ] {
        assert!(asked.head.contains(line), "{line}: {}", asked.head);
    }
    let asked = http::request(address, "OPTIONS /fn/open", &[evil, asks[1]], "").await?;
    assert!(!asked.head.contains("access-control-allow"), "{}", asked.head);

    let answered = http::request(address, "PUT /fn/open", &[app], "1").await?;
    assert_eq!(answered.status, 200);
    assert!(answered.head.contains("access-control-allow-origin: https://app.example"), "{}", answered.head);
    assert!(answered.head.contains("access-control-expose-headers: x-total"), "{}", answered.head);

    let same = format!("Origin: http://{address}");
    for (path, headers, status) in [
        ("/fn/open", &[evil][..], 403),
        ("/fn/shut", &[evil][..], 403),
        ("/fn/shut", &["Origin: null"][..], 403),
        ("/fn/shut", &[&*same][..], 200),
        ("/fn/shut", &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"][..], 403),
        ("/fn/shut", &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"][..], 200),
    ] {
        assert_eq!(get(address, path, headers).await?.status, status, "{path} {headers:?}");
    }
    // The two preflights ran nothing.
    let runs = agent.metric("tidegate_function_invocations_total{function=\"open\",outcome=\"succeeded\"}").await?;
    assert_eq!(runs, 1);
    Ok(())
}

#[tokio::test]
async fn what_fails_behind_a_function_url_is_told_as_a_gateway_does() -> anyhow::Result<()> {
    let functions = [
        url("moody", "timeout = \"2s\"", "path = \"/moody\""),
        url("shaped", "", "path = \"/shaped\", event_shape = \"apigw-v2\""),
    ];
    let moody = Guest::raw("(call $answer (i32.const 2048) (i32.const 2))", "no such order")
        .but_on(b'r', "(return (call $fail (i32.const 1) (i32.const 2048) (i32.const 13)))")
        .but_on(b'a', "(return (call $fail (i32.const 0) (i32.const 2048) (i32.const 13)))")
        .but_on(b'l', "(loop $for_ever (br $for_ever))")
        .but_on(b't', "unreachable");
    let (agent, address) = with_urls("", &functions.concat(), &[("moody", moody), ("shaped", Guest::echo())]).await?;
    for (body, status, told) in [
        ("ok", 200, "no"),
        ("reject", 422, "no such order"),
        ("again", 503, "cannot answer now"),
        ("loop", 504, "did not answer in time"),
        ("trap", 502, "the function failed"),
    ] {
        let reply = http::request(address, "POST /fn/moody", &[], body).await?;
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        assert!(reply.body.contains(told), "{body}: {}", reply.body);
    }
    assert!(agent.log().contains("function `moody` trapped: "), "{}", agent.log());

    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(http::request(address, "POST /fn/moody", &[], &large).await?.status, 413);
    let query = "a&".repeat(1_000);
    assert_eq!(get(address, &format!("/fn/shaped?{query}"), &[]).await?.status, 414);
    assert_ne!(get(address, &format!("/fn/shaped?{}", &query[2..]), &[]).await?.status, 414);
    // It grows by a third, as base64.
    let binary = ["Content-Type: application/octet-stream"];
    assert_eq!(http::request(address, "POST /fn/shaped", &binary, &large[..900_000]).await?.status, 413);
    Ok(())
}

#[tokio::test]
async fn a_flood_on_one_function_url_holds_up_no_other() -> anyhow::Result<()> {
    const CALLS_MAX: usize = 32;
    let functions =
        [url("slow", "concurrency = 1\ntimeout = \"1m\"", "path = \"/slow\""), url("quick", "", "path = \"/quick\"")];
    let guests = [("slow", takes(Duration::from_secs(2))), ("quick", Guest::echo())];
    let (agent, address) = with_urls("", &functions.concat(), &guests).await?;
    let mut callers: tokio::task::JoinSet<_> =
        (0..CALLS_MAX + 8).map(|_| async move { http::request(address, "POST /fn/slow", &[], "1").await }).collect();
    for _ in 0..8 {
        let reply = callers.join_next().await.context("all were answered")???;
        if reply.status == 429 {
            assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
        } else {
            assert_eq!(reply.status, 200, "{}", reply.body);
        }
    }
    let quick = http::request(address, "POST /fn/quick", &[], "2");
    // The others would take more than a minute.
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), quick).await??.body, "2");

    // Nobody waits for the others: they are not run, so that the next who asks need not wait for them.
    callers.shutdown().await;
    let refused = async || http::request(address, "POST /fn/slow", &[], "3").await.map_or(429, |reply| reply.status);
    e2e::until("the function to be free", async || refused().await == 200).await?;
    let gone = "tidegate_function_events_dropped_total{function=\"slow\",reason=\"caller-gone\"}";
    let gone = agent.metric(gone).await?;
    assert!(gone > 0, "all were run");
    Ok(())
}

#[tokio::test]
async fn a_caller_is_answered_while_the_broker_is_away() -> anyhow::Result<()> {
    let mut broker = Mosquitto::start().await?;
    let device = Device::faithful(broker.port(), "device").await?;
    device.subscribe("orders/new", 1).await?;
    let keys = "capabilities = [\"mqtt:publish:orders/#\"]";
    let functions = url("orders", keys, "path = \"/orders\"") + &format!("[mqtt.local]\nurl = \"{}\"\n", broker.url());
    let (agent, address) = with_urls("", &functions, &[("orders", Guest::forward("orders/new"))]).await?;
    broker.stop()?;
    e2e::until("the agent to notice", async || {
        agent.status().is_ok_and(|status| status["brokers"][0]["connected"] == false)
    })
    .await?;
    let reply = http::request(address, "POST /fn/orders", &[], "seven").await?;
    assert_eq!((reply.status, &*reply.body), (200, "seven"));
    broker.resume().await?;
    assert_eq!(device.next().await?.text(), "seven");
    Ok(())
}

/// The broker confirms nothing for a while, so that part of what the first caller's function publishes is not even sent.
#[tokio::test]
async fn what_a_caller_has_published_stands_behind_what_was_before() -> anyhow::Result<()> {
    const BURST: u32 = 600;
    let broker = Mosquitto::start().await?;
    let device = Device::connect(broker.port()).await?;
    device.subscribe("results/#", 1).await?;
    let wire = Wire::to(broker.port()).await?;
    let burst = format!(
        "(loop $next
            (i32.store (i32.const 1500) (local.get $i))
            (drop (call $publish (i32.const 2048) (i32.const 9) (i32.const 1500) (i32.const 4)))
            (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {BURST}))))
         (drop (call $append (i32.const 2057) (i32.const 4) (i32.const 2048) (i32.const 1)))
         (call $answer (i32.const 2048) (i32.const 0))"
    );
    let granted = "capabilities = [\"mqtt:publish:results/#\", \"stream:kept\"]\ntimeout = \"1m\"";
    let functions = [url("burst", granted, "path = \"/burst\""), url("last", granted, "path = \"/last\"")].concat();
    let config = format!("[stream.kept]\n{functions}[mqtt.local]\nurl = \"{}\"\n", wire.url());
    let guests = [("burst", Guest::raw(&burst, "results/akept")), ("last", Guest::forward("results/a"))];
    let (agent, address) = with_urls("", &config, &guests).await?;
    agent.hears("local").await?;
    wire.becomes(State::Dead);
    assert_eq!(http::request(address, "POST /fn/burst", &[], "1").await?.status, 200);
    let last = tokio::spawn(async move { http::request(address, "POST /fn/last", &[], "last").await });
    e2e::until("the last to have run", async || {
        agent.status().is_ok_and(|status| super::function(&status, "last")["invocations"]["succeeded"] == 1)
    })
    .await?;
    wire.becomes(State::Cut);
    let is_away = async || agent.status().is_ok_and(|status| status["brokers"][0]["connected"] == false);
    e2e::until("the agent to notice", is_away).await?;
    wire.becomes(State::Whole);
    let mut heard = Vec::new();
    for message in device.take(BURST as usize + 1).await? {
        heard.push(message.payload.to_vec());
    }
    let expected: Vec<_> = (0..BURST).map(|n| n.to_le_bytes().to_vec()).chain([b"last".to_vec()]).collect();
    assert_eq!(heard, expected);
    assert_eq!(last.await??.status, 200);
    Ok(())
}

#[tokio::test]
async fn two_functions_at_one_url_are_refused() -> anyhow::Result<()> {
    let functions = [
        url("first", "", "path = \"/orders/{id}\", methods = [\"GET\", \"PUT\"]"),
        url("second", "", "path = \"/orders/{order}\", methods = [\"PUT\"]"),
    ];
    let guests = [("first", Guest::echo()), ("second", Guest::echo())];
    let agent = Agent::prepare(&functions.concat())?;
    for (name, guest) in guests {
        guest.write(&agent.folder().join(name), "1.0.0")?;
    }
    let told = std::process::Command::new(e2e::tidegate()?).args(["check", "--config"]).arg(agent.config()).output()?;
    assert_eq!(told.status.code(), Some(2));
    let said = String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout);
    let expected =
        "function[second]: its function URL `PUT /orders/{order}` is one of `first` already: `GET,PUT /orders/{id}`";
    assert!(said.contains(expected), "{said}");

    // A bundle by itself lets nobody in.
    let manifest = agent.folder().join("first/function.toml");
    let said = std::fs::read_to_string(&manifest)? + "[[trigger]]\nhttp = { path = \"/x\", auth = \"none\" }\n";
    std::fs::write(&manifest, said)?;
    agent.configure("[[function]]\nname = \"first\"\nbundle = \"first\"\n")?;
    let told = std::process::Command::new(e2e::tidegate()?).args(["check", "--config"]).arg(agent.config()).output()?;
    let said = String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout);
    assert!(said.contains("trigger[0].http.auth: a bundle cannot let anyone call it"), "{said}");
    Ok(())
}
