//! Models in the built-in engine.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod inference;

use inference::{floats, models, run, tensor, test_model};
use tidegate::config::{InferenceConfig, InferenceRuntime};
use tidegate::inference::{InferenceError, TensorType};

fn tract() -> InferenceConfig {
    InferenceConfig { runtime: InferenceRuntime::Tract, ..InferenceConfig::default() }
}

promises_of_both_engines!(
    tract(),
    the_motion_model_loads_and_passes_its_tests,
    every_type_that_the_engine_has_goes_in_and_out_unchanged,
    dynamic_sizes_and_single_values_work,
    an_output_over_its_bound_is_refused,
    a_bad_file_is_told_from_a_model_and_the_old_one_stays,
    a_replacement_takes_over_only_when_it_passes_its_tests,
    a_prepared_model_waits_until_it_is_installed,
    events_flow_while_a_model_is_replaced,
    runs_wait_for_a_free_session_and_all_end,
    a_quick_model_comes_to_run_on_its_functions_thread,
    a_removed_model_is_named_with_those_that_are_there,
);

#[tokio::test]
async fn what_only_onnx_runtime_can_run_is_refused_with_that_hint() {
    let models = models(&tract());
    for (name, reason) in
        [("contributed", "FusedMatMul"), ("identity-bf16", "\"x\" is of bf16, which tract cannot compute")]
    {
        let error = models.load(&test_model(name)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("model \"{name}\" cannot be loaded by tract from ")), "{text}");
        assert!(text.contains(reason), "{text}");
        assert!(error.hint().unwrap().starts_with("ONNX Runtime may be able to run it"));
    }
}

#[tokio::test]
async fn a_panic_of_the_engine_is_an_error() {
    let error = models(&tract()).load(&test_model("dangling")).await.unwrap_err();
    let InferenceError::NotLoaded { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.starts_with("it panicked: "), "{reason}");
}

#[tokio::test]
async fn branches_run_or_say_that_onnx_runtime_may() {
    let models = models(&tract());
    match models.load(&test_model("if")).await {
        Ok(()) => {
            let inputs = vec![("positive", tensor(TensorType::U8, &[1], [0])), ("x", floats(&[2], &[1.0, 2.0]))];
            let outputs = run(&models, "if", inputs).await.unwrap();
            assert_eq!(outputs, [("y".to_owned(), floats(&[2], &[-1.0, -2.0]))]);
        }
        Err(error) => assert!(error.hint().unwrap().starts_with("ONNX Runtime may be able to run it"), "{error}"),
    }
}
