//! What both engines promise, told once and run with each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidegate::config::{InferenceConfig, ModelConfig};
use tidegate::inference::{InferenceError, Models, Tensor, TensorType};
use tidegate::limits::Limits;
use tidegate::name::ModelName;
use tidegate::units::ByteSize;

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// A model of `tests/models`, with itself as name.
pub(crate) fn test_model(name: &str) -> ModelConfig {
    model(name, &repository(&format!("tests/models/{name}.onnx")))
}

pub(crate) fn model(name: &str, file: &Path) -> ModelConfig {
    ModelConfig { name: ModelName::parse(name).unwrap(), file: file.to_path_buf(), tests: None, concurrency: None }
}

pub(crate) fn motion() -> ModelConfig {
    let folder = repository("functions/examples/motion/models");
    ModelConfig { tests: Some(folder.join("motion.tests.json")), ..model("motion", &folder.join("motion.onnx")) }
}

pub(crate) fn models(config: &InferenceConfig) -> Arc<Models> {
    Arc::new(Models::open(config, Arc::new(Limits::default())).unwrap())
}

pub(crate) fn tensor(kind: TensorType, dimensions: &[u32], data: impl Into<Vec<u8>>) -> Tensor {
    Tensor { dimensions: dimensions.to_vec(), kind, data: Bytes::from(data.into()) }
}

pub(crate) fn floats(dimensions: &[u32], values: &[f32]) -> Tensor {
    tensor(TensorType::F32, dimensions, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.kind, TensorType::F32);
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(crate) async fn run(
    models: &Models,
    model: &str,
    inputs: Vec<(&str, Tensor)>,
) -> Result<Vec<(String, Tensor)>, InferenceError> {
    models.run(model, inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()).await
}

/// Loads `from` under another name.
pub(crate) async fn replace(models: &Arc<Models>, name: &str, from: ModelConfig) -> Result<(), InferenceError> {
    models.load(&ModelConfig { name: ModelName::parse(name).unwrap(), ..from }).await
}

/// The promises of `$config`'s engine as tests.
#[macro_export]
macro_rules! promises_of_both_engines {
    ($config:expr, $($promise:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            inference::$promise($config).await;
        }
    )*};
}

pub(crate) async fn the_motion_model_loads_and_passes_its_tests(config: InferenceConfig) {
    let models = models(&config);
    models.load(&motion()).await.unwrap();
    let status = models.status().remove(0);
    assert_eq!(status.inputs, ["window: f32 [1, 100, 6]"]);
    assert_eq!(status.outputs, ["probabilities: f32 [1, 4]"]);
    assert_eq!(status.digest.len(), 64);
    assert_eq!(status.latency.runs, 0, "tests are not counted");

    let outputs = run(&models, "motion", vec![("window", floats(&[1, 100, 6], &[0.5; 600]))]).await.unwrap();
    assert_eq!((outputs.len(), &*outputs[0].0), (1, "probabilities"));
    let sum: f32 = numbers(&outputs[0].1).iter().sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    assert_eq!(models.status()[0].latency.runs, 1);
}

pub(crate) async fn every_type_that_the_engine_has_goes_in_and_out_unchanged(config: InferenceConfig) {
    let models = models(&config);
    // Bytes that are a number in each type; 2 × 2 elements.
    let cases = [
        ("f16", TensorType::F16, vec![0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01, 0x00]),
        ("f32", TensorType::F32, [1.5_f32, -2.0, f32::MAX, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("f64", TensorType::F64, [1.5_f64, -2.0, f64::MAX, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("u8", TensorType::U8, vec![0, 1, 128, 255]),
        ("i32", TensorType::I32, [1_i32, -2, i32::MIN, i32::MAX].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("i64", TensorType::I64, [1_i64, -2, i64::MIN, i64::MAX].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("bool", TensorType::U8, vec![0, 1, 1, 0]),
    ];
    for (name, kind, data) in cases {
        let name = format!("identity-{name}");
        models.load(&test_model(&name)).await.unwrap();
        // A guest's data may start anywhere.
        for offset in 0..3 {
            let mut shifted = vec![0; offset];
            shifted.extend(&data);
            let data = Bytes::from(shifted).slice(offset..);
            let given = Tensor { dimensions: vec![2, 2], kind, data };
            let outputs = run(&models, &name, vec![("x", given.clone())]).await.unwrap();
            assert_eq!(outputs, [("y".to_owned(), given)], "{name} at {offset}");
        }
    }
}

pub(crate) async fn dynamic_sizes_and_single_values_work(config: InferenceConfig) {
    let models = models(&config);
    models.load(&test_model("row-means")).await.unwrap();
    for count in [1_u16, 3, 2, 7, 3, 100, 1] {
        let rows: Vec<f32> =
            (0..count).flat_map(|row| [f32::from(row), f32::from(row) + 1.0, f32::from(row) + 2.0]).collect();
        let outputs = run(&models, "row-means", vec![("rows", floats(&[count.into(), 3], &rows))]).await.unwrap();
        let wanted: Vec<f32> = (0..count).map(|row| f32::from(row) + 1.0).collect();
        assert_eq!(numbers(&outputs[0].1), wanted);
    }
    let error = run(&models, "row-means", vec![("rows", floats(&[3, 2], &[0.0; 6]))]).await.unwrap_err();
    assert_eq!(error.to_string(), "input \"rows\" of model \"row-means\" must be f32 [count, 3], got f32 [3, 2]");

    models.load(&test_model("scaled-sum")).await.unwrap();
    let inputs = vec![("1", floats(&[1], &[10.0])), ("0", floats(&[4], &[1.0, 2.0, 3.0, 4.0]))];
    let outputs = run(&models, "scaled-sum", inputs).await.unwrap();
    assert_eq!(outputs, [("sum".to_owned(), floats(&[1], &[100.0]))], "by number, and a single value is [1]");
}

pub(crate) async fn an_output_over_its_bound_is_refused(config: InferenceConfig) {
    let limits = Limits { tensor_bytes_max: ByteSize(4001), ..Limits::default() };
    let models = Arc::new(Models::open(&config, Arc::new(limits)).unwrap());
    models.load(&test_model("thrice")).await.unwrap();
    let few = |count: u16| vec![("few", floats(&[count.into()], &vec![1.0; count.into()]))];
    let outputs = run(&models, "thrice", few(333)).await.unwrap();
    assert_eq!(numbers(&outputs[0].1), [1.0; 999]);
    let error = run(&models, "thrice", few(334)).await.unwrap_err().to_string();
    assert!(error.ends_with("output \"many\" is 4008 B, more than `limits.tensor_bytes_max` = 4001 B"), "{error}");
    assert_eq!(models.status()[0].latency.failures, 1);
}

pub(crate) async fn a_bad_file_is_told_from_a_model_and_the_old_one_stays(config: InferenceConfig) {
    let models = models(&config);
    models.load(&motion()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(motion().file).unwrap();
    let cases = [
        (
            "text",
            b"this is no model".to_vec(),
            "is not a whole ONNX model: its first bytes are not those of an ONNX file",
        ),
        ("empty", vec![], "is not a whole ONNX model: it is empty"),
        ("cut", whole[..whole.len() / 2].to_vec(), "is not a whole ONNX model: it ends in the middle, or is damaged"),
    ];
    for (name, bytes, reason) in cases {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let error = replace(&models, "motion", model("x", &file)).await.unwrap_err();
        let wanted = format!("{} of model \"motion\" {reason}", file.display());
        assert_eq!(error.to_string(), wanted);
        assert!(error.hint().is_some());
    }
    let error = replace(&models, "motion", model("x", &folder.path().join("missing"))).await.unwrap_err();
    assert!(matches!(error, InferenceError::Unreadable { .. }), "{error}");

    let error = replace(&models, "motion", test_model("strings")).await.unwrap_err();
    assert!(error.to_string().contains("input \"x\" of model \"motion\" is a tensor of strings"), "{error}");
    for name in ["unknown", "dangling"] {
        let error = replace(&models, "motion", test_model(name)).await.unwrap_err();
        assert!(matches!(error, InferenceError::NotLoaded { .. }), "{error}");
    }

    let outputs = run(&models, "motion", vec![("window", floats(&[1, 100, 6], &[0.5; 600]))]).await;
    assert!(outputs.is_ok(), "the first model still runs");
}

pub(crate) async fn a_replacement_takes_over_only_when_it_passes_its_tests(config: InferenceConfig) {
    let models = models(&config);
    let folder = tempfile::tempdir().unwrap();
    let tests = folder.path().join("tests.json");
    let write = |wanted: f32| {
        let text = format!(
            r#"{{"tests": [{{"inputs": {{"x": {{"type": "f32", "shape": [2, 2], "data": [1, 2, 3, 4]}}}},
                "outputs": {{"y": {{"type": "f32", "shape": [2, 2], "data": [1, 2, 3, {wanted}]}}}}}}]}}"#
        );
        std::fs::write(&tests, text).unwrap();
    };
    models.load(&test_model("identity-u8")).await.unwrap();
    let before = models.get("identity-u8").unwrap();
    let better = || ModelConfig { tests: Some(tests.clone()), ..test_model("identity-f32") };

    write(5.0);
    let error = replace(&models, "identity-u8", better()).await.unwrap_err().to_string();
    let wanted = format!(
        "model \"identity-u8\" fails its test \"1\" of {}: output \"y\" differs at 1 of 4 places; at 3 it is 4, expected 5 ± 0.0001",
        tests.display()
    );
    assert_eq!(error, wanted);
    assert!(Arc::ptr_eq(&before, &models.get("identity-u8").unwrap()), "the old one stays");

    write(4.0);
    replace(&models, "identity-u8", better()).await.unwrap();
    let after = models.get("identity-u8").unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    let four = floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    assert!(run(&models, "identity-u8", vec![("x", four)]).await.is_ok());
    let old = tensor(TensorType::U8, &[2, 2], [1, 2, 3, 4]);
    assert!(before.run(vec![("x".to_owned(), old)]).await.is_ok(), "who still has the old one can finish");

    replace(&models, "identity-u8", better()).await.unwrap();
    assert!(Arc::ptr_eq(&after, &models.get("identity-u8").unwrap()), "the same files are not loaded again");
}

/// So that a reload which fails further on leaves every model as it was.
pub(crate) async fn a_prepared_model_waits_until_it_is_installed(config: InferenceConfig) {
    let models = models(&config);
    assert!(models.prepare(&test_model("unknown")).await.is_err());
    let prepared = models.prepare(&test_model("identity-f32")).await.unwrap().unwrap();
    assert!(models.get("identity-f32").is_none());
    models.install(prepared);
    assert!(models.get("identity-f32").is_some());
    assert!(models.prepare(&test_model("identity-f32")).await.unwrap().is_none(), "it runs already");
}

pub(crate) async fn events_flow_while_a_model_is_replaced(config: InferenceConfig) {
    let models = models(&config);
    models.load(&motion()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let models = Arc::clone(&models);
            tokio::spawn(async move {
                for _ in 0..200 {
                    run(&models, "motion", vec![("window", floats(&[1, 100, 6], &[0.5; 600]))]).await.unwrap();
                }
            })
        })
        .collect();
    let file = folder.path().join("motion.onnx");
    let whole = std::fs::read(motion().file).unwrap();
    for turn in 0..5_u8 {
        // A field that readers do not know makes it another file and the same model.
        let mut changed = whole.clone();
        changed.extend([0xf8, 0x07, turn]);
        std::fs::write(&file, changed).unwrap();
        let before = models.get("motion").unwrap();
        replace(&models, "motion", ModelConfig { file: file.clone(), ..motion() }).await.unwrap();
        assert!(!Arc::ptr_eq(&before, &models.get("motion").unwrap()));
    }
    for run in runs {
        run.await.unwrap();
    }
}

pub(crate) async fn runs_wait_for_a_free_session_and_all_end(config: InferenceConfig) {
    let models = models(&config);
    models.load(&ModelConfig { concurrency: Some(2), ..motion() }).await.unwrap();
    let runs: Vec<_> = (0..20)
        .map(|number| {
            let models = Arc::clone(&models);
            tokio::spawn(async move {
                let window = floats(&[1, 100, 6], &[f32::from(number % 3_u8); 600]);
                run(&models, "motion", vec![("window", window)]).await.unwrap()
            })
        })
        .collect();
    let mut outputs = Vec::new();
    for run in runs {
        outputs.push(run.await.unwrap());
    }
    for (number, output) in outputs.iter().enumerate() {
        assert_eq!(output, &outputs[number % 3], "no run got another's output");
    }
    assert_eq!(models.status()[0].concurrency, 2);
}

pub(crate) async fn a_quick_model_comes_to_run_on_its_functions_thread(config: InferenceConfig) {
    let models = models(&config);
    models.load(&test_model("identity-f32")).await.unwrap();
    let input = || vec![("x", floats(&[2, 2], &[0.0; 4]))];
    run(&models, "identity-f32", input()).await.unwrap();
    assert!(!models.status()[0].inline, "not before it was measured");
    for _ in 0..500 {
        run(&models, "identity-f32", input()).await.unwrap();
    }
    let status = models.status().remove(0);
    assert!(status.inline, "{:?}", status.latency);
    assert_eq!(status.latency.runs, 501);
}

pub(crate) async fn a_removed_model_is_named_with_those_that_are_there(config: InferenceConfig) {
    let models = models(&config);
    models.load(&motion()).await.unwrap();
    models.load(&test_model("if")).await.ok();
    models.load(&test_model("thrice")).await.unwrap();
    models.remove(&ModelName::parse("thrice").unwrap());
    models.remove(&ModelName::parse("if").unwrap());
    let error = run(&models, "thrice", vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no model \"thrice\"; loaded are motion");
    models.remove(&ModelName::parse("motion").unwrap());
    let error = run(&models, "motion", vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no model \"motion\"; none is loaded");
}
