//! `wasi:nn`: models by name. A graph is the name of a model and not the model itself, so that a function that keeps one
//! from event to event follows when the model is replaced.

use std::sync::Arc;

use bytes::Bytes;
use tracing::Instrument;
use wasmtime::component::{HasSelf, Linker, Resource};

use self::world::wasi::nn::{errors, graph, inference, tensor};
use super::state::HostState;
use crate::inference::{InferenceError, Tensor, TensorType};
use crate::units::ByteSize;

mod world {
    wasmtime::component::bindgen!({
        path: "../functions/wit",
        world: "models",
        imports: {
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
            default: trappable,
        },
        with: {
            "wasi:nn/tensor.tensor": super::HeldTensor,
            "wasi:nn/graph.graph": super::Graph,
            "wasi:nn/inference.graph-execution-context": super::ExecutionContext,
            "wasi:nn/errors.error": super::NnError,
        },
    });
}

type Answer<T> = wasmtime::Result<Result<T, Resource<NnError>>>;

/// A tensor that the guest holds. The constructor cannot fail in WIT: what is wrong with a tensor is told when it is used.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings hand it on as public")]
pub struct HeldTensor(Result<Tensor, String>);

impl HeldTensor {
    fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |tensor| tensor.data.len() as u64)
    }
}

/// The name of a model that the function may use.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings hand it on as public")]
pub struct Graph(String);

/// As [`Graph`]: an execution context keeps nothing from one `compute` to the next.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings hand it on as public")]
pub struct ExecutionContext(String);

/// What the guest can ask about a failure.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings hand it on as public")]
pub struct NnError {
    code: errors::ErrorCode,
    text: String,
}

impl NnError {
    const fn new(code: errors::ErrorCode, text: String) -> Self {
        Self { code, text }
    }
}

impl From<InferenceError> for NnError {
    fn from(error: InferenceError) -> Self {
        use errors::ErrorCode;
        let code = match &error {
            InferenceError::BadInput(_) => ErrorCode::InvalidArgument,
            InferenceError::TensorTooLarge { .. } => ErrorCode::TooLarge,
            InferenceError::NoModel { .. } => ErrorCode::NotFound,
            _ => ErrorCode::RuntimeError,
        };
        let text = error.hint().map_or_else(|| error.to_string(), |hint| format!("{error} (hint: {hint})"));
        Self::new(code, text)
    }
}

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    tensor::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    errors::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    graph::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    inference::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

impl HostState {
    fn answer<T>(&mut self, result: Result<T, NnError>) -> Answer<T> {
        Ok(match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.table.push(error)?),
        })
    }

    /// Hands a tensor to the guest, if it still fits beside the ones that it holds.
    fn hold_tensor(&mut self, tensor: Tensor) -> wasmtime::Result<(Resource<HeldTensor>, Option<String>)> {
        let max = self.limits().tensor_bytes_max;
        let bytes = self.tensor_bytes.saturating_add(tensor.data.len() as u64);
        let refusal = (bytes > max.0).then(|| {
            let bytes = ByteSize(bytes);
            format!("the tensors that the function holds would be {bytes}, more than `limits.tensor_bytes_max` = {max}")
        });
        let held = match &refusal {
            Some(why) => HeldTensor(Err(self.refuse(why.clone()))),
            None => HeldTensor(Ok(tensor)),
        };
        self.tensor_bytes += held.bytes();
        Ok((self.table.push(held)?, refusal))
    }

    fn release_tensor(&mut self, tensor: Resource<HeldTensor>) -> wasmtime::Result<HeldTensor> {
        let held = self.table.delete(tensor)?;
        self.tensor_bytes = self.tensor_bytes.saturating_sub(held.bytes());
        Ok(held)
    }

    fn may_use(&mut self, name: &str) -> Result<(), NnError> {
        if let Err(capability) = self.capabilities().may_infer(name) {
            return Err(NnError::new(errors::ErrorCode::Security, self.deny(capability)));
        }
        match self.models().get(name) {
            Some(_) => Ok(()),
            None => Err(self.models().no_model(name).into()),
        }
    }

    /// Runs the model, and adds what it took to the invocation's time in models.
    async fn infer(&mut self, name: &str, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, NnError> {
        let models = Arc::clone(self.models());
        let clock = self.services.clock.clone();
        let start = clock.instant();
        let result = models.run(name, inputs).instrument(tracing::info_span!("inference", model = name)).await;
        self.add_inference(clock.instant() - start);
        Ok(result?)
    }
}

impl tensor::Host for HostState {}

impl tensor::HostTensor for HostState {
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: tensor::TensorType,
        data: Vec<u8>,
    ) -> wasmtime::Result<Resource<HeldTensor>> {
        let tensor = Tensor { dimensions, kind: kind(ty), data: Bytes::from(data) };
        Ok(self.hold_tensor(tensor)?.0)
    }

    fn dimensions(&mut self, tensor: Resource<HeldTensor>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.held(&tensor)?.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<HeldTensor>) -> wasmtime::Result<tensor::TensorType> {
        Ok(ty(self.held(&tensor)?.kind))
    }

    fn data(&mut self, tensor: Resource<HeldTensor>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.held(&tensor)?.data.to_vec())
    }

    fn drop(&mut self, tensor: Resource<HeldTensor>) -> wasmtime::Result<()> {
        self.release_tensor(tensor).map(drop)
    }
}

impl HostState {
    fn held(&self, tensor: &Resource<HeldTensor>) -> wasmtime::Result<&Tensor> {
        self.table.get(tensor)?.0.as_ref().map_err(|why| wasmtime::Error::msg(why.clone()))
    }
}

impl errors::Host for HostState {}

impl errors::HostError for HostState {
    fn code(&mut self, error: Resource<NnError>) -> wasmtime::Result<errors::ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<NnError>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.text.clone())
    }

    fn drop(&mut self, error: Resource<NnError>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

impl graph::Host for HostState {
    fn load(
        &mut self,
        _builder: Vec<Vec<u8>>,
        _encoding: graph::GraphEncoding,
        _target: graph::ExecutionTarget,
    ) -> Answer<Resource<Graph>> {
        let text = "a function cannot bring a model of its own (hint: declare it as [[model]] in gateway.toml, grant \
                    `model:NAME`, and use `load-by-name`)";
        self.answer(Err(NnError::new(errors::ErrorCode::UnsupportedOperation, text.to_owned())))
    }

    fn load_by_name(&mut self, name: String) -> Answer<Resource<Graph>> {
        let granted = self.may_use(&name);
        match granted {
            Ok(()) => Ok(Ok(self.table.push(Graph(name))?)),
            Err(error) => self.answer(Err(error)),
        }
    }
}

impl graph::HostGraph for HostState {
    fn init_execution_context(&mut self, graph: Resource<Graph>) -> Answer<Resource<ExecutionContext>> {
        let name = self.table.get(&graph)?.0.clone();
        Ok(Ok(self.table.push(ExecutionContext(name))?))
    }

    fn drop(&mut self, graph: Resource<Graph>) -> wasmtime::Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for HostState {}

impl inference::HostGraphExecutionContext for HostState {
    async fn compute(
        &mut self,
        context: Resource<ExecutionContext>,
        inputs: Vec<(String, Resource<HeldTensor>)>,
    ) -> Answer<Vec<(String, Resource<HeldTensor>)>> {
        let name = self.table.get(&context)?.0.clone();
        let mut given = Vec::with_capacity(inputs.len());
        let mut refusal = None;
        for (input, tensor) in inputs {
            match self.release_tensor(tensor)?.0 {
                Ok(tensor) => given.push((input, tensor)),
                Err(why) => {
                    refusal = Some(NnError::new(errors::ErrorCode::TooLarge, format!("input \"{input}\": {why}")))
                }
            }
        }
        let result = match refusal {
            Some(refusal) => Err(refusal),
            None => self.infer(&name, given).await,
        };
        let outputs = match result {
            Ok(outputs) => outputs,
            Err(error) => return self.answer(Err(error)),
        };
        let mut held = Vec::with_capacity(outputs.len());
        for (output, tensor) in outputs {
            let (resource, refusal) = self.hold_tensor(tensor)?;
            held.push((output, resource));
            if let Some(why) = refusal {
                for (_, resource) in held {
                    self.release_tensor(resource)?;
                }
                return self.answer(Err(NnError::new(errors::ErrorCode::TooLarge, why)));
            }
        }
        Ok(Ok(held))
    }

    fn drop(&mut self, context: Resource<ExecutionContext>) -> wasmtime::Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

const fn kind(ty: tensor::TensorType) -> TensorType {
    match ty {
        tensor::TensorType::Fp16 => TensorType::F16,
        tensor::TensorType::Fp32 => TensorType::F32,
        tensor::TensorType::Fp64 => TensorType::F64,
        tensor::TensorType::Bf16 => TensorType::Bf16,
        tensor::TensorType::U8 => TensorType::U8,
        tensor::TensorType::I32 => TensorType::I32,
        tensor::TensorType::I64 => TensorType::I64,
    }
}

const fn ty(kind: TensorType) -> tensor::TensorType {
    match kind {
        TensorType::F16 => tensor::TensorType::Fp16,
        TensorType::F32 => tensor::TensorType::Fp32,
        TensorType::F64 => tensor::TensorType::Fp64,
        TensorType::Bf16 => tensor::TensorType::Bf16,
        TensorType::U8 => tensor::TensorType::U8,
        TensorType::I32 => tensor::TensorType::I32,
        TensorType::I64 => tensor::TensorType::I64,
    }
}

#[cfg(test)]
mod tests {
    use super::graph::{Host as _, HostGraph as _};
    use super::inference::HostGraphExecutionContext as _;
    use super::tensor::HostTensor as _;
    use super::*;
    use crate::config::{InferenceConfig, InferenceRuntime, ModelConfig};
    use crate::inference::Models;
    use crate::limits::Limits;
    use crate::name::ModelName;
    use crate::runtime::host::state::{Call, Fault};

    /// A guest that is granted the models `motion` and `missing`; `motion` is there and gives back what it gets.
    async fn guest(tensor_bytes_max: u64) -> HostState {
        let limits = Arc::new(Limits { tensor_bytes_max: ByteSize(tensor_bytes_max), ..Limits::default() });
        let config = InferenceConfig { runtime: InferenceRuntime::Tract, ..InferenceConfig::default() };
        let models = Arc::new(Models::open(&config, Arc::clone(&limits)).unwrap());
        models.load(&model("identity-f32")).await.unwrap();
        crate::runtime::tests::host_state(models, limits, &["model:motion", "model:missing"])
    }

    fn model(file: &str) -> ModelConfig {
        let file = format!("{}/../tests/models/{file}.onnx", env!("CARGO_MANIFEST_DIR")).into();
        ModelConfig { name: ModelName::parse("motion").unwrap(), file, tests: None, concurrency: None }
    }

    fn open(guest: &mut HostState) -> Resource<ExecutionContext> {
        let graph = guest.load_by_name("motion".to_owned()).unwrap().unwrap();
        guest.init_execution_context(graph).unwrap().unwrap()
    }

    fn floats(guest: &mut HostState, count: u32) -> Resource<HeldTensor> {
        let data = vec![0; 4 * count as usize];
        guest.new(vec![count / 2, 2], tensor::TensorType::Fp32, data).unwrap()
    }

    /// What the guest is told.
    fn error<T: std::fmt::Debug>(guest: &mut HostState, answer: Answer<T>) -> (errors::ErrorCode, String) {
        let error = guest.table.delete(answer.unwrap().unwrap_err()).unwrap();
        (error.code, error.text)
    }

    #[tokio::test]
    async fn a_model_that_is_not_granted_is_refused_with_its_capability() {
        let mut guest = guest(1000).await;
        let answer = guest.load_by_name("voice".to_owned());
        let (code, text) = error(&mut guest, answer);
        assert_eq!(code, errors::ErrorCode::Security);
        assert!(text.contains("capability `model:voice` is not granted"), "{text}");
        assert_eq!(guest.call.fault, Some(Fault::Denied("model:voice".to_owned())));
    }

    #[tokio::test]
    async fn a_model_that_is_not_there_and_one_that_the_function_brings_are_refused_with_a_hint() {
        let mut guest = guest(1000).await;
        let answer = guest.load_by_name("missing".to_owned());
        let (code, text) = error(&mut guest, answer);
        assert_eq!(code, errors::ErrorCode::NotFound);
        assert!(text.starts_with("there is no model \"missing\"; loaded are motion (hint: "), "{text}");
        let answer = guest.load(vec![vec![1]], graph::GraphEncoding::Onnx, graph::ExecutionTarget::Cpu);
        let (code, text) = error(&mut guest, answer);
        assert_eq!(code, errors::ErrorCode::UnsupportedOperation);
        assert!(text.contains("load-by-name"), "{text}");
    }

    #[tokio::test]
    async fn a_computation_gives_named_tensors_and_its_time_is_counted() {
        let mut guest = guest(1000).await;
        let context = open(&mut guest);
        let input = floats(&mut guest, 4);
        let mut outputs = guest.compute(context, vec![("0".to_owned(), input)]).await.unwrap().unwrap();
        let (name, output) = outputs.remove(0);
        assert_eq!((name.as_str(), outputs.len()), ("y", 0));
        let again = || Resource::new_borrow(output.rep());
        assert_eq!(guest.dimensions(again()).unwrap(), [2, 2]);
        assert_eq!(guest.ty(again()).unwrap(), tensor::TensorType::Fp32);
        assert_eq!(guest.data(again()).unwrap(), [0; 16]);
        assert!(!guest.call.inference.is_zero());
        assert_eq!(guest.tensor_bytes, 16, "the input is gone");
        tensor::HostTensor::drop(&mut guest, output).unwrap();
        assert_eq!(guest.tensor_bytes, 0);
    }

    #[tokio::test]
    async fn a_wrong_input_is_an_argument_error_and_no_fault() {
        let mut guest = guest(1000).await;
        let context = open(&mut guest);
        let input = floats(&mut guest, 6);
        let answer = guest.compute(context, vec![("x".to_owned(), input)]).await;
        let (code, text) = error(&mut guest, answer);
        assert_eq!(code, errors::ErrorCode::InvalidArgument);
        assert_eq!(text, "input \"x\" of model \"motion\" must be f32 [2, 2], got f32 [3, 2]");
        assert_eq!(guest.call.fault, None);
    }

    #[tokio::test]
    async fn tensors_beyond_the_bound_are_refused_when_they_are_used() {
        let mut guest = guest(20).await;
        let context = open(&mut guest);
        let first = floats(&mut guest, 4);
        let second = floats(&mut guest, 4);
        assert_eq!(guest.tensor_bytes, 16);
        let inputs = vec![("x".to_owned(), first), ("x".to_owned(), second)];
        let answer = guest.compute(context, inputs).await;
        let (code, text) = error(&mut guest, answer);
        assert_eq!(code, errors::ErrorCode::TooLarge);
        assert!(text.contains("would be 32 B, more than `limits.tensor_bytes_max` = 20 B"), "{text}");
        assert_eq!(guest.tensor_bytes, 0);
        assert!(matches!(guest.call.fault, Some(Fault::BadOutput(_))));
    }

    #[tokio::test]
    async fn a_graph_that_a_function_keeps_follows_its_model() {
        let mut guest = guest(1000).await;
        let context = open(&mut guest);
        let models = Arc::clone(&guest.services.models);
        models.load(&model("thrice")).await.unwrap();
        guest.call = Call { models: models.current(), ..Call::default() };
        let data = vec![0; 8];
        let input = guest.new(vec![2], tensor::TensorType::Fp32, data).unwrap();
        let outputs = guest.compute(context, vec![("few".to_owned(), input)]).await.unwrap().unwrap();
        assert_eq!(outputs[0].0, "many");
    }
}
