//! What is published arrives, or its source hears why not, whatever happens to the link and the broker.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::link::{CONNECT, Cut, CutLink, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL};
use support::mosquitto::Mosquitto;
use support::{PATIENCE, Peer, Published, a_while, config, eventually, message};
use tidegate::broker::{Broker, Incoming, Link, OnMessage};
use tidegate::limits::Limits;
use tidegate::receipt::{NotKept, Receipt};

/// Queued is not delivered: the receipt waits for the PUBACK, over a reconnect if need be.
#[tokio::test]
async fn a_publish_is_done_only_when_the_broker_has_confirmed_it() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let listener = Peer::connect("listener", &config(&broker.url(), version));
        let heard = listener.hear(&[("a", 1)], true).await;
        let peer = Peer::connect("peer", &config(&link.url(), version));
        peer.reaches(Link::Up).await;

        link.cut(Cut::Before(PUBACK));
        let mut published = peer.publish("a", 1, "1").await;
        eventually("the PUBACK is lost", || !link.is_armed()).await;
        assert!(published.is_open());
        assert_eq!(published.settled().await, Ok(()));
        // The broker had it already, so the one that was sent again is a repeat: at least once.
        assert_eq!(heard.payloads(2).await, ["1", "1"]);
        assert_eq!(peer.broker.status().unconfirmed, 0);
        assert_eq!(peer.broker.status().reconnects, 1);
    }
}

/// A broker that has forgotten the session gets everything that it has not confirmed, and what was published meanwhile;
/// rumqttc's own loop drops it all.
#[tokio::test]
async fn nothing_is_lost_when_the_broker_forgets_the_session() {
    for (version, qos) in [(5, 1), (5, 2), (3, 1), (3, 2)] {
        let mut broker = Mosquitto::forgetful().await.unwrap();
        let link = CutLink::to(broker.port()).await;
        let peer = Peer::connect("peer", &config(&link.url(), version));
        peer.reaches(Link::Up).await;
        let mut published: Vec<Published> = Vec::new();
        link.cut(Cut::Before(PUBLISH));
        for i in 0..200 {
            published.push(peer.publish("a", qos, i.to_string()).await);
            if i == 100 {
                eventually("the link was cut", || !link.is_armed()).await;
                link.down();
            }
        }
        assert_eq!(peer.broker.status().unconfirmed, 200);
        broker.stop().unwrap();
        broker.resume().await.unwrap();
        let listener = Peer::connect("listener", &config(&broker.url(), version));
        let heard = listener.hear(&[("a", 2)], true).await;
        link.up();
        for one in published {
            assert_eq!(one.settled().await, Ok(()));
        }
        // In the order in which they were published.
        assert_eq!(heard.payloads(200).await, (0..200).map(|i| i.to_string()).collect::<Vec<_>>());
    }
}

/// Wherever a QoS 2 handshake is cut, the message arrives exactly once.
#[tokio::test]
async fn qos_2_survives_a_cut_at_each_of_its_packets() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let listener = Peer::connect("listener", &config(&broker.url(), version));
        let heard = listener.hear(&[("a", 2)], true).await;
        let mut sent = Vec::new();
        for kind in [PUBLISH, PUBREC, PUBREL, PUBCOMP] {
            for (n, cut) in [Cut::Before(kind), Cut::After(kind)].into_iter().enumerate() {
                // A peer for each: one whose connections keep failing waits longer and longer.
                let link = CutLink::to(broker.port()).await;
                let peer = Peer::connect(&format!("peer-{kind}-{n}"), &config(&link.url(), version));
                peer.reaches(Link::Up).await;
                link.cut(cut);
                let payload = format!("{cut:?}");
                assert_eq!(peer.publish("a", 2, payload.clone()).await.settled().await, Ok(()), "{cut:?}");
                eventually("the link was cut", || !link.is_armed()).await;
                sent.push(payload);
            }
        }
        assert_eq!(heard.payloads(sent.len()).await, sent);
        a_while().await;
        assert_eq!(heard.count(), sent.len());
    }
}

/// After a restart packet ids begin anew, while the broker may still hold the first half of a handshake under one of them.
#[tokio::test]
async fn a_new_process_does_not_lose_a_qos_2_message_to_what_the_old_one_left() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let listener = Peer::connect("listener", &config(&broker.url(), version));
        let heard = listener.hear(&[("a", 2)], true).await;

        let old = Peer::connect("peer", &config(&link.url(), version));
        old.reaches(Link::Up).await;
        link.cut(Cut::Before(PUBREL));
        drop(old.publish("a", 2, "old").await);
        eventually("the handshake is cut", || !link.is_armed()).await;
        link.down();
        old.crash().await;
        link.up();

        let new = Peer::connect("peer", &config(&link.url(), version));
        assert_eq!(new.publish("a", 2, "new").await.settled().await, Ok(()));
        let payloads = heard.payloads(1).await;
        eventually("the new one arrives", || heard.messages().iter().any(|m| &m.payload[..] == b"new")).await;
        assert!(payloads.len() <= 2, "{payloads:?}");
    }
}

/// A broker of MQTT 5 that refuses a publish says so in its PUBACK or PUBREC.
#[tokio::test]
async fn a_refused_publish_fails_with_the_brokers_reason() {
    let broker = Mosquitto::with_acl("topic readwrite open/#\n").await.unwrap();
    let peer = Peer::connect("peer", &config(&broker.url(), 5));
    for qos in [1, 2] {
        let refused = peer.publish("closed/a", qos, "1").await.settled().await.unwrap_err();
        assert!(matches!(refused, NotKept::NotAllowed(_)), "{refused:?}");
        let refused = refused.to_string();
        assert!(refused.contains("NotAuthorized"), "{refused}");
        assert_eq!(peer.publish("open/a", qos, "1").await.settled().await, Ok(()));
    }
    assert_eq!(peer.broker.status().reconnects, 0);
}

/// Events of a megabyte go both ways; rumqttc's own limit is 10 KiB.
#[tokio::test]
async fn large_messages_go_both_ways() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let peer = Peer::connect("peer", &config(&broker.url(), version));
        let heard = peer.hear(&[("a", 1)], true).await;
        let large = vec![b'x'; 1 << 20];
        assert_eq!(peer.publish("a", 1, large.clone()).await.settled().await, Ok(()));
        assert_eq!(heard.payloads(1).await[0].len(), large.len());
    }
}

/// What is larger than the broker takes is refused before it is sent (MQTT 5), or given up when the broker closes the
/// connection upon it again and again (3.1.1). Others are not held up.
#[tokio::test]
async fn a_publish_that_the_broker_cannot_take_is_given_up_and_others_go_on() {
    let broker = Mosquitto::with("allow_anonymous true\nmax_packet_size 2000\n").await.unwrap();
    for version in [5, 3] {
        let peer = Peer::connect("peer", &config(&broker.url(), version));
        peer.reaches(Link::Up).await;
        let large = peer.publish("a", 1, vec![b'x'; 4000]).await;
        let small = peer.publish("a", 1, "small").await;
        let why = large.settled().await.unwrap_err();
        assert!(why.is_for_good());
        let why = why.to_string();
        assert!(why.contains("2000") || why.contains("closes the connection upon a publish on `a`"), "{why}");
        assert_eq!(small.settled().await, Ok(()));
    }
}

/// Echoes from the connection's own task, as fast as it can.
struct Echo(std::sync::Mutex<Option<Broker>>);

impl OnMessage for Echo {
    fn on_message(&self, incoming: Incoming, receipt: Option<Receipt>) {
        let broker = self.0.lock().unwrap().clone().unwrap();
        tokio::spawn(async move {
            let receipt = receipt.unwrap_or_else(|| Receipt::new(|_| ()));
            broker.publish(message("out", incoming.qos, incoming.payload), receipt).await;
        });
    }
}

/// A window that is much smaller than what is under way makes publishers wait, and never the connection.
#[tokio::test]
async fn a_full_window_does_not_lock_up_what_receives_and_publishes() {
    let broker = Mosquitto::with("allow_anonymous true\nmax_queued_messages 0\n").await.unwrap();
    let small = Limits { mqtt_unconfirmed_max: 4, mqtt_in_flight_max: 16, ..Limits::default() };
    let echo = Peer::with_limits("echo", &config(&broker.url(), 5), &small);
    let to = Arc::new(Echo(std::sync::Mutex::new(Some(echo.broker.clone()))));
    echo.subscribe(&[("in", 1)], Arc::clone(&to) as Arc<dyn OnMessage>).await;
    let peer = Peer::connect("peer", &config(&broker.url(), 5));
    let heard = peer.hear(&[("out", 1)], true).await;
    for i in 0..2000 {
        peer.publish("in", 1, i.to_string()).await;
    }
    assert_eq!(heard.payloads(2000).await.len(), 2000);
    eventually("all are acknowledged", || echo.broker.status().in_flight == 0).await;
    to.0.lock().unwrap().take();
}

/// QoS 0 while the broker is away: what fits into the window waits, the rest is dropped and counted, and no one is held up.
#[tokio::test]
async fn qos_0_never_waits_for_a_broker_that_is_away() {
    let mut broker = Mosquitto::forgetful().await.unwrap();
    let limits = Limits { mqtt_unconfirmed_max: 10, ..Limits::default() };
    let peer = Peer::with_limits("peer", &config(&broker.url(), 5), &limits);
    peer.reaches(Link::Up).await;
    broker.stop().unwrap();
    peer.reaches(Link::Down).await;
    for i in 0..25 {
        drop(tokio::time::timeout(PATIENCE, peer.publish("a", 0, i.to_string())).await.unwrap());
    }
    assert_eq!(peer.broker.status().dropped, 15);
    broker.resume().await.unwrap();
    eventually("the rest is sent", || peer.broker.status().published == 10).await;
}

/// Nagle's algorithm and delayed acknowledgements cost 40 ms per event at low rates.
#[tokio::test]
async fn at_low_rates_a_result_leaves_at_once() {
    let broker = Mosquitto::with("allow_anonymous true\nset_tcp_nodelay true\n").await.unwrap();
    let echo = Peer::connect("echo", &config(&broker.url(), 5));
    let to = Arc::new(Echo(std::sync::Mutex::new(Some(echo.broker.clone()))));
    echo.subscribe(&[("in", 1)], Arc::clone(&to) as Arc<dyn OnMessage>).await;
    let peer = Peer::connect("peer", &config(&broker.url(), 5));
    let heard = peer.hear(&[("out", 1)], true).await;
    let mut waits = Vec::new();
    for i in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let start = std::time::Instant::now();
        drop(peer.publish("in", 1, i.to_string()).await);
        heard.payloads(i + 1).await;
        waits.push(start.elapsed());
    }
    waits.sort();
    // All of them would take that long; a busy machine delays some.
    assert!(waits[5] < Duration::from_millis(30), "{waits:?}");
    to.0.lock().unwrap().take();
}

/// `disconnect` waits for what is under way, and the broker hears a proper DISCONNECT.
#[tokio::test]
async fn disconnect_drains_what_is_published() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let link = CutLink::to(broker.port()).await;
    let peer = Peer::connect("peer", &config(&link.url(), 5));
    let mut published = Vec::new();
    for i in 0..500 {
        published.push(peer.publish("a", 1, i.to_string()).await);
    }
    peer.broker.disconnect(PATIENCE).await;
    for one in published {
        assert_eq!(one.settled().await, Ok(()));
    }
    assert_eq!(peer.broker.status().link, Link::Down);
    eventually("DISCONNECT was sent", || link.sent(14) == 1).await;
    assert_eq!(link.sent(CONNECT), 1);
    let after = peer.publish("a", 1, "late").await.settled().await.unwrap_err();
    assert!(!after.is_for_good());
    let after = after.to_string();
    assert!(after.contains("disconnected"), "{after}");
}
