//! The bench's function: runs a model of `make-models.py` on the payload and returns the answer.

use function_sdk::{Event, Failure, Tensor, TensorKind, handler, model};

/// Floats that `mlp` takes; what is longer is a picture for `mobilenet`.
const MLP_FLOATS: usize = 600;

#[handler]
fn handle(event: Event) -> Result<Vec<u8>, Failure> {
    let (name, input, shape) = match event.data.len() / 4 {
        0..=MLP_FLOATS => ("mlp", "x", vec![1, 600]),
        _ => ("mobilenet", "image", vec![1, 3, 160, 160]),
    };
    let tensor = Tensor::from_bytes(TensorKind::F32, shape, event.data)?;
    let outputs = model(name).run([(input, tensor)])?;
    Ok(outputs.get("y")?.bytes().to_vec())
}
