//! Each way to end is its own outcome, with a message that helps.

use std::time::Duration;

use super::*;

const ECHO: &str = "(call $answer (call $data (local.get $event)) (call $data_bytes (local.get $event)))";

#[tokio::test]
async fn a_handler_is_given_the_event_and_answers() {
    let site = Site::new();
    let invoked = site.run(ECHO, "", "hello").await;
    assert_eq!(text(&invoked.outcome), "hello");
    assert!(invoked.reusable);
    assert_eq!(invoked.effects, crate::invocation::Effects::default());
    assert!(invoked.timings.handler > Duration::ZERO);
}

#[tokio::test]
async fn a_warm_instance_serves_one_event_after_the_other() {
    let site = Site::new();
    let function = site.load(&guest::component(ECHO, "")).await;
    let mut instance = function.instantiate().await.unwrap();
    for n in 0..1_000 {
        let invoked = invoke(&mut instance, &n.to_string()).await;
        assert_eq!(text(&invoked.outcome), n.to_string());
    }
}

#[tokio::test]
async fn retry_and_reject_are_told_apart_and_drop_what_was_sent() {
    let site = Site::new();
    let body = |kind| {
        format!(
            "(drop (call $publish (i32.const 2048) (i32.const 9) (i32.const 2048) (i32.const 1)))
             (call $fail (i32.const {kind}) (i32.const 2057) (i32.const 4))"
        )
    };
    let retried = site.run(&body(0), "results/1busy", "").await;
    assert_eq!(retried.outcome, Outcome::Retry("busy".into()));
    let rejected = site.run(&body(1), "results/1busy", "").await;
    assert_eq!(rejected.outcome, Outcome::Rejected("busy".into()));
    for invoked in [retried, rejected] {
        assert!(invoked.reusable);
        assert!(invoked.effects.publishes.is_empty());
    }
}

#[tokio::test]
async fn what_a_function_says_of_why_it_gives_up_is_cut() {
    let site = Site::new();
    let body = "(memory.fill (i32.const 2048) (i32.const 97) (i32.const 20000)) (call $fail (i32.const 1) (i32.const 2048) (i32.const 20000))";
    let rejected = site.run(body, "", "").await;
    assert_eq!(rejected.outcome, Outcome::Rejected("a".repeat(16 << 10)));
}

#[tokio::test]
async fn a_trap_says_what_and_where() {
    let site = Site::new();
    let invoked = site.run("(drop (i32.div_u (i32.const 1) (i32.const 0))) (i32.const 0)", "", "").await;
    assert!(!invoked.reusable);
    assert_eq!(invoked.outcome, Outcome::Trapped("integer divide by zero; in handle".into()));
}

#[tokio::test]
async fn a_panic_is_told_in_its_own_words() {
    let site = Site::new();
    let words = "thread 'main' panicked at src/lib.rs:5:9:\\0aoven too hot\\0anote: run with RUST_BACKTRACE\\0a";
    let invoked = site.run("(call $say (i32.const 2048) (i32.const 85)) unreachable", words, "").await;
    let expected = "it panicked: thread 'main' panicked at src/lib.rs:5:9: oven too hot; in handle";
    assert_eq!(invoked.outcome, Outcome::Trapped(expected.into()));
}

#[tokio::test]
async fn a_stack_that_overflows_is_a_trap() {
    let site = Site::new();
    let invoked = site.run("(call $handle (local.get $event))", "", "").await;
    assert!(invoked.outcome.to_string().contains("call stack exhausted"), "{}", invoked.outcome);
}

#[tokio::test]
async fn a_handler_that_never_returns_is_stopped() {
    let site = Site::new();
    let component = guest::component("(loop (br 0)) unreachable", "");
    let spec = site.spec(&component, |spec| spec.timeout = Span::parse("50ms").unwrap());
    let mut instance = site.runtime.load(spec).await.unwrap().instantiate().await.unwrap();
    let invoked = invoke(&mut instance, "").await;
    assert_eq!(invoked.outcome, Outcome::TimedOut { after_ms: 50 });
    assert!(!invoked.reusable);
    assert!(invoked.timings.handler < Duration::from_secs(2), "{:?}", invoked.timings);
}

#[tokio::test]
async fn a_handler_that_waits_in_a_host_call_is_stopped() {
    let site = Site::new();
    let component = guest::component("(call $block (call $after (i64.const 60000000000))) unreachable", "");
    let spec = site.spec(&component, |spec| spec.timeout = Span::parse("50ms").unwrap());
    let mut instance = site.runtime.load(spec).await.unwrap().instantiate().await.unwrap();
    let invoked = invoke(&mut instance, "").await;
    assert_eq!(invoked.outcome, Outcome::TimedOut { after_ms: 50 });
    assert!(invoked.timings.handler < Duration::from_secs(2), "{:?}", invoked.timings);
}

#[tokio::test]
async fn memory_that_was_refused_is_out_of_memory() {
    let site = Site::new();
    // 4 MiB are allowed: 64 pages, of which it has one.
    let grow = "(if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable)) (call $answer (i32.const 0) (i32.const 0))";
    let invoked = site.run(grow, "", "").await;
    assert_eq!(invoked.outcome, Outcome::OutOfMemory { limit_bytes: 4 << 20 });
    assert!(!invoked.reusable);
    let invoked = site.run(&grow.replace("64", "63"), "", "").await;
    assert_eq!(text(&invoked.outcome), "");
}

#[tokio::test]
async fn a_component_that_starts_over_its_memory_is_out_of_memory() {
    let site = Site::new();
    let component = guest::component(ECHO, "");
    let spec = site.spec(&component, |spec| spec.memory = ByteSize(1));
    let outcome = site.runtime.load(spec).await.unwrap().instantiate().await.unwrap_err();
    assert_eq!(outcome, Outcome::OutOfMemory { limit_bytes: 1 });
}

#[tokio::test]
async fn a_handler_that_gives_up_on_a_refused_call_is_denied() {
    let site = Site::new();
    let body =
        |then| format!("(drop (call $publish (i32.const 2048) (i32.const 7) (i32.const 0) (i32.const 0))) {then}");
    let denied = Outcome::Denied {
        capability: "mqtt:publish:alarm/1".into(),
        message: "capability `mqtt:publish:alarm/1` is not granted to function `guest`".into(),
    };
    for kind in [0, 1] {
        let invoked = site.run(&body(format!("(call $fail_with_refusal (i32.const {kind}))")), "alarm/1", "").await;
        assert_eq!(invoked.outcome, denied);
    }
    // It may also do without.
    let invoked = site.run(&body("(call $answer (i32.const 2048) (i32.const 7))".to_owned()), "alarm/1", "").await;
    assert_eq!(text(&invoked.outcome), "alarm/1");
    assert!(invoked.effects.publishes.is_empty());
    // Unwrapping the error panics with its text.
    let panics = "(call $say (i32.load (i32.const 1104)) (i32.load (i32.const 1108))) unreachable".to_owned();
    let invoked = site.run(&body(panics), "alarm/1", "").await;
    assert!(matches!(invoked.outcome, Outcome::Denied { .. }), "{}", invoked.outcome);
}

#[tokio::test]
async fn what_is_sent_is_kept_in_order_until_the_handler_succeeds() {
    let site = Site::new();
    let body = "
        (drop (call $publish (i32.const 2048) (i32.const 9) (i32.const 2057) (i32.const 3)))
        (drop (call $append (i32.const 2060) (i32.const 8) (i32.const 2057) (i32.const 3)))
        (drop (call $publish (i32.const 2048) (i32.const 7) (i32.const 2057) (i32.const 1)))
        (call $answer (i32.const 2057) (i32.const 3))";
    let effects = site.run(body, "results/1onereadings", "").await.effects;
    let sent: Vec<_> = effects.publishes.iter().map(|publish| (&*publish.topic, &*publish.data, publish.qos)).collect();
    assert_eq!(sent, [("results/1", &b"one"[..], 1), ("results", b"o", 1)]);
    assert_eq!(effects.records, [(StreamName::parse("readings").unwrap(), "one".into())]);
}
