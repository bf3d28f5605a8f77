//! Why a model could not be loaded or run, in words for the person who can mend it.

use std::path::PathBuf;
use std::sync::Arc;

use super::engine::Engine;
use crate::units::ByteSize;

/// What went wrong. Whatever the variant, models that were loaded before stay.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// ONNX Runtime is asked for, and is not there.
    #[error("no ONNX Runtime library found; looked for libonnxruntime.so* in {}", looked_in.join(", "))]
    NoLibrary {
        /// Folders, in the order of the search.
        looked_in: Vec<String>,
    },
    /// `runtime = "tract"`, in a build without.
    #[error("this build of tidegate has no built-in engine for models")]
    NotBuiltIn,
    /// The library that the configuration names, or the only one there, cannot be used.
    #[error("ONNX Runtime cannot be used: {}", reasons.join("; "))]
    BadLibrary {
        /// One for each library that was tried, with its path.
        reasons: Vec<String>,
    },
    /// A file cannot be read.
    #[error("{what} of model \"{model}\" cannot be read from {}", path.display())]
    Unreadable {
        /// Whose.
        model: String,
        /// `the file` or `the tests`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is over its bound.
    #[error("{what} of model \"{model}\" is {bytes}, more than `limits.model_bytes_max` = {max}: {}", path.display())]
    TooLarge {
        /// Whose.
        model: String,
        /// `the file` or `the tests`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Its size.
        bytes: ByteSize,
        /// The bound.
        max: ByteSize,
    },
    /// The bytes are no ONNX model.
    #[error("{} of model \"{model}\" is not a whole ONNX model: {reason}", path.display())]
    NotOnnx {
        /// Whose.
        model: String,
        /// Where.
        path: PathBuf,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The engine refuses the model.
    #[error("model \"{model}\" cannot be loaded by {engine} from {}: {reason}", path.display())]
    NotLoaded {
        /// Which.
        model: String,
        /// Its file.
        path: PathBuf,
        /// `ONNX Runtime 1.24.1` or `tract`.
        engine: Arc<str>,
        /// What the engine says.
        reason: String,
        /// Whether the other engine might load it.
        other_may: bool,
    },
    /// An input or output is of a type that wasi:nn cannot carry.
    #[error("{port} of model \"{model}\" is {found}, which functions cannot exchange with a model")]
    UnsupportedPort {
        /// Which.
        model: String,
        /// `input "x"` or `output "y"`.
        port: String,
        /// The type in the model.
        found: String,
    },
    /// The tests file is malformed.
    #[error("the tests of model \"{model}\" cannot be used: {reason}: {}", path.display())]
    BadTests {
        /// Whose.
        model: String,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model does not do what its tests say.
    #[error("model \"{model}\" fails its test \"{test}\" of {}: {reason}", path.display())]
    TestFailed {
        /// Which.
        model: String,
        /// The tests file.
        path: PathBuf,
        /// Name or number of the test.
        test: String,
        /// The largest difference, or the error.
        reason: String,
    },
    /// No model has this name.
    #[error("there is no model \"{model}\"{}", known(loaded))]
    NoModel {
        /// The name that was asked for.
        model: String,
        /// Those that are loaded.
        loaded: Vec<String>,
    },
    /// The inputs of a run do not fit the model.
    #[error("{0}")]
    BadInput(String),
    /// A tensor is over its bound.
    #[error("input \"{input}\" of model \"{model}\" is {bytes}, more than `limits.tensor_bytes_max` = {max}")]
    TensorTooLarge {
        /// Which.
        model: String,
        /// Its name.
        input: String,
        /// Its size.
        bytes: ByteSize,
        /// The bound.
        max: ByteSize,
    },
    /// The engine failed on inputs that fit.
    #[error("model \"{model}\" failed in {engine}: {reason}")]
    RunFailed {
        /// Which.
        model: String,
        /// `ONNX Runtime 1.24.1` or `tract`.
        engine: Arc<str>,
        /// What the engine says.
        reason: String,
    },
}

fn known(loaded: &[String]) -> String {
    match loaded {
        [] => "; none is loaded".to_owned(),
        names => format!("; loaded are {}", names.join(", ")),
    }
}

impl InferenceError {
    /// What to do about it, when there is something general to say.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotBuiltIn => {
                "install ONNX Runtime's libonnxruntime.so and take `runtime` out of [inference], or install a build of tidegate \
                 with the feature `tract`"
            }
            Self::NoLibrary { .. } if !Engine::IS_BUILT_IN => {
                "put ONNX Runtime's libonnxruntime.so (from its release, or out of the PyPI wheel `onnxruntime`) beside the \
                 tidegate binary, or name it with `library` in [inference]: this build of tidegate has no engine of its own"
            }
            Self::BadLibrary { .. } if !Engine::IS_BUILT_IN => {
                "ONNX Runtime must be 1.24 or newer and built for this machine"
            }
            Self::NoLibrary { .. } => {
                "install the package tidegate-onnxruntime, or put ONNX Runtime's libonnxruntime.so (from its release, or out of the \
                 PyPI wheel `onnxruntime`) beside the tidegate binary, or name it with `library` in [inference], or use `runtime = \"auto\"` for the built-in engine"
            }
            Self::BadLibrary { .. } => {
                "ONNX Runtime must be 1.24 or newer and built for this machine; `runtime = \"tract\"` in [inference] uses the \
                 built-in engine instead"
            }
            Self::Unreadable { .. } => "a relative path is relative to the configuration file",
            Self::NotOnnx { .. } => "export the model to ONNX in one file, and copy it again if the copy was cut",
            Self::NotLoaded { other_may: true, .. } => {
                "ONNX Runtime may be able to run it: install the package tidegate-onnxruntime, or put its libonnxruntime.so beside the tidegate binary, or name it with \
                 `library` in [inference]"
            }
            Self::UnsupportedPort { .. } => {
                "functions exchange tensors of f16, f32, f64, bf16, u8, i32, i64 (and bool as u8); for scikit-learn, export with \
                 `zipmap=False`; otherwise add a Cast to the model"
            }
            Self::BadTests { .. } => {
                "it must be like {\"tests\": [{\"inputs\": {\"x\": {\"type\": \"f32\", \"shape\": [1, 2], \"data\": [0.5, 1]}}, \
                 \"outputs\": {\"y\": {\"type\": \"f32\", \"shape\": [1], \"data\": [0.7]}}, \"tolerance\": 1e-4}]}"
            }
            Self::TestFailed { .. } => {
                "the model that was loaded before, if any, stays; correct the model or its tests"
            }
            Self::NoModel { .. } => "declare it as [[model]] in gateway.toml, then run `tidegate reload`",
            Self::TooLarge { .. }
            | Self::NotLoaded { other_may: false, .. }
            | Self::BadInput(_)
            | Self::TensorTooLarge { .. }
            | Self::RunFailed { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
