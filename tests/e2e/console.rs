//! The console: what people see of a running agent, what they may do there, and who is kept out.

use std::collections::HashSet;
use std::net::SocketAddr;

use anyhow::Context as _;
use e2e::{Agent, Guest, http};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What somebody says who hopes that it ends up on a page as it is.
pub(crate) const MISCHIEF: &str = "<script>alert(1)</script>";

/// An agent whose console can be asked.
pub(crate) struct Console {
    pub(crate) agent: Agent,
    pub(crate) address: SocketAddr,
}

impl Console {
    /// `api` are further keys of `[api]`. Function `echo` returns its event, and says and rejects what begins with `<`; it is called every hour,
    /// by URL, and by events; an event that it gives up on becomes a dead letter.
    pub(crate) async fn start(api: &str) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
        let mut agent = Agent::prepare(&format!(
            "[api]\nlisten = \"{address}\"\n{api}\n[stream.readings]\nmax_bytes = \"1 MiB\"\n[[function]]\nname = \"echo\"\nbundle = \"echo\"\n\
             [[function.trigger]]\nschedule = {{ every = \"1h\" }}\n[[function.trigger]]\nhttp = {{ path = \"/echo\" }}\n"
        ))?;
        let data = "(call $data (local.get $event)) (call $data_bytes (local.get $event))";
        let reject = format!("(call $say {data}) (return (call $fail (i32.const 1) {data}))");
        Guest::echo().but_on(b'<', &reject).write(&agent.folder().join("echo"), "1.0.0")?;
        std::fs::write(agent.folder().join("api.token"), "for operators\n")?;
        agent.resume().await?;
        Ok(Self { agent, address })
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<http::Reply> {
        http::request(self.address, &format!("GET {path}"), &[], "").await
    }

    /// A form that the console's own page sends.
    async fn send(&self, path: &str, form: &str) -> anyhow::Result<http::Reply> {
        let origin = format!("Origin: http://{}", self.address);
        http::request(self.address, &format!("POST {path}"), &[&origin, FORM], form).await
    }

    /// Has an event with this payload become a dead letter.
    pub(crate) async fn give_up_on(&self, payload: &str) -> anyhow::Result<()> {
        let path = "POST /v1/functions/echo/invocations?type=event";
        anyhow::ensure!(http::request(self.address, path, &[], payload).await?.status == 202);
        self.holds_letters(1).await
    }

    pub(crate) async fn holds_letters(&self, n: u64) -> anyhow::Result<()> {
        let holds = |status: &Value| super::stream(status, "dead-letters")["records"] == n;
        e2e::until("the dead letters", async || self.agent.status().is_ok_and(|status| holds(&status))).await
    }
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

/// The values of this attribute in a page.
fn values<'a>(page: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    page.split(&*start).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[tokio::test]
async fn the_console_shows_what_runs_and_where_its_time_goes() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    let home = console.get("/").await?;
    assert!(home.status == 303 && home.head.contains("location: /console/"), "{}", home.head);
    for payload in ["1", "<no"] {
        http::request(console.address, "POST /v1/functions/echo/invocations", &[], payload).await?;
    }
    let page = console.get("/console/").await?;
    assert_eq!(page.status, 200);
    for shown in ["echo</a>", "1.0.0", "every 1h", "/echo</span>", "healthy", "readings", "> of 1 MiB<", "rejected"] {
        assert!(page.body.contains(shown), "`{shown}` is not in {}", page.body);
    }
    // The instance is idle a moment after its answer, and a rate takes two looks.
    let later = ["0+1</td>", "/s</dd>"];
    let has = |page: &http::Reply| later.iter().all(|shown| page.body.contains(shown));
    e2e::until("a rate", async || console.get("/console/").await.is_ok_and(|page| has(&page))).await?;

    let of_function = console.get("/console/functions/echo").await?;
    for shown in ["<td class=\"n\">1</td>", "succeeded", "rejected", "Invoke echo"] {
        assert!(of_function.body.contains(shown), "`{shown}` is not in {}", of_function.body);
    }
    let runs: Value = serde_json::from_str(&console.get("/v1/functions/echo/invocations").await?.body)?;
    let runs = runs["invocations"].as_array().context("no invocations")?;
    let mut outcomes: Vec<_> = runs.iter().filter_map(|run| run["outcome"].as_str()).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["rejected", "succeeded"]);
    for run in runs {
        let id = run["invocation"].as_str().context("no id")?;
        let trace = console.get(&format!("/console/functions/echo/invocations/{id}")).await?;
        assert_eq!(trace.status, 200);
        assert!(trace.body.contains("class=\"handler\"") && trace.body.contains("class=\"queue\""), "{}", trace.body);
    }
    for nothing in ["/console/functions/gone", "/console/functions/echo/invocations/7", "/console/dead-letters/7"] {
        let reply = console.get(nothing).await?;
        assert!(reply.status == 404 && reply.body.contains("<!doctype html>"), "{nothing}: {}", reply.body);
    }
    Ok(())
}

#[tokio::test]
async fn what_others_said_is_text_on_the_console() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    console.give_up_on(MISCHIEF).await?;
    let event = serde_json::json!({ "specversion": "1.0", "id": MISCHIEF, "source": MISCHIEF, "type": MISCHIEF, "subject": MISCHIEF, "data": 1 });
    let as_event = "Content-Type: application/cloudevents+json";
    let path = "POST /v1/functions/echo/invocations";
    assert_eq!(http::request(console.address, path, &[as_event], &event.to_string()).await?.status, 200);

    let runs: Value = serde_json::from_str(&console.get("/v1/functions/echo/invocations").await?.body)?;
    let ids =
        runs["invocations"].as_array().context("no invocations")?.iter().filter_map(|run| run["invocation"].as_str());
    let mut pages = vec![
        console.get("/console/").await?,
        console.get("/console/functions/echo").await?,
        console.get("/console/dead-letters").await?,
        console.get("/console/dead-letters/1").await?,
        console.get("/console/log").await?,
        console.send("/console/functions/echo/invoke", &format!("payload={MISCHIEF}&subject={MISCHIEF}")).await?,
    ];
    for id in ids {
        pages.push(console.get(&format!("/console/functions/echo/invocations/{id}")).await?);
    }
    let mut nonces = HashSet::new();
    for page in pages {
        assert_eq!(page.status, 200, "{}", page.body);
        assert!(!page.body.contains("<script>"), "{}", page.body);
        assert!(page.body.contains("script&#62;alert(1)"), "{}", page.body);
        // No script but its own, not even one from here.
        let policy = page.head.lines().find_map(|line| line.strip_prefix("content-security-policy: "));
        let policy = policy.context("no policy")?;
        assert!(policy.contains("default-src 'none';") && !policy.contains("script-src 'self'"), "{policy}");
        let own =
            policy.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).context("no nonce")?;
        assert_eq!(page.body.matches(&format!("<script nonce=\"{own}\"")).count(), 2, "{policy}: {}", page.body);
        assert!(nonces.insert(own.to_owned()), "{own} came twice");
        assert!(page.head.contains("x-content-type-options: nosniff") && page.head.contains("cache-control: no-store"));
    }
    let path = format!("/console/log?function=%3Cscript%3E&level={}", "%22%3E%3Cscript%3E");
    assert!(!console.get(&path).await?.body.contains("<script>"));
    Ok(())
}

#[tokio::test]
async fn people_try_a_function_and_deal_with_dead_letters_on_the_console() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    let path = "/console/functions/echo/invoke";
    let answer = console.send(path, "payload=%7B%22a%22%3A+1%7D%0D%0A&subject=").await?;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("{&#34;a&#34;: 1}\n</pre>"), "{}", answer.body);
    let origin = format!("Origin: http://{}", console.address);
    let part =
        http::request(console.address, &format!("POST {path}"), &[&origin, FORM, "HX-Request: true"], "payload=on")
            .await?;
    assert!(part.body.starts_with("<p>") && part.body.contains(">on</pre>"), "{}", part.body);
    assert!(part.body.contains("where the time went"), "what was sent by hand is kept: {}", part.body);
    let large = format!("payload={}", "x".repeat((1 << 20) + 1));
    assert_eq!(console.send(path, &large).await?.status, 413);

    // The function gives up on what is tried again.
    for (n, what, left) in [(1, "drop", 0), (2, "replay", 1)] {
        console.give_up_on("<no").await?;
        let list = console.get("/console/dead-letters").await?;
        let path = format!("/console/dead-letters/{n}/{what}");
        assert!(list.body.contains(&path), "{}", list.body);
        let done = console.send(&path, "").await?;
        assert_eq!(done.status, 303, "{}", done.body);
        let told = done.head.lines().find_map(|line| line.strip_prefix("location: ")).context("no location")?;
        assert!(console.get(told).await?.body.contains(&format!("Dead letter {n} ")));
        assert_eq!(console.send(&path, "").await?.status, 404, "{path}");
        console.holds_letters(left).await?;
    }
    Ok(())
}

#[tokio::test]
async fn only_the_consoles_own_pages_change_anything() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    let path = "POST /console/functions/echo/invoke";
    let own = format!("Origin: http://{}", console.address);
    for headers in [
        &[][..],
        // What a page that a function returned sends: it is sandboxed.
        &["Origin: null"],
        // Another program of this machine.
        &["Origin: http://127.0.0.1:1"],
        &["Origin: https://evil.example"],
        &[&*own, "Sec-Fetch-Site: same-site"],
    ] {
        let reply = http::request(console.address, path, &[&[FORM][..], headers].concat(), "payload=1").await?;
        assert_eq!(reply.status, 403, "{headers:?}: {}", reply.body);
    }
    let page = http::request(console.address, "POST /fn/echo", &[], "1").await?;
    assert!(page.head.contains("content-security-policy: sandbox"), "{}", page.head);
    let status = console.agent.status()?;
    assert_eq!(super::function(&status, "echo")["invocations"]["succeeded"], 1, "only by its URL");
    // Under a name that is not this gateway's there is nothing to see.
    let mut stream = TcpStream::connect(console.address).await?;
    stream.write_all(b"GET /console/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 421") && !answer.contains("echo"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn the_console_only_shows_or_is_not_there_where_the_config_says_so() -> anyhow::Result<()> {
    let console = Console::start("console = \"read-only\"").await?;
    console.give_up_on("<no").await?;
    for path in ["/console/functions/echo", "/console/dead-letters", "/console/dead-letters/1"] {
        let page = console.get(path).await?;
        assert!(page.status == 200 && !page.body.contains("method=\"post\""), "{path}: {}", page.body);
    }
    for path in ["functions/echo/invoke", "dead-letters/1/replay", "dead-letters/1/drop"] {
        let refused = console.send(&format!("/console/{path}"), "payload=1").await?;
        assert!(refused.status == 403 && refused.body.contains("this console only shows"), "{path}: {}", refused.body);
    }
    console.holds_letters(1).await?;

    let console = Console::start("console = \"off\"").await?;
    for path in ["/", "/console/", "/console/log", "/console/assets/console.css"] {
        assert_eq!(console.get(path).await?.status, 404, "{path}");
    }
    assert_eq!(console.get("/healthz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_browser_signs_in_with_the_token_and_its_cookie_opens_nothing_else() -> anyhow::Result<()> {
    let console = Console::start("token_file = \"api.token\"").await?;
    let away = console.get("/console/").await?;
    assert!(away.status == 303 && away.head.contains("location: /console/sign-in"), "{}", away.head);
    let poll = http::request(console.address, "GET /console/", &["HX-Request: true"], "").await?;
    assert!(poll.status == 401 && poll.head.contains("hx-redirect: /console/sign-in"), "{}", poll.head);
    assert!(console.get("/console/sign-in").await?.body.contains("type=\"password\""));
    assert_eq!(console.send("/console/functions/echo/invoke", "payload=1").await?.status, 401);
    let wrong = console.send("/console/sign-in", "token=for+nobody").await?;
    assert!(wrong.status == 401 && wrong.body.contains("not the token"), "{}", wrong.body);
    assert!(!wrong.head.contains("set-cookie"), "{}", wrong.head);

    let right = console.send("/console/sign-in", "token=for+operators").await?;
    assert_eq!(right.status, 303, "{}", right.body);
    let set = right.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).context("no cookie")?;
    for part in ["Path=/console/", "HttpOnly", "SameSite=Strict"] {
        assert!(set.contains(part), "{set}");
    }
    assert!(!set.contains("operators"), "{set}");
    let cookie = format!("Cookie: {}", set.split(';').next().unwrap_or_default());
    let get = async |path: &str| http::request(console.address, &format!("GET {path}"), &[&cookie], "").await;
    assert!(get("/console/").await?.body.contains("Sign out"));
    for path in ["/v1/status", "/metrics", "/fn/echo", "/v1/logs"] {
        assert_eq!(get(path).await?.status, 401, "{path}");
    }
    let token = "Authorization: Bearer for operators";
    assert_eq!(http::request(console.address, "GET /console/", &[token], "").await?.status, 200);
    let out = console.send("/console/sign-out", "").await?;
    assert_eq!(out.status, 401, "without the cookie it is somebody else's");
    let origin = format!("Origin: http://{}", console.address);
    let out = http::request(console.address, "POST /console/sign-out", &[&origin, FORM, &cookie], "").await?;
    assert!(out.status == 303 && out.head.contains("=; Path=/console/; Max-Age=0"), "{}", out.head);
    assert_eq!(get("/console/").await?.status, 303, "who has a copy of the cookie is signed out too");
    Ok(())
}

#[tokio::test]
async fn a_console_page_is_small_and_comes_from_the_gateway_alone() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    let page = console.get("/console/").await?;
    let mut bytes = page.head.len() + page.body.len();
    let links = values(&page.body, "href");
    for loaded in values(&page.body, "src").into_iter().chain(links.iter().copied()) {
        assert!(loaded.starts_with('/') && !loaded.starts_with("//") || loaded.starts_with('#'), "{loaded}");
        if loaded.starts_with("/console/assets/") {
            let asset = console.get(loaded).await?;
            assert!(asset.status == 200 && asset.head.contains("immutable"), "{loaded}: {}", asset.head);
            bytes += asset.head.len() + asset.body.len();
            let tag = asset.head.lines().find_map(|line| line.strip_prefix("etag: ")).context("no ETag")?;
            let known = [&*format!("If-None-Match: {tag}")];
            assert_eq!(http::request(console.address, &format!("GET {loaded}"), &known, "").await?.status, 304);
        }
        if loaded.contains(".css") {
            let style = console.get(loaded).await?.body;
            assert!(!style.contains("url(") && !style.contains("@import"), "it loads something");
        }
    }
    assert!(bytes <= 150 << 10, "{bytes} bytes");
    // Nothing inline: the policy would refuse it.
    assert!(!page.body.contains(" style=") && !page.body.contains(" onclick=") && !page.body.contains("hx-on"));
    Ok(())
}
