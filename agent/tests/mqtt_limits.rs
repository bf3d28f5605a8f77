//! What a broker cannot do, or does not do: limits that it names or that we know of, a broker that stalls, many topics.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::time::Duration;

use support::link::CutLink;
use support::mosquitto::Mosquitto;
use support::strict::{StrictBroker, Strictness};
use support::{Peer, a_while, config, eventually, message};
use tidegate::broker::Link;
use tidegate::config::MqttConfig;
use tidegate::invocation::Publish;
use tidegate::units::{ByteSize, Span};

/// What gateway.toml has to say of a broker of 3.1.1; MQTT 5 says it itself.
fn limited(url: &str, version: u8) -> MqttConfig {
    match version {
        5 => config(url, version),
        _ => {
            let max_packet = Some(ByteSize(128 << 10));
            MqttConfig { max_qos: 1, max_packet, max_in_flight: Some(100), ..config(url, version) }
        }
    }
}

/// A cloud's broker ends the connection upon what it does not take: we never give it cause, and say what cannot be sent.
#[tokio::test]
async fn a_brokers_limits_are_kept() {
    for version in [5, 3] {
        let broker = StrictBroker::start(Strictness::default()).await;
        let peer = Peer::connect("peer", &limited(&broker.url(), version));
        let heard = peer.hear(&[("in/#", 2), ("plain", 2)], true).await;
        let large = peer.publish("out", 1, vec![b'x'; 128 << 10]).await;
        let mut published = Vec::new();
        for i in 0..300 {
            published.push(peer.publish("out", 2, i.to_string()).await);
        }
        for one in published {
            one.settled().await.unwrap();
        }
        let why = large.settled().await.unwrap_err();
        assert!(why.is_for_good(), "{why}");
        broker.publish("in/1", "1", 1);
        assert_eq!(heard.payloads(1).await, ["1"]);
        assert!(broker.taken().iter().all(|taken| taken.qos == 1));
        assert_eq!(broker.taken_count(), 300);
        assert_eq!(broker.violations(), Vec::<String>::new());
        assert_eq!(peer.broker.status().reconnects, 0);
    }
}

/// What was under way at QoS 2 when the broker lost that ability goes on at QoS 1.
#[tokio::test]
async fn a_publish_of_qos_2_goes_on_at_qos_1() {
    let broker = StrictBroker::start(Strictness::default()).await;
    let peer = Peer::connect("peer", &limited(&broker.url(), 5));
    broker.cut_at(1, false);
    peer.publish("out", 2, "1").await.settled().await.unwrap();
    let taken = broker.taken();
    assert!(taken.len() >= 2 && taken.iter().all(|taken| taken.qos == 1), "{taken:?}");
    assert_eq!(broker.violations(), Vec::<String>::new());
}

/// A broker that pings by its own clock, and drops sessions early, gets what it wants.
#[tokio::test]
async fn the_brokers_keep_alive_counts() {
    let broker = StrictBroker::start(Strictness { keep_alive_secs: Some(1), ..Strictness::default() }).await;
    let peer = Peer::connect("peer", &limited(&broker.url(), 5));
    peer.reaches(Link::Up).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(broker.violations(), Vec::<String>::new());
    assert_eq!(peer.broker.status().reconnects, 0);
}

/// A broker that takes what is sent and answers nothing is given up after its keep-alive, and found again.
#[tokio::test]
async fn a_broker_that_stalls_is_left_and_found_again() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let link = CutLink::to(broker.port()).await;
    let keep_alive = Span::from_secs(1);
    let peer = Peer::connect("peer", &MqttConfig { keep_alive, ..config(&link.url(), 5) });
    peer.reaches(Link::Up).await;
    link.stall();
    let published = peer.publish("a", 1, "1").await;
    eventually("it is noticed", || peer.broker.status().last_error.is_some_and(|e| e.contains("PINGREQ"))).await;
    link.flow();
    published.settled().await.unwrap();
}

/// Ten thousand filters, and a message on each.
#[tokio::test]
async fn ten_thousand_topics_are_heard() {
    const TOPICS: usize = 10_000;
    let broker = Mosquitto::with("allow_anonymous true\nmax_queued_messages 0\n").await.unwrap();
    for version in [5, 3] {
        let gateway = Peer::connect("gateway", &config(&broker.url(), version));
        let topics: Vec<String> = (0..TOPICS).map(|i| format!("site/{i}/temp")).collect();
        let filters: Vec<_> = topics.iter().map(|topic| (topic.as_str(), 1)).collect();
        let heard = gateway.hear(&filters, true).await;
        let device = Peer::connect("device", &config(&broker.url(), version));
        for topic in &topics {
            drop(device.publish(topic, 1, topic.clone()).await);
        }
        let mut payloads = heard.payloads(TOPICS).await;
        payloads.sort();
        payloads.dedup();
        assert_eq!(payloads.len(), TOPICS);
        gateway.broker.disconnect(support::PATIENCE).await;
    }
}

/// Filters that overlap without covering each other: mosquitto sends a message for each of them over MQTT 5.
#[tokio::test]
async fn a_message_that_overlapping_filters_match_is_heard_once() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let peer = Peer::connect("peer", &config(&link.url(), version));
        let heard = peer.hear(&[("a/#", 2), ("+/b", 2), ("+/+", 1)], true).await;
        let device = Peer::connect("device", &config(&broker.url(), version));
        for qos in [0, 1, 2] {
            device.publish("a/b", qos, qos.to_string()).await.settled().await.unwrap();
            device.publish("x/b", qos, format!("x{qos}")).await.settled().await.unwrap();
        }
        let mut payloads = heard.payloads(6).await;
        a_while().await;
        payloads.sort();
        assert_eq!(payloads, ["0", "1", "2", "x0", "x1", "x2"]);
        assert_eq!(heard.count(), 6);
        eventually("all copies are acknowledged", || peer.broker.status().in_flight == 0).await;

        // What waits in the session while the link is down comes in as many copies.
        link.down();
        peer.reaches(Link::Down).await;
        device.publish("a/b", 1, "waited").await.settled().await.unwrap();
        link.up();
        heard.payloads(7).await;
        a_while().await;
        assert_eq!(heard.count(), 7);
        peer.broker.disconnect(support::PATIENCE).await;
    }
}

/// A filter that comes later is told what the broker retains, though another one has heard it; filters that come together hear
/// it once.
#[tokio::test]
async fn a_new_filter_hears_what_is_retained_though_an_older_one_has() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let device = Peer::connect("device", &config(&broker.url(), 5));
    let retained = Publish { retain: true, ..message("a/b", 1, "kept") };
    device.broker.publish(retained, tidegate::receipt::Receipt::new(|_| ())).await;
    eventually("it is retained", || device.broker.status().published == 1).await;
    let peer = Peer::connect("peer", &config(&broker.url(), 5));
    let heard = peer.hear(&[("a/#", 1), ("+/b", 1)], true).await;
    heard.payloads(1).await;
    a_while().await;
    assert_eq!(heard.count(), 1);
    let later = peer.hear(&[("a/#", 1), ("+/b", 1), ("+/+", 1)], true).await;
    later.payloads(1).await;
    device.publish("a/b", 1, "new").await.settled().await.unwrap();
    later.payloads(2).await;
    a_while().await;
    assert_eq!((heard.count(), later.count()), (1, 2));
}

/// Over 3.1.1 the hops of what we published come back from our own memory.
#[tokio::test]
async fn hops_come_back_over_mqtt_3() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let peer = Peer::connect("peer", &config(&broker.url(), 3));
    let heard = peer.hear(&[("a", 1)], true).await;
    let hops = ("tidegate-hops".into(), "3".to_owned());
    let publish = Publish { properties: vec![hops], ..message("a", 1, "1") };
    peer.broker.publish(publish, tidegate::receipt::Receipt::new(|_| ())).await;
    heard.payloads(1).await;
    assert_eq!(heard.messages()[0].properties, [("tidegate-hops".to_owned(), "3".to_owned())]);
    peer.publish("a", 1, "2").await.settled().await.unwrap();
    heard.payloads(2).await;
    assert!(heard.messages()[1].properties.is_empty());
}
