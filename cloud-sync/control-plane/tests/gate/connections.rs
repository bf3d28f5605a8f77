//! What strangers can take up.

use std::time::Duration;

use bytes::Bytes;
use control_plane::ServeOptions;
use control_plane::serve::Bounds;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Cloud, line};

fn bounds(change: impl FnOnce(&mut Bounds)) -> ServeOptions {
    let mut options = ServeOptions::default();
    change(&mut options.bounds);
    options
}

fn address(cloud: &Cloud) -> String {
    cloud.url.trim_start_matches("https://").to_owned()
}

async fn is_closed_soon(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn who_does_not_shake_hands_is_let_go() {
    let cloud = Cloud::start_with(bounds(|bounds| bounds.handshake = Duration::from_millis(200))).await;
    let mut silent = TcpStream::connect(address(&cloud)).await.unwrap();
    assert!(is_closed_soon(&mut silent).await);
    let mut plain = TcpStream::connect(address(&cloud)).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures")]
async fn those_over_the_bound_wait_and_are_served_then() {
    let cloud = Cloud::start_with(bounds(|bounds| {
        bounds.connections_max = 3;
        bounds.handshake = Duration::from_secs(1);
    }))
    .await;
    let begun = std::time::Instant::now();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(address(&cloud)).await.unwrap());
    }
    assert_eq!(cloud.caller(None, None).get("/healthz").await.0, StatusCode::OK);
    // Not before one of those in front had to go.
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn one_address_does_not_take_all_places() {
    let cloud = Cloud::start_with(bounds(|bounds| bounds.connections_per_address_max = 2)).await;
    let mut greedy = Vec::new();
    for _ in 0..4 {
        greedy.push(TcpStream::connect(address(&cloud)).await.unwrap());
    }
    // Which two depends on whether the connection that set this control plane up is over.
    let ended: FuturesUnordered<_> = greedy.iter_mut().map(is_closed_soon).collect();
    assert_eq!(ended.take(2).collect::<Vec<_>>().await, [true, true]);
    // Another address of this machine.
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(address(&cloud).replace("localhost", "127.0.0.1").parse().unwrap()).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_millis(300), other.read(&mut byte)).await;
    assert!(read.is_err(), "it waits for a handshake: {read:?}");
    drop(greedy);
    for _ in 0..100 {
        if cloud.caller(None, None).get("/healthz").await.0 == StatusCode::OK {
            return;
        }
    }
    panic!("places that were left are not free again");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures")]
async fn a_body_that_trickles_is_not_waited_for() {
    let cloud = Cloud::start_with(bounds(|bounds| bounds.body = Duration::from_millis(300))).await;
    let trickle = |every_ms: u64| {
        futures_util::stream::unfold(0, move |sent| async move {
            tokio::time::sleep(Duration::from_millis(every_ms)).await;
            (sent < 100).then(|| (Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[b' '; 100]))), sent + 1))
        })
    };
    let send = async |every_ms| {
        let request = cloud.caller(None, None).request(reqwest::Method::POST, "/v1/provision");
        let begun = std::time::Instant::now();
        let answer = request
            .header("content-type", "application/json")
            .body(reqwest::Body::wrap(StreamBody::new(trickle(every_ms))));
        (answer.send().await.map(|answer| answer.status()), begun.elapsed())
    };
    // 100 bytes in 10 ms are 10 KB a second, in 250 ms less than the bound, in 500 ms none in the time before that counts.
    let (answer, took) = send(10).await;
    assert!(answer.unwrap().is_client_error() && took > Duration::from_millis(900), "{took:?}");
    for every_ms in [250, 500] {
        let (_, took) = send(every_ms).await;
        assert!(took < Duration::from_secs(15), "{every_ms}: {took:?}");
    }
}

#[tokio::test]
async fn a_head_or_a_body_that_is_too_large_is_refused() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    let request = gateway.caller.request(reqwest::Method::GET, "/healthz").header("x-long", "x".repeat(64 * 1024));
    let answer = request.send().await;
    assert!(answer.is_err() || answer.unwrap().status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let request = gateway.caller.request(reqwest::Method::POST, "/v1/gateways/hall-3/records");
    let answer = request.body(vec![b' '; 5 << 20]).send().await;
    assert!(answer.is_err() || answer.unwrap().status() == StatusCode::PAYLOAD_TOO_LARGE);
    let (status, _) = gateway.deliver(&" ".repeat(5 << 20)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, _) = gateway.caller.post("/v1/provision", &"x".repeat(3 << 20)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn what_was_begun_is_answered_when_it_stops() {
    let mut cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    let lines: String = (1..=20_000).map(|n| line(n, "{\"celsius\": 20.5}")).collect();
    let caller = gateway.caller.clone();
    let asked = tokio::spawn(async move { caller.deliver("hall-3", &lines).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cloud.stop().await;
    // Either it was begun, and is answered, or the connection was refused.
    if let Ok((status, answer)) = asked.await {
        assert_eq!((status, &answer["acked"]), (StatusCode::OK, &20_000.into()));
    }
    assert!(TcpStream::connect(address(&cloud)).await.is_err());
}
