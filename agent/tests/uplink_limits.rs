//! The uplink and a broker with the limits of a cloud service, which ends the connection upon each violation.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::eventually;
use support::strict::{StrictBroker, Strictness, Taken};
use tempfile::TempDir;
use tidegate::broker::{Broker, Link};
use tidegate::clock::Clock;
use tidegate::config::{BatchConfig, MqttConfig, Rate, StreamConfig, UplinkConfig, UplinkPayload, UplinkTo};
use tidegate::journal::{Batch, Journal, JournalConfig, RecordMeta};
use tidegate::limits::Limits;
use tidegate::name::{BrokerName, GatewayName, StreamName};
use tidegate::net::Net;
use tidegate::units::{ByteSize, Span};
use tidegate::uplink::{Publisher, Publishers, Uplink, UplinkState};

const STREAM: &str = "readings";

fn readings() -> StreamName {
    StreamName::parse(STREAM).unwrap()
}

fn cloud() -> BrokerName {
    BrokerName::parse("cloud").unwrap()
}

fn config() -> StreamConfig {
    let batch = BatchConfig { max_records: 500, max_wait: Span(Duration::from_millis(5)) };
    let uplink = Some(UplinkConfig::mqtt(cloud(), "site/{gateway}/{stream}"));
    StreamConfig { uplink, batch, ..StreamConfig::default() }
}

/// A journal, a connection and the uplink between them: an agent without the rest.
struct Gateway {
    journal: Arc<Journal>,
    broker: Broker,
    uplink: Uplink,
}

impl Gateway {
    fn start(dir: &Path, mqtt: &MqttConfig, stream: &StreamConfig, clock: &Clock) -> Self {
        let streams = BTreeMap::from([(readings(), stream.clone())]);
        let limits = Arc::new(Limits::default());
        let journal_config = JournalConfig { streams: streams.clone(), limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&dir.join("journal"), journal_config, clock.clone()).unwrap());
        let gateway = GatewayName::parse("hall-3").unwrap();
        let broker = Broker::connect(cloud(), mqtt, &gateway, dir, &limits, clock.clone(), Net::real()).unwrap();
        let publishers: Publishers = BTreeMap::from([(cloud(), Arc::new(broker.clone()) as Arc<dyn Publisher>)]);
        let uplink = Uplink::start(Arc::clone(&journal), &publishers, gateway, &streams, clock.clone()).unwrap();
        Self { journal, broker, uplink }
    }

    async fn append(&self, records: impl IntoIterator<Item = Vec<u8>>, time_ms: u64) {
        let meta = RecordMeta { time_ms, ..RecordMeta::default() };
        let records = records.into_iter().map(|data| (readings(), Bytes::from(data), meta.clone())).collect();
        self.journal.commit(Batch { records, ..Batch::default() }).await.unwrap();
    }

    fn kept(&self, name: &str) -> u64 {
        self.journal.status().iter().find(|stream| stream.name.as_str() == name).unwrap().records
    }

    /// Ends without a stop.
    async fn kill(self, dir: &Path) {
        drop(self);
        // Its tasks hold the journal for a moment more.
        let lock = || std::fs::File::open(dir.join("journal/lock")).unwrap();
        eventually("the journal is closed", || lock().try_lock().is_ok()).await;
    }
}

fn mqtt(broker: &StrictBroker, version: u8) -> MqttConfig {
    MqttConfig { version, ..MqttConfig::to(broker.url()) }
}

fn sequence(taken: &Taken) -> u64 {
    let json: serde_json::Value = serde_json::from_slice(&taken.payload).unwrap();
    json["sequence"].as_u64().unwrap()
}

/// The first time that each sequence came.
fn firsts(taken: &[Taken]) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    taken.iter().map(sequence).filter(|sequence| seen.insert(*sequence)).collect()
}

/// A backlog goes through a broker with a cloud service's limits, whose link is cut again and again: all arrive, in order, and
/// no limit is ever violated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_drains_through_a_strict_broker_with_cuts() {
    let broker = StrictBroker::start(Strictness::default()).await;
    let dir = TempDir::new().unwrap();
    let gateway = Gateway::start(dir.path(), &mqtt(&broker, 5), &config(), &Clock::system());
    for _ in 0..10 {
        gateway.append((0..300).map(|n| format!("{n}").into_bytes()), 1).await;
    }
    for (publishes, acknowledged) in [(1, false), (150, true), (700, false)] {
        broker.cut_at(publishes, acknowledged);
        eventually("the link is cut", || !broker.is_armed()).await;
    }
    eventually("all arrive and go", || gateway.kept(STREAM) == 0).await;
    assert_eq!(firsts(&broker.taken()), (1..=3000).collect::<Vec<_>>());
    assert_eq!(broker.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_too_large_for_the_broker_becomes_a_dead_letter_and_holds_up_nobody() {
    let broker = StrictBroker::start(Strictness::default()).await;
    let dir = TempDir::new().unwrap();
    let gateway = Gateway::start(dir.path(), &mqtt(&broker, 5), &config(), &Clock::system());
    let records = [b"1".to_vec(), vec![b'x'; 130 << 10], b"3".to_vec()];
    gateway.append(records, 1).await;
    eventually("the others arrive and go", || gateway.kept(STREAM) == 0).await;
    assert_eq!(firsts(&broker.taken()), [1, 3]);
    assert_eq!(gateway.kept("dead-letters"), 1);
    assert_eq!(broker.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_keeps_within_what_the_broker_allows() {
    let strictness = Strictness { publishes_per_second: 100, ..Strictness::default() };
    let broker = StrictBroker::start(strictness).await;
    let dir = TempDir::new().unwrap();
    let mut config = config();
    config.uplink.as_mut().unwrap().max_rate = Some(Rate::Records(80));
    let gateway = Gateway::start(dir.path(), &mqtt(&broker, 5), &config, &Clock::system());
    gateway.append((0..200).map(|n| format!("{n}").into_bytes()), 1).await;
    eventually("all arrive and go", || gateway.kept(STREAM) == 0).await;
    assert_eq!(broker.violations(), Vec::<String>::new());
}

/// Bare payloads: the message is the record, all else is beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_records_arrive_as_they_are_with_their_id_beside_them() {
    let broker = StrictBroker::start(Strictness::default()).await;
    let dir = TempDir::new().unwrap();
    let mut config = config();
    if let Some(UplinkConfig { to: UplinkTo::Mqtt(mqtt), .. }) = &mut config.uplink {
        mqtt.payload = UplinkPayload::Bare;
    }
    let gateway = Gateway::start(dir.path(), &mqtt(&broker, 5), &config, &Clock::system());
    // The uplink has noticed it too: until then a record counts as one that had to wait.
    let knows = || gateway.uplink.status()[&readings()].state != UplinkState::Offline;
    eventually("it connects", || gateway.broker.status().link != Link::Down && knows()).await;
    gateway.append([b"\xff\x00 raw".to_vec()], 1_700_000_000_000).await;
    eventually("it arrives and goes", || gateway.kept(STREAM) == 0).await;
    let taken = broker.taken().remove(0);
    assert_eq!(
        (&taken.payload[..], taken.topic.as_str(), taken.qos),
        (&b"\xff\x00 raw"[..], "site/hall-3/readings", 1)
    );
    let property = |name: &str| taken.properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!(property("id"), Some("hall-3/readings/1"));
    assert_eq!(property("time_ms"), Some("1700000000000"));
    assert_eq!(property("replayed"), Some("false"));
}

/// Two weeks without a broker: `max_age` and `max_bytes` take what they must and count it, memory and the log stay bounded, and
/// when the broker is back everything else arrives, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_days_without_a_broker_everything_within_the_limits_arrives_in_order() {
    const DAY: u64 = 86_400_000;
    let broker = StrictBroker::start(Strictness::default()).await;
    broker.down();
    let dir = TempDir::new().unwrap();
    let clock = Clock::held_at(1_700_000_000_000);
    let stream = StreamConfig { max_age: Some(Span::from_secs(7 * 86_400)), max_bytes: ByteSize::mib(1), ..config() };
    let mut gateway = Gateway::start(dir.path(), &mqtt(&broker, 5), &stream, &clock);
    for day in 0..14 {
        gateway.append((0..200).map(|_| format!("\"{}\"", "1".repeat(1000)).into_bytes()), clock.now_ms()).await;
        gateway.kill(dir.path()).await;
        // Five days pass after the last of them.
        clock.set(1_700_000_000_000 + (day + if day == 13 { 5 } else { 1 }) * DAY);
        gateway = Gateway::start(dir.path(), &mqtt(&broker, 5), &stream, &clock);
    }
    let status = || gateway.journal.status().into_iter().find(|stream| stream.name == readings()).unwrap();
    eventually("the limits are kept", || status().bytes <= 1 << 20 && status().dropped_by_age > 0).await;
    // A day's records are one piece or a few, which go together.
    let before = status();
    assert_eq!(before.records + before.dropped_by_age + before.dropped_by_bytes, 2800, "{before:?}");
    assert!(before.dropped_by_bytes > 0 && before.records >= 400, "{before:?}");
    broker.up();
    eventually("all arrive and go", || gateway.kept(STREAM) == 0).await;
    let arrived = firsts(&broker.taken());
    let oldest = 2800 - before.records + 1;
    assert_eq!(arrived, (oldest..=2800).collect::<Vec<_>>());
    assert_eq!(broker.violations(), Vec::<String>::new());
}
