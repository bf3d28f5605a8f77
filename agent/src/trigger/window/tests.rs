use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use WindowEnd::{Count, Early, Time};
use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use super::config::WindowConfig;
use super::gather::{Gather, Key, Member, Window};
use super::{Delivery, Refused, Submit, Windows, overdue, stream_of};
use crate::capability::Capabilities;
use crate::clock::Clock;
use crate::config::function::{Isolation, Order, RetryConfig};
use crate::event::{Event, Opened};
use crate::function::FunctionSpec;
use crate::journal::{Journal, JournalConfig};
use crate::limits::Limits;
use crate::metrics::{Metrics, WindowEnd};
use crate::name::FunctionName;
use crate::receipt::{NotKept, Receipt};
use crate::units::{ByteSize, Span};

fn gather_with(window: &str, limits: &Limits) -> Gather {
    let config = toml::from_str::<BTreeMap<String, WindowConfig>>(&format!("window = {window}")).unwrap();
    Gather::new(&config["window"], limits)
}

fn gather(window: &str) -> Gather {
    gather_with(window, &Limits::default())
}

fn key(text: &str) -> Key {
    Some(text.to_owned().into())
}

fn member(sequence: u64, age_ms: u64) -> Member {
    Member { sequence, age_ms, hops: 0, item: Bytes::from_static(b"1234") }
}

/// What ended it, which events it has, and how many of them no later one needs.
type Told = (WindowEnd, Vec<u64>, usize);

fn told(gather: &Gather, windows: Vec<Window>) -> Vec<Told> {
    let one = |window: Window| {
        let members: Vec<_> = gather.members(&window).map(|member| member.sequence).collect();
        let frees = members.iter().filter(|sequence| **sequence < window.needed_from).count();
        (window.end, members, frees)
    };
    windows.into_iter().map(one).collect()
}

fn due(gather: &mut Gather, age_ms: u64) -> Vec<Told> {
    let ended = gather.due(age_ms);
    told(gather, ended)
}

/// What comes of events that come at these times, and are numbered from 1 on.
fn windows(window: &str, ages: &[u64]) -> Vec<Told> {
    let mut gather = gather(window);
    let windows = ages.iter().zip(1..).flat_map(|(age_ms, sequence)| gather.add(None, member(sequence, *age_ms)));
    let windows = windows.collect();
    told(&gather, windows)
}

#[test]
fn a_window_by_count_ends_with_its_last_event() {
    assert_eq!(windows("{ count = 3 }", &[0; 8]), [(Count, vec![1, 2, 3], 3), (Count, vec![4, 5, 6], 3)]);
}

#[test]
fn a_window_by_count_slides() {
    assert_eq!(
        windows("{ count = 3, every = 1 }", &[0; 5]),
        [(Count, vec![1, 2, 3], 1), (Count, vec![2, 3, 4], 1), (Count, vec![3, 4, 5], 1)]
    );
    assert_eq!(
        windows("{ count = 4, every = 3 }", &[0; 7]),
        [(Count, vec![1, 2, 3, 4], 3), (Count, vec![4, 5, 6, 7], 3)]
    );
}

#[test]
fn a_window_by_time_begins_with_its_first_event() {
    let ages = [50_000, 55_000, 59_999, 60_000, 99_000, 109_000];
    assert_eq!(
        windows(r#"{ time = "10s" }"#, &ages),
        [(Time, vec![1, 2, 3], 3), (Time, vec![4], 1), (Time, vec![5], 1)]
    );
}

#[test]
fn a_window_by_time_slides_to_the_first_event_that_came_later() {
    let mut gather = gather(r#"{ time = "60s", every = "10s" }"#);
    for (sequence, age_ms) in [(1, 0), (2, 5_000), (3, 14_000), (4, 30_000)] {
        assert!(gather.add(None, member(sequence, age_ms)).is_empty());
    }
    assert_eq!(gather.next_due(), Some(60_000));
    assert!(gather.due(59_999).is_empty());
    assert_eq!(due(&mut gather, 60_000), [(Time, vec![1, 2, 3, 4], 2)]);
    assert_eq!(gather.next_due(), Some(74_000), "the next one began with event 3");
    assert_eq!(due(&mut gather, 200_000), [(Time, vec![3, 4], 1), (Time, vec![4], 1)]);
    assert_eq!((gather.next_due(), gather.events(), gather.cost()), (None, 0, 0));
}

#[test]
fn of_count_and_time_the_first_ends_it() {
    let ages = [0, 1_000, 2_000, 3_000, 14_000];
    assert_eq!(windows(r#"{ count = 3, time = "10s" }"#, &ages), [(Count, vec![1, 2, 3], 3), (Time, vec![4], 1)]);
    // The next one begins no later than where this one ended.
    assert_eq!(windows(r#"{ count = 5, time = "10s", every = 4 }"#, &[0, 0, 10_000, 10_000]), [(Time, vec![1, 2], 2)]);
    assert_eq!(
        windows(r#"{ count = 2, time = "10s", every = "5s" }"#, &[0, 1, 2, 3]),
        [(Count, vec![1, 2], 2), (Count, vec![3, 4], 2)]
    );
}

#[test]
fn each_key_has_windows_of_its_own() {
    let mut gather = gather(r#"{ count = 2, time = "10s" }"#);
    assert!(gather.add(key("a"), member(1, 0)).is_empty());
    assert!(gather.add(key("b"), member(2, 1)).is_empty());
    assert!(gather.add(None, member(3, 2)).is_empty());
    let ended = gather.add(key("b"), member(4, 3));
    assert_eq!(told(&gather, ended), [(Count, vec![2, 4], 2)]);
    assert_eq!(due(&mut gather, 10_001), [(Time, vec![1], 1)]);
    assert_eq!(due(&mut gather, 10_002), [(Time, vec![3], 1)]);
}

#[test]
fn a_window_that_would_be_too_large_ends_early() {
    let limits = Limits { event_bytes_max: ByteSize(12), ..Limits::default() };
    let mut gather = gather_with("{ count = 3, every = 1 }", &limits);
    let large = |sequence| Member { item: Bytes::from_static(&[b'1'; 100]), ..member(sequence, 0) };
    let mut ended = Vec::new();
    for member in [member(1, 0), member(2, 0), member(3, 0), large(4), large(5)] {
        ended.extend(gather.add(None, member));
    }
    assert_eq!(told(&gather, ended), [(Early, vec![1, 2], 2), (Early, vec![3], 1), (Early, vec![4], 1)]);
}

#[test]
fn beyond_the_bound_of_keys_the_window_that_is_open_for_longest_ends_early() {
    let limits = Limits { window_keys_max: 2, ..Limits::default() };
    let mut gather = gather_with("{ count = 3 }", &limits);
    let mut ended = Vec::new();
    for (text, sequence) in [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6)] {
        ended.extend(gather.add(key(text), member(sequence, 0)));
    }
    assert_eq!(told(&gather, ended), [(Early, vec![1, 3], 2), (Early, vec![2, 5], 2)]);
    assert_eq!(gather.events(), 2);
}

#[test]
fn what_waits_goes_into_windows_of_another_shape() {
    let mut gather = gather("{ count = 3 }");
    let mut ended = Vec::new();
    for (text, sequence) in [("a", 1), ("b", 2), ("a", 3), ("a", 4), ("a", 5), ("a", 6)] {
        ended.extend(gather.add(key(text), member(sequence, 0)));
    }
    let config = toml::from_str("count = 2").unwrap();
    let anew = gather.reshape(&config, &Limits::default());
    assert_eq!(told(&gather, ended.clone()), [(Count, vec![1, 3, 4], 3)], "it is still there");
    assert_eq!(told(&gather, anew), [(Count, vec![5, 6], 2)]);
    assert_eq!((gather.events(), gather.cost()), (1, 64 + 1 + 4));
    let released: Vec<_> = gather.release(&ended[0]).iter().map(|member| member.sequence).collect();
    assert_eq!(released, [1, 3, 4]);
    let ended = gather.add(key("b"), member(7, 0));
    assert_eq!(told(&gather, ended), [(Count, vec![2, 7], 2)]);
}

/// What a function was handed, and when it is done with it.
#[derive(Default)]
struct Desk {
    handed: Mutex<Vec<(Arc<Event>, Receipt)>>,
    fails: AtomicBool,
}

impl Submit for Desk {
    fn submit(&self, _: &FunctionName, event: Arc<Event>, _: Delivery, receipt: Receipt) -> Result<(), Refused> {
        assert!(!self.fails.load(Ordering::SeqCst), "as the test wants it");
        self.handed.lock().unwrap().push((event, receipt));
        Ok(())
    }
}

/// The windows of one function, with a journal of their own.
struct Lab {
    desk: Arc<Desk>,
    windows: Windows,
    window: Arc<super::Window>,
    metrics: Metrics,
    journal: Arc<Journal>,
    spec: Arc<FunctionSpec>,
    dir: TempDir,
}

impl Lab {
    fn new(window: &str, limits: Limits) -> Self {
        Self::with(window, limits, Clock::system())
    }

    fn with(window: &str, limits: Limits, clock: Clock) -> Self {
        Self::on(tempfile::tempdir().unwrap(), window, limits, clock)
    }

    /// With the journal that is in `dir`.
    fn on(dir: TempDir, window: &str, limits: Limits, clock: Clock) -> Self {
        let limits = Arc::new(limits);
        let config = JournalConfig { streams: BTreeMap::new(), limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(dir.path(), config, clock.clone()).unwrap());
        let trigger = format!("mqtt = {{ filter = \"#\" }}\nwindow = {window}");
        let spec = Arc::new(FunctionSpec { triggers: vec![toml::from_str(&trigger).unwrap()], ..spec() });
        let (desk, metrics) = (Arc::<Desk>::default(), Metrics::new());
        let submit = Arc::clone(&desk) as Arc<dyn Submit>;
        let windows = Windows::new(submit, Arc::clone(&journal), metrics.clone(), limits, clock);
        windows.apply(&[Arc::clone(&spec)]);
        let window = windows.of(&spec)[0].clone().unwrap();
        Self { desk, windows, window, metrics, journal, spec, dir }
    }

    /// How an event ends for its source, when it has.
    fn put(&self, data: &'static str) -> (Result<(), Refused>, Receiver<Result<(), NotKept>>) {
        let (sender, ended) = channel();
        let receipt = Receipt::new(move |result| drop(sender.send(result)));
        let event = Event { data: data.into(), ..Event::default() };
        (self.window.put(&Opened::new(&event), receipt), ended)
    }

    /// Events that are on disk when they were put.
    async fn kept(&self, events: &[&'static str]) {
        for data in events {
            let (put, ended) = self.put(data);
            put.unwrap();
            until(|| ended.try_recv() == Ok(Ok(()))).await;
        }
    }

    /// The next `n` windows that the function was handed.
    async fn handed(&self, n: usize) -> Vec<(Arc<Event>, Receipt)> {
        until(|| self.desk.handed.lock().unwrap().len() >= n).await;
        std::mem::take(&mut *self.desk.handed.lock().unwrap())
    }

    fn on_disk(&self) -> u64 {
        self.journal.own_status().iter().map(|stream| stream.records).sum()
    }

    fn waiting(&self) -> i64 {
        self.metrics.function(&self.spec.name).windowed.get()
    }
}

fn spec() -> FunctionSpec {
    FunctionSpec {
        name: FunctionName::parse("gather").unwrap(),
        version: "1.0.0".into(),
        component: PathBuf::new(),
        digest: "".into(),
        root: PathBuf::new(),
        layers: None,
        folders: BTreeMap::new(),
        timeout: Span::from_secs(1),
        memory: ByteSize::mib(1),
        concurrency: 1,
        isolation: Isolation::default(),
        environment: BTreeMap::new(),
        capabilities: Capabilities::default(),
        retry: RetryConfig::default(),
        idempotency: None,
        order: Order::None,
        on_success: Vec::new(),
        on_failure: Vec::new(),
        triggers: Vec::new(),
    }
}

async fn until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}

fn data(event: &Event) -> Vec<Value> {
    let items: Vec<Value> = serde_json::from_slice(&event.data).unwrap();
    items.into_iter().map(|item| item["data"].clone()).collect()
}

#[tokio::test]
async fn events_wait_until_the_windows_before_were_taken_care_of_too() {
    let lab = Lab::new("{ count = 2, every = 1 }", Limits::default());
    lab.kept(&["1", "2", "3"]).await;
    let mut handed = lab.handed(2).await.into_iter();
    let ((first, first_receipt), (second, second_receipt)) = (handed.next().unwrap(), handed.next().unwrap());
    assert_eq!((data(&first), data(&second)), (vec![1.into(), 2.into()], vec![2.into(), 3.into()]));
    assert_eq!((lab.on_disk(), lab.waiting()), (3, 3));

    // The first one may have to be made again: what it has is needed.
    second_receipt.keep();
    lab.kept(&["4"]).await;
    assert_eq!((lab.on_disk(), lab.waiting()), (4, 4));
    first_receipt.keep();
    until(|| lab.waiting() == 2).await;
    until(|| lab.on_disk() == 2).await;
    lab.windows.hush().await;
    lab.windows.stop().await;
}

#[tokio::test]
async fn a_window_that_was_not_taken_care_of_is_delivered_again_as_the_same_one() {
    let lab = Lab::new("{ count = 2 }", Limits::default());
    lab.kept(&["\"a\"", "b"]).await;
    let (first, receipt) = lab.handed(1).await.remove(0);
    assert_eq!(
        (&*first.source, &*first.kind, first.attributes[0].1.as_str()),
        ("window:gather", "window.events", "count")
    );
    receipt.fail("the disk is full");
    let (again, receipt) = lab.handed(1).await.remove(0);
    assert_eq!((&again.id, &again.data), (&first.id, &first.data));
    assert_eq!(data(&again), ["a", "b"]);

    // As after a kill, with a task that knows nothing but the disk.
    lab.windows.apply(&[]);
    drop(receipt);
    assert_eq!(lab.windows.unclaimed(), [(lab.spec.name.clone(), 2)]);
    assert_eq!(lab.put("c").0, Err(Refused::Stopping));
    lab.windows.apply(&[Arc::clone(&lab.spec)]);
    let (again, receipt) = lab.handed(1).await.remove(0);
    assert_eq!((&again.id, &again.data), (&first.id, &first.data));
    receipt.keep();
    until(|| lab.on_disk() == 0).await;
}

#[tokio::test]
async fn beyond_half_of_what_may_wait_windows_end_early() {
    let limits = Limits { windowed_events_max: 4, ..Limits::default() };
    let lab = Lab::new("{ count = 100 }", limits);
    lab.kept(&["1", "2"]).await;
    assert!(lab.desk.handed.lock().unwrap().is_empty());
    lab.kept(&["3"]).await;
    let (event, receipt) = lab.handed(1).await.remove(0);
    assert_eq!((data(&event).len(), event.attributes[0].1.as_str()), (3, "early"));
    receipt.keep();
    until(|| lab.waiting() == 0).await;
}

#[tokio::test]
async fn what_is_beyond_the_bound_is_refused() {
    let limits = Limits { windowed_events_max: 4, ..Limits::default() };
    let lab = Lab::new("{ count = 2 }", limits);
    lab.kept(&["1", "2", "3", "4"]).await;
    let (put, ended) = lab.put("5");
    assert!(matches!(put, Err(Refused::Full { events: 4, .. })), "{put:?}");
    assert!(ended.try_recv().unwrap().is_err(), "its source keeps it");
    lab.handed(2).await.into_iter().for_each(|(_, receipt)| receipt.keep());
    until(|| lab.waiting() == 0).await;
    lab.kept(&["5"]).await;
}

#[tokio::test]
async fn setting_the_clock_neither_ends_a_window_nor_keeps_it_open() {
    const DAY_MS: u64 = 86_400_000;
    let (now_ms, long) = (1_790_000_000_000, Duration::from_millis(50));
    let clock = Clock::held_at(now_ms);
    let lab = Lab::with(r#"{ time = "50ms" }"#, Limits::default(), clock.clone());
    lab.kept(&["1"]).await;
    clock.set(now_ms + DAY_MS);
    lab.kept(&["2"]).await;
    tokio::time::sleep(4 * long).await;
    assert!(lab.desk.handed.lock().unwrap().is_empty());
    clock.set(now_ms - DAY_MS);
    clock.pass(long);
    let (event, receipt) = lab.handed(1).await.remove(0);
    assert_eq!((data(&event), event.attributes[0].1.as_str()), (vec![1.into(), 2.into()], "time"));
    receipt.keep();
    until(|| lab.on_disk() == 0).await;

    // One that was due while nobody looked comes then.
    lab.kept(&["3"]).await;
    lab.windows.apply(&[]);
    clock.pass(long);
    lab.windows.apply(&[Arc::clone(&lab.spec)]);
    let (event, _receipt) = lab.handed(1).await.remove(0);
    assert_eq!((data(&event), &event.id[event.id.len() - 3..]), (vec![3.into()], "3-3"));
}

#[tokio::test]
async fn a_clock_that_is_right_only_after_the_start_ends_no_window() {
    const DAY_MS: u64 = 86_400_000;
    let (now_ms, long) = (1_790_000_000_000, Duration::from_millis(50));
    let before = Lab::with(r#"{ time = "50ms" }"#, Limits::default(), Clock::held_at(now_ms));
    before.kept(&["1"]).await;
    before.windows.stop().await;
    before.journal.close().await.unwrap();
    let Lab { dir, journal, windows, window, .. } = before;
    drop((journal, windows, window));

    let clock = Clock::held_at(1_000);
    let lab = Lab::on(dir, r#"{ time = "50ms" }"#, Limits::default(), clock.clone());
    lab.kept(&["2"]).await;
    let age_ms = lab.journal.age_ms();
    clock.set(now_ms + DAY_MS);
    lab.kept(&["3"]).await;
    assert_eq!(lab.journal.age_ms(), age_ms + DAY_MS, "the journal has heard how long the agent was off");
    tokio::time::sleep(4 * long).await;
    assert!(lab.desk.handed.lock().unwrap().is_empty());
    clock.pass(long);
    let (event, receipt) = lab.handed(1).await.remove(0);
    assert_eq!(data(&event), [1, 2, 3]);
    receipt.keep();
    until(|| lab.on_disk() == 0).await;
}

#[tokio::test]
async fn windows_wait_on_disk_while_a_function_has_enough_of_them() {
    let lab = Lab::new("{ count = 2 }", Limits::default());
    lab.kept(&["1"; 40]).await;
    let mut handed = lab.handed(16).await;
    assert_eq!(handed.len(), 16);
    handed.remove(0).1.keep();
    handed.extend(lab.handed(1).await);
    assert_eq!(handed.len(), 16);
    // It is taken back, and delivered again.
    handed.remove(0).1.fail("no room");
    while !handed.is_empty() {
        handed.drain(..).for_each(|(_, receipt)| receipt.keep());
        until(|| lab.waiting() == 0 || !lab.desk.handed.lock().unwrap().is_empty()).await;
        handed = lab.handed(0).await;
    }
    until(|| lab.on_disk() == 0).await;
}

#[tokio::test]
async fn what_a_task_that_fails_had_is_delivered_by_another() {
    let lab = Lab::new("{ count = 2 }", Limits::default());
    lab.desk.fails.store(true, Ordering::SeqCst);
    lab.kept(&["1", "2"]).await;
    until(|| lab.window.inlet.is_closed()).await;
    let (put, ended) = lab.put("3");
    assert_eq!(put, Err(Refused::Stopping));
    assert!(ended.try_recv().unwrap().is_err(), "its source keeps it");
    lab.desk.fails.store(false, Ordering::SeqCst);
    until(|| {
        lab.windows.apply(&[Arc::clone(&lab.spec)]);
        !lab.desk.handed.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(data(&lab.handed(1).await[0].0), [1, 2]);
}

#[tokio::test]
async fn what_is_overdue_is_given_up_on_as_windows() {
    let lab = Lab::new("{ count = 100 }", Limits::default());
    lab.kept(&["1", "2"]).await;
    let overdue = |age_ms| {
        let records = lab.journal.read(&stream_of(&lab.spec.name), 0, 100, usize::MAX).unwrap();
        overdue(&lab.spec.name, records, age_ms, (&Limits::default(), 0))
    };
    assert!(overdue(0).is_empty());
    let [(event, records)] = overdue(u64::MAX).try_into().unwrap();
    assert_eq!((data(&event), records), (vec![1.into(), 2.into()], vec![1, 2]));
    assert_eq!(event.attributes[0].1, "early");
}
