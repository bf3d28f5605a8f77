//! Which engine runs the models: ONNX Runtime when its library is there, else tract, where it is built in.

use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::error::InferenceError;
use super::library::Search;
use super::onnxruntime;
use super::onnxruntime::OnnxRuntime;
use super::signature::Signature;
use super::tensor::Tensor;
#[cfg(feature = "tract")]
use super::tract;
use crate::config::{InferenceConfig, InferenceRuntime};
use crate::units::ByteSize;

/// The engine of all models of this process.
#[derive(Debug)]
pub(super) enum Engine {
    OnnxRuntime(OnnxRuntime),
    #[cfg(feature = "tract")]
    Tract,
}

impl Engine {
    /// Whether this build has an engine that needs no library.
    pub(super) const IS_BUILT_IN: bool = cfg!(feature = "tract");

    #[cfg(feature = "tract")]
    const fn built_in() -> Option<Self> {
        Some(Self::Tract)
    }

    #[cfg(not(feature = "tract"))]
    const fn built_in() -> Option<Self> {
        None
    }

    /// Picks the engine, and says in the log which and why. Neither engine's memory is touched before this.
    ///
    /// # Errors
    /// When the configuration asks for ONNX Runtime, by name or by its library, and it cannot be used; or when nothing else is there.
    pub(super) fn pick(config: &InferenceConfig) -> Result<Self, InferenceError> {
        let engine = match (config.runtime, &config.library) {
            (InferenceRuntime::Tract, _) => Self::built_in().ok_or(InferenceError::NotBuiltIn)?,
            (_, Some(library)) => Self::load_first(std::slice::from_ref(library), config.threads)?,
            (runtime, None) => {
                let program = crate::boot::program();
                let search = Search::run(program.as_deref().and_then(Path::parent), Path::new("/"));
                let built_in = Self::built_in().filter(|_| runtime != InferenceRuntime::Onnxruntime);
                match (Self::load_first(&search.found, config.threads), built_in) {
                    (Ok(engine), _) => engine,
                    (Err(_), None) if search.found.is_empty() => {
                        return Err(InferenceError::NoLibrary { looked_in: search.looked_in });
                    }
                    (Err(error), None) => return Err(error),
                    (Err(_), Some(built_in)) if search.found.is_empty() => built_in,
                    (Err(error), Some(built_in)) => {
                        warn!(%error, "ONNX Runtime is here but cannot be used; models run in the built-in engine");
                        built_in
                    }
                }
            }
        };
        match &engine {
            Self::OnnxRuntime(runtime) => {
                info!(engine = %engine.name(), library = %runtime.library.display(), "models run in ONNX Runtime");
            }
            #[cfg(feature = "tract")]
            Self::Tract => info!(engine = %engine.name(), "models run in the built-in engine"),
        }
        Ok(engine)
    }

    fn load_first(libraries: &[std::path::PathBuf], threads: Option<u16>) -> Result<Self, InferenceError> {
        let mut reasons = Vec::new();
        for library in libraries {
            match OnnxRuntime::load(library, threads) {
                Ok(runtime) => return Ok(Self::OnnxRuntime(runtime)),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(InferenceError::BadLibrary { reasons })
    }

    /// `ONNX Runtime 1.24.1` or `tract`.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::OnnxRuntime(runtime) => Arc::clone(&runtime.name),
            #[cfg(feature = "tract")]
            Self::Tract => "tract".into(),
        }
    }

    /// Whether ONNX Runtime might load what this one does not.
    pub(super) const fn is_built_in(&self) -> bool {
        !matches!(self, Self::OnnxRuntime(_))
    }

    /// Makes `count` sessions of one model, each of which can run while the others do.
    ///
    /// # Errors
    /// With what the engine says.
    pub(super) fn open(&self, file: &[u8], signature: &Arc<Signature>, count: u16) -> Result<Vec<Session>, String> {
        match self {
            Self::OnnxRuntime(runtime) => {
                let open = |_| onnxruntime::Session::open(runtime, file, signature).map(Session::OnnxRuntime);
                (0..count).map(open).collect()
            }
            #[cfg(feature = "tract")]
            Self::Tract => {
                // One plan serves any number of runs at the same time.
                let session = tract::Session::open(file, signature)?;
                Ok((0..count).map(|_| Session::Tract(session.clone())).collect())
            }
        }
    }
}

/// One model, ready for one run at a time.
pub(super) enum Session {
    OnnxRuntime(onnxruntime::Session),
    #[cfg(feature = "tract")]
    Tract(tract::Session),
}

impl Session {
    /// Runs the model on inputs that fit its signature, in its order.
    ///
    /// # Errors
    /// With what the engine says.
    pub(super) fn run(
        &mut self,
        inputs: &[Tensor],
        stop: Option<&Stop>,
        tensor_bytes_max: ByteSize,
    ) -> Result<Vec<(String, Tensor)>, String> {
        match self {
            Self::OnnxRuntime(session) => {
                session.run(inputs, stop.and_then(|Stop(stop)| stop.as_ref()), tensor_bytes_max)
            }
            #[cfg(feature = "tract")]
            Self::Tract(session) => session.run(inputs, tensor_bytes_max),
        }
    }

    /// What stops a run of this session from another thread.
    pub(super) fn stop(&self) -> Stop {
        Stop(match self {
            Self::OnnxRuntime(_) => onnxruntime::Stop::new(),
            #[cfg(feature = "tract")]
            Self::Tract(_) => None,
        })
    }
}

/// Ends a run whose result nobody waits for any more. tract's runs go on to their end.
#[derive(Clone)]
pub(super) struct Stop(Option<onnxruntime::Stop>);

impl Stop {
    /// For what cannot be stopped.
    pub(super) const NONE: Self = Self(None);

    /// Has no effect on a run that has ended.
    pub(super) fn now(&self) {
        if let Some(stop) = &self.0 {
            stop.now();
        }
    }
}

/// The refusal of an output that is over the bound.
pub(super) fn check_output(name: &str, bytes: usize, max: ByteSize) -> Result<(), String> {
    let bytes = ByteSize(u64::try_from(bytes).unwrap_or(u64::MAX));
    if bytes > max {
        return Err(format!("output \"{name}\" is {bytes}, more than `limits.tensor_bytes_max` = {max}"));
    }
    Ok(())
}
