//! The dispatcher on a real journal, with guests that append what they get to the stream `results`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::dead_letter::What;
use super::*;
use crate::capability::Capabilities;
use crate::config::StreamConfig;
use crate::config::function::{IdempotencyConfig, Isolation, KeyPart, Order, RetryConfig};
use crate::event::Opened;
use crate::inference::Models;
use crate::journal::{DEAD_LETTERS, Journal, JournalConfig};
use crate::name::{GatewayName, Own, StreamName};
use crate::runtime::tests::guest;
use crate::runtime::{Chance, RuntimeConfig, Services, Threads};
use crate::trigger::actuators::Actuators;
use crate::trigger::window::Windows;
use crate::units::{ByteSize, Span};

const PATIENCE: Duration = Duration::from_secs(30);

/// What an event that begins with `x` does before `attempt`: it asks for another.
fn retries_until(attempt: u32) -> String {
    format!(
        "(if (i32.and (i32.eq (i32.load8_u (call $data (local.get $event))) (i32.const 0x78))
                      (i32.lt_u (i32.load (i32.add (local.get $event) (i32.const 104))) (i32.const {attempt})))
           (then (return (call $fail (i32.const 0) (i32.const 2048) (i32.const 7)))))"
    )
}

fn takes_ms(ms: u64) -> String {
    format!("(call $block (call $after (i64.const {})))", ms * 1_000_000)
}

const APPENDS: &str = "
    (drop (call $append (i32.const 2048) (i32.const 7) (call $data (local.get $event)) (call $data_bytes (local.get $event))))
    (call $answer (i32.const 2048) (i32.const 0))";

/// A gateway's inside: dispatcher, runtime, journal.
struct Lab {
    dir: TempDir,
    runtime: Runtime,
    journal: Arc<Journal>,
    dispatcher: Dispatcher,
    kept: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
}

fn name() -> FunctionName {
    FunctionName::parse("guest").unwrap()
}

impl Lab {
    fn new(limits: Limits) -> Self {
        Self::open(tempfile::tempdir().unwrap(), limits)
    }

    fn open(dir: TempDir, limits: Limits) -> Self {
        let (limits, clock, metrics) = (Arc::new(limits), Clock::system(), Metrics::new());
        let streams = BTreeMap::from([(StreamName::parse("results").unwrap(), StreamConfig::default())]);
        let config = JournalConfig { streams, limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&dir.path().join("journal"), config, clock.clone()).unwrap());
        let services = Services {
            models: Arc::new(Models::default()),
            journal: Arc::clone(&journal),
            clock: clock.clone(),
            limits: Arc::clone(&limits),
            chance: Chance::default(),
        };
        let config = RuntimeConfig { instances_max: 8, threads: Threads::Own(2), ..RuntimeConfig::default() };
        let runtime = Runtime::new(config, services).unwrap();
        let gateway = GatewayName::parse("lab").unwrap();
        let outlets = Outlets::new(
            Arc::clone(&journal),
            Actuators::default(),
            gateway,
            Arc::clone(&limits),
            metrics.clone(),
            clock.clone(),
        )
        .unwrap();
        let dispatcher = Dispatcher::new(runtime.clone(), outlets, metrics, Tracer::off(), limits, clock);
        Self { dir, runtime, journal, dispatcher, kept: Arc::default(), lost: Arc::default() }
    }

    /// What a power cut would leave, in a gateway that starts from it.
    fn after_a_crash(&self, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        Self::open(dir, limits)
    }

    async fn deploy(&self, body: &str, change: impl FnOnce(&mut FunctionSpec)) {
        let component = guest::component(&format!("{body}{APPENDS}"), "results");
        let digest = Sha256::digest(&component).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let file = self.dir.path().join(format!("{digest}.wasm"));
        std::fs::write(&file, component).unwrap();
        let mut spec = FunctionSpec {
            name: name(),
            version: Arc::from("1.0.0"),
            component: file,
            digest: Arc::from(digest),
            root: self.dir.path().to_owned(),
            layers: None,
            folders: BTreeMap::new(),
            timeout: Span::parse("5s").unwrap(),
            memory: ByteSize::mib(4),
            concurrency: 1,
            isolation: Isolation::Warm,
            environment: BTreeMap::new(),
            capabilities: Capabilities(vec!["stream:results".parse().unwrap()]),
            retry: RetryConfig { attempts: 5, ..RetryConfig::default() },
            idempotency: None,
            order: Order::None,
            on_success: Vec::new(),
            on_failure: Vec::new(),
            triggers: Vec::new(),
        };
        change(&mut spec);
        self.dispatcher.deploy(self.runtime.load(Arc::new(spec)).await.unwrap());
    }

    fn submit(&self, topic: &str, payload: &str) {
        let event = Event {
            id: crate::event::new_id(),
            subject: Some(topic.into()),
            data: payload.to_owned().into(),
            ..Event::default()
        };
        let (kept, lost) = (Arc::clone(&self.kept), Arc::clone(&self.lost));
        let receipt = Receipt::new(move |result| {
            let counter = if result.is_ok() { kept } else { lost };
            counter.fetch_add(1, Ordering::SeqCst);
        });
        self.dispatcher.submit(&name(), Arc::new(event), Delivery::AtLeastOnce, receipt).unwrap();
    }

    fn kept(&self) -> usize {
        self.kept.load(Ordering::SeqCst)
    }

    fn payloads(&self, stream: &StreamName) -> Vec<String> {
        let records = self.journal.read(stream, 0, 100_000, usize::MAX).unwrap();
        records.iter().map(|record| String::from_utf8(record.data.to_vec()).unwrap()).collect()
    }

    fn results(&self) -> Vec<String> {
        self.payloads(&StreamName::parse("results").unwrap())
    }

    fn parked(&self) -> usize {
        self.dispatcher.functions()[0].parked
    }

    fn outcomes(&self, label: &str) -> u64 {
        let metrics = &self.dispatcher.functions()[0].metrics;
        metrics.outcomes().find(|(outcome, _)| *outcome == label).unwrap().1
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        if !within(PATIENCE, || done(self)).await {
            panic!("{what}: {} kept, {} parked, results {:?}", self.kept(), self.parked(), self.results());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_for_another_attempt_is_acknowledged_and_on_disk() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&retries_until(2), |_| {}).await;
    lab.submit("a", "x");
    lab.until("acknowledged", |lab| lab.kept() == 1).await;
    assert_eq!((lab.parked(), lab.results()), (1, vec![]));
    lab.until("tried again", |lab| lab.parked() == 0).await;
    assert_eq!(lab.results(), ["x"]);
    let own = lab.journal.own_status();
    let left = own.iter().find(|status| status.name == StreamName::own(Own::Parked, "guest")).unwrap();
    assert_eq!(left.records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_resumes_what_waits_with_its_attempts_counted() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&retries_until(3), |_| {}).await;
    lab.submit("a", "x");
    lab.until("the second attempt", |lab| lab.outcomes("retry") == 2 && lab.parked() == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let again = lab.after_a_crash(Limits::default());
    again.deploy(&retries_until(3), |_| {}).await;
    again.until("the third attempt", |lab| lab.results() == ["x"] && lab.parked() == 0).await;
    assert_eq!((again.outcomes("retry"), again.outcomes("succeeded")), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_attempts_an_event_is_a_dead_letter_and_nothing_else() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&retries_until(9), |spec| spec.retry.attempts = 2).await;
    lab.submit("a", "x");
    let letters = StreamName::parse(DEAD_LETTERS).unwrap();
    lab.until("the dead letter", |lab| lab.payloads(&letters).len() == 1 && lab.parked() == 0).await;
    let again = lab.after_a_crash(Limits::default());
    again.deploy("", |_| {}).await;
    again.submit("a", "1");
    again.until("the next event", |lab| lab.results() == ["1"]).await;
    assert_eq!((again.parked(), again.payloads(&letters).len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_retry_holds_up_its_own_topic_only() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&retries_until(2), |spec| (spec.order, spec.concurrency) = (Order::Topic, 8)).await;
    for (topic, payload) in [("a", "x1"), ("a", "a2"), ("b", "b1"), ("a", "a3"), ("b", "b2")] {
        lab.submit(topic, payload);
    }
    lab.until("all acknowledged", |lab| lab.kept() == 5).await;
    assert_eq!(lab.results(), ["b1", "b2"]);
    lab.submit("a", "a4");
    lab.until("all done", |lab| lab.results().len() == 6).await;
    assert_eq!(lab.results(), ["b1", "b2", "x1", "a2", "a3", "a4"]);
    lab.until("nothing on disk", |lab| lab.parked() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_keep_their_order_over_retries_spill_and_a_crash() {
    const TOPICS: usize = 5;
    const EVENTS: usize = 40;
    let limits = || Limits { spill_events: 20, ..Limits::default() };
    let configure = |spec: &mut FunctionSpec| (spec.order, spec.concurrency) = (Order::Topic, 8);
    let body = format!("{}{}", retries_until(2), takes_ms(1));
    let lab = Lab::new(limits());
    lab.deploy(&body, configure).await;
    for n in 0..EVENTS {
        for topic in 0..TOPICS {
            let fails = if n % 17 == topic { "x" } else { "" };
            lab.submit(&format!("t{topic}"), &format!("{fails}t{topic}.{n}"));
        }
    }
    lab.until("all acknowledged", |lab| lab.kept() == TOPICS * EVENTS).await;
    let again = lab.after_a_crash(limits());
    again.deploy(&body, configure).await;
    again.until("all done", |lab| lab.results().len() >= TOPICS * EVENTS && lab.parked() == 0).await;
    for topic in 0..TOPICS {
        let of_topic = |result: &String| {
            let (of, n) = result.trim_start_matches('x').split_once('.').unwrap();
            (of == format!("t{topic}")).then(|| n.parse::<usize>().unwrap())
        };
        let mut order: Vec<_> = again.results().iter().filter_map(of_topic).collect();
        order.dedup();
        assert_eq!(order, (0..EVENTS).collect::<Vec<_>>(), "topic {topic}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_room_for_waits_on_disk_in_order() {
    let lab = Lab::new(Limits { spill_events: 10, ..Limits::default() });
    lab.deploy(&takes_ms(4), |_| {}).await;
    for n in 0..300 {
        lab.submit("a", &n.to_string());
    }
    lab.until("acknowledged", |lab| lab.kept() >= 280).await;
    assert!(lab.results().len() < 200, "{} were done before", lab.results().len());
    lab.until("all done", |lab| lab.parked() == 0 && lab.results().len() == 300).await;
    assert_eq!(lab.results(), numbered(0..300));
    assert_eq!(lab.kept(), 300);
    assert!(lab.dispatcher.functions()[0].metrics.spilled.get() >= 280);
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_on_disk_acknowledgements_stop_and_go_on_by_themselves() {
    let lab = Lab::new(Limits { spill_events: 10, parked_events_max: 20, ..Limits::default() });
    lab.deploy(&takes_ms(10), |_| {}).await;
    for n in 0..100 {
        lab.submit("a", &n.to_string());
    }
    lab.until("the disk to be full", |lab| lab.parked() == 20).await;
    assert!(lab.kept() < 60, "{} were acknowledged", lab.kept());
    lab.until("all done", |lab| lab.results().len() == 100 && lab.kept() == 100).await;
    assert_eq!((lab.results(), lab.lost.load(Ordering::SeqCst)), (numbered(0..100), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_does_not_take_is_held_in_memory() {
    let lab = Lab::new(Limits { parked_events_max: 0, ..Limits::default() });
    lab.deploy(&retries_until(2), |_| {}).await;
    lab.submit("a", "x");
    lab.until("the first attempt", |lab| lab.outcomes("retry") == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((lab.kept(), lab.parked()), (0, 0));
    lab.until("the second attempt", |lab| lab.kept() == 1).await;
    assert_eq!(lab.results(), ["x"]);

    // The disk itself.
    let lab = Lab::new(Limits { spill_events: 5, ..Limits::default() });
    lab.deploy(&format!("{}(return (call $answer (i32.const 2048) (i32.const 0)))", takes_ms(5)), |_| {}).await;
    lab.journal.close().await.unwrap();
    for n in 0..50 {
        lab.submit("a", &n.to_string());
    }
    lab.until("all done", |lab| lab.kept() == 50).await;
    assert_eq!(lab.parked(), 0);
}

fn once(key: &str) -> Option<IdempotencyConfig> {
    Some(IdempotencyConfig { key: vec![KeyPart::Topic, KeyPart::parse(key).unwrap()], window: Span::from_secs(60) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_of_what_was_dealt_with_is_not_run() {
    let lab = Lab::new(Limits::default());
    lab.deploy("", |spec| spec.idempotency = once("/seq")).await;
    for (topic, payload) in [("a", r#"{"seq":1}"#), ("a", r#"{"seq":2}"#), ("b", r#"{"seq":1}"#)] {
        lab.submit(topic, payload);
        lab.submit(topic, payload);
    }
    lab.until("all acknowledged", |lab| lab.kept() == 6).await;
    assert_eq!(lab.results().len(), 3);
    assert_eq!(lab.dispatcher.functions()[0].metrics.duplicates.get(), 3);
    let again = lab.after_a_crash(Limits::default());
    again.deploy("", |spec| spec.idempotency = once("/seq")).await;
    again.submit("a", r#"{"seq":2}"#);
    again.submit("a", r#"{"seq":3}"#);
    again.until("both acknowledged", |lab| lab.kept() == 2).await;
    assert_eq!(again.results().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_in_flight_waits_for_the_outcome_of_the_first() {
    let lab = Lab::new(Limits::default());
    // Fails at first: nothing is marked by that, and the next one has its try.
    let body = format!("{}{}", takes_ms(50), retries_until(2));
    lab.deploy(&body, |spec| (spec.idempotency, spec.concurrency) = (once("id"), 8)).await;
    let event = Arc::new(Event { id: "1".into(), subject: Some("a".into()), data: "x".into(), ..Event::default() });
    for _ in 0..4 {
        let kept = Arc::clone(&lab.kept);
        let receipt = Receipt::new(move |result| {
            kept.fetch_add(usize::from(result.is_ok()), Ordering::SeqCst);
        });
        lab.dispatcher.submit(&name(), Arc::clone(&event), Delivery::AtLeastOnce, receipt).unwrap();
    }
    lab.until("all settled", |lab| lab.kept() == 4 && lab.parked() == 0).await;
    assert_eq!(lab.results(), ["x"]);
    assert_eq!((lab.outcomes("succeeded"), lab.dispatcher.functions()[0].metrics.duplicates.get()), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_its_key_is_rejected_with_the_reason() {
    let lab = Lab::new(Limits::default());
    lab.deploy("", |spec| spec.idempotency = once("/seq")).await;
    lab.submit("a", r#"{"n":1}"#);
    lab.submit("a", "no JSON");
    let letters = StreamName::parse(DEAD_LETTERS).unwrap();
    lab.until("both dead letters", |lab| lab.payloads(&letters).len() == 2).await;
    for letter in lab.payloads(&letters) {
        assert!(letter.contains("`idempotency.key` needs `/seq`"), "{letter}");
    }
    assert!(lab.results().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_wait_for_their_function_to_come_back() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&retries_until(2), |_| {}).await;
    lab.submit("a", "x");
    lab.until("parked", |lab| lab.kept() == 1).await;
    lab.dispatcher.remove(&name());
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(lab.results().is_empty());
    assert_eq!(lab.dispatcher.orphans(), [(name(), 1)]);
    // Another version, which needs no other attempt.
    lab.deploy("", |_| {}).await;
    lab.until("done", |lab| lab.results() == ["x"] && lab.parked() == 0).await;
    assert!(lab.dispatcher.orphans().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_of_a_function_that_stays_away_become_dead_letters() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&retries_until(9), |spec| spec.retry.max_age = Span::from_secs(2)).await;
    lab.submit("a", "x");
    lab.until("parked", |lab| lab.kept() == 1).await;
    lab.dispatcher.remove(&name());
    orphans::give_up(&lab.dispatcher.inner, &name(), Own::Parked).await.unwrap();
    assert_eq!(lab.dispatcher.orphans(), [(name(), 1)]);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    orphans::give_up(&lab.dispatcher.inner, &name(), Own::Parked).await.unwrap();
    assert!(lab.dispatcher.orphans().is_empty());
    let letters = lab.payloads(&StreamName::parse(DEAD_LETTERS).unwrap());
    assert!(letters.len() == 1 && letters[0].contains("unclaimed"), "{letters:?}");
    lab.deploy("", |_| {}).await;
    assert_eq!(lab.parked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_windows_of_a_function_that_stays_away_become_dead_letters() {
    let limits = Limits { windowed_age_max: Span::from_secs(0), ..Limits::default() };
    let lab = Lab::new(limits.clone());
    let mut specs = Vec::new();
    let trigger = "mqtt = { filter = \"#\" }\nwindow = { count = 100 }";
    lab.deploy("", |spec| {
        spec.triggers = vec![toml::from_str(trigger).unwrap()];
        specs.push(Arc::new(spec.clone()));
    })
    .await;
    let to = Arc::new(lab.dispatcher.clone());
    let windows = Windows::new(to, Arc::clone(&lab.journal), Metrics::new(), Arc::new(limits), Clock::system());
    windows.apply(&specs);
    let window = windows.of(&specs[0])[0].clone().unwrap();
    for (topic, payload) in [("a", "1"), ("b", "2"), ("a", "3")] {
        let event = Event { subject: Some(topic.into()), data: payload.into(), ..Event::default() };
        let kept = Arc::clone(&lab.kept);
        let receipt = Receipt::new(move |result| drop(result.map(|()| kept.fetch_add(1, Ordering::SeqCst))));
        window.put(&Opened::new(&event), receipt).unwrap();
    }
    lab.until("on disk", |lab| lab.kept() == 3).await;
    windows.apply(&[]);
    assert!(lab.dispatcher.inner.orphans(Own::Window).is_empty(), "its function is there");
    lab.dispatcher.remove(&name());
    assert_eq!(lab.dispatcher.inner.orphans(Own::Window), [(name(), 3)]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    orphans::give_up(&lab.dispatcher.inner, &name(), Own::Window).await.unwrap();
    assert!(lab.dispatcher.inner.orphans(Own::Window).is_empty());
    let letters = lab.dispatcher.letters(Some(&name()), 0, 10).await.unwrap().letters;
    let windows = letters.iter().map(|stored| {
        assert_eq!(stored.letter.outcome, "unclaimed");
        let What::Event(event) = &stored.letter.what else { panic!("{stored:?}") };
        let items: Vec<serde_json::Value> = serde_json::from_slice(&event.event().data).unwrap();
        items.iter().map(|item| item["data"].as_u64().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(windows.collect::<Vec<_>>(), [vec![1, 3], vec![2]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_begun_when_the_agent_stops_goes_to_disk() {
    let lab = Lab::new(Limits::default());
    lab.deploy(&takes_ms(30), |spec| spec.order = Order::Topic).await;
    for n in 0..40 {
        lab.submit(if n % 2 == 0 { "a" } else { "b" }, &n.to_string());
    }
    lab.dispatcher.drain(Duration::from_millis(300)).await;
    lab.until("all acknowledged", |lab| lab.kept() == 40).await;
    let done = lab.results().len();
    assert!((1..40).contains(&done), "{done} were done");
    let again = lab.after_a_crash(Limits::default());
    again.deploy("", |spec| spec.order = Order::Topic).await;
    again.until("all done", |lab| lab.results().len() == 40 && lab.parked() == 0).await;
    for half in 0..2 {
        let numbers = again.results().into_iter().map(|n| n.parse::<u32>().unwrap()).filter(|n| n % 2 == half);
        assert!(numbers.is_sorted(), "{:?}", again.results());
    }
}
