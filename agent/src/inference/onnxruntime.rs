//! ONNX Runtime, loaded from its shared library.

use std::borrow::Cow;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use half::{bf16, f16};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::{NoSelectedOutputs, RunOptions, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueRef};
use tracing::debug;
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::engine::check_output;
use super::signature::{Element, Signature};
use super::tensor::{Tensor, TensorType};
use crate::units::ByteSize;

/// The loaded library.
#[derive(Clone, Debug)]
pub(super) struct OnnxRuntime {
    environment: Environment,
    threads: usize,
    /// With its version.
    pub(super) name: Arc<str>,
    /// Where it is.
    pub(super) library: PathBuf,
}

/// A process can load one library only, and it stays.
static LOADED: Mutex<Option<OnnxRuntime>> = Mutex::new(None);

impl OnnxRuntime {
    /// Loads the library at `path`, with `threads` for each inference. One thread unless said: more cost a gateway more
    /// than they gain in latency for the small models that run there, and they compete with functions.
    ///
    /// # Errors
    /// With the path and why not.
    pub(super) fn load(path: &Path, threads: Option<u16>) -> Result<Self, String> {
        let threads = usize::from(threads.unwrap_or(1)).max(1);
        let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded.as_ref().filter(|loaded| loaded.library == path) {
            return Ok(Self { threads, ..loaded.clone() });
        }
        let version = probe(&path)?;
        if let Some(loaded) = &*loaded {
            let other = loaded.library.display();
            return Err(format!(
                "{}: this process already runs {} from {other}; restart it",
                path.display(),
                loaded.name
            ));
        }
        let environment = ort::init_from(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?
            .with_name("tidegate")
            .with_telemetry(false)
            // What it says about a failure is also in the error that it returns, which we report once.
            .with_logger(Arc::new(|_, _, _, _, message| debug!(target: "onnxruntime", "{message}")))
            .build()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        environment.set_log_level(LogLevel::Warning);
        let name = format!("ONNX Runtime {version}").into();
        let runtime = Self { environment, threads, name, library: path };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }
}

/// The version of the library at `path`, when it is one that we can use.
///
/// `ort::init_from` would say the same, but once only: after an error of it the process must not call `ort` again (its lock
/// counts as filled with what was never written), so that neither another library nor the built-in engine could follow.
#[expect(unsafe_code, reason = "a shared library has no other interface")]
fn probe(path: &Path) -> Result<String, String> {
    let no_library = |error| format!("{} is no library for this machine: {error}", path.display());
    let not_onnxruntime = |_| format!("{} is not ONNX Runtime", path.display());
    // SAFETY: the operator chose the library, or it is where the system keeps its own; loading runs its constructors, as
    // linking to it would. The symbol has had this type since ONNX Runtime 1.0, and gives a static.
    let version = unsafe {
        let library = libloading::Library::new(path).map_err(no_library)?;
        let base = library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0");
        let base = base.map_err(not_onnxruntime)?();
        let base = base.as_ref().ok_or_else(|| format!("{} gives no interface", path.display()))?;
        CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned()
    };
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0_u32));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < (1, ort::MINOR_VERSION) {
        return Err(format!("{} is version {version}, older than 1.{}", path.display(), ort::MINOR_VERSION));
    }
    Ok(version)
}

/// One model's session.
pub(super) struct Session {
    session: ort::session::Session,
    signature: Arc<Signature>,
}

impl Session {
    /// Loads a model.
    ///
    /// # Errors
    /// With what ONNX Runtime says.
    pub(super) fn open(runtime: &OnnxRuntime, file: &[u8], signature: &Arc<Signature>) -> Result<Self, String> {
        let build = || -> ort::Result<ort::session::Session> {
            ort::session::Session::builder(&runtime.environment)?
                .with_log_level(LogLevel::Warning)?
                .with_intra_threads(runtime.threads)?
                // Waiting threads that spin would keep a gateway's cores busy between two events.
                .with_intra_op_spinning(false)?
                .commit_from_memory(file)
        };
        let session = build().map_err(|error| error.to_string())?;
        Ok(Self { session, signature: Arc::clone(signature) })
    }

    /// Runs it; the inputs' data is read where it is.
    ///
    /// # Errors
    /// With what ONNX Runtime says, or which output cannot be carried.
    pub(super) fn run(
        &mut self,
        inputs: &[Tensor],
        stop: Option<&Stop>,
        tensor_bytes_max: ByteSize,
    ) -> Result<Vec<(String, Tensor)>, String> {
        let mut values = Vec::with_capacity(inputs.len());
        for (port, tensor) in self.signature.inputs.iter().zip(inputs) {
            let value =
                input_value(port.element, tensor).map_err(|error| format!("input \"{}\": {error}", port.name))?;
            values.push((Cow::Borrowed(port.name.as_str()), value));
        }
        let outputs = match stop {
            Some(Stop(options)) => self.session.run_with_options(values, options),
            None => self.session.run(values),
        }
        .map_err(|error| error.to_string())?;
        let carry = |(name, value): (&str, ValueRef<'_>)| {
            output_tensor(name, &value, tensor_bytes_max).map(|tensor| (name.to_owned(), tensor))
        };
        outputs.iter().map(carry).collect()
    }
}

fn input_value(element: Element, tensor: &Tensor) -> Result<SessionInputValue<'_>, String> {
    fn view<T>(tensor: &Tensor) -> Result<SessionInputValue<'_>, String>
    where
        T: TryFromBytes + Immutable + KnownLayout + PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
    {
        let shape: Vec<i64> = tensor.dimensions.iter().map(|size| i64::from(*size)).collect();
        let data = <[T]>::try_ref_from_bytes(&tensor.data).map_err(|error| error.to_string())?;
        TensorRef::from_array_view((shape, data)).map(Into::into).map_err(|error| error.to_string())
    }
    match element {
        Element::Bool => view::<bool>(tensor),
        Element::Of(TensorType::F16) => view::<f16>(tensor),
        Element::Of(TensorType::F32) => view::<f32>(tensor),
        Element::Of(TensorType::F64) => view::<f64>(tensor),
        Element::Of(TensorType::Bf16) => view::<bf16>(tensor),
        Element::Of(TensorType::U8) => view::<u8>(tensor),
        Element::Of(TensorType::I32) => view::<i32>(tensor),
        Element::Of(TensorType::I64) => view::<i64>(tensor),
    }
}

/// Copies an output out of the session's memory.
fn output_tensor(name: &str, value: &DynValue, max: ByteSize) -> Result<Tensor, String> {
    fn copy<T>(name: &str, kind: TensorType, value: &DynValue, max: ByteSize) -> Result<Tensor, String>
    where
        T: IntoBytes + Immutable + PrimitiveTensorElementType,
    {
        let (shape, data) = value.try_extract_tensor::<T>().map_err(|error| format!("output \"{name}\": {error}"))?;
        let data = data.as_bytes();
        check_output(name, data.len(), max)?;
        let mut dimensions = Vec::with_capacity(shape.len().max(1));
        for size in shape.iter() {
            let size = u32::try_from(*size).map_err(|_| format!("output \"{name}\" has a dimension of {size}"))?;
            dimensions.push(size);
        }
        if dimensions.is_empty() {
            dimensions.push(1);
        }
        Ok(Tensor { dimensions, kind, data: Bytes::copy_from_slice(data) })
    }
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float16) => copy::<f16>(name, TensorType::F16, value, max),
        Some(TensorElementType::Float32) => copy::<f32>(name, TensorType::F32, value, max),
        Some(TensorElementType::Float64) => copy::<f64>(name, TensorType::F64, value, max),
        Some(TensorElementType::Bfloat16) => copy::<bf16>(name, TensorType::Bf16, value, max),
        Some(TensorElementType::Uint8) => copy::<u8>(name, TensorType::U8, value, max),
        Some(TensorElementType::Bool) => copy::<bool>(name, TensorType::U8, value, max),
        Some(TensorElementType::Int32) => copy::<i32>(name, TensorType::I32, value, max),
        Some(TensorElementType::Int64) => copy::<i64>(name, TensorType::I64, value, max),
        _ => Err(format!("output \"{name}\" is {}, which functions cannot exchange with a model", value.dtype())),
    }
}

/// Ends a run from another thread.
#[derive(Clone)]
pub(super) struct Stop(Arc<RunOptions<NoSelectedOutputs>>);

impl Stop {
    /// `None` when there is no memory for it; then the run goes on to its end.
    pub(super) fn new() -> Option<Self> {
        RunOptions::new().ok().map(|options| Self(Arc::new(options)))
    }

    pub(super) fn now(&self) {
        if let Err(error) = self.0.terminate() {
            debug!(%error, "a run could not be stopped");
        }
    }
}
