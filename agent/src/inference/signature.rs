//! What a model takes and gives, and whether a run's inputs fit it.

use std::fmt;

use super::error::InferenceError;
use super::tensor::{Tensor, TensorType};
use crate::units::ByteSize;

/// What a model's input or output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// One of wasi:nn's types.
    Of(TensorType),
    /// Truth values, carried as u8.
    Bool,
}

impl Element {
    /// How wasi:nn carries it.
    pub(super) const fn carried_as(self) -> TensorType {
        match self {
            Self::Of(kind) => kind,
            Self::Bool => TensorType::U8,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(kind) => kind.fmt(f),
            Self::Bool => f.write_str("u8 (bool, 0 or 1)"),
        }
    }
}

/// Size of one dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dimension {
    /// This and no other.
    Fixed(u32),
    /// Chosen by each run; the name that the model has for it.
    Named(String),
    /// Chosen by each run.
    Any,
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => size.fmt(f),
            Self::Named(name) => f.write_str(name),
            Self::Any => f.write_str("?"),
        }
    }
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) element: Element,
    /// `None`: not declared, even its rank.
    pub(super) shape: Option<Vec<Dimension>>,
}

impl Port {
    /// `f32 [1, 6, batch]`.
    fn wanted(&self) -> String {
        match &self.shape {
            Some(shape) => {
                let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
                format!("{} [{}]", self.element, sizes.join(", "))
            }
            None => format!("{} of any shape", self.element),
        }
    }

    fn fits(&self, dimensions: &[u32]) -> bool {
        let fits = |(size, wanted): (&u32, &Dimension)| !matches!(wanted, Dimension::Fixed(wanted) if wanted != size);
        self.shape
            .as_ref()
            .is_none_or(|shape| shape.len() == dimensions.len() && dimensions.iter().zip(shape).all(fits))
    }

    /// Whether its size is known before it comes.
    #[cfg(feature = "tract")]
    pub(super) fn is_fixed(&self) -> bool {
        let fixed = |size: &Dimension| matches!(size, Dimension::Fixed(_));
        self.shape.as_ref().is_some_and(|shape| shape.iter().all(fixed))
    }
}

/// `x: f32 [1, 6, batch]`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.wanted())
    }
}

/// All inputs and outputs, in the model's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

impl Signature {
    /// Puts a run's inputs into the model's order, and checks each. An input is found by its name, or by its number
    /// (`"0"`), as guests of wasi:nn have it.
    ///
    /// # Errors
    /// When one is unknown, missing, given twice, or of another type, shape or size than the model's.
    pub(super) fn bind(
        &self,
        model: &str,
        given: Vec<(String, Tensor)>,
        tensor_bytes_max: ByteSize,
    ) -> Result<Vec<Tensor>, InferenceError> {
        let mut bound: Vec<Option<Tensor>> = vec![None; self.inputs.len()];
        for (name, tensor) in given {
            let at = self.position(&name).ok_or_else(|| {
                let known = list(self.inputs.iter().map(|port| &*port.name));
                InferenceError::BadInput(format!("model \"{model}\" has no input \"{name}\"; it takes {known}"))
            })?;
            let port = &self.inputs[at];
            let tensor = check(model, port, tensor, tensor_bytes_max)?;
            if bound[at].replace(tensor).is_some() {
                let problem = format!("input \"{}\" of model \"{model}\" is given twice", port.name);
                return Err(InferenceError::BadInput(problem));
            }
        }
        let missing = || self.inputs.iter().zip(&bound).filter(|(_, tensor)| tensor.is_none()).map(|(port, _)| port);
        if missing().next().is_some() {
            let wanted: Vec<_> = missing().map(|port| format!("\"{}\" ({})", port.name, port.wanted())).collect();
            let problem = format!("model \"{model}\" needs input {}, which is not given", wanted.join(" and "));
            return Err(InferenceError::BadInput(problem));
        }
        Ok(bound.into_iter().flatten().collect())
    }

    fn position(&self, name: &str) -> Option<usize> {
        let by_number = || name.parse().ok().filter(|at| *at < self.inputs.len());
        self.inputs.iter().position(|port| port.name == name).or_else(by_number)
    }
}

fn check(model: &str, port: &Port, mut tensor: Tensor, max: ByteSize) -> Result<Tensor, InferenceError> {
    // wasi:nn has `[1]` for a single value, ONNX has no dimensions at all.
    if tensor.dimensions == [1] && port.shape.as_ref().is_some_and(Vec::is_empty) {
        tensor.dimensions.clear();
    }
    if tensor.kind != port.element.carried_as() || !port.fits(&tensor.dimensions) {
        return Err(InferenceError::BadInput(format!(
            "input \"{}\" of model \"{model}\" must be {}, got {tensor}",
            port.name,
            port.wanted()
        )));
    }
    let bytes = u64::try_from(tensor.data.len()).unwrap_or(u64::MAX);
    if bytes > max.0 {
        let (model, input) = (model.to_owned(), port.name.clone());
        return Err(InferenceError::TensorTooLarge { model, input, bytes: ByteSize(bytes), max });
    }
    let wanted = Tensor::bytes_of(tensor.kind, &tensor.dimensions);
    if wanted != Some(tensor.data.len()) {
        let wanted = wanted.map_or_else(|| "more than there is memory".to_owned(), |bytes| format!("{bytes} bytes"));
        return Err(InferenceError::BadInput(format!(
            "input \"{}\" of model \"{model}\" has {bytes} bytes of data, but {tensor} takes {wanted}",
            port.name
        )));
    }
    if port.element == Element::Bool && tensor.data.iter().any(|byte| *byte > 1) {
        let problem = format!("input \"{}\" of model \"{model}\" is of bool: each byte must be 0 or 1", port.name);
        return Err(InferenceError::BadInput(problem));
    }
    Ok(tensor.aligned())
}

/// `"a", "b"`.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn signature() -> Signature {
        let port = |name: &str, element, shape| Port { name: name.to_owned(), element, shape };
        let f32 = Element::Of(TensorType::F32);
        Signature {
            inputs: vec![
                port("x", f32, Some(vec![Dimension::Named("batch".to_owned()), Dimension::Fixed(6)])),
                port("rate", Element::Of(TensorType::I64), Some(vec![])),
                port("mask", Element::Bool, None),
            ],
            outputs: vec![port("y", f32, None)],
        }
    }

    fn tensor(kind: TensorType, dimensions: &[u32]) -> Tensor {
        let bytes = Tensor::bytes_of(kind, dimensions).unwrap();
        Tensor { dimensions: dimensions.to_vec(), kind, data: Bytes::from(vec![0; bytes]) }
    }

    fn inputs() -> Vec<(String, Tensor)> {
        vec![
            ("mask".to_owned(), tensor(TensorType::U8, &[2])),
            ("x".to_owned(), tensor(TensorType::F32, &[3, 6])),
            ("1".to_owned(), tensor(TensorType::I64, &[1])),
        ]
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Vec<(String, Tensor)>), message: &str) {
        let mut inputs = inputs();
        change(&mut inputs);
        let error = signature().bind("motion", inputs, ByteSize(100)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn inputs_come_into_the_models_order_by_name_or_number() {
        let bound = signature().bind("motion", inputs(), ByteSize(100)).unwrap();
        let kinds: Vec<_> = bound.iter().map(|tensor| tensor.kind).collect();
        assert_eq!(kinds, [TensorType::F32, TensorType::I64, TensorType::U8]);
        assert_eq!(bound[1].dimensions, [0_u32; 0], "a single value has no dimensions in ONNX");
    }

    #[test]
    fn a_wrong_input_is_named_with_what_it_must_be() {
        refused(
            |inputs| inputs[1].1.dimensions = vec![6, 3],
            "input \"x\" of model \"motion\" must be f32 [batch, 6], got f32 [6, 3]",
        );
        refused(
            |inputs| inputs[1].1.kind = TensorType::I32,
            "input \"x\" of model \"motion\" must be f32 [batch, 6], got i32 [3, 6]",
        );
        refused(
            |inputs| inputs[0].1.kind = TensorType::F32,
            "input \"mask\" of model \"motion\" must be u8 (bool, 0 or 1) of any shape, got f32 [2]",
        );
        refused(
            |inputs| inputs[0].1.data = Bytes::from_static(&[1, 2]),
            "input \"mask\" of model \"motion\" is of bool: each byte must be 0 or 1",
        );
    }

    #[test]
    fn data_that_does_not_fill_the_shape_is_refused() {
        refused(
            |inputs| inputs[1].1.data = Bytes::from_static(&[0; 71]),
            "input \"x\" of model \"motion\" has 71 bytes of data, but f32 [3, 6] takes 72 bytes",
        );
        refused(
            |inputs| inputs[0].1.dimensions = vec![u32::MAX, u32::MAX, u32::MAX],
            "input \"mask\" of model \"motion\" has 2 bytes of data, but u8 [4294967295, 4294967295, 4294967295] takes more \
             than there is memory",
        );
        refused(
            |inputs| inputs[1].1 = tensor(TensorType::F32, &[5, 6]),
            "input \"x\" of model \"motion\" is 120 B, more than `limits.tensor_bytes_max` = 100 B",
        );
    }

    #[test]
    fn unknown_missing_and_double_inputs_are_named() {
        refused(
            |inputs| inputs[1].0 = "z".to_owned(),
            "model \"motion\" has no input \"z\"; it takes \"x\", \"rate\", \"mask\"",
        );
        refused(
            |inputs| inputs[2].0 = "3".to_owned(),
            "model \"motion\" has no input \"3\"; it takes \"x\", \"rate\", \"mask\"",
        );
        refused(
            |inputs| drop(inputs.drain(1..)),
            "model \"motion\" needs input \"x\" (f32 [batch, 6]) and \"rate\" (i64 []), which is not given",
        );
        refused(
            |inputs| inputs.push(("0".to_owned(), tensor(TensorType::F32, &[1, 6]))),
            "input \"x\" of model \"motion\" is given twice",
        );
    }
}
