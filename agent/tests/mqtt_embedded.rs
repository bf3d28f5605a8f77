//! The embedded broker, used by real clients over its sockets.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::certificates::Authority;
use support::{Heard, PATIENCE, Peer, a_while, config, embedded, eventually, message};
use tidegate::broker::embedded::{EmbeddedBroker, Intake};
use tidegate::broker::{Link, OnMessage, Subscription};
use tidegate::clock::Clock;
use tidegate::config::MqttConfig;
use tidegate::invocation::Publish;
use tidegate::journal::{Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::receipt::Receipt;
use tidegate::topic::TopicFilter;
use tidegate::units::Span;

/// On a free port of loopback.
const ANYONE: &str = "listen = '127.0.0.1:0'\n";

async fn start(text: &str) -> EmbeddedBroker {
    EmbeddedBroker::start(&embedded(text), &Limits::default()).await.unwrap()
}

fn url(broker: &EmbeddedBroker) -> String {
    format!("mqtt://{}", broker.address())
}

/// Two in one process, each on a port of its own, know nothing of each other; each QoS of both versions works.
#[tokio::test]
async fn two_brokers_in_one_process_are_apart() {
    let (one, two) = (start(ANYONE).await, start(ANYONE).await);
    assert_ne!(one.address(), two.address());
    let elsewhere = Peer::connect("elsewhere", &config(&url(&two), 5));
    let silence = elsewhere.hear(&[("#", 2)], true).await;
    for version in [5, 3] {
        let peer = Peer::connect("peer", &config(&url(&one), version));
        let heard = peer.hear(&[("a/+", 2)], true).await;
        for qos in [0, 1, 2] {
            assert_eq!(peer.publish("a/b", qos, qos.to_string()).await.settled().await, Ok(()));
        }
        assert_eq!(heard.payloads(3).await, ["0", "1", "2"]);
        assert_eq!(heard.messages().iter().map(|message| message.qos).collect::<Vec<_>>(), [0, 1, 2]);
        peer.broker.disconnect(PATIENCE).await;
    }
    a_while().await;
    assert_eq!(silence.count(), 0);
    one.stop().await;
    two.stop().await;
}

/// What a killed subscriber had not acknowledged comes again, in its order.
#[tokio::test]
async fn what_was_not_acknowledged_comes_again() {
    let broker = start(ANYONE).await;
    for version in [5, 3] {
        let device = Peer::connect("device", &config(&url(&broker), version));
        let gateway = Peer::connect("gateway", &config(&url(&broker), version));
        let heard = gateway.hear(&[("a", 1)], false).await;
        for i in 0..20 {
            device.publish("a", 1, i.to_string()).await.settled().await.unwrap();
        }
        heard.payloads(20).await;
        for i in 0..5 {
            heard.receipt(i).keep();
        }
        eventually("5 are acknowledged", || gateway.broker.status().in_flight == 15).await;
        a_while().await;
        let state = gateway.crash().await;
        let again = Peer::in_state("gateway", &config(&url(&broker), version), &Limits::default(), state);
        let heard = again.hear(&[("a", 1)], true).await;
        assert_eq!(heard.payloads(15).await, (5..20).map(|i| i.to_string()).collect::<Vec<_>>());
        again.broker.disconnect(PATIENCE).await;
    }
    broker.stop().await;
}

/// A gateway that comes and goes, mostly before it was handed what waited for it, still gets all that its broker has confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_connections_that_end_at_once() {
    let broker = start(ANYONE).await;
    for (version, qos) in [(5, 1), (5, 2), (3, 1), (3, 2)] {
        let config = config(&url(&broker), version);
        let gateway = Peer::connect("gateway", &config);
        let heard = gateway.hear(&[("a", qos)], true).await;
        let mut state = gateway.crash().await;
        let device = Peer::connect("device", &config);
        let mut published = Vec::new();
        for life in 0..40 {
            let gateway = Peer::in_state("gateway", &config, &Limits::default(), state);
            let filter = Subscription { filter: TopicFilter::parse("a").unwrap(), qos };
            gateway.broker.subscribe(vec![filter], Arc::clone(&heard) as Arc<dyn OnMessage>);
            for i in 0..25 {
                published.push(device.publish("a", qos, format!("{life} {i}")).await);
            }
            tokio::time::sleep(Duration::from_millis(life % 8)).await;
            // Without a word, and the next connection comes while this one is still open for the broker.
            state = Arc::clone(&gateway.state);
        }
        let _last = {
            let gateway = Peer::in_state("gateway", &config, &Limits::default(), state);
            gateway.subscribe(&[("a", qos)], Arc::clone(&heard) as Arc<dyn OnMessage>).await;
            gateway
        };
        for (n, published) in published.into_iter().enumerate() {
            published.settled().await.unwrap_or_else(|why| panic!("the broker did not confirm {n}: {why}"));
        }
        let arrived = || heard.messages().into_iter().map(|message| message.payload).collect::<HashSet<_>>().len();
        eventually("all have arrived", || arrived() == 1000).await;
        device.broker.disconnect(PATIENCE).await;
    }
    assert_eq!(broker.dropped(), 0);
    broker.stop().await;
}

/// A message on a shared subscription goes to one member, and all members get some.
#[tokio::test]
async fn a_shared_subscription_shares() {
    let broker = start(ANYONE).await;
    let device = Peer::connect("device", &config(&url(&broker), 5));
    let (one, two) = (Peer::connect("one", &config(&url(&broker), 5)), Peer::connect("two", &config(&url(&broker), 5)));
    let first = one.hear(&[("$share/group/a", 1)], true).await;
    let second = two.hear(&[("$share/group/a", 1)], true).await;
    for i in 0..20 {
        device.publish("a", 1, i.to_string()).await.settled().await.unwrap();
    }
    eventually("20 messages", || first.count() + second.count() == 20).await;
    assert!(first.count() > 0 && second.count() > 0, "{} and {}", first.count(), second.count());
    broker.stop().await;
}

/// Ten thousand messages wait for a gateway that is away, and arrive in order.
#[tokio::test]
async fn a_backlog_waits_for_an_absent_session() {
    let broker = start(ANYONE).await;
    let device = Peer::connect("device", &config(&url(&broker), 5));
    let gateway = Peer::connect("gateway", &config(&url(&broker), 5));
    gateway.hear(&[("a", 1)], true).await;
    gateway.broker.disconnect(PATIENCE).await;
    let mut last = None;
    for i in 0..10_000 {
        last = Some(device.publish("a", 1, i.to_string()).await);
    }
    last.unwrap().settled().await.unwrap();
    let state = gateway.crash().await;
    let again = Peer::in_state("gateway", &config(&url(&broker), 5), &Limits::default(), state);
    let heard = again.hear(&[("a", 1)], true).await;
    assert_eq!(heard.payloads(10_000).await, (0..10_000).map(|i| i.to_string()).collect::<Vec<_>>());
    assert_eq!(broker.dropped(), 0);
    broker.stop().await;
}

/// Retained messages wait for later subscribers.
#[tokio::test]
async fn a_retained_message_waits_for_subscribers() {
    let broker = start(ANYONE).await;
    let device = Peer::connect("device", &config(&url(&broker), 5));
    let retained = Publish { retain: true, ..message("a", 1, "kept") };
    device.broker.publish(retained, Receipt::new(|_| ())).await;
    eventually("it is kept", || device.broker.status().published == 1).await;
    for version in [5, 3] {
        let later = Peer::connect("later", &config(&url(&broker), version));
        let heard = later.hear(&[("a", 1)], true).await;
        assert_eq!(heard.payloads(1).await, ["kept"]);
        assert!(heard.messages()[0].retain);
        later.broker.disconnect(PATIENCE).await;
    }
    broker.stop().await;
}

/// One with functions behind it: what they are handed, they hold.
async fn with_functions(text: &str) -> (EmbeddedBroker, Arc<Heard>) {
    let intake = Arc::new(Intake::new(None, &Limits::default(), Clock::system()));
    let broker = EmbeddedBroker::start_with(&embedded(text), &Limits::default(), Some(intake)).await.unwrap();
    let heard = Arc::new(Heard::default());
    listen(&broker, "a/#", &heard);
    (broker, heard)
}

fn listen(broker: &EmbeddedBroker, filter: &str, heard: &Arc<Heard>) {
    broker.hear(vec![TopicFilter::parse(filter).unwrap()], Arc::clone(heard) as Arc<dyn OnMessage>);
}

/// A device hears that its message arrived when what became of it is safe, and not before; other clients get it too.
#[tokio::test]
async fn a_device_is_acknowledged_when_its_message_is_taken_care_of() {
    let (broker, heard) = with_functions(ANYONE).await;
    let mut n = 0;
    for version in [5, 3] {
        let device = Peer::connect("device", &config(&url(&broker), version));
        let display = Peer::connect("display", &config(&url(&broker), version));
        let shown = display.hear(&[("a/#", 2)], true).await;
        for qos in [1, 2] {
            let mut published = device.publish("a/1", qos, qos.to_string()).await;
            n += 1;
            heard.payloads(n).await;
            a_while().await;
            assert!(published.is_open(), "acknowledged before its message was handled");
            heard.receipt(n - 1).keep();
            published.settled().await.unwrap();
        }
        device.publish("a/1", 0, "0").await.settled().await.unwrap();
        n += 1;
        heard.payloads(n).await;
        assert_eq!(shown.payloads(3).await, ["1", "2", "0"]);
    }
    broker.stop().await;
}

/// What could not be handled within the device's patience is not acknowledged: the device comes back with it.
#[tokio::test]
async fn what_is_not_taken_care_of_is_not_acknowledged_and_comes_again() {
    let (broker, heard) = with_functions(ANYONE).await;
    for version in [5, 3] {
        let before = heard.count();
        let keep_alive = Span::from_secs(1);
        let device = Peer::connect("device", &MqttConfig { keep_alive, ..config(&url(&broker), version) });
        let mut published = device.publish("a/1", 1, "1").await;
        heard.payloads(before + 2).await;
        assert!(published.is_open());
        eventually("it has come again by another connection", || device.broker.status().reconnects > 0).await;
        let last = heard.payloads(before + 2).await.len() - 1;
        heard.receipt(last).keep();
        // Perhaps it has come once more meanwhile.
        for i in last + 1..heard.count() {
            heard.receipt(i).keep();
        }
        published.settled().await.unwrap();
    }
    assert_eq!(broker.dropped(), 0, "nothing is lost: its sender has it");
    broker.stop().await;
}

/// A function that takes longer than a device waits: the message goes to disk, the device is acknowledged, and after a crash the
/// function gets it again, until it has taken care of it.
#[tokio::test]
async fn a_slow_function_gets_its_message_from_disk_if_it_must() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |run: &str, heard: &Arc<Heard>| {
        let limits = Arc::new(Limits::default());
        let config = JournalConfig { streams: BTreeMap::new(), limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&folder.path().join(run), config, Clock::system()).unwrap());
        let intake = Arc::new(Intake::new(Some(Arc::clone(&journal)), &limits, Clock::system()));
        let broker = EmbeddedBroker::start_with(&embedded(ANYONE), &limits, Some(intake)).await.unwrap();
        listen(&broker, "a/#", heard);
        (broker, journal)
    };
    // The broker's sessions outlive it within this process, and the journal with them: the next run gets a copy.
    let crash = async |(broker, journal): (EmbeddedBroker, Arc<Journal>), run: &str, next: &str| {
        broker.stop().await;
        journal.close().await.unwrap();
        let copied = std::process::Command::new("cp").arg("-r").args([run, next]).current_dir(folder.path()).status();
        assert!(copied.unwrap().success());
    };
    let heard = Arc::new(Heard::default());
    let first = run("1", &heard).await;
    for version in [5, 3] {
        let device = Peer::connect("device", &config(&url(&first.0), version));
        device.publish("a/1", 2, version.to_string()).await.settled().await.unwrap();
    }
    assert_eq!(heard.payloads(2).await, ["5", "3"]);
    assert_eq!(first.1.own_status().iter().map(|stream| stream.records).sum::<u64>(), 2);
    // One is done before the crash.
    heard.receipt(0).keep();
    eventually("it leaves the disk", || first.1.own_status().iter().map(|stream| stream.records).sum::<u64>() == 1)
        .await;
    crash(first, "1", "2").await;

    let heard = Arc::new(Heard::default());
    let second = run("2", &heard).await;
    assert_eq!(heard.payloads(1).await, ["3"]);
    assert!(heard.messages()[0].duplicate);
    heard.receipt(0).keep();
    eventually("it leaves the disk", || second.1.own_status().iter().map(|stream| stream.records).sum::<u64>() == 0)
        .await;
    crash(second, "2", "3").await;

    let heard = Arc::new(Heard::default());
    let third = run("3", &heard).await;
    a_while().await;
    assert_eq!(heard.count(), 0);
    third.0.stop().await;
}

/// What the agent publishes is heard by its own functions once, with what it carries, and waits for them.
#[tokio::test]
async fn the_agents_own_publish_is_heard_once() {
    let (broker, heard) = with_functions(ANYONE).await;
    let own = MqttConfig { client_id: Some(broker.own_client_id().to_owned()), ..config(&url(&broker), 5) };
    let agent = Peer::connect("agent", &own);
    let agent = Peer { broker: agent.broker.beside(broker.intake().cloned()), state: agent.state };
    let display = Peer::connect("display", &config(&url(&broker), 3));
    let shown = display.hear(&[("a/#", 1)], true).await;
    let mut published = agent.publish("a/1", 1, "1").await;
    assert_eq!(shown.payloads(1).await, ["1"]);
    a_while().await;
    assert!(published.is_open());
    assert_eq!(heard.payloads(1).await, ["1"]);
    heard.receipt(0).keep();
    published.settled().await.unwrap();
    assert_eq!(heard.count(), 1);
    broker.stop().await;
}

/// A publish outside of a user's filters does not reach a function, nor does a last will.
#[tokio::test]
async fn functions_hear_only_what_a_user_may_publish() {
    use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, QoS};
    let folder = tempfile::tempdir().unwrap();
    let (broker, heard) = with_functions(&users(folder.path(), "")).await;
    listen(&broker, "#", &heard);
    let device_file = folder.path().join("device");
    let device = Peer::connect("device", &login(config(&url(&broker), 5), "device", &device_file));
    device.publish("results/1", 1, "outside").await.settled().await.unwrap_err();

    let with_will = async |topic: &str| {
        let mut options = MqttOptions::new("dying", "127.0.0.1", broker.address().port());
        options.set_credentials("device", "secret");
        options.set_last_will(LastWill::new(topic, "gone", QoS::AtLeastOnce, false));
        let (_client, mut events) = AsyncClient::new(options, 1);
        // The connection is let go without a word.
        matches!(events.poll().await, Ok(Event::Incoming(Packet::ConnAck(_))))
    };
    assert!(!with_will("results/1").await);
    assert!(with_will("sensors/1").await);
    assert_eq!(heard.payloads(1).await, ["gone"]);
    a_while().await;
    assert_eq!(heard.count(), 1);
    broker.stop().await;
}

/// What is retained comes to a function whose trigger is new, marked, and not again when another one is added.
#[tokio::test]
async fn a_new_trigger_hears_what_is_retained() {
    let (broker, heard) = with_functions(ANYONE).await;
    let device = Peer::connect("device", &config(&url(&broker), 5));
    for topic in ["b/1", "c/1"] {
        let retained = Publish { retain: true, ..message(topic, 1, topic) };
        device.broker.publish(retained, Receipt::new(|_| ())).await;
    }
    // Nobody listens on these yet, so they are handed out and hold nothing up.
    for i in 0..2 {
        heard.payloads(i + 1).await;
        heard.receipt(i).keep();
    }
    eventually("they are kept", || device.broker.status().published == 2).await;
    let filter = |text: &str| TopicFilter::parse(text).unwrap();
    let to = || Arc::clone(&heard) as Arc<dyn OnMessage>;
    broker.hear(vec![filter("a/#"), filter("b/#")], to());
    assert_eq!(heard.payloads(3).await[2], "b/1");
    assert!(heard.messages()[2].retain);
    broker.hear(vec![filter("a/#"), filter("b/#"), filter("c/+")], to());
    assert_eq!(heard.payloads(4).await[3], "c/1");
    a_while().await;
    assert_eq!(heard.count(), 4);
    broker.stop().await;
}

fn users(folder: &Path, more: &str) -> String {
    std::fs::write(folder.join("device"), "secret\n").unwrap();
    std::fs::write(folder.join("gateway"), "other\n").unwrap();
    let folder = folder.display();
    format!(
        "listen = '127.0.0.1:0'\n{more}\n\
        [users.device]\npassword_file = '{folder}/device'\npublish = ['sensors/#']\n\
        [users.gateway]\npassword_file = '{folder}/gateway'\npublish = ['results/#']\nsubscribe = ['sensors/#', 'results/+']\n"
    )
}

fn login(config: MqttConfig, user: &str, password: &Path) -> MqttConfig {
    MqttConfig { username: Some(user.to_owned()), password_file: Some(password.to_owned()), ..config }
}

/// Users must know their password, and stay within their filters.
#[tokio::test]
async fn users_are_known_and_stay_within_their_filters() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(&users(folder.path(), "")).await;
    let (device_file, gateway_file) = (folder.path().join("device"), folder.path().join("gateway"));
    for version in [5, 3] {
        let plain = config(&url(&broker), version);
        for wrong in
            [plain.clone(), login(plain.clone(), "device", &gateway_file), login(plain.clone(), "root", &device_file)]
        {
            let peer = Peer::connect("wrong", &wrong);
            eventually("it is refused", || peer.broker.status().last_error.is_some()).await;
            let error = peer.broker.status().last_error.unwrap();
            assert!(error.contains("refuses the connection"), "{error}");
        }
        let gateway = Peer::connect("gateway", &login(plain.clone(), "gateway", &gateway_file));
        let heard = gateway.hear(&[("sensors/+", 1), ("results/#", 1)], true).await;
        let refused = gateway.broker.status().refused;
        assert_eq!(refused.iter().map(|(filter, _)| filter.as_str()).collect::<Vec<_>>(), ["results/#"]);
        let device = Peer::connect("device", &login(plain, "device", &device_file));
        let outside = device.publish("results/1", 1, "outside").await.settled().await;
        // 3.1.1 has no way to say no.
        assert_eq!(outside.is_err(), version == 5, "{outside:?}");
        device.publish("sensors/1", 1, "inside").await.settled().await.unwrap();
        assert_eq!(heard.payloads(1).await, ["inside"]);
        gateway.broker.disconnect(PATIENCE).await;
        device.broker.disconnect(PATIENCE).await;
    }
    broker.stop().await;
}

/// With `cert` and `key` it speaks TLS, to clients that check who it is.
#[tokio::test]
async fn it_speaks_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ours");
    let (cert, key) = authority.issue("server");
    let broker = start(&users(folder.path(), &format!("cert = '{}'\nkey = '{}'", cert.display(), key.display()))).await;
    let plain = Peer::connect("plain", &config(&url(&broker), 5));
    let secure =
        MqttConfig { ca: Some(folder.path().join("ours.pem")), ..config(&format!("mqtts://{}", broker.address()), 5) };
    let gateway = Peer::connect("gateway", &login(secure.clone(), "gateway", &folder.path().join("gateway")));
    let heard = gateway.hear(&[("sensors/#", 1)], true).await;
    let device = Peer::connect("device", &login(secure, "device", &folder.path().join("device")));
    device.publish("sensors/1", 1, vec![b'x'; 500_000]).await.settled().await.unwrap();
    assert_eq!(heard.payloads(1).await[0].len(), 500_000);
    assert_eq!(plain.broker.status().link, Link::Down);
    broker.stop().await;
}

/// When it stops, clients hear it and the port is free again.
#[tokio::test]
async fn it_stops_and_frees_its_port() {
    let broker = start(ANYONE).await;
    let address = broker.address();
    let peer = Peer::connect("peer", &config(&url(&broker), 5));
    let to = Arc::new(support::Heard::default());
    peer.subscribe(&[("a", 1)], to).await;
    broker.stop().await;
    peer.reaches(Link::Down).await;
    let again = start(&format!("listen = '{address}'")).await;
    assert_eq!(again.address(), address);
    peer.reaches(Link::Ready).await;
    again.stop().await;
}

/// What would be unsafe or cannot work is refused in words.
#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let refused = async |text: &str| {
        let config = embedded(text);
        EmbeddedBroker::start(&config, &Limits::default()).await.unwrap_err().to_string()
    };
    let error = refused("listen = '0.0.0.0:0'").await;
    assert!(error.contains("would listen on 0.0.0.0:0 without users"), "{error}");
    let error = refused("listen = '127.0.0.1:0'\n[users.a]\npassword_file = 'missing'").await;
    assert!(error.contains("cannot read `password_file` from missing"), "{error}");
    let error = refused("listen = '127.0.0.1:0'\ncert = 'a.pem'").await;
    assert!(error.contains("they go together"), "{error}");
    let taken = start(ANYONE).await;
    let error = refused(&format!("listen = '{}'", taken.address())).await;
    assert!(error.contains("cannot listen on"), "{error}");
}
