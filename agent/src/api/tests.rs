//! The API over its real sockets, in front of an agent that a test plays.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::client::{Client, ClientError};
use super::status::{FunctionNumbers, FunctionStatus, Health, Reloaded, Status};
use super::*;
use crate::config::{Console, EventTrigger};
use crate::deployment::{Applied, ApplyError, DeploymentStatus};
use crate::dispatch::{Answer, LetterError, LetterPage, StoredLetter};
use crate::event::Event;
use crate::invocation::{Outcome, Timings};
use crate::metrics::Metrics;
use crate::name::FunctionName;
use crate::receipt::Receipt;
use crate::recording::line::tests::recorded;
use crate::recording::line::{self, Line};
use crate::recording::tap::{Recording, Selection, Tap, TooManyRecordings};
use crate::telemetry::{LogLayer, LogRing};
use crate::trigger::event::{EventTriggers, Route};
use crate::trigger::http::FunctionUrls;
use crate::trigger::{Delivery, Refused, Submit};
use crate::units::{ByteSize, Span};

/// Runs `double` 1.0.0, which does what the payload says.
struct Played {
    metrics: Metrics,
    logs: LogRing,
    reasons: Mutex<Vec<String>>,
    submitted: mpsc::UnboundedSender<(FunctionName, Arc<Event>, Receipt)>,
    letters: Mutex<Vec<StoredLetter>>,
    tap: Tap,
}

impl Submit for Played {
    fn submit(&self, function: &FunctionName, event: Arc<Event>, _: Delivery, receipt: Receipt) -> Result<(), Refused> {
        if event.data == "full" {
            return Err(Refused::Full { events: 10, bytes: 20 });
        }
        self.submitted.send((function.clone(), event, receipt)).map_err(|_| Refused::Stopping)
    }
}

impl AgentHandle for Played {
    fn health(&self) -> Health {
        Health { reasons: self.reasons.lock().unwrap().clone() }
    }

    fn status(&self) -> Status {
        let function = FunctionStatus {
            name: FunctionName::parse("double").unwrap(),
            version: "1.0.0".to_owned(),
            digest: "ab".to_owned(),
            triggers: vec!["every 5m".to_owned()],
            busy: 1,
            idle: 2,
            queued: 3,
            parked: 4,
            numbers: FunctionNumbers::from(&*self.metrics.function(&FunctionName::parse("double").unwrap())),
        };
        Status {
            gateway: GatewayName::parse("press-hall-3").unwrap(),
            version: "0.0.0".to_owned(),
            uptime_ms: 1,
            functions: vec![function],
            unclaimed: vec![],
            brokers: vec![],
            sources: vec![],
            outboxes: vec![],
            streams: vec![],
            models: vec![],
            deployment: None,
        }
    }

    fn deployment(&self) -> Option<DeploymentStatus> {
        None
    }

    fn apply(&self, mut archive: Box<dyn Read + Send>) -> BoxFuture<'_, Result<Applied, ApplyError>> {
        let read = tokio::task::spawn_blocking(move || {
            let mut file = String::new();
            archive.read_to_string(&mut file).map(|_| file)
        });
        Box::pin(async move { Err(ApplyError::Malformed(read.await.unwrap().unwrap())) })
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn logs(&self) -> &LogRing {
        &self.logs
    }

    fn version(&self, function: &FunctionName) -> Option<Arc<str>> {
        (function.as_str() == "double").then(|| "1.0.0".into())
    }

    fn event_triggers(&self) -> Arc<EventTriggers> {
        let double = FunctionName::parse("double").unwrap();
        let trigger = EventTrigger { kind: "com.example.*".into(), source: None };
        Arc::new(EventTriggers::new([Route { trigger, function: double, only: None, window: None }]))
    }

    fn function_urls(&self) -> Arc<FunctionUrls> {
        Arc::default()
    }

    fn invoke<'a>(&'a self, _: &'a FunctionName, event: Arc<Event>) -> BoxFuture<'a, Result<Answer, Refused>> {
        let outcome = match &event.data[..] {
            b"reject" => Outcome::Rejected("no such device".to_owned()),
            b"deny" => {
                Outcome::Denied { capability: "mqtt:publish:a".to_owned(), message: "cannot publish".to_owned() }
            }
            b"loop" => Outcome::TimedOut { after_ms: 3000 },
            b"full" => return Box::pin(async { Err(Refused::Full { events: 10, bytes: 20 }) }),
            data => Outcome::Succeeded([data, data].concat().into()),
        };
        let (invocation, version) = (Arc::clone(&event.id), "1.0.0".into());
        let answer = Answer { invocation, version, outcome, timings: Timings::default(), queued: Duration::ZERO };
        Box::pin(async { Ok(answer) })
    }

    fn record(&self, wanted: Selection) -> Result<Recording, TooManyRecordings> {
        self.tap.listen(wanted)
    }

    fn letters(
        &self,
        function: Option<FunctionName>,
        after: u64,
        count_max: usize,
    ) -> BoxFuture<'_, Result<LetterPage, LetterError>> {
        let wanted = |stored: &&StoredLetter| {
            stored.id > after
                && function.as_ref().is_none_or(|function| stored.letter.function.as_ref() == Some(function))
        };
        let letters: Vec<_> = self.letters.lock().unwrap().iter().filter(wanted).take(count_max).cloned().collect();
        let next = (letters.len() == count_max).then(|| letters.last().unwrap().id);
        Box::pin(async move { Ok(LetterPage { letters, next }) })
    }

    fn letter(&self, id: u64) -> BoxFuture<'_, Result<StoredLetter, LetterError>> {
        let found = self.letters.lock().unwrap().iter().find(|stored| stored.id == id).cloned();
        Box::pin(async move { found.ok_or(LetterError::Unknown(id)) })
    }

    fn replay(&self, id: u64) -> BoxFuture<'_, Result<StoredLetter, LetterError>> {
        Box::pin(async move {
            let stored = self.letter(id).await?;
            let function = stored.letter.function.clone().unwrap();
            if function.as_str() != "double" {
                return Err(LetterError::NoFunction { id, function });
            }
            self.drop_letter(id).await?;
            Ok(stored)
        })
    }

    fn drop_letter(&self, id: u64) -> BoxFuture<'_, Result<(), LetterError>> {
        Box::pin(async move {
            self.letter(id).await?;
            self.letters.lock().unwrap().retain(|stored| stored.id != id);
            Ok(())
        })
    }

    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, String>> {
        Box::pin(async { Err("gateway.toml:3: unknown key `lisen`\n\nhint: did you mean `listen`?".to_owned()) })
    }
}

struct Site {
    folder: tempfile::TempDir,
    api: Api,
    agent: Arc<Played>,
    submitted: mpsc::UnboundedReceiver<(FunctionName, Arc<Event>, Receipt)>,
}

/// One of an event with each kind of payload, one of a publish, one of a function that is gone.
fn letters() -> Vec<StoredLetter> {
    let letter = |id: u64, function: &str, what: Value| {
        let mut letter =
            json!({ "function": function, "outcome": "trapped", "reason": "trapped: unreachable", "attempts": 3 });
        letter.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        StoredLetter { id, time_ms: 7, letter: serde_json::from_value(letter).unwrap() }
    };
    let event = |data: &str| json!({ "event": { "specversion": "1.0", "id": "1", "source": "s", "type": "t", "subject": "a/b", "time_ms": 1, "data_base64": data } });
    let publish = json!({ "publish": { "broker": "local", "topic": "c/d", "qos": 1, "data_base64": "AP8=" } });
    vec![
        letter(3, "double", event("eyJhIjoxfQ==")),
        letter(5, "double", event("eA==")),
        letter(6, "double", publish),
        letter(9, "gone", event("AP8=")),
    ]
}

fn limits() -> Limits {
    Limits { event_bytes_max: ByteSize(1000), ..Limits::default() }
}

fn options(folder: &tempfile::TempDir) -> ApiOptions {
    ApiOptions {
        listen: Some(([127, 0, 0, 1], 0).into()),
        socket: folder.path().join("api.sock"),
        token: None,
        gateway: GatewayName::parse("press-hall-3").unwrap(),
        console: Console::On,
    }
}

async fn site() -> Site {
    site_with(limits()).await
}

async fn site_with(limits: Limits) -> Site {
    let folder = tempfile::tempdir().unwrap();
    let (sender, submitted) = mpsc::unbounded_channel();
    let (metrics, logs) = (Metrics::new(), LogRing::new(&limits));
    let agent = Arc::new(Played {
        metrics,
        logs,
        reasons: Mutex::default(),
        submitted: sender,
        letters: Mutex::new(letters()),
        tap: Tap::new(Arc::new(limits.clone())),
    });
    let handle: Arc<dyn AgentHandle> = Arc::clone(&agent) as _;
    let api = Api::start(options(&folder), handle, Arc::new(limits), Clock::held_at(7)).await.unwrap();
    Site { folder, api, agent, submitted }
}

impl Site {
    async fn client(&self) -> Client {
        Client::connect(&self.folder.path().join("api.sock")).await.unwrap()
    }

    /// Sends bytes over TCP and reads until the agent closes or `patience` is over.
    async fn raw(&self, request: &str, patience: Duration) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.api.address().unwrap()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn error(body: &Bytes) -> ErrorBody {
    serde_json::from_slice(body).unwrap()
}

const EVENT: &str = r#"{"specversion":"1.0","id":"7","source":"/press/1","type":"com.example.started","data":"D"}"#;

#[tokio::test]
async fn a_function_can_be_called_and_says_how_it_went() {
    let site = site().await;
    let mut client = site.client().await;
    let path = "/v1/functions/double/invocations";
    let reply = client.post(path, "text/plain", "21").await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &b"2121"[..]));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(
        (reply.header("tidegate-outcome"), reply.header("tidegate-version")),
        (Some("succeeded"), Some("1.0.0"))
    );
    assert!(reply.header("tidegate-invocation").is_some());

    for (payload, status, outcome, hint) in [
        ("reject", 422, "rejected", "send another"),
        ("deny", 403, "denied", "`\"mqtt:publish:a\"` to `capabilities`"),
        ("loop", 504, "timed-out", "`timeout`"),
    ] {
        let reply = client.post(path, "text/plain", payload).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.header("tidegate-outcome")), (status, Some(outcome)));
        assert!(error(&reply.body).hint.unwrap().contains(hint));
    }
    let full = client.post(path, "text/plain", "full").await.unwrap();
    assert_eq!((full.status.as_u16(), full.header("retry-after")), (503, Some("1")));

    let event = client.post(path, "application/cloudevents+json", EVENT).await.unwrap();
    assert_eq!((event.header("tidegate-invocation"), &event.body[..]), (Some("7"), &b"\"D\"\"D\""[..]));
}

#[tokio::test]
async fn only_the_version_that_runs_can_be_named() {
    let site = site().await;
    let mut client = site.client().await;
    let named = async |client: &mut Client, name: &str| {
        client.post(&format!("/v1/functions/{name}/invocations"), "text/plain", "1").await.unwrap()
    };
    assert_eq!(named(&mut client, "double:1.0.0").await.status, 200);
    for (name, says) in [("double:2.0.0", "version 1.0.0 runs"), ("triple", "tidegate status"), ("DOUBLE", "")] {
        let reply = named(&mut client, name).await;
        assert_eq!(reply.status, 404, "{name}");
        assert!(error(&reply.body).hint.unwrap_or_default().contains(says), "{name}");
    }
}

#[tokio::test]
async fn an_asynchronous_call_is_taken_not_waited_for() {
    let mut site = site().await;
    let mut client = site.client().await;
    let path = "/v1/functions/double/invocations";
    let reply = client.post(&format!("{path}?type=event"), "text/plain", "21").await.unwrap();
    assert_eq!(reply.status, 202);
    let (function, event, _) = site.submitted.recv().await.unwrap();
    assert_eq!((function.as_str(), &event.data[..], &*event.kind), ("double", &b"21"[..], "api.invocation"));
    assert_eq!(serde_json::from_slice::<Value>(&reply.body).unwrap(), json!({"id": &*event.id, "function": "double"}));

    let headers = [("tidegate-invocation-type", "Event"), ("traceparent", "00-a-b-01")];
    let reply = client.call(hyper::Method::POST, path, &headers, Bytes::from_static(b"21")).await.unwrap();
    assert_eq!(reply.status, 202);
    assert_eq!(site.submitted.recv().await.unwrap().1.trace_parent.as_deref(), Some("00-a-b-01"));
    assert_eq!(client.post(&format!("{path}?type=later"), "text/plain", "1").await.unwrap().status, 400);
}

#[tokio::test]
async fn a_posted_event_reaches_the_functions_that_want_it() {
    let mut site = site().await;
    let mut client = site.client().await;
    let reply = client.post("/v1/events", "application/cloudevents+json", EVENT).await.unwrap();
    assert_eq!(reply.status, 202);
    assert_eq!(reply.json::<Value>().unwrap(), json!({"ids": ["7"], "functions": ["double"]}));
    assert_eq!(site.submitted.recv().await.unwrap().1.data, "\"D\"");

    let unwanted = EVENT.replace("com.example", "org.example");
    let reply = client.post("/v1/events", "application/cloudevents+json", unwanted).await.unwrap();
    assert_eq!(reply.status, 404);
    assert!(error(&reply.body).hint.unwrap().contains("functions wait for the kinds `com.example.*`"));
    assert_eq!(client.post("/v1/events", "text/plain", "x").await.unwrap().status, 415);
}

#[tokio::test]
async fn a_caller_can_wait_until_an_event_is_safe() {
    let mut site = site().await;
    let mut client = site.client().await;
    let post = client.post("/v1/events?wait=10s", "application/cloudevents+json", EVENT);
    let (reply, ()) = tokio::join!(post, async { site.submitted.recv().await.unwrap().2.keep() });
    assert_eq!(reply.unwrap().json::<Value>().unwrap()["settled"], true);

    let post = client.post("/v1/events?wait=10s", "application/cloudevents+json", EVENT);
    let (reply, ()) = tokio::join!(post, async { site.submitted.recv().await.unwrap().2.fail("disk full") });
    let reply = reply.unwrap();
    assert_eq!(reply.status, 502);
    assert_eq!(error(&reply.body).error, "not all functions settled it: disk full");

    let reply = client.post("/v1/events?wait=20ms", "application/cloudevents+json", EVENT).await.unwrap();
    assert_eq!(reply.status, 504);
}

#[tokio::test]
async fn a_body_has_a_size_and_a_time() {
    let large = site().await;
    let mut client = large.client().await;
    let reply = client.post("/v1/functions/double/invocations", "text/plain", vec![b'x'; 1001]).await.unwrap();
    assert_eq!(reply.status, 413);

    let site = site_with(Limits { api_request_max: Span::parse("300ms").unwrap(), ..limits() }).await;
    let post = "POST /v1/functions/double/invocations HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nslow";
    let answer = site.raw(post, Duration::from_secs(10)).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not come within 300ms"), "{answer}");
    let silent = site.raw("GET /healthz HT", Duration::from_secs(10)).await;
    assert!(!silent.contains("200 OK"), "{silent}");
}

#[tokio::test]
async fn health_metrics_and_status_are_shown() {
    let site = site().await;
    let mut client = site.client().await;
    assert_eq!(client.get("/healthz").await.unwrap().status, 200);
    site.agent.reasons.lock().unwrap().push("broker `local` is away".to_owned());
    let sick = client.get("/healthz").await.unwrap();
    assert_eq!(sick.status, 503);
    assert_eq!(serde_json::from_slice::<Value>(&sick.body).unwrap()["reasons"], json!(["broker `local` is away"]));

    let metrics = client.get("/metrics").await.unwrap();
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(metrics.body.ends_with(b"# EOF\n"));
    assert_eq!(client.get("/v1/status").await.unwrap().json::<Status>().unwrap(), site.agent.status());

    let reload = client.post("/v1/reload", "application/json", "").await.unwrap();
    assert_eq!(reload.status, 400);
    assert_eq!(error(&reload.body).hint.as_deref(), Some("did you mean `listen`?"));
    assert_eq!(client.get("/v2").await.unwrap().status, 404);
    assert_eq!(client.get("/v1/reload").await.unwrap().status, 405);
}

#[tokio::test]
async fn logs_can_be_followed_by_function_until_the_agent_stops() {
    use tracing::info;
    use tracing_subscriber::layer::SubscriberExt;
    let site = site().await;
    let layer = LogLayer::new(site.agent.logs.clone(), Arc::new(|_| {}), &limits(), Clock::held_at(0));
    let _logs = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    info!(target: "function", function = "double", "before");
    info!(target: "function", function = "other", "not this");
    let mut client = site.client().await;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let (seen, seen_by_client) = mpsc::unbounded_channel();
    let (collected, mut seen_by_client) = (Arc::clone(&lines), seen_by_client);
    let following = tokio::spawn(async move {
        let on_line = |line: &str| {
            collected.lock().unwrap().push(serde_json::from_str::<Value>(line).unwrap()["message"].clone());
            seen.send(()).is_ok()
        };
        client.lines("/v1/logs?follow=true&function=double", on_line).await
    });
    seen_by_client.recv().await.unwrap();
    info!(target: "function", function = "double", "after");
    seen_by_client.recv().await.unwrap();
    site.api.stop().await;
    following.await.unwrap().unwrap();
    assert_eq!(*lines.lock().unwrap(), ["before", "after"]);
}

#[tokio::test]
async fn the_socket_is_for_the_agents_user_and_group() {
    let site = site().await;
    let socket = site.folder.path().join("api.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let handle: Arc<dyn AgentHandle> = Arc::clone(&site.agent) as _;
    let start = || Api::start(options(&site.folder), Arc::clone(&handle), Arc::new(limits()), Clock::held_at(7));
    assert!(start().await.unwrap_err().to_string().contains("an agent listens on"));
    site.api.stop().await;
    assert!(!socket.exists());

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let after_a_crash = start().await.unwrap();
    assert_eq!(Client::connect(&socket).await.unwrap().get("/healthz").await.unwrap().status, 200);
    after_a_crash.stop().await;
    let nobody = Client::connect(&socket).await.unwrap_err();
    assert!(matches!(nobody, ClientError::NoAgent { .. }) && nobody.exit_status() == 3);
    assert!(nobody.to_string().contains("api.sock") && nobody.to_string().contains("`tidegate run`"), "{nobody}");
}

#[tokio::test]
async fn tcp_is_guarded() {
    let site = site().await;
    let get = |host: &str| format!("GET /v1/status HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    assert!(site.raw(&get("localhost"), Duration::from_secs(10)).await.starts_with("HTTP/1.1 200"));
    assert!(site.raw(&get("evil.example"), Duration::from_secs(10)).await.starts_with("HTTP/1.1 421"));

    let open = ApiOptions { listen: Some(([0, 0, 0, 0], 0).into()), ..options(&site.folder) };
    let handle: Arc<dyn AgentHandle> = Arc::clone(&site.agent) as _;
    let refused = Api::start(open, handle, Arc::new(limits()), Clock::held_at(7)).await.unwrap_err();
    assert!(refused.to_string().contains("`api.token_file`"), "{refused}");
}

#[tokio::test]
async fn callers_beyond_the_bound_wait_for_their_turn() {
    let site = site_with(Limits { api_connections_max: 1, ..limits() }).await;
    let socket = site.folder.path().join("api.sock");
    let mut first = Client::connect(&socket).await.unwrap();
    first.get("/healthz").await.unwrap();
    let mut second = Client::connect(&socket).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(200), second.get("/healthz")).await;
    assert!(waited.is_err());
    drop(first);
    let mut third = Client::connect(&socket).await.unwrap();
    drop(second);
    assert_eq!(third.get("/healthz").await.unwrap().status, 200);
    drop(third);
    site.api.stop().await;
}

#[tokio::test]
async fn who_does_not_read_is_not_waited_for() {
    let patience = Span(Duration::from_millis(300));
    let site = site_with(Limits { api_connections_max: 1, api_request_max: patience, ..limits() }).await;
    let mut deaf = tokio::net::TcpStream::connect(site.api.address().unwrap()).await.unwrap();
    // More answers than the system keeps for it.
    let request = "GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(50_000);
    let _ = tokio::time::timeout(Duration::from_secs(30), deaf.write_all(request.as_bytes())).await;
    let answer = site.raw("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", Duration::from_secs(30)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn dead_letters_come_in_pages_and_whole() {
    let site = site().await;
    let mut client = site.client().await;
    let mut seen = Vec::new();
    let mut next = Some(0);
    while let Some(after) = next {
        let path = format!("/v1/dead-letters?limit=2&after={after}");
        let page: dead_letters::Page = client.get(&path).await.unwrap().json().unwrap();
        seen.extend(page.letters.iter().map(|letter| (letter.id, letter.topic.clone().unwrap(), letter.payload_bytes)));
        next = page.next;
    }
    let expected = [(3, "a/b", 7), (5, "a/b", 1), (6, "c/d", 2), (9, "a/b", 2)];
    assert_eq!(seen, expected.map(|(id, topic, bytes)| (id, topic.to_owned(), bytes)));
    let of_one = client.get("/v1/dead-letters?function=gone").await.unwrap().json::<Value>().unwrap();
    assert_eq!((&of_one["letters"][0]["id"], &of_one["next"]), (&json!(9), &Value::Null));

    for (id, kind, name, data) in [
        (3, "event", "data", json!({ "a": 1 })),
        (5, "event", "data_text", json!("x")),
        (6, "publish", "data_base64", json!("AP8=")),
    ] {
        let whole: Value = client.get(&format!("/v1/dead-letters/{id}")).await.unwrap().json().unwrap();
        assert_eq!((&whole["id"], &whole["attempts"], &whole[kind][name]), (&json!(id), &json!(3), &data), "{whole:#}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_replayed_or_dropped_once() {
    let site = site().await;
    let mut client = site.client().await;
    for (method, path) in [(Method::POST, "/v1/dead-letters/3/replay"), (Method::DELETE, "/v1/dead-letters/5")] {
        let first = client.call(method.clone(), path, &[], Bytes::new()).await.unwrap();
        assert_eq!(first.status, 200, "{path}");
        let second = client.call(method, path, &[], Bytes::new()).await.unwrap();
        assert_eq!(second.status, 404, "{path}");
        assert!(error(&second.body).hint.unwrap().contains("`tidegate dead-letters`"));
    }
    let gone = client.post("/v1/dead-letters/9/replay", "", "").await.unwrap();
    assert_eq!(gone.status, 404);
    assert!(error(&gone.body).hint.unwrap().contains("add function `gone` to gateway.toml"));
    assert_eq!(client.get("/v1/dead-letters/x").await.unwrap().status, 404);
    assert_eq!(client.get("/v1/dead-letters?size=1").await.unwrap().status, 400);
    assert_eq!(site.agent.letters.lock().unwrap().len(), 2);
}

/// A deployment file goes piece by piece, over the Unix socket alone.
#[tokio::test]
async fn a_deployment_file_is_taken_on_the_socket_only() {
    let site = site().await;
    let file = site.folder.path().join("deployment.tar");
    let text = "x".repeat(300_000);
    std::fs::write(&file, &text).unwrap();
    let error = site
        .client()
        .await
        .post_file("/v1/apply", tokio::fs::File::open(&file).await.unwrap())
        .await
        .unwrap()
        .success();
    let ClientError::Refused { status, error, hint } = error.unwrap_err() else { panic!() };
    assert_eq!((status.as_u16(), error), (400, format!("this is no deployment file: {text}")));
    assert!(hint.unwrap().contains("tidegate deploy"));

    let request = "POST /v1/apply HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let answer = site.raw(request, Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    site.api.stop().await;
}

#[tokio::test]
async fn what_runs_is_recorded_on_the_socket_only() {
    let site = site().await;
    let (mut client, agent) = (site.client().await, Arc::clone(&site.agent));
    let mut lines = Vec::new();
    let mut on_line = |line: &str| {
        if lines.is_empty() {
            // The first line is empty, and says that it has begun.
            for function in ["other", "double", "double"] {
                agent.tap.tell(&Arc::new(recorded(function)));
            }
        }
        lines.push(line.to_owned());
        lines.len() < 3
    };
    client.lines("/v1/recording?functions=double&triggers=mqtt,schedule", &mut on_line).await.unwrap();
    assert_eq!(lines[0], "");
    for line in &lines[1..] {
        assert_eq!(line::parse(line.as_bytes()).unwrap(), Line::Event(Box::new(recorded("double"))));
    }

    let mut client = site.client().await;
    assert_eq!(client.get("/v1/recording?functions=gone").await.unwrap().status, 404);
    assert_eq!(client.get("/v1/recording?all=1").await.unwrap().status, 400);
    let answer = site.raw("GET /v1/recording HTTP/1.1\r\nHost: localhost\r\n\r\n", Duration::from_millis(500)).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
