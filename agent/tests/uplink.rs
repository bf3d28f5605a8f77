//! The promises of the uplink, against a broker that does as it is told.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::RangeInclusive;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::broker;
use tidegate::clock::Clock;
use tidegate::config::{BatchConfig, Drain, Rate, StreamConfig, UplinkConfig};
use tidegate::invocation::Publish;
use tidegate::journal::{Batch, Journal, JournalConfig, RecordMeta};
use tidegate::limits::Limits;
use tidegate::name::{BrokerName, GatewayName, StreamName};
use tidegate::receipt::{NotKept, Receipt};
use tidegate::units::Span;
use tidegate::uplink::{Link, Publisher, Publishers, Uplink, UplinkState, UplinkStatus, WINDOW_RECORDS};
use tokio::sync::watch;

/// Keeps what is published; confirms at once while it is up and not mute.
struct FakeBroker {
    state: Mutex<FakeState>,
    reconnects: AtomicU64,
    link: watch::Sender<broker::Link>,
}

#[derive(Default)]
struct FakeState {
    up: bool,
    mute: bool,
    arrived: Vec<(String, u64, bool)>,
    waiting: Vec<(Publish, Receipt)>,
    /// Sequences to refuse once, and those to refuse each time.
    refuse: Vec<u64>,
    never: Vec<u64>,
    /// Whether its rules allow nothing.
    closed: bool,
    at_once: usize,
}

impl FakeBroker {
    fn new(up: bool) -> Arc<Self> {
        let link = watch::Sender::new(if up { broker::Link::Up } else { broker::Link::Down });
        let state = Mutex::new(FakeState { up, at_once: 1_000, ..FakeState::default() });
        Arc::new(Self { state, reconnects: AtomicU64::new(0), link })
    }

    /// Is there again, and confirms.
    fn up(&self) {
        self.back();
        self.speak();
    }

    /// Is there again, as talkative as before.
    fn back(&self) {
        self.reconnects.fetch_add(1, Ordering::SeqCst);
        self.state.lock().unwrap().up = true;
        self.link.send_replace(broker::Link::Up);
    }

    fn down(&self) {
        self.state.lock().unwrap().up = false;
        self.link.send_replace(broker::Link::Down);
    }

    /// Takes what comes, and confirms nothing.
    fn mute(&self) {
        self.state.lock().unwrap().mute = true;
    }

    /// Confirms all that came meanwhile.
    fn speak(&self) {
        let waiting = {
            let mut state = self.state.lock().unwrap();
            state.mute = false;
            std::mem::take(&mut state.waiting)
        };
        for (message, receipt) in waiting {
            self.take(message, receipt);
        }
    }

    fn take(&self, message: Publish, receipt: Receipt) {
        let json: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
        let (sequence, replayed) = (json["sequence"].as_u64().unwrap(), json["replayed"].as_bool().unwrap());
        let stream = json["stream"].as_str().unwrap().to_owned();
        let mut state = self.state.lock().unwrap();
        if state.never.contains(&sequence) {
            drop(state);
            receipt.fail(NotKept::ForGood("far too large".to_owned()));
        } else if state.closed {
            drop(state);
            receipt.fail(NotKept::NotAllowed("NotAuthorized".to_owned()));
        } else if let Some(at) = state.refuse.iter().position(|refused| *refused == sequence) {
            state.refuse.remove(at);
            drop(state);
            receipt.fail("quota exceeded");
        } else if state.up && !state.mute {
            state.arrived.push((stream, sequence, replayed));
            drop(state);
            receipt.keep();
        } else {
            state.waiting.push((message, receipt));
        }
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting.len()
    }

    fn arrived(&self) -> Vec<(u64, bool)> {
        let state = self.state.lock().unwrap();
        state.arrived.iter().map(|(_, sequence, replayed)| (*sequence, *replayed)).collect()
    }

    fn sequences(&self) -> Vec<u64> {
        self.arrived().into_iter().map(|(sequence, _)| sequence).collect()
    }
}

impl Publisher for FakeBroker {
    fn publish(&self, message: Publish, receipt: Receipt) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.take(message, receipt);
        Box::pin(std::future::ready(()))
    }

    fn link(&self) -> Link {
        let state = self.state.lock().unwrap();
        Link { connected: state.up, reconnects: self.reconnects.load(Ordering::SeqCst), at_once: state.at_once }
    }

    fn changes(&self) -> watch::Receiver<broker::Link> {
        self.link.subscribe()
    }
}

fn readings() -> StreamName {
    StreamName::parse("readings").unwrap()
}

fn cloud() -> BrokerName {
    BrokerName::parse("cloud").unwrap()
}

fn stream(max_records: u32, max_wait: Duration) -> StreamConfig {
    let batch = BatchConfig { max_records, max_wait: Span(max_wait) };
    let uplink = Some(UplinkConfig::mqtt(cloud(), "site/{gateway}/{stream}"));
    StreamConfig { uplink, batch, ..StreamConfig::default() }
}

fn streams(max_records: u32, max_wait: Duration) -> BTreeMap<StreamName, StreamConfig> {
    BTreeMap::from([(readings(), stream(max_records, max_wait))])
}

fn soon() -> BTreeMap<StreamName, StreamConfig> {
    streams(500, Duration::from_millis(5))
}

fn open(dir: &Path) -> Arc<Journal> {
    open_with(dir, soon())
}

fn open_with(dir: &Path, streams: BTreeMap<StreamName, StreamConfig>) -> Arc<Journal> {
    let config = JournalConfig { streams, limits: Arc::new(Limits::default()) };
    Arc::new(Journal::open(dir, config, Clock::system()).unwrap())
}

async fn append(journal: &Journal, numbers: RangeInclusive<u64>) {
    append_to(journal, &readings(), numbers).await;
}

async fn append_to(journal: &Journal, stream: &StreamName, numbers: RangeInclusive<u64>) {
    let meta = RecordMeta { time_ms: 1, ..RecordMeta::default() };
    let records = numbers.map(|n| (stream.clone(), Bytes::from(format!("{n}")), meta.clone())).collect();
    journal.commit(Batch { records, ..Batch::default() }).await.unwrap();
}

fn start(journal: &Arc<Journal>, broker: &Arc<FakeBroker>, streams: &BTreeMap<StreamName, StreamConfig>) -> Uplink {
    let publishers: Publishers = BTreeMap::from([(cloud(), Arc::clone(broker) as Arc<dyn Publisher>)]);
    let gateway = GatewayName::parse("hall-3").unwrap();
    Uplink::start(Arc::clone(journal), &publishers, gateway, streams, Clock::system()).unwrap()
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
    kept_in(journal, readings().as_str())
}

fn kept_in(journal: &Journal, name: &str) -> u64 {
    journal.status().iter().find(|stream| stream.name.as_str() == name).unwrap().records
}

fn status(uplink: &Uplink) -> UplinkStatus {
    uplink.status()[&readings()].clone()
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
    let status = status(&uplink);
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
    eventually("it is seen", || status(&uplink).state == UplinkState::Offline).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((broker.waiting(), kept(&journal)), (0, 4999));
    broker.mute();
    broker.back();
    eventually("the window fills", || broker.waiting() == WINDOW_RECORDS).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((broker.waiting(), kept(&journal)), (WINDOW_RECORDS, 4999));
    broker.speak();
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
        append(&journal, round..=round).await;
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
    broker.mute();
    append(&journal, 11..=20).await;
    eventually("ten are under way", || broker.waiting() == 10).await;
    uplink.stop().await;
    drop((uplink, journal));
    // Their fate is unknown: the old connection is gone.
    broker.state.lock().unwrap().waiting.clear();
    broker.speak();

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
    assert_eq!(status(&uplink).refused, 1);
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
    assert_eq!(status(&uplink).sent, 5, "the same task goes on");
    uplink.configure(&publishers, &BTreeMap::new(), &[]).await;
    append(&journal, 6..=6).await;
    assert_eq!(uplink.status().len(), 0);
    uplink.configure(&publishers, &soon(), &[]).await;
    eventually("the sixth arrives", || broker.sequences() == [1, 2, 3, 4, 5, 6]).await;
}

#[tokio::test]
async fn new_records_leave_before_the_backlog_each_in_order() {
    let dir = TempDir::new().unwrap();
    let config = StreamConfig { drain: Drain::LiveFirst, ..stream(500, Duration::from_millis(5)) };
    let streams = BTreeMap::from([(readings(), config)]);
    let (journal, broker) = (open_with(dir.path(), streams.clone()), FakeBroker::new(false));
    append(&journal, 1..=20_000).await;
    broker.mute();
    let uplink = start(&journal, &broker, &streams);
    eventually("it is seen", || status(&uplink).state == UplinkState::Offline).await;
    broker.back();
    eventually("the backlog leaves", || broker.waiting() == WINDOW_RECORDS).await;
    append(&journal, 20_001..=20_100).await;
    broker.speak();
    eventually("all arrive and go", || kept(&journal) == 0).await;
    let arrived = broker.arrived();
    let (backlog, live): (Vec<_>, Vec<_>) = arrived.iter().partition(|(_, replayed)| *replayed);
    assert_eq!(live.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (20_001..=20_100).collect::<Vec<_>>());
    assert_eq!(backlog.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (1..=20_000).collect::<Vec<_>>());
    let last = arrived.iter().position(|(n, _)| *n == 20_100).unwrap();
    assert!(last < 10_000, "the last new record came as number {last}");
}

/// What has arrived of a `live-first` stream is not sent again after a restart, though what is older has not.
#[tokio::test]
async fn what_arrived_out_of_order_is_remembered() {
    let dir = TempDir::new().unwrap();
    let config = StreamConfig { drain: Drain::LiveFirst, ..stream(500, Duration::from_millis(5)) };
    let streams = BTreeMap::from([(readings(), config)]);
    let broker = FakeBroker::new(true);
    broker.state.lock().unwrap().refuse = vec![2; 1000];
    let journal = open_with(dir.path(), streams.clone());
    let uplink = start(&journal, &broker, &streams);
    append(&journal, 1..=5).await;
    eventually("all but one arrive and go", || kept(&journal) == 1).await;
    uplink.stop().await;
    drop((uplink, journal));
    broker.state.lock().unwrap().refuse.clear();
    let journal = open_with(dir.path(), streams.clone());
    let _uplink = start(&journal, &broker, &streams);
    eventually("it arrives", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), [1, 3, 4, 5, 2]);
}

#[tokio::test]
async fn of_two_streams_on_a_link_the_higher_priority_leaves_first_and_the_lower_is_not_starved() {
    let dir = TempDir::new().unwrap();
    let alarms = StreamName::parse("alarms").unwrap();
    let low = stream(500, Duration::from_millis(5));
    let high = StreamConfig { priority: 9, ..low.clone() };
    let streams = BTreeMap::from([(readings(), low), (alarms.clone(), high)]);
    let (journal, broker) = (open_with(dir.path(), streams.clone()), FakeBroker::new(false));
    append_to(&journal, &readings(), 1..=5000).await;
    append_to(&journal, &alarms, 1..=5000).await;
    let uplink = start(&journal, &broker, &streams);
    let both_wait = || uplink.status().values().all(|status| status.state == UplinkState::Offline);
    eventually("both wait", both_wait).await;
    // Time to read ahead, so that both are ready when the link is.
    tokio::time::sleep(Duration::from_millis(300)).await;
    broker.up();
    eventually("all arrive and go", || kept(&journal) + kept_in(&journal, "alarms") == 0).await;
    let arrived = broker.state.lock().unwrap().arrived.clone();
    let last_alarm = arrived.iter().rposition(|(stream, ..)| stream == "alarms").unwrap();
    let readings_before = last_alarm + 1 - 5000;
    let alarms = |part: &[(String, u64, bool)]| part.iter().filter(|(stream, ..)| stream == "alarms").count();
    let parts: Vec<usize> = arrived.chunks(500).map(alarms).collect();
    assert!((50..1500).contains(&readings_before), "{readings_before} readings before the last alarm: {parts:?}");
}

#[tokio::test]
async fn a_record_that_can_never_be_taken_becomes_a_dead_letter() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    broker.state.lock().unwrap().never = vec![3];
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=10).await;
    eventually("the others arrive and go", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), [1, 2, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!((kept_in(&journal, "dead-letters"), status(&uplink).dead_letters), (1, 1));
    let letters = journal.read(&StreamName::parse("dead-letters").unwrap(), 0, 10, 1 << 20).unwrap();
    let letter: serde_json::Value = serde_json::from_slice(&letters[0].data).unwrap();
    assert_eq!((&letter["record"]["stream"], &letter["reason"]), (&"readings".into(), &"far too large".into()));
    assert_eq!(
        (&letter["record"]["id"], &letter["record"]["data_base64"]),
        (&"hall-3/readings/3".into(), &"Mw==".into())
    );
}

/// What functions publish on the same link would have to wait behind the rest.
#[tokio::test]
async fn a_broker_that_takes_few_at_once_gets_few() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    broker.mute();
    broker.state.lock().unwrap().at_once = 20;
    let _uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=100).await;
    eventually("twice as many are on their way", || broker.waiting() == 40).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(broker.waiting(), 40);
    broker.speak();
    eventually("all arrive and go", || kept(&journal) == 0).await;
}

/// A wrong permission is nothing that a record could help: all wait, in their order, until it is mended.
#[tokio::test]
async fn what_the_broker_does_not_allow_waits_until_it_does() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    broker.state.lock().unwrap().closed = true;
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=100).await;
    eventually("it waits", || status(&uplink).state == UplinkState::Refused).await;
    assert!(status(&uplink).last_error.is_some_and(|why| why.contains("NotAuthorized")));
    assert_eq!((kept_in(&journal, "dead-letters"), kept(&journal)), (0, 100));
    broker.state.lock().unwrap().closed = false;
    eventually("all arrive and go", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), (1..=100).collect::<Vec<_>>());
}

/// When nothing at all is taken it is not the records' fault.
#[tokio::test]
async fn when_every_record_is_refused_they_wait() {
    let dir = TempDir::new().unwrap();
    let (journal, broker) = (open(dir.path()), FakeBroker::new(true));
    broker.state.lock().unwrap().never = (1..=100).collect();
    let uplink = start(&journal, &broker, &soon());
    append(&journal, 1..=100).await;
    eventually("it waits", || status(&uplink).state == UplinkState::Refused).await;
    assert_eq!((kept_in(&journal, "dead-letters"), kept(&journal)), (10, 90));
    broker.state.lock().unwrap().never.clear();
    eventually("the others arrive and go", || kept(&journal) == 0).await;
    assert_eq!(broker.sequences(), (11..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_keeps_to_its_rate() {
    let dir = TempDir::new().unwrap();
    let mut config = stream(500, Duration::from_millis(5));
    config.uplink.as_mut().unwrap().max_rate = Some(Rate::Records(200));
    let streams = BTreeMap::from([(readings(), config)]);
    let (journal, broker) = (open_with(dir.path(), streams.clone()), FakeBroker::new(true));
    append(&journal, 1..=1000).await;
    let uplink = start(&journal, &broker, &streams);
    let begin = Clock::system().instant();
    eventually("it is held back", || status(&uplink).state == UplinkState::Throttled).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (sent, most) = (broker.sequences().len(), 20.0 + 200.0 * begin.elapsed().as_secs_f64() + 1.0);
    assert!((100..).contains(&sent) && (sent as f64) <= most, "{sent} of at most {most}");
    uplink.stop().await;
}
