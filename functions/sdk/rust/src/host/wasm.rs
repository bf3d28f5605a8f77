//! The agent, through the imports of the world `sdk`.

use std::sync::Once;

use crate::control::Value;
use crate::emit::Message;
use crate::event;
use crate::failure::Failure;
use crate::model::{Tensor, TensorKind};

use bindings::tidegate::function::{control, emit};
use bindings::wasi::filesystem::{preopens, types as files};
use bindings::wasi::keyvalue::{atomics, batch, store};
use bindings::wasi::nn::{errors as nn_errors, graph, tensor as nn};

#[allow(missing_docs, missing_debug_implementations, unreachable_pub, unsafe_code, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "sdk",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_handler",
        default_bindings_module: "::function_sdk::__private::bindings",
    });
}

/// Calls the handler with what the agent handed over.
pub fn run(
    event: bindings::Event,
    context: bindings::Context,
    handler: impl FnOnce(event::Event, event::Context) -> Result<Vec<u8>, Failure>,
) -> Result<Vec<u8>, bindings::Failure> {
    log_panics();
    let event = event::Event {
        id: event.id,
        source: event.source,
        kind: event.kind,
        subject: event.subject,
        time_ms: event.time_ms,
        content_type: event.content_type,
        attributes: event.attributes,
        data: event.data,
    };
    let context = event::Context {
        function: context.function,
        version: context.version,
        invocation: context.invocation,
        attempt: context.attempt,
        deadline_ms: context.deadline_ms,
        memory_bytes: context.memory_bytes,
        trace_parent: context.trace_parent,
    };
    handler(event, context).map_err(|failure| match failure {
        Failure::Retry(why) => bindings::Failure::Retry(why),
        Failure::Reject(why) => bindings::Failure::Reject(why),
    })
}

/// This target's standard library has no standard error: a panic would be a bare trap.
fn log_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|panic| log(&format!("{panic}\n")))));
}

pub(crate) fn publish(message: Message) -> Result<(), String> {
    // Nothing said is not the same as a default here: the choice is the agent's then.
    let plain = message.qos.is_none() && !message.retain && message.content_type.is_none();
    let options = emit::PublishOptions {
        qos: message.qos.unwrap_or(1),
        retain: message.retain,
        content_type: message.content_type,
    };
    emit::publish(&message.topic, &message.data, (!plain).then_some(&options))
}

pub(crate) fn append(stream: &str, data: &[u8]) -> Result<(), String> {
    emit::append(stream, data)
}

pub(crate) fn write(source: &str, point: &str, value: Value) -> Result<(), String> {
    let value = match value {
        Value::Boolean(value) => control::Value::Boolean(value),
        Value::Integer(value) => control::Value::Integer(value),
        Value::Number(value) => control::Value::Number(value),
    };
    control::write(source, point, value)
}

pub(crate) fn log(lines: &str) {
    // The most that one call of `blocking-write-and-flush` may carry.
    const CHUNK: usize = 4096;
    let stream = bindings::wasi::cli::stderr::get_stderr();
    for chunk in lines.as_bytes().chunks(CHUNK) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
}

pub(crate) fn now_ms() -> u64 {
    let now = bindings::wasi::clocks::wall_clock::now();
    now.seconds * 1000 + u64::from(now.nanoseconds / 1_000_000)
}

pub(crate) fn random() -> u64 {
    bindings::wasi::random::random::get_random_u64()
}

pub(crate) fn config_get(name: &str) -> Result<Option<String>, Failure> {
    bindings::wasi::config::store::get(name).map_err(config_failure)
}

pub(crate) fn config_all() -> Result<Vec<(String, String)>, Failure> {
    bindings::wasi::config::store::get_all().map_err(config_failure)
}

fn config_failure(error: bindings::wasi::config::store::Error) -> Failure {
    use bindings::wasi::config::store::Error;
    let (Error::Upstream(why) | Error::Io(why)) = error;
    Failure::Retry(why)
}

pub(crate) fn read_file(path: &str) -> Result<Vec<u8>, Failure> {
    /// Most that one call asks for.
    const CHUNK: u64 = 64 << 10;
    let mounts = preopens::get_directories().into_iter().filter_map(|(folder, mount)| {
        let below = path.strip_prefix(mount.trim_end_matches('/'))?.strip_prefix('/')?;
        Some((below.len(), folder, below))
    });
    // Of mounts in mounts, the inner one.
    let Some((_, folder, below)) = mounts.min_by_key(|(below, ..)| *below) else {
        return Err(Failure::reject("it is in no folder that this function may read"));
    };
    let open =
        folder.open_at(files::PathFlags::empty(), below, files::OpenFlags::empty(), files::DescriptorFlags::READ);
    let file = open.map_err(file_failure)?;
    let mut content = Vec::new();
    loop {
        let (mut chunk, is_end) = file.read(CHUNK, content.len() as u64).map_err(file_failure)?;
        let is_end = is_end || chunk.is_empty();
        content.append(&mut chunk);
        if is_end {
            return Ok(content);
        }
    }
}

fn file_failure(error: files::ErrorCode) -> Failure {
    use files::ErrorCode;
    match error {
        ErrorCode::NoEntry | ErrorCode::NotDirectory => Failure::reject("there is no such file"),
        ErrorCode::Access | ErrorCode::NotPermitted => Failure::reject("this function may not read it"),
        ErrorCode::IsDirectory => Failure::reject("it is a folder"),
        other => Failure::retry(other.message()),
    }
}

#[derive(Debug)]
pub(crate) struct Bucket(store::Bucket);

impl Bucket {
    pub(crate) fn open(name: &str) -> Result<Self, Failure> {
        store::open(name).map(Self).map_err(|error| store_failure(error).about(format_args!("bucket `{name}`")))
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.0.get(key).map_err(store_failure)
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let values = batch::get_many(&self.0, keys).map_err(store_failure)?;
        Ok(values.into_iter().map(|entry| entry.map(|(_, value)| value)).collect())
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, Failure> {
        self.0.exists(key).map_err(store_failure)
    }

    pub(crate) fn keys(&self) -> Result<Vec<String>, Failure> {
        let mut page = self.0.list_keys(None).map_err(store_failure)?;
        let mut keys = page.keys;
        while let Some(cursor) = page.cursor {
            page = self.0.list_keys(Some(cursor)).map_err(store_failure)?;
            keys.append(&mut page.keys);
        }
        Ok(keys)
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        self.0.set(key, value).map_err(store_failure)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), Failure> {
        self.0.delete(key).map_err(store_failure)
    }

    pub(crate) fn delete_many(&self, keys: &[String]) -> Result<(), Failure> {
        batch::delete_many(&self.0, keys).map_err(store_failure)
    }

    pub(crate) fn increment(&self, key: &str, delta: u64) -> Result<u64, Failure> {
        atomics::increment(&self.0, key, delta).map_err(store_failure)
    }
}

fn store_failure(error: store::Error) -> Failure {
    match error {
        store::Error::NoSuchStore => Failure::reject("there is no such bucket"),
        store::Error::AccessDenied => Failure::reject("capability `keyvalue` is not granted"),
        store::Error::Other(why) => Failure::Retry(why),
    }
}

pub(crate) fn infer(model: &str, inputs: Vec<(&str, Tensor)>) -> Result<Vec<(String, Tensor)>, Failure> {
    let graph = graph::load_by_name(model).map_err(inference_failure)?;
    let execution = graph.init_execution_context().map_err(inference_failure)?;
    let inputs = inputs.into_iter().map(|(name, tensor)| {
        let handle = nn::Tensor::new(&tensor.shape, to_wit(tensor.kind), &tensor.data);
        (name.to_owned(), handle)
    });
    let outputs = execution.compute(inputs.collect()).map_err(inference_failure)?;
    Ok(outputs.into_iter().map(|(name, tensor)| (name, from_wit(&tensor))).collect())
}

fn from_wit(tensor: &nn::Tensor) -> Tensor {
    let kind = match tensor.ty() {
        nn::TensorType::Fp16 => TensorKind::F16,
        nn::TensorType::Fp32 => TensorKind::F32,
        nn::TensorType::Fp64 => TensorKind::F64,
        nn::TensorType::Bf16 => TensorKind::Bf16,
        nn::TensorType::U8 => TensorKind::U8,
        nn::TensorType::I32 => TensorKind::I32,
        nn::TensorType::I64 => TensorKind::I64,
    };
    Tensor { kind, shape: tensor.dimensions(), data: tensor.data() }
}

fn to_wit(kind: TensorKind) -> nn::TensorType {
    match kind {
        TensorKind::F16 => nn::TensorType::Fp16,
        TensorKind::F32 => nn::TensorType::Fp32,
        TensorKind::F64 => nn::TensorType::Fp64,
        TensorKind::Bf16 => nn::TensorType::Bf16,
        TensorKind::U8 => nn::TensorType::U8,
        TensorKind::I32 => nn::TensorType::I32,
        TensorKind::I64 => nn::TensorType::I64,
    }
}

fn inference_failure(error: nn_errors::Error) -> Failure {
    use nn_errors::ErrorCode;
    match error.code() {
        ErrorCode::Timeout | ErrorCode::RuntimeError | ErrorCode::Unknown => Failure::Retry(error.data()),
        ErrorCode::InvalidArgument
        | ErrorCode::InvalidEncoding
        | ErrorCode::UnsupportedOperation
        | ErrorCode::TooLarge
        | ErrorCode::NotFound
        | ErrorCode::Security => Failure::Reject(error.data()),
    }
}
