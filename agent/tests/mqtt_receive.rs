//! What a broker sends is handed out, acknowledged when it is taken care of, and comes again when it is not.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::sync::Arc;

use support::certificates::Authority;
use support::link::{Cut, CutLink, PUBACK, PUBCOMP, PUBREC, PUBREL, SUBSCRIBE};
use support::mosquitto::Mosquitto;
use support::{Peer, a_while, config, connect, eventually};
use tidegate::broker::Link;
use tidegate::config::MqttConfig;
use tidegate::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A message is acknowledged, in order, when its receipt has settled; what was not is handed out again after a crash.
#[tokio::test]
async fn a_crash_repeats_what_was_not_settled_and_nothing_else() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let device = Peer::connect("device", &config(&broker.url(), version));
        let gateway = Peer::connect("gateway", &config(&link.url(), version));
        let heard = gateway.hear(&[("a", 1)], false).await;
        for i in 0..5 {
            device.publish("a", 1, i.to_string()).await.settled().await.unwrap();
        }
        assert_eq!(heard.payloads(5).await, ["0", "1", "2", "3", "4"]);
        // Not the front: nothing may be acknowledged before it is.
        heard.receipt(1).keep();
        heard.receipt(3).keep();
        a_while().await;
        assert_eq!(link.sent(PUBACK), 0);
        heard.receipt(0).keep();
        eventually("0 and 1 are acknowledged", || link.sent(PUBACK) == 2).await;
        a_while().await;
        let state = gateway.crash().await;

        let again = Peer::in_state("gateway", &config(&link.url(), version), &Limits::default(), state);
        let heard = again.hear(&[("a", 1)], true).await;
        assert_eq!(heard.payloads(3).await, ["2", "3", "4"]);
        assert!(heard.messages().iter().all(|message| message.duplicate));
    }
}

/// A receipt of an earlier connection acknowledges nothing on the next, whose packet ids mean other messages.
#[tokio::test]
async fn a_receipt_of_an_earlier_connection_acknowledges_nothing() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let link = CutLink::to(broker.port()).await;
    let device = Peer::connect("device", &config(&broker.url(), 5));
    let gateway = Peer::connect("gateway", &config(&link.url(), 5));
    let heard = gateway.hear(&[("a", 1)], false).await;
    device.publish("a", 1, "1").await.settled().await.unwrap();
    heard.payloads(1).await;
    link.down();
    gateway.reaches(Link::Down).await;
    heard.receipt(0).keep();
    link.up();
    assert_eq!(heard.payloads(2).await, ["1", "1"]);
    a_while().await;
    assert_eq!(link.sent(PUBACK), 0);
    heard.receipt(1).keep();
    eventually("it is acknowledged", || link.sent(PUBACK) == 1).await;
}

/// Wherever the QoS 2 handshake of an incoming message is cut, it ends, and once it was taken over it is not handed out
/// again. rumqttc's own loop never gets past a cut between PUBREC and PUBREL.
#[tokio::test]
async fn incoming_qos_2_survives_a_cut_at_each_of_its_packets() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        for kind in [PUBREC, PUBREL, PUBCOMP] {
            for (n, cut) in [Cut::Before(kind), Cut::After(kind)].into_iter().enumerate() {
                // A gateway for each: one whose connections keep failing waits longer and longer.
                let link = CutLink::to(broker.port()).await;
                let device = Peer::connect("device", &config(&broker.url(), version));
                let gateway = Peer::connect(&format!("gateway-{kind}-{n}"), &config(&link.url(), version));
                let heard = gateway.hear(&[("a", 2)], true).await;
                gateway.reaches(Link::Ready).await;
                link.cut(cut);
                device.publish("a", 2, "cut").await.settled().await.unwrap();
                eventually("the link was cut", || !link.is_armed()).await;
                gateway.reaches(Link::Ready).await;
                device.publish("a", 2, "next").await.settled().await.unwrap();
                assert_eq!(heard.payloads(2).await, ["cut", "next"], "{cut:?}");
                a_while().await;
                assert_eq!(heard.count(), 2, "{cut:?}");
                assert_eq!(gateway.broker.status().in_flight, 0, "{cut:?}");
            }
        }
    }
}

/// A broker may send what waits in the session together with CONNACK: it is not left lying until something else comes.
#[tokio::test]
async fn what_comes_with_connack_is_handed_out_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let keep_alive = tidegate::units::Span::from_secs(3_600);
    let gateway = Peer::connect("gateway", &MqttConfig { keep_alive, ..config(&url, 3) });
    let heard = Arc::new(support::Heard::default());
    gateway.broker.subscribe(Vec::new(), Arc::clone(&heard) as Arc<dyn tidegate::broker::OnMessage>);
    let (mut broker, _) = listener.accept().await.unwrap();
    broker.read_u8().await.unwrap();
    // CONNACK with the session, and a PUBLISH of QoS 1 on `a`.
    broker.write_all(&[0x20, 2, 1, 0, 0x32, 6, 0, 1, b'a', 0, 1, b'x']).await.unwrap();
    assert_eq!(heard.payloads(1).await, ["x"]);
}

/// An agent that ended between PUBREC and PUBREL has forgotten the message; the broker must still get its PUBCOMP.
#[tokio::test]
async fn a_restart_between_pubrec_and_pubrel_is_not_a_loop() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let device = Peer::connect("device", &config(&broker.url(), version));
        let gateway = Peer::connect("gateway", &config(&link.url(), version));
        let heard = gateway.hear(&[("a", 2)], true).await;
        link.cut(Cut::Before(PUBREL));
        let published = device.publish("a", 2, "1").await;
        heard.payloads(1).await;
        eventually("the handshake is cut", || !link.is_armed()).await;
        link.down();
        let state = gateway.crash().await;
        link.up();
        published.settled().await.unwrap();

        let again = Peer::in_state("gateway", &config(&link.url(), version), &Limits::default(), state);
        let heard = again.hear(&[("a", 2)], true).await;
        device.publish("a", 2, "2").await.settled().await.unwrap();
        eventually("2 arrives", || heard.messages().iter().any(|m| &m.payload[..] == b"2")).await;
        assert_eq!(again.broker.status().reconnects, 0);
    }
}

/// A message that could not be handled stays, is handed out again after a while, and is acknowledged then.
#[tokio::test]
async fn what_could_not_be_handled_is_handed_out_again() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let link = CutLink::to(broker.port()).await;
    let device = Peer::connect("device", &config(&broker.url(), 5));
    let gateway = Peer::connect("gateway", &config(&link.url(), 5));
    let heard = gateway.hear(&[("a", 1)], false).await;
    device.publish("a", 1, "1").await.settled().await.unwrap();
    device.publish("a", 1, "2").await.settled().await.unwrap();
    heard.payloads(2).await;
    heard.receipt(0).fail("disk full");
    heard.receipt(1).keep();
    assert_eq!(heard.payloads(3).await, ["1", "2", "1"]);
    assert!(heard.messages()[2].duplicate);
    assert_eq!(link.sent(PUBACK), 0);
    heard.receipt(2).keep();
    eventually("both are acknowledged", || link.sent(PUBACK) == 2).await;
    assert_eq!(gateway.broker.status().reconnects, 0);
}

/// What comes while the agent is away waits in the persistent session.
#[tokio::test]
async fn what_is_published_while_the_agent_is_away_waits() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let device = Peer::connect("device", &config(&broker.url(), version));
        let gateway = Peer::connect("gateway", &config(&broker.url(), version));
        gateway.hear(&[("a/+", 1)], true).await;
        gateway.broker.disconnect(support::PATIENCE).await;
        for i in 0..50 {
            device.publish("a/b", 1, i.to_string()).await.settled().await.unwrap();
        }
        let state = gateway.crash().await;
        let again = Peer::in_state("gateway", &config(&broker.url(), version), &Limits::default(), state);
        // Time for the backlog to come before anyone has subscribed: it waits for that.
        again.reaches(Link::Up).await;
        a_while().await;
        let heard = again.hear(&[("a/+", 1)], true).await;
        assert_eq!(heard.payloads(50).await, (0..50).map(|i| i.to_string()).collect::<Vec<_>>());
    }
}

/// A trigger that was removed while the agent was down does not go on in the broker's session.
#[tokio::test]
async fn a_removed_filter_leaves_the_session_also_after_a_restart() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let device = Peer::connect("device", &config(&broker.url(), version));
        let gateway = Peer::connect("gateway", &config(&link.url(), version));
        gateway.hear(&[("old", 1), ("kept", 1)], true).await;
        let state = gateway.crash().await;

        let again = Peer::in_state("gateway", &config(&link.url(), version), &Limits::default(), state);
        let heard = again.hear(&[("kept", 1)], true).await;
        assert_eq!(link.sent(support::link::UNSUBSCRIBE), 1);
        device.publish("old", 1, "old").await.settled().await.unwrap();
        device.publish("kept", 1, "kept").await.settled().await.unwrap();
        assert_eq!(heard.payloads(1).await, ["kept"]);
        // And at run time.
        let heard = again.hear(&[("new", 1)], true).await;
        device.publish("kept", 1, "kept").await.settled().await.unwrap();
        device.publish("new", 1, "new").await.settled().await.unwrap();
        assert_eq!(heard.payloads(1).await, ["new"]);
    }
}

/// One group shares the messages between its members; each goes to one of them.
#[tokio::test]
async fn a_shared_subscription_is_shared() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let device = Peer::connect("device", &config(&broker.url(), 5));
    let one = Peer::connect("one", &config(&broker.url(), 5));
    let two = Peer::connect("two", &config(&broker.url(), 5));
    let (first, second) = (one.hear(&[("$share/g/a", 1)], true).await, two.hear(&[("$share/g/a", 1)], true).await);
    for i in 0..100 {
        device.publish("a", 1, i.to_string()).await.settled().await.unwrap();
    }
    eventually("all have come", || first.count() + second.count() >= 100).await;
    a_while().await;
    assert_eq!(first.count() + second.count(), 100);
    assert!(first.count() > 0 && second.count() > 0);
}

/// A filter that covers others is the only one that the broker is asked for, so that a message comes once.
#[tokio::test]
async fn overlapping_filters_hear_a_message_once() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let peer = Peer::connect("peer", &config(&broker.url(), version));
        let heard = peer.hear(&[("a/#", 0), ("a/+", 1), ("a/b", 2)], true).await;
        peer.publish("a/b", 1, "1").await.settled().await.unwrap();
        peer.publish("a/b", 1, "2").await.settled().await.unwrap();
        heard.payloads(2).await;
        a_while().await;
        let (payloads, messages) = (heard.payloads(0).await, heard.messages());
        assert_eq!(payloads, ["1", "2"]);
        assert!(messages.iter().all(|message| message.qos == 1));
    }
}

/// Retained messages come with a new subscription, not again with each reconnect.
#[tokio::test]
async fn a_retained_message_comes_once_and_says_so() {
    let broker = Mosquitto::forgetful().await.unwrap();
    for version in [5, 3] {
        let link = CutLink::to(broker.port()).await;
        let device = Peer::connect("device", &config(&broker.url(), version));
        let retained = tidegate::invocation::Publish { retain: true, ..support::message("a", 1, "kept") };
        device.broker.publish(retained, tidegate::receipt::Receipt::new(|_| ())).await;
        eventually("it is kept", || device.broker.status().published == 1).await;
        let gateway = Peer::connect("gateway", &config(&link.url(), version));
        let heard = gateway.hear(&[("a", 1)], true).await;
        heard.payloads(1).await;
        assert!(heard.messages()[0].retain);
        eventually("it is acknowledged", || link.sent(PUBACK) == 1).await;
        a_while().await;
        link.down();
        gateway.reaches(Link::Down).await;
        link.up();
        gateway.reaches(Link::Ready).await;
        a_while().await;
        assert_eq!(heard.count(), 1);
    }
}

/// 3.1.1 knows no maximum of the client's: what is larger than we take is skipped and acknowledged, or the broker would send
/// it again with each connection, for ever.
#[tokio::test]
async fn a_message_over_our_limit_is_dropped_and_the_rest_goes_on() {
    let broker = Mosquitto::forgetful().await.unwrap();
    let limits = Limits { event_bytes_max: tidegate::units::ByteSize(1000), ..Limits::default() };
    for version in [5, 3] {
        let device = Peer::connect("device", &config(&broker.url(), version));
        let gateway = Peer::with_limits("gateway", &config(&broker.url(), version), &limits);
        let heard = gateway.hear(&[("a", 2)], true).await;
        for qos in [0, 1, 2] {
            drop(device.publish("a", qos, vec![b'x'; 300_000]).await);
            device.publish("a", 1, qos.to_string()).await.settled().await.unwrap();
        }
        assert_eq!(heard.payloads(3).await, ["0", "1", "2"]);
        assert_eq!(gateway.broker.status().reconnects, 0);
        eventually("all are acknowledged", || gateway.broker.status().in_flight == 0).await;
    }
}

/// TLS by an authority of our own, a client certificate, user and password; and a broker that is not who it should be.
#[tokio::test]
async fn tls_client_certificates_and_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let (server, server_key) = ours.issue("server");
    let (client, client_key) = ours.issue("client");
    Authority::new(folder.path(), "theirs");
    let password = folder.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let passwords = folder.path().join("passwords");
    let made = std::process::Command::new("mosquitto_passwd")
        .args(["-b", "-c"])
        .arg(&passwords)
        .args(["me", "secret"])
        .status();
    assert!(made.unwrap().success());
    let lines = format!(
        "allow_anonymous false\npassword_file {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        passwords.display(),
        folder.path().join("ours.pem").display(),
        server.display(),
        server_key.display(),
    );
    let broker = Mosquitto::with(&lines).await.unwrap();
    let url = broker.url().replace("mqtt://", "mqtts://");
    for version in [5, 3] {
        let mut good = config(&url, version);
        good.ca = Some(folder.path().join("ours.pem"));
        (good.cert, good.key) = (Some(client.clone()), Some(client_key.clone()));
        (good.username, good.password_file) = (Some("me".to_owned()), Some(password.clone()));
        let peer = Peer::connect("peer", &good);
        let heard = peer.hear(&[("a", 1)], true).await;
        peer.publish("a", 1, vec![b'x'; 100_000]).await.settled().await.unwrap();
        assert_eq!(heard.payloads(1).await[0].len(), 100_000);

        let fails = async |config, reason: &str| {
            let peer = Peer::connect("other", &config);
            eventually("it fails", || peer.broker.status().last_error.is_some()).await;
            let error = peer.broker.status().last_error.unwrap();
            assert!(error.contains(reason), "{error}");
        };
        let mut wrong = good.clone();
        wrong.ca = Some(folder.path().join("theirs.pem"));
        fails(wrong, "UnknownIssuer").await;
        let mut wrong = good.clone();
        std::fs::write(folder.path().join("wrong"), "Secret").unwrap();
        wrong.password_file = Some(folder.path().join("wrong"));
        fails(wrong, if version == 5 { "NotAuthorized" } else { "refuses the connection" }).await;
        let mut wrong = good.clone();
        (wrong.cert, wrong.key) = (None, None);
        let peer = Peer::connect("other", &wrong);
        eventually("it fails", || peer.broker.status().last_error.is_some()).await;
    }

    let refused = |change: fn(&mut tidegate::config::MqttConfig)| {
        let mut config = config(&url, 5);
        change(&mut config);
        connect("peer", &config, &Limits::default(), folder.path()).unwrap_err().to_string()
    };
    assert!(refused(|c| c.ca = Some("missing.pem".into())).contains("cannot read `ca` from missing.pem"));
    assert!(refused(|c| c.cert = Some("missing.pem".into())).contains("`cert` and `key` go together"));
    assert!(refused(|c| c.password_file = Some("missing".into())).contains("cannot read `password_file` from missing"));
    assert!(refused(|c| c.version = 4).contains("version 4: it must be 5, or 3 for 3.1.1"));
    let insecure = refused(|c| (c.url, c.ca) = ("mqtt://a".to_owned(), Some("a.pem".into())));
    assert!(insecure.contains("nothing would be encrypted"), "{insecure}");
}

/// The reason is told when a broker cannot be reached, and the connection comes when it can.
#[tokio::test]
async fn a_broker_that_comes_late_is_found() {
    let mut broker = Mosquitto::forgetful().await.unwrap();
    broker.stop().unwrap();
    let peer = Peer::connect("peer", &config(&broker.url(), 5));
    let subscribed = Arc::new(support::Heard::default());
    eventually("it says why", || peer.broker.status().last_error.is_some_and(|e| e.contains("refused"))).await;
    let link = CutLink::to(broker.port()).await;
    broker.resume().await.unwrap();
    peer.subscribe(&[("a", 1)], subscribed).await;
    assert_eq!(peer.broker.status().last_error, None);
    assert_eq!(link.sent(SUBSCRIBE), 0);
}
