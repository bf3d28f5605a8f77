//! What one function may take, and what it may not take from others.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn an_answer_over_the_limit_is_bad_output() {
    let site = Site::with(|_, limits| limits.output_bytes_max = ByteSize(100));
    let answer = |bytes| format!("(call $answer (i32.const 2048) (i32.const {bytes}))");
    assert!(matches!(site.run(&answer(100), "", "").await.outcome, Outcome::Succeeded(_)));
    let invoked = site.run(&answer(101), "", "").await;
    let expected = "it returned 101 B, more than `output_bytes_max` = 100 B";
    assert_eq!(invoked.outcome, Outcome::BadOutput(expected.into()));
    assert!(invoked.reusable);
}

#[tokio::test]
async fn an_answer_outside_its_memory_is_a_trap() {
    let site = Site::new();
    let invoked = site.run("(call $answer (i32.const -16) (i32.const 1000))", "", "").await;
    assert!(matches!(invoked.outcome, Outcome::Trapped(_)), "{}", invoked.outcome);
}

#[tokio::test]
async fn sending_more_often_or_more_than_is_allowed_is_refused() {
    let site = Site::with(|_, limits| {
        limits.effects_max = 10;
        limits.effects_bytes_max = ByteSize(100);
    });
    let publish = |times, bytes| {
        format!(
            "(loop $again
               (if (call $publish (i32.const 2048) (i32.const 9) (i32.const 2048) (i32.const {bytes}))
                 (then (return (call $fail_with_refusal (i32.const 0)))))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $i) (i32.const {times}))))
             (call $answer (i32.const 0) (i32.const 0))"
        )
    };
    for (times, bytes, refused) in [(10, 10, None), (11, 1, Some("effects_max")), (2, 51, Some("effects_bytes_max"))] {
        let invoked = site.run(&publish(times, bytes), "results/1", "").await;
        match refused {
            None => assert_eq!(invoked.effects.publishes.len(), 10),
            Some(limit) => {
                let Outcome::BadOutput(why) = &invoked.outcome else { panic!("{}", invoked.outcome) };
                assert!(why.contains(limit), "{why}");
                assert!(invoked.effects.publishes.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_malformed_topic_and_an_unknown_stream_are_bad_output() {
    let site = Site::new();
    let publish = "(drop (call $publish (i32.const 2048) (i32.const 9) (i32.const 0) (i32.const 0))) (call $fail_with_refusal (i32.const 1))";
    let invoked = site.run(publish, "results/#", "").await;
    assert!(invoked.outcome.to_string().contains("contains a wildcard"), "{}", invoked.outcome);
    let append = "(drop (call $append (i32.const 2048) (i32.const 7) (i32.const 0) (i32.const 0))) (call $fail_with_refusal (i32.const 1))";
    let invoked = site.run(append, "missing", "").await;
    let expected = "there is no stream `missing`; hint: add `[stream.missing]` to gateway.toml";
    assert_eq!(invoked.outcome, Outcome::BadOutput(expected.into()));
}

#[tokio::test]
async fn key_value_reads_see_the_invocations_own_writes() {
    let site = Site::new();
    // open(""), set("a", "12"), increment("a", 30), get("a").
    let body = "(local $bucket i32)
        (call $open (i32.const 0) (i32.const 0) (i32.const 1300))
        (if (i32.load8_u (i32.const 1300)) (then (return (call $fail (i32.const 1) (i32.const 2048) (i32.const 1)))))
        (local.set $bucket (i32.load (i32.const 1304)))
        (call $set (local.get $bucket) (i32.const 2048) (i32.const 1) (i32.const 2049) (i32.const 2) (i32.const 1300))
        (call $increment (local.get $bucket) (i32.const 2048) (i32.const 1) (i64.const 30) (i32.const 1320))
        (call $get (local.get $bucket) (i32.const 2048) (i32.const 1) (i32.const 1340))
        (call $answer (i32.load (i32.const 1348)) (i32.load (i32.const 1352)))";
    let invoked = site.run(body, "a12", "").await;
    assert_eq!(text(&invoked.outcome), "42");
    let batch = crate::journal::Batch {
        key_values: invoked
            .effects
            .key_values
            .iter()
            .map(|write| (FunctionName::parse("guest").unwrap(), write.clone()))
            .collect(),
        ..Default::default()
    };
    site.journal().commit(batch).await.unwrap();
    let written: Vec<_> =
        invoked.effects.key_values.iter().map(|write| (&*write.key, write.value.clone().unwrap())).collect();
    assert_eq!(written, [("a", "12".into()), ("a", "42".into())]);

    // What was committed is there for the next event: increment("a", 1).
    let next = "(local $bucket i32)
        (call $open (i32.const 0) (i32.const 0) (i32.const 1300))
        (call $increment (i32.load (i32.const 1304)) (i32.const 2048) (i32.const 1) (i64.const 1) (i32.const 1320))
        (call $get (i32.load (i32.const 1304)) (i32.const 2048) (i32.const 1) (i32.const 1340))
        (call $answer (i32.load (i32.const 1348)) (i32.load (i32.const 1352)))";
    assert_eq!(text(&site.run(next, "a", "").await.outcome), "43");

    let spec = site.spec(&guest::component(body, "a12"), |spec| spec.capabilities.0.clear());
    let invoked = invoke(&mut site.runtime.load(spec).await.unwrap().instantiate().await.unwrap(), "").await;
    assert_eq!(invoked.outcome, Outcome::Denied { capability: "keyvalue".into(), message: "a".into() });
}

#[tokio::test]
async fn configuration_is_read_by_key() {
    let site = Site::new();
    let body = "(call $config (i32.const 2048) (i32.const 5) (i32.const 1300))
        (call $answer (i32.load (i32.const 1308)) (i32.load (i32.const 1312)))";
    assert_eq!(text(&site.run(body, "LIMIT", "").await.outcome), "30");
}

#[test]
fn a_function_that_computes_does_not_hold_up_another_on_the_same_thread() {
    let site = Site::with(|config, _| config.threads = Threads::Own(1));
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    threads.block_on(async {
        let greedy = guest::component("(loop (br 0)) unreachable", "");
        let greedy =
            site.runtime.load(site.spec(&greedy, |spec| spec.timeout = Span::parse("30s").unwrap())).await.unwrap();
        let modest = site.load(&guest::component("(call $answer (i32.const 0) (i32.const 0))", "")).await;
        let hog = site.runtime.spawn(async move { invoke(&mut greedy.instantiate().await.unwrap(), "").await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answers = site.runtime.spawn(async move {
            let mut instance = modest.instantiate().await.unwrap();
            for _ in 0..20 {
                text(&invoke(&mut instance, "").await.outcome);
                tokio::task::yield_now().await;
            }
        });
        tokio::time::timeout(Duration::from_secs(10), answers).await.expect("starved").unwrap();
        assert!(!hog.is_finished());
        hog.abort();
    });
}

#[tokio::test]
async fn compiled_code_that_was_damaged_is_compiled_again() {
    let site = Site::new();
    let component = guest::component("(call $answer (i32.const 2048) (i32.const 2))", "ok");
    site.load(&component).await;
    let code = || std::fs::read_dir(site.dir.path().join("code")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(code()).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0xff;
    std::fs::write(code(), &damaged).unwrap();
    let function = site.load(&component).await;
    assert_eq!(text(&invoke(&mut function.instantiate().await.unwrap(), "").await.outcome), "ok");
    assert_eq!(std::fs::read(code()).unwrap().len(), whole.len());
    assert_ne!(std::fs::read(code()).unwrap(), damaged);
}

#[tokio::test]
async fn a_component_that_does_not_fit_is_refused_with_the_reason() {
    let site = Site::new();
    let why = async |component: &[u8], change: fn(&mut FunctionSpec)| {
        site.runtime.load(site.spec(component, change)).await.unwrap_err().to_string()
    };
    let fine = guest::component("unreachable", "");
    assert!(why(&fine, |spec| spec.digest = "00".into()).await.contains("has changed since"));
    assert!(
        why(&fine, |spec| spec.component = "missing.wasm".into())
            .await
            .contains("`missing.wasm` of function `guest` cannot be read")
    );
    assert!(why(&fine, |spec| spec.memory = ByteSize(1 << 50)).await.contains("lower its `memory`"));
    assert!(why(&wat::parse_str("(module)").unwrap(), |_| {}).await.contains("is a core WebAssembly module"));
    assert!(why(b"\0asm not wasm", |_| {}).await.contains("does not compile"));
    assert!(why(&wat::parse_str("(component)").unwrap(), |_| {}).await.contains("does not fit the contract"));
    let sockets = guest::module(
        r#"(module
            (import "wasi:sockets/instance-network@0.2.12" "instance-network" (func (result i32)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "handle") (param i32) (result i32) (i32.const 0)))"#,
    );
    let error = why(&sockets, |_| {}).await;
    assert!(error.contains("imports `wasi:sockets/") && error.contains("never get sockets"), "{error}");
}

#[tokio::test]
async fn more_instances_than_the_machine_holds_are_refused_not_fatal() {
    let site = Site::new();
    let Plan::Pool { instances, .. } = site.runtime.shared.plan else { return };
    let function = site.load(&guest::component("(call $answer (i32.const 0) (i32.const 0))", "")).await;
    let mut alive = Vec::new();
    for _ in 0..instances {
        alive.push(function.instantiate().await.unwrap());
    }
    let outcome = function.instantiate().await.unwrap_err();
    assert!(matches!(outcome, Outcome::Unavailable(_)), "{outcome}");
    alive.pop();
    function.instantiate().await.unwrap();
}

#[tokio::test]
async fn a_machine_that_refuses_the_pool_runs_functions_without_it() {
    let absurd = Plan::Pool { instances: 1_000_000, memory_bytes_max: 4 << 30, reservation_bytes: 4 << 30 };
    let site = Site::by(|config, services| Runtime::with_plan(absurd, config, services), |_, _| {});
    assert_eq!(site.runtime.shared.plan, Plan::OnDemand);
    let grow = "(if (i32.eq (memory.grow (i32.const 50)) (i32.const -1)) (then unreachable)) (call $answer (i32.const 2048) (i32.const 2))";
    assert_eq!(text(&site.run(grow, "ok", "").await.outcome), "ok");
}
