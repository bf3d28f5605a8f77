use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tokio::time::advance;

use super::*;
use crate::event::Event;

/// The filters of one function, and what becomes of events.
struct Lab {
    filters: Vec<Arc<Filter>>,
    metrics: Arc<FunctionMetrics>,
}

/// How an event ended for its source, when it has.
type Ended = Receiver<Result<(), NotKept>>;

impl Lab {
    fn with(only: &[&str], limits: &Limits) -> Self {
        let metrics = Arc::<FunctionMetrics>::default();
        let filter = |only: &&str| {
            let config = toml::from_str::<BTreeMap<String, FilterConfig>>(&format!("only = {only}")).unwrap();
            let function = FunctionName::parse("f").unwrap();
            let config = config["only"].clone();
            Arc::new(Filter::new(config, function, Arc::clone(&metrics), limits, Clock::system()))
        };
        Self { filters: only.iter().map(filter).collect(), metrics }
    }

    fn new(only: &str) -> Self {
        Self::with(&[only], &Limits::default())
    }

    fn event(topic: &str, payload: &str) -> Event {
        Event { subject: Some(topic.into()), data: payload.to_owned().into(), ..Event::default() }
    }

    fn submit(&self, event: &Event, waits: bool) -> (Option<Receipt>, Ended) {
        let (sender, ended) = channel();
        let receipt = Receipt::new(move |result| drop(sender.send(result)));
        (admit(&self.filters, &Opened::new(event), waits, receipt), ended)
    }

    /// The receipt of an event that passes, and how any ends.
    fn see(&self, topic: &str, payload: &str) -> (Option<Receipt>, Ended) {
        self.submit(&Self::event(topic, payload), true)
    }

    /// Whether an event passes; if so it is dealt with at once.
    fn passes(&self, topic: &str, payload: &str) -> bool {
        let (receipt, ended) = self.see(topic, payload);
        let passes = receipt.map(Receipt::keep).is_some();
        assert_eq!(ended.try_recv(), Ok(Ok(())), "{topic} {payload}");
        passes
    }
}

/// One after the other on one topic: which pass?
#[track_caller]
fn check(only: &str, events: &[(&str, bool)]) {
    let lab = Lab::new(only);
    for (n, (payload, passes)) in events.iter().enumerate() {
        assert_eq!(lab.passes("a", payload), *passes, "{only}: event {n}, {payload}");
    }
}

#[test]
fn what_is_unchanged_is_left_out() {
    check(
        r#"{ changed = "/state" }"#,
        &[
            (r#"{"state":"on"}"#, true),
            (r#"{"state":"on","n":2}"#, false),
            (r#"{"state":"off"}"#, true),
            (r#"{"state":null}"#, true),
            (r#"{"state":"on"}"#, true),
        ],
    );
    check(r#"{ changed = "payload" }"#, &[("on", true), ("on", false), ("on ", true), ("", true), ("", false)]);
}

#[test]
fn a_number_within_the_deadband_of_the_last_that_passed_is_left_out() {
    // Slow drift passes in the end: what was left out is not what is compared with.
    check(
        r#"{ changed = "/t", deadband = 0.5 }"#,
        &[
            (r#"{"t":20}"#, true),
            (r#"{"t":20.3}"#, false),
            (r#"{"t":20.5}"#, false),
            (r#"{"t":20.6}"#, true),
            (r#"{"t":20.2}"#, false),
            (r#"{"t":20}"#, true),
        ],
    );
    check(
        r#"{ changed = "payload", deadband = "10%" }"#,
        &[("100", true), ("109", false), (" 111 ", true), ("101", false)],
    );
}

#[test]
fn an_event_without_what_is_compared_passes_and_is_counted() {
    let lab = Lab::new(r#"{ changed = "/t", deadband = 1 }"#);
    assert!(lab.passes("a", r#"{"t":20}"#));
    for payload in ["no JSON", "{}", r#"{"t":"20"}"#, r#"{"t":1e999}"#, "", "{}"] {
        assert!(lab.passes("a", payload), "{payload}");
    }
    assert!(!lab.passes("a", r#"{"t":20.5}"#), "it is still compared with the last number");
    assert_eq!((lab.metrics.unfiltered.get(), lab.metrics.events_filtered()), (6, 1));
}

#[test]
fn each_topic_has_a_last_value_of_its_own() {
    let lab = Lab::new(r#"{ changed = "/v" }"#);
    assert!(lab.passes("a", r#"{"v":1}"#) && lab.passes("b", r#"{"v":1}"#));
    assert!(!lab.passes("a", r#"{"v":1}"#) && !lab.passes("b", r#"{"v":1}"#));

    // What lacks it shares one.
    let lab = Lab::new(r#"{ changed = "/v", per = "/sensor" }"#);
    assert!(lab.passes("a", r#"{"v":1,"sensor":"x"}"#) && lab.passes("a", r#"{"v":1,"sensor":["x"]}"#));
    assert!(!lab.passes("b", r#"{"v":1,"sensor":"x"}"#));
    assert!(lab.passes("a", r#"{"v":1}"#) && !lab.passes("b", r#"{"v":1}"#));

    let lab = Lab::new(r#"{ changed = "/v", per = "source" }"#);
    assert!(lab.passes("a", r#"{"v":1}"#) && !lab.passes("b", r#"{"v":1}"#));
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_soon_is_left_out() {
    let lab = Lab::new(r#"{ at_most = "2/s" }"#);
    let ms = Duration::from_millis;
    assert!(lab.passes("a", "1") && lab.passes("b", "1"));
    advance(ms(600)).await;
    assert!(lab.passes("a", "2") && !lab.passes("a", "3"));
    advance(ms(399)).await;
    assert!(!lab.passes("a", "4"));
    advance(ms(1)).await;
    assert!(lab.passes("a", "5") && lab.passes("a", "6") && !lab.passes("a", "7"), "a second after the first");
    assert!(lab.passes("b", "2"));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_too_soon_passes_when_it_is_still_there_later() {
    let lab = Lab::new(r#"{ changed = "payload", at_most = "1/s" }"#);
    assert!(lab.passes("a", "on"));
    assert!(!lab.passes("a", "off"), "too soon");
    advance(Duration::from_secs(1)).await;
    assert!(lab.passes("a", "off"), "it is compared with `on`");
    advance(Duration::from_secs(1)).await;
    assert!(!lab.passes("a", "off"));
    assert_eq!(lab.metrics.events_filtered(), 2);
}

#[test]
fn an_event_that_was_refused_passes_when_it_comes_again() {
    for only in [r#"{ changed = "payload" }"#, r#"{ at_most = "1/h" }"#] {
        let lab = Lab::new(only);
        for _ in 0..3 {
            let (receipt, ended) = lab.see("a", "on");
            receipt.unwrap().fail("the queue is full");
            assert_eq!(ended.try_recv(), Ok(Err("the queue is full".into())));
        }
        assert!(lab.passes("a", "on"));
        assert!(!lab.passes("a", "on"));
        assert_eq!(lab.metrics.events_filtered(), 1);
    }
}

/// Others that passed since, or that were not compared, change nothing about that.
#[test]
fn a_refusal_does_not_count_whatever_passed_since() {
    let lab = Lab::new(r#"{ changed = "/v" }"#);
    for since in [r#"{"v":2}"#, "no JSON"] {
        let (first, _) = lab.see("a", r#"{"v":1}"#);
        assert!(lab.passes("a", since));
        first.unwrap().fail("the agent stops");
        assert!(lab.passes("a", r#"{"v":1}"#), "after {since} it comes again");
        assert!(!lab.passes("a", r#"{"v":1}"#));
        assert!(lab.passes("a", r#"{"v":0}"#));
    }

    let lab = Lab::new(r#"{ at_most = "2/h" }"#);
    let (first, _) = lab.see("a", "1");
    assert!(lab.passes("a", "2"));
    let (third, ended) = lab.see("a", "3");
    assert!(third.is_none());
    first.unwrap().fail("the agent stops");
    assert!(ended.try_recv().unwrap().is_err(), "it comes again too");
    assert!(lab.passes("a", "1") && lab.passes("a", "3"));
}

/// The broker sends it again, since its connection was lost, while its first copy is still under way and later ones are done.
#[test]
fn a_repetition_of_what_is_under_way_is_not_dealt_with_before_it() {
    for (only, since) in [(r#"{ changed = "/v" }"#, "no JSON"), (r#"{ at_most = "2/h" }"#, "2")] {
        let lab = Lab::new(only);
        let (first, _) = lab.see("a", r#"{"v":1}"#);
        let (second, done) = lab.see("a", since);
        second.unwrap().keep();
        assert_eq!(done.try_recv(), Ok(Ok(())));
        let (again, ended) = lab.see("a", r#"{"v":1}"#);
        assert!(again.is_none() && ended.try_recv().is_err(), "{only}");
        first.unwrap().keep();
        assert_eq!(ended.try_recv(), Ok(Ok(())));
    }
}

#[test]
fn what_is_left_out_ends_as_the_one_before() {
    let lab = Lab::new(r#"{ changed = "payload" }"#);
    let (passed, _) = lab.see("a", "on");
    let again: Vec<_> = (0..3).map(|_| lab.see("a", "on")).collect();
    assert!(again.iter().all(|(receipt, ended)| receipt.is_none() && ended.try_recv().is_err()), "not before it");
    passed.unwrap().keep();
    assert!(again.iter().all(|(_, ended)| ended.try_recv() == Ok(Ok(()))));

    let (passed, _) = lab.see("a", "off");
    let (_, ended) = lab.see("a", "off");
    passed.unwrap().fail("disk full");
    assert_eq!(ended.try_recv(), Ok(Err("disk full".into())), "it comes again, and is not lost with it");
    assert_eq!(lab.filters[0].waiting.load(Ordering::Relaxed), 0);
}

/// Each value once, whoever is first, and nobody waits in the end.
#[test]
fn of_what_comes_at_once_one_passes() {
    const THREADS: usize = 8;
    let lab = Lab::new(r#"{ changed = "payload" }"#);
    for round in 0..200 {
        let start = std::sync::Barrier::new(THREADS);
        let passed: usize = std::thread::scope(|scope| {
            let one = || {
                start.wait();
                usize::from(lab.see("a", &round.to_string()).0.map(Receipt::keep).is_some())
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let left_out = usize::try_from(lab.metrics.events_filtered()).unwrap();
        assert_eq!((passed, left_out), (1, (THREADS - 1) * (round + 1)), "round {round}");
        assert_eq!(lab.filters[0].waiting.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn nobody_waits_who_need_not() {
    let lab = Lab::new(r#"{ changed = "payload" }"#);
    let (_passed, _) = lab.see("a", "on");
    assert_eq!(lab.submit(&Lab::event("a", "on"), false).1.try_recv(), Ok(Ok(())));
}

#[test]
fn what_is_known_and_what_waits_is_bounded() {
    let limits = Limits { filter_keys_max: 2, filter_waiting_max: 2, ..Limits::default() };
    let lab = Lab::with(&[r#"{ changed = "payload" }"#], &limits);
    assert!(lab.passes("a", "1") && lab.passes("b", "1"));
    assert!(!lab.passes("a", "1"));
    assert!(lab.passes("c", "1"), "b was silent for longest");
    assert!(!lab.passes("a", "1"));
    assert!(lab.passes("b", "1"));
    assert_eq!(lab.metrics.filter_forgotten.get(), 2);

    let (passed, _) = lab.see("a", "2");
    let ended: Vec<_> = (0..3).map(|_| lab.see("a", "2").1).collect();
    let settled = || ended.iter().filter_map(|ended| ended.try_recv().ok()).count();
    assert_eq!(settled(), 1);
    passed.unwrap().keep();
    assert_eq!(settled(), 2);
}

#[test]
fn an_event_of_several_triggers_is_left_out_only_by_all() {
    let lab = Lab::with(&[r#"{ changed = "/t", deadband = 5 }"#, r#"{ changed = "/state" }"#], &Limits::default());
    assert!(lab.passes("a", r#"{"t":20,"state":"on"}"#));
    assert!(!lab.passes("a", r#"{"t":21,"state":"on"}"#));
    assert!(lab.passes("a", r#"{"t":21,"state":"off"}"#));
    assert!(lab.passes("a", r#"{"t":26,"state":"off"}"#), "the first has not seen 21 pass by itself");
    assert_eq!(lab.metrics.events_filtered(), 1);

    let [first, second] = [0, 1].map(|n| Some(&lab.filters[n]));
    assert_eq!(needed([first, second].into_iter()).len(), 2);
    assert!(needed([first, None].into_iter()).is_empty(), "a trigger without a filter lets all pass");
}
