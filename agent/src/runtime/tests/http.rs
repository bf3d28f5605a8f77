//! Components that take requests, as `wasi:http` has them.

use serde_json::{Value, json};

use super::guest::{HTTP_ECHO, HTTP_ECHO_TEXTS, http_component};
use super::*;
use crate::config::{TriggerConfig, TriggerKind};
use crate::trigger::http::{Auth, EventShape, HttpTrigger, PathTemplate};

/// Answers with status 200 and what `write` writes to `$stream`.
fn answers(write: &str) -> String {
    format!("(local.set $stream (call $begin (local.get $out) (call $fields) (i32.const 200))) {write}")
}

/// Answers with the texts, of which there are `bytes`.
fn says(bytes: usize) -> String {
    answers(&format!(
        "(call $write_all (local.get $stream) (i32.const 2048) (i32.const {bytes})) (call $end (local.get $stream))"
    ))
}

fn request(method: &str, path: &str, data: &str) -> Event {
    let attributes = [("method", method), ("path", path), ("header.x-one", "1"), ("header.x-one", "2")];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Event { id: new_id(), kind: "http.request".into(), attributes, data: data.to_owned().into(), ..Event::default() }
}

async fn send(site: &Site, component: &[u8], event: Event) -> Invoked {
    let mut instance = site.load(component).await.instantiate().await.unwrap();
    instance.invoke(&Arc::new(event), context()).await
}

/// Sends a request to a component that answers by `body`.
async fn called(site: &Site, body: &str, texts: &str) -> Invoked {
    send(site, &http_component(body, texts), request("GET", "/", "")).await
}

fn http(shape: EventShape) -> TriggerConfig {
    let path = PathTemplate::parse("/a").unwrap();
    let http =
        HttpTrigger { path, methods: vec![], event_shape: shape, auth: Auth::Token, token_file: None, cors: None };
    TriggerConfig { only: None, window: None, kind: TriggerKind::Http(http) }
}

#[tokio::test]
async fn a_component_is_called_with_the_request_and_returns_its_response() {
    let site = Site::new();
    let body = "0123456789".repeat(20_000);
    let event = request("PURGE", "/a%20b/c", &body);
    let invoked = send(&site, &http_component(HTTP_ECHO, HTTP_ECHO_TEXTS), event).await;
    let mut answer: Value = serde_json::from_str(&text(&invoked.outcome)).unwrap();
    assert_eq!(answer["body"].take(), json!(body));
    assert_eq!(
        answer,
        json!({
            "statusCode": 201,
            "multiValueHeaders": { "x-one": ["1", "2"], "x-path": ["/a%20b/c"], "x-method": ["9"] },
            "body": null,
            "isBase64Encoded": false,
        })
    );
}

/// The standard leaves open whether an instance can answer twice, and other hosts call it once.
#[tokio::test]
async fn each_request_has_an_instance_of_its_own() {
    assert!(!called(&Site::new(), &says(2), "ok").await.reusable);
}

#[tokio::test]
async fn a_component_of_an_earlier_0_2_runs() {
    let mut component = http_component(&says(5), "hello");
    for name in ["types", "incoming-handler"] {
        let now = format!("wasi:http/{name}@0.2.12");
        while let Some(at) = component.windows(now.len()).position(|bytes| bytes == now.as_bytes()) {
            component[at + now.len() - 1] = b'0';
        }
    }
    let invoked = send(&Site::new(), &component, request("GET", "/", "")).await;
    assert!(text(&invoked.outcome).contains("hello"));
}

#[tokio::test]
async fn what_it_sends_besides_is_kept_until_it_has_answered() {
    let site = Site::new();
    let publish =
        "(call $emit_publish (i32.const 2048) (i32.const 9) (i32.const 2048) (i32.const 9) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1040))";
    let sent = called(&site, &format!("{publish} {}", says(9)), "results/1").await;
    assert_eq!(&*sent.effects.publishes[0].topic, "results/1");
    let failed = called(&site, &format!("{publish} {} unreachable", says(9)), "results/1").await;
    assert!(matches!(failed.outcome, Outcome::Trapped(_)), "{}", failed.outcome);
    assert!(failed.effects.publishes.is_empty());
    // It gives no answer, for want of a capability.
    let denied = called(&site, publish, "another/1").await;
    assert_eq!(denied.outcome.label(), "denied", "{}", denied.outcome);
}

#[tokio::test]
async fn what_is_no_answer_is_bad_output() {
    let site = Site::with(|_, limits| limits.output_bytes_max = ByteSize(1 << 10));
    let error = "(call $answer (local.get $out) (i32.const 1) (i32.const 36) (i32.const 0) (i64.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))";
    let abandoned = answers("(call $stream_drop (local.get $stream)) (call $body_drop (global.get $body))");
    let early = "(drop (call $begin (local.get $out) (call $fields) (i32.const 100)))";
    for (body, expected) in [
        ("", "it returned without a response: it did not call `response-outparam.set`"),
        (error, "it answered with an error in the place of a response: ErrorCode::LoopDetected"),
        (&abandoned, "it gave up the body of its response: `outgoing-body.finish` was not called"),
        (early, "it answered with status 100, which must be from 200 to 599"),
        (&says(1_025), "the body of its response is more than `output_bytes_max` = 1 KiB"),
    ] {
        let invoked = called(&site, body, "").await;
        let Outcome::BadOutput(why) = &invoked.outcome else { panic!("{}", invoked.outcome) };
        assert!(why.starts_with(expected), "{why}");
    }
    // What is around the body counts too.
    let full = called(&site, &says(1_024), &" ".repeat(1_024)).await.outcome;
    assert!(full.to_string().ends_with(", more than `output_bytes_max` = 1 KiB"), "{full}");
    // What it never lets go of is complete when it has returned, as with other hosts.
    let left =
        called(&site, &answers("(call $write_all (local.get $stream) (i32.const 2048) (i32.const 2))"), "ok").await;
    assert!(text(&left.outcome).contains("\"body\":\"ok\""));
}

#[tokio::test]
async fn a_component_that_does_not_end_its_answer_is_stopped() {
    let site = Site::new();
    let spec = |body: &str| site.spec(&http_component(body, ""), |spec| spec.timeout = Span::parse("50ms").unwrap());
    for body in ["(loop (br 0))", &answers("(loop (br 0))")] {
        let mut instance = site.runtime.load(spec(body)).await.unwrap().instantiate().await.unwrap();
        let invoked = instance.invoke(&Arc::new(request("GET", "/", "")), context()).await;
        assert_eq!(invoked.outcome, Outcome::TimedOut { after_ms: 50 });
    }
}

#[tokio::test]
async fn a_request_that_it_sends_is_denied() {
    // Answers with the number of the error that it got.
    let body = format!(
        "(local.set $i (call $send (i32.const 2048) (i32.const 11)))
         (call $block (call $sent_subscribe (local.get $i)))
         (call $sent_get (local.get $i) (i32.const 1040))
         (if (i32.ne (i32.load8_u (i32.const 1064)) (i32.const 15)) (then unreachable))
         {}",
        says(11)
    );
    let invoked = called(&Site::new(), &body, "example.com").await;
    assert!(text(&invoked.outcome).contains("example.com"));
    // One that gives up on it says why.
    let failed = called(&Site::new(), &body.replace("i32.const 15", "i32.const 14"), "example.com").await;
    let expected = "refused: GET https://example.com/: functions get no outgoing HTTP; send with `emit` instead";
    assert!(failed.outcome.to_string().contains(expected), "{}", failed.outcome);
}

#[tokio::test]
async fn what_it_makes_and_does_not_send_is_bounded() {
    let set = [("method", 9, "a"), ("authority", 1, "a"), ("path", 1, "/")].map(|(part, is, letter)| {
        let try_with = |bytes: u32| {
            format!("(call $outgoing_{part} (local.get $i) (i32.const {is}) (i32.const 16384) (i32.const {bytes}))")
        };
        format!(
            "(memory.fill (i32.const 16384) (i32.const {}) (i32.const 8193))
             (if (i32.eqz {}) (then unreachable)) (if {} (then unreachable))",
            letter.as_bytes()[0],
            try_with(8_193),
            try_with(8_192),
        )
    });
    let make = "(local.set $i (call $outgoing (call $fields)))";
    let invoked = called(&Site::new(), &format!("{make} {} {}", set.concat(), says(2)), "ok").await;
    assert!(text(&invoked.outcome).contains("ok"));

    let many = called(&Site::new(), &format!("(loop {make} (br 0))"), "").await;
    assert!(matches!(many.outcome, Outcome::Trapped(_)), "{}", many.outcome);
}

#[tokio::test]
async fn a_response_in_many_pieces_is_one() {
    let site = Site::with(|_, limits| limits.output_bytes_max = ByteSize(4 << 10));
    let pieces = |count: u32| {
        let piece = "(call $write_all (local.get $stream) (i32.const 2048) (i32.const 1))";
        answers(&format!(
            "(loop {piece} (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if 0 (i32.lt_u (local.get $i) (i32.const {count}))))
             (call $end (local.get $stream))"
        ))
    };
    let invoked = called(&site, &pieces(1_000), "a").await;
    assert!(text(&invoked.outcome).contains(&format!("\"{}\"", "a".repeat(1_000))));
    let Outcome::BadOutput(why) = called(&site, &pieces(4_097), "a").await.outcome else { panic!("no bound") };
    assert_eq!(why, "the body of its response is more than `output_bytes_max` = 4 KiB");
}

#[tokio::test]
async fn an_event_that_is_no_request_is_rejected() {
    let event = Event { kind: "mqtt.message".into(), ..Event::default() };
    let invoked = send(&Site::new(), &http_component(&says(2), "ok"), event).await;
    let Outcome::Rejected(why) = &invoked.outcome else { panic!("{}", invoked.outcome) };
    assert!(why.starts_with("it answers HTTP requests, and this event is a `mqtt.message`; hint: "), "{why}");
}

#[tokio::test]
async fn a_trigger_that_does_not_fit_what_the_component_takes_is_refused() {
    let site = Site::new();
    let load = async |component: &[u8], shape| {
        let spec = site.spec(component, |spec| spec.triggers = vec![http(shape)]);
        site.runtime.load(spec).await.map(|_| ()).map_err(|error| error.to_string())
    };
    let (takes_requests, handles) = (http_component(&says(2), "ok"), guest::component("unreachable", ""));
    assert_eq!(load(&takes_requests, EventShape::WasiHttp).await, Ok(()));
    assert_eq!(load(&handles, EventShape::Native).await, Ok(()));
    assert_eq!(
        load(&takes_requests, EventShape::Native).await.unwrap_err(),
        "function `guest` exports `wasi:http/incoming-handler` and takes requests only, which its trigger `http ANY /a` does not make of \
         what it hears; hint: write `http = { path = \"/guest\", event_shape = \"wasi-http\" }`"
    );
    assert_eq!(
        load(&handles, EventShape::WasiHttp).await.unwrap_err(),
        "function `guest` exports no `wasi:http/incoming-handler@0.2`, which its trigger `http ANY /a` with `event_shape = \"wasi-http\"` \
         calls; hint: take the `event_shape` out of the trigger, or put the component of a `wasi:http` 0.2 proxy into the bundle"
    );
}
