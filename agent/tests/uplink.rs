//! The promises of the uplink, against a broker that does as it is told.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::config::{BatchConfig, StreamConfig, UplinkConfig, UplinkPayload};
use tidegate::invocation::Publish;
use tidegate::journal::{Batch, Journal, JournalConfig, RecordMeta};
use tidegate::limits::Limits;
use tidegate::name::{BrokerName, GatewayName, StreamName};
use tidegate::receipt::Receipt;
use tidegate::units::Span;
use tidegate::uplink::{Link, Publisher, Publishers, Uplink, WINDOW_RECORDS};

/// Keeps what is published; confirms at once while it is up, or when it comes up again.
#[derive(Default)]
struct FakeBroker {
    state: Mutex<FakeState>,
    reconnects: AtomicU64,
}

#[derive(Default)]
struct FakeState {
    up: bool,
    arrived: Vec<(u64, bool)>,
    waiting: Vec<(u64, bool, Receipt)>,
    /// Sequences to refuse once.
    refuse: Vec<u64>,
}

impl FakeBroker {
    fn new(up: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(FakeState { up, ..FakeState::default() }), reconnects: AtomicU64::new(0) })
    }

    fn up(&self) {
        self.reconnects.fetch_add(1, Ordering::SeqCst);
        let waiting = {
            let mut state = self.state.lock().unwrap();
            state.up = true;
            std::mem::take(&mut state.waiting)
        };
        for (sequence, replayed, receipt) in waiting {
            self.state.lock().unwrap().arrived.push((sequence, replayed));
            receipt.keep();
        }
    }

    fn down(&self) {
        self.state.lock().unwrap().up = false;
    }

    fn arrived(&self) -> Vec<(u64, bool)> {
        self.state.lock().unwrap().arrived.clone()
    }

    fn sequences(&self) -> Vec<u64> {
        self.arrived().into_iter().map(|(sequence, _)| sequence).collect()
    }
}

impl Publisher for FakeBroker {
    fn publish(&self, message: Publish, receipt: Receipt) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let json: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
        let (sequence, replayed) = (json["sequence"].as_u64().unwrap(), json["replayed"].as_bool().unwrap());
        let mut state = self.state.lock().unwrap();
        if let Some(at) = state.refuse.iter().position(|refused| *refused == sequence) {
            state.refuse.remove(at);
            drop(state);
            receipt.fail("quota exceeded");
        } else if state.up {
            state.arrived.push((sequence, replayed));
            drop(state);
            receipt.keep();
        } else {
            state.waiting.push((sequence, replayed, receipt));
        }
        Box::pin(std::future::ready(()))
    }

    fn link(&self) -> Link {
        let reconnects = self.reconnects.load(Ordering::SeqCst);
        Link { connected: self.state.lock().unwrap().up, reconnects, since_ms: 2 * reconnects }
    }
}

fn readings() -> StreamName {
    StreamName::parse("readings").unwrap()
}

fn cloud() -> BrokerName {
    BrokerName::parse("cloud").unwrap()
}

fn streams(max_records: u32, max_wait: Duration) -> BTreeMap<StreamName, StreamConfig> {
    let uplink =
        UplinkConfig { mqtt: cloud(), topic: "site/{gateway}/{stream}".to_owned(), payload: UplinkPayload::Envelope };
    let batch = BatchConfig { max_records, max_wait: Span(max_wait) };
    BTreeMap::from([(readings(), StreamConfig { uplink: Some(uplink), batch, ..StreamConfig::default() })])
}

fn soon() -> BTreeMap<StreamName, StreamConfig> {
    streams(500, Duration::from_millis(5))
}

fn open(dir: &Path) -> Arc<Journal> {
    let config = JournalConfig { streams: soon(), limits: Arc::new(Limits::default()) };
    Arc::new(Journal::open(dir, config, Clock::system()).unwrap())
}

async fn append(journal: &Journal, numbers: std::ops::RangeInclusive<u64>) {
    append_at(journal, 1, numbers).await;
}

async fn append_at(journal: &Journal, time_ms: u64, numbers: std::ops::RangeInclusive<u64>) {
    let meta = RecordMeta { time_ms, trace_parent: None };
    let records = numbers.map(|n| (readings(), Bytes::from(format!("{n}")), meta.clone())).collect();
    journal.commit(Batch { records, ..Batch::default() }).await.unwrap();
}

fn start(journal: &Arc<Journal>, broker: &Arc<FakeBroker>, streams: &BTreeMap<StreamName, StreamConfig>) -> Uplink {
    let publishers: Publishers = BTreeMap::from([(cloud(), Arc::clone(broker) as Arc<dyn Publisher>)]);
    let gateway = GatewayName::parse("hall-3").unwrap();
    Uplink::start(Arc::clone(journal), &publishers, gateway, streams, Clock::system())
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen within 10 s");
}

fn kept(journal: &Journal) -> u64 {
    journal.status().iter().find(|stream| stream.name == readings()).unwrap().records
}

#[tokio::test]
async fn records_leave_in_order_and_go_once_they_arrived() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    let uplink = start(&journal, &broker, &soon());
    for n in 0..20 {
        append(&journal, n * 100 + 1..=n * 100 + 100).await;
    }
    eventually("all arrive and go", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), (1..=2000).collect::<Vec<_>>());
    assert!(broker.arrived().iter().all(|(_, replayed)| !replayed), "nothing was kept waiting");
    let status = uplink.status().remove(0).1;
    assert_eq!((status.sent, status.confirmed, status.in_flight), (2000, 2000, 0));
}

#[tokio::test]
async fn while_the_broker_is_away_records_wait_and_memory_stays_bounded() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=1).await;
    eventually("the first arrives", || kept(&journal) == 0).await;
    broker.down();
    append(&journal, 2..=5000).await;
    eventually("the window fills", || uplink.status()[0].1.in_flight == WINDOW_RECORDS as u64).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((broker.state.lock().unwrap().waiting.len(), kept(&journal)), (WINDOW_RECORDS, 4999));
    broker.up();
    eventually("all arrive and go", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), (1..=5000).collect::<Vec<_>>());
    append(&journal, 5001..=5001).await;
    eventually("the last arrives", || kept(&journal) == 0).await;
    let replayed: Vec<u64> = broker.arrived().into_iter().filter(|(_, replayed)| *replayed).map(|(n, _)| n).collect();
    assert_eq!(replayed, (2..=5000).collect::<Vec<_>>(), "those that the outage kept waiting, and no others");
}

/// A gateway that starts, or whose link comes back while nothing happens, has nothing to replay.
#[tokio::test]
async fn what_is_made_on_a_new_connection_was_not_kept_waiting() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(false));
    let _uplink = start(&journal, &broker, &soon());
    for round in 1..=2 {
        broker.up();
        append_at(&journal, 2 * round, round..=round).await;
        eventually("it arrives", || kept(&journal) == 0).await;
        broker.down();
    }
    assert_eq!(broker.arrived(), [(1, false), (2, false)]);
}

#[tokio::test]
async fn after_a_restart_sending_goes_on_behind_what_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    let broker = FakeBroker::new(true);
    let journal = open(dir.path());
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=10).await;
    eventually("ten arrive", || kept(&journal) == 0).await;
    broker.down();
    append(&journal, 11..=20).await;
    eventually("ten are under way", || broker.state.lock().unwrap().waiting.len() == 10).await;
    uplink.stop().await;
    drop((uplink, journal));
    // Their fate is unknown: the old connection is gone.
    broker.state.lock().unwrap().waiting.clear();
    broker.up();

    let journal = open(dir.path());
    let _uplink = start(&journal, &broker, &soon());
    append(&journal, 21..=21).await;
    eventually("all arrive", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), (1..=21).collect::<Vec<_>>());
    assert_eq!(broker.arrived()[10..20].iter().filter(|(_, replayed)| *replayed).count(), 10);
    assert_eq!(broker.arrived()[20], (21, false));
}

#[tokio::test]
async fn a_refused_record_is_sent_again() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    broker.state.lock().unwrap().refuse = vec![5];
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=10).await;
    eventually("all arrive and go", || kept(&journal) == 0).await;
    let mut sequences = broker.sequences();
    assert!(broker.arrived().contains(&(5, true)), "{:?}", broker.arrived());
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=10).collect::<Vec<_>>(), "the confirmed ones are not sent again");
    assert_eq!(uplink.status()[0].1.refused, 1);
}

#[tokio::test]
async fn a_batch_leaves_when_it_is_full_or_has_waited() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    let _uplink = start(&journal, &broker, &streams(3, Duration::from_secs(3600)));
    append(&journal, 1..=2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(broker.sequences().is_empty());
    append(&journal, 3..=3).await;
    eventually("a full batch leaves", || broker.sequences() == [1, 2, 3]).await;
}

#[tokio::test]
async fn a_reload_restarts_only_what_changed() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=5).await;
    eventually("five arrive", || kept(&journal) == 0).await;
    let publishers: Publishers = BTreeMap::from([(cloud(), Arc::clone(&broker) as Arc<dyn Publisher>)]);
    uplink.configure(&publishers, &soon(), &[]).await;
    assert_eq!(uplink.status()[0].1.sent, 5, "the same task goes on");
    uplink.configure(&publishers, &BTreeMap::new(), &[]).await;
    append(&journal, 6..=6).await;
    assert_eq!(uplink.status().len(), 0);
    uplink.configure(&publishers, &soon(), &[]).await;
    eventually("the sixth arrives", || broker.sequences() == [1, 2, 3, 4, 5, 6]).await;
}
