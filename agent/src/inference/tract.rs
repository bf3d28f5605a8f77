//! tract, the engine that is built in.
//!
//! It is used directly and not through `ort`'s interface for other engines: there, a panic in tract would cross functions
//! that must not unwind and take the agent down; here it is an error. And a model whose sizes tract cannot work out ahead
//! can be prepared again for the sizes that come.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use half::f16;
use tract_onnx::prelude::{
    Datum, DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TValue,
    Tensor as TractTensor, TractError, TractResult, TypedSimplePlan,
};
use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use super::engine::check_output;
use super::signature::{Element, Port, Signature};
use super::tensor::{Tensor, TensorType};
use crate::units::ByteSize;

type Plan = Arc<TypedSimplePlan>;

/// One model; clones share it, and each can run at any time.
#[derive(Clone)]
pub(super) struct Session {
    signature: Arc<Signature>,
    plans: Arc<Plans>,
}

enum Plans {
    /// One for all sizes.
    Whole(Plan),
    /// One for each combination of sizes, made when it first comes; the most recent are kept.
    BySize { model: InferenceModel, recent: Mutex<Vec<(Vec<Vec<u32>>, Plan)>> },
}

/// Each holds the model's weights again.
const PLANS_MAX: usize = 4;

impl Session {
    /// Loads a model.
    ///
    /// # Errors
    /// With what tract says, or that it panicked.
    pub(super) fn open(file: &[u8], signature: &Arc<Signature>) -> Result<Self, String> {
        let is_bf16 = |port: &&Port| port.element == Element::Of(TensorType::Bf16);
        if let Some(port) = signature.inputs.iter().chain(&signature.outputs).find(is_bf16) {
            return Err(format!("\"{}\" is of bf16, which tract cannot compute", port.name));
        }
        let plans = guarded(|| Plans::make(file, signature))?;
        Ok(Self { signature: Arc::clone(signature), plans: Arc::new(plans) })
    }

    /// Runs it.
    ///
    /// # Errors
    /// With what tract says, or which output cannot be carried.
    pub(super) fn run(&self, inputs: &[Tensor], tensor_bytes_max: ByteSize) -> Result<Vec<(String, Tensor)>, String> {
        let outputs = guarded(|| {
            let plan = self.plans.get(inputs, &self.signature)?;
            let values = self.signature.inputs.iter().zip(inputs);
            plan.run(values.map(|(port, tensor)| input_value(port.element, tensor)).collect::<TractResult<_>>()?)
        })?;
        let names = self.signature.outputs.iter().map(|port| port.name.as_str());
        let carry = |(name, value): (&str, &TValue)| {
            output_tensor(name, value, tensor_bytes_max).map(|tensor| (name.to_owned(), tensor))
        };
        names.zip(&outputs).map(carry).collect()
    }
}

impl Plans {
    fn make(mut file: &[u8], signature: &Signature) -> TractResult<Self> {
        let onnx = tract_onnx::onnx();
        let proto = onnx.proto_model_for_read(&mut file)?;
        let first = onnx.model_for_proto_model(&proto).and_then(|model| model.into_optimized()?.into_runnable());
        let error = match first {
            Ok(plan) => return Ok(Self::Whole(plan)),
            Err(error) => error,
        };
        // Sizes that the exporter noted inside the model may contradict what follows from the inputs.
        let model = onnx.with_ignore_value_info(true).model_for_proto_model(&proto)?;
        if let Ok(plan) = model.clone().into_optimized().and_then(IntoRunnable::into_runnable) {
            return Ok(Self::Whole(plan));
        }
        let unknown = model.nodes.iter().any(|node| node.op.name().starts_with("Unimplemented"));
        if unknown || signature.inputs.iter().all(Port::is_fixed) {
            return Err(error);
        }
        Ok(Self::BySize { model, recent: Mutex::default() })
    }

    fn get(&self, inputs: &[Tensor], signature: &Signature) -> TractResult<Plan> {
        let (model, recent) = match self {
            Self::Whole(plan) => return Ok(Arc::clone(plan)),
            Self::BySize { model, recent } => (model, recent),
        };
        // Held while a plan is made: others that come with the same sizes want the same plan.
        let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |sizes: &Vec<Vec<u32>>| sizes.iter().zip(inputs).all(|(sizes, input)| *sizes == input.dimensions);
        if let Some(at) = recent.iter().position(|(sizes, _)| same(sizes)) {
            recent[..=at].rotate_right(1);
            return Ok(Arc::clone(&recent[0].1));
        }
        let mut model = model.clone();
        for (at, (port, input)) in signature.inputs.iter().zip(inputs).enumerate() {
            let shape: Vec<usize> = input.dimensions.iter().map(|size| *size as usize).collect();
            model.set_input_fact(at, InferenceFact::dt_shape(datum_type(port.element), shape))?;
        }
        let plan = model.into_optimized()?.into_runnable()?;
        recent.truncate(PLANS_MAX - 1);
        recent.insert(0, (inputs.iter().map(|input| input.dimensions.clone()).collect(), Arc::clone(&plan)));
        Ok(plan)
    }
}

/// tract checks some things by panicking; such a model is refused like any other that it cannot run.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| shorten(&format!("{error:#}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("it panicked: {}", shorten(text.unwrap_or("without a message"))))
        }
    }
}

/// tract's errors can carry the whole node with its weights.
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 400;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

fn datum_type(element: Element) -> DatumType {
    match element {
        Element::Bool => DatumType::Bool,
        Element::Of(TensorType::F16 | TensorType::Bf16) => DatumType::F16,
        Element::Of(TensorType::F32) => DatumType::F32,
        Element::Of(TensorType::F64) => DatumType::F64,
        Element::Of(TensorType::U8) => DatumType::U8,
        Element::Of(TensorType::I32) => DatumType::I32,
        Element::Of(TensorType::I64) => DatumType::I64,
    }
}

fn input_value(element: Element, tensor: &Tensor) -> TractResult<TValue> {
    fn copy<T: Datum + Copy + TryFromBytes + Immutable + KnownLayout>(tensor: &Tensor) -> TractResult<TValue> {
        let shape: Vec<usize> = tensor.dimensions.iter().map(|size| *size as usize).collect();
        let data = <[T]>::try_ref_from_bytes(&tensor.data).map_err(|error| TractError::msg(error.to_string()))?;
        TractTensor::from_shape(&shape, data).map(Into::into)
    }
    match datum_type(element) {
        DatumType::Bool => copy::<bool>(tensor),
        DatumType::F16 => copy::<f16>(tensor),
        DatumType::F64 => copy::<f64>(tensor),
        DatumType::U8 => copy::<u8>(tensor),
        DatumType::I32 => copy::<i32>(tensor),
        DatumType::I64 => copy::<i64>(tensor),
        _ => copy::<f32>(tensor),
    }
}

fn output_tensor(name: &str, value: &TValue, max: ByteSize) -> Result<Tensor, String> {
    let kind = match value.datum_type() {
        DatumType::F16 => TensorType::F16,
        DatumType::F32 => TensorType::F32,
        DatumType::F64 => TensorType::F64,
        DatumType::U8 | DatumType::Bool => TensorType::U8,
        DatumType::I32 => TensorType::I32,
        // Sizes, which ONNX has as i64.
        DatumType::I64 | DatumType::TDim => TensorType::I64,
        other => return Err(format!("output \"{name}\" is {other:?}, which functions cannot exchange with a model")),
    };
    check_output(name, value.len().saturating_mul(kind.bytes()), max)?;
    let mut dimensions = Vec::with_capacity(value.rank().max(1));
    for size in value.shape() {
        dimensions.push(u32::try_from(*size).map_err(|_| format!("output \"{name}\" has a dimension of {size}"))?);
    }
    if dimensions.is_empty() {
        dimensions.push(1);
    }
    let data = if value.datum_type() == DatumType::TDim {
        let sizes = value.cast_to_dt(DatumType::I64).map_err(|error| format!("output \"{name}\": {error}"))?;
        Bytes::copy_from_slice(sizes.as_bytes())
    } else {
        Bytes::copy_from_slice(value.as_bytes())
    };
    Ok(Tensor { dimensions, kind, data })
}
