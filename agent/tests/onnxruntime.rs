//! Models in ONNX Runtime. Its library is not part of the repository: `tests/run` fetches it and names it in
//! `TIDEGATE_TEST_ONNXRUNTIME`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests say what they expect by unwrapping, and read the time and the environment themselves"
)]

mod inference;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inference::{floats, models, motion, run, tensor, test_model};
use tidegate::config::{InferenceConfig, InferenceRuntime};
use tidegate::inference::{InferenceError, Models, TensorType};
use tidegate::limits::Limits;

fn onnxruntime() -> InferenceConfig {
    let library = std::env::var_os("TIDEGATE_TEST_ONNXRUNTIME").expect(
        "TIDEGATE_TEST_ONNXRUNTIME is not set\nhint: run tests/run, or set it to the libonnxruntime.so.* of the PyPI wheel \
         `onnxruntime` (1.24 or newer), in its folder onnxruntime/capi",
    );
    InferenceConfig { runtime: InferenceRuntime::Onnxruntime, library: Some(library.into()), threads: None }
}

promises_of_both_engines!(
    onnxruntime(),
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
async fn the_engine_is_named_with_its_version() {
    let models = models(&onnxruntime());
    models.load(&motion()).await.unwrap();
    let engine = models.status().remove(0).engine;
    let version = engine.strip_prefix("ONNX Runtime 1.").unwrap_or_else(|| panic!("{engine}"));
    let minor: u32 = version.split('.').next().unwrap().parse().unwrap();
    assert!(minor >= 24, "{engine}");
}

#[tokio::test]
async fn bf16_branches_and_contributed_operators_run() {
    let models = models(&onnxruntime());
    models.load(&test_model("identity-bf16")).await.unwrap();
    let given = tensor(TensorType::Bf16, &[2, 2], [0x80, 0x3f, 0x00, 0xc0, 0x49, 0x40, 0x00, 0x00]);
    let outputs = run(&models, "identity-bf16", vec![("x", given.clone())]).await.unwrap();
    assert_eq!(outputs, [("y".to_owned(), given)]);

    models.load(&test_model("if")).await.unwrap();
    for (positive, wanted) in [(0, [-1.0, -2.0]), (1, [1.0, 2.0])] {
        let inputs = vec![("positive", tensor(TensorType::U8, &[1], [positive])), ("x", floats(&[2], &[1.0, 2.0]))];
        let outputs = run(&models, "if", inputs).await.unwrap();
        assert_eq!(outputs, [("y".to_owned(), floats(&[2], &wanted))]);
    }

    models.load(&test_model("contributed")).await.unwrap();
    let outputs = run(&models, "contributed", vec![("x", floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]))]).await.unwrap();
    assert_eq!(outputs, [("y".to_owned(), floats(&[2, 2], &[7.0, 10.0, 15.0, 22.0]))]);
}

/// A function that was stopped at its timeout must not leave the model busy for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_nobody_waits_for_is_stopped() {
    let models = models(&onnxruntime());
    models.load(&test_model("loop")).await.unwrap();
    let turns = |count: i64| {
        vec![("times", tensor(TensorType::I64, &[1], count.to_le_bytes())), ("x", floats(&[4, 4], &[0.1; 16]))]
    };
    let start = Instant::now();
    let long = run(&models, "loop", turns(1_000_000_000));
    assert!(tokio::time::timeout(Duration::from_millis(300), long).await.is_err());
    // There is one session: this run gets it only when the long one, of more than an hour, has ended.
    run(&models, "loop", turns(1)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(models.status()[0].latency.failures, 1);
}

/// What every ONNX Runtime exports, of a version that is too old.
const OLD: &str = r#"
    static const void *get_api(unsigned version) { return 0; }
    static const char *get_version(void) { return "1.21.0"; }
    static struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { get_api, get_version };
    const void *OrtGetApiBase(void) { return &base; }
"#;

/// Compiles C with the compiler that also builds the agent's C dependencies.
fn shared_library(folder: &Path, name: &str, text: &str) -> PathBuf {
    let source = folder.join(format!("{name}.c"));
    let library = folder.join(format!("{name}.so"));
    std::fs::write(&source, text).unwrap();
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(compiler.expect("cc, the C compiler, cannot be started").success());
    library
}

#[tokio::test]
async fn a_library_that_cannot_be_used_is_refused_and_another_still_can() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("libonnxruntime.so.1.30.0");
    let config =
        |library: &Path| InferenceConfig { library: Some(library.to_path_buf()), ..InferenceConfig::default() };
    let error = Models::open(&config(&missing), Arc::new(Limits::default())).unwrap_err();
    assert_eq!(error.to_string(), format!("ONNX Runtime cannot be used: {}: no such file", missing.display()));

    let text = folder.path().join("text.so");
    std::fs::write(&text, "not a library").unwrap();
    let cases = [
        (text, "is no library for this machine"),
        (shared_library(folder.path(), "old", OLD), "is version 1.21.0, older than 1.24"),
        (shared_library(folder.path(), "other", "int other;"), "is not ONNX Runtime"),
    ];
    for (library, reason) in cases {
        let error = models(&config(&library)).load(&motion()).await.unwrap_err();
        assert!(matches!(error, InferenceError::BadLibrary { .. }), "{error}");
        let library = library.canonicalize().unwrap();
        assert!(error.to_string().contains(&format!("{} {reason}", library.display())), "{error}");
        assert!(error.hint().unwrap().contains("1.24 or newer"));
    }
    models(&onnxruntime()).load(&motion()).await.unwrap();
}
