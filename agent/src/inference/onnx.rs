//! What an ONNX file says about itself, read without an engine: is it whole, what goes in and what comes out.
//!
//! Both engines describe a model, but differently and after seconds of work; a file that was cut in a copy, or that is no
//! ONNX at all, should say so the same way on every gateway. Only the few fields of the protobuf that matter are visited,
//! in place; weights are stepped over.

use super::signature::{Dimension, Element, Port, Signature};
use super::tensor::TensorType;

/// An ONNX file's own description of itself.
#[derive(Debug)]
pub(super) struct Description {
    /// Inputs that must be given, and outputs, in the model's order. `Err` is a port that wasi:nn cannot carry: its name
    /// and type.
    pub(super) signature: Result<Signature, (String, String)>,
    /// Whether weights are in other files.
    pub(super) external_weights: bool,
}

impl Description {
    /// Reads a whole file.
    ///
    /// # Errors
    /// With what is wrong with it, when it is not a whole ONNX model.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        const NOT_ONNX: &str = "its first bytes are not those of an ONNX file";
        let mut ir_version = 0;
        let mut graph = None;
        for field in Fields(file) {
            // Every exporter writes the version first.
            match field.map_err(|cut| if ir_version > 0 { cut } else { NOT_ONNX }.to_owned())? {
                (1, Value::Number(version)) => ir_version = version,
                (7, Value::Bytes(bytes)) => graph = Some(bytes),
                _ => {}
            }
        }
        if file.is_empty() {
            return Err("it is empty".to_owned());
        }
        match graph {
            Some(graph) if ir_version > 0 => Self::read_graph(graph).map_err(str::to_owned),
            _ => Err(NOT_ONNX.to_owned()),
        }
    }

    fn read_graph(graph: &[u8]) -> Result<Self, &'static str> {
        let (mut inputs, mut outputs, mut constants) = (Vec::new(), Vec::new(), Vec::new());
        let mut external_weights = false;
        for field in Fields(graph) {
            match field? {
                (5, Value::Bytes(tensor)) => {
                    for field in Fields(tensor) {
                        match field? {
                            (8, Value::Bytes(name)) => constants.push(text(name)),
                            (14, Value::Number(location)) => external_weights |= location == 1,
                            _ => {}
                        }
                    }
                }
                (11, Value::Bytes(port)) => inputs.push(read_port(port)?),
                (12, Value::Bytes(port)) => outputs.push(read_port(port)?),
                _ => {}
            }
        }
        // Older exporters list weights among the inputs; these have a value, so that nobody needs to give one.
        inputs.retain(|(name, _)| !constants.contains(name));
        let direction = |ports: Vec<(String, Type)>, word: &str| -> Result<Vec<Port>, (String, String)> {
            let port = |(name, kind): (String, Type)| match kind {
                Type::Tensor(element, shape) => Ok(Port { name, element, shape }),
                Type::Other(found) => Err((format!("{word} \"{name}\""), found)),
            };
            ports.into_iter().map(port).collect()
        };
        let signature = direction(inputs, "input")
            .and_then(|inputs| direction(outputs, "output").map(|outputs| Signature { inputs, outputs }));
        Ok(Self { signature, external_weights })
    }
}

enum Type {
    Tensor(Element, Option<Vec<Dimension>>),
    Other(String),
}

/// A ValueInfoProto: name and type.
fn read_port(port: &[u8]) -> Result<(String, Type), &'static str> {
    let (mut name, mut kind) = (String::new(), Type::Other("of no declared type".to_owned()));
    for field in Fields(port) {
        match field? {
            (1, Value::Bytes(bytes)) => name = text(bytes),
            (2, Value::Bytes(bytes)) => kind = read_type(bytes)?,
            _ => {}
        }
    }
    Ok((name, kind))
}

fn read_type(bytes: &[u8]) -> Result<Type, &'static str> {
    let mut kind = Type::Other("of no declared type".to_owned());
    for field in Fields(bytes) {
        kind = match field? {
            (1, Value::Bytes(tensor)) => read_tensor_type(tensor)?,
            (4, _) => Type::Other("a sequence".to_owned()),
            (5, _) => Type::Other("a map".to_owned()),
            (8, _) => Type::Other("a sparse tensor".to_owned()),
            (9, _) => Type::Other("optional".to_owned()),
            _ => continue,
        };
    }
    Ok(kind)
}

fn read_tensor_type(bytes: &[u8]) -> Result<Type, &'static str> {
    let (mut code, mut shape) = (0, None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(number)) => code = number,
            (2, Value::Bytes(dimensions)) => shape = Some(read_shape(dimensions)?),
            _ => {}
        }
    }
    Ok(match element(code) {
        Ok(element) => Type::Tensor(element, shape),
        Err(name) => Type::Other(format!("a tensor of {name}")),
    })
}

fn read_shape(bytes: &[u8]) -> Result<Vec<Dimension>, &'static str> {
    let mut shape = Vec::new();
    for field in Fields(bytes) {
        if let (1, Value::Bytes(dimension)) = field? {
            let mut size = Dimension::Any;
            for field in Fields(dimension) {
                match field? {
                    // Some exporters write -1 for a size that is not fixed.
                    (1, Value::Number(number)) => size = u32::try_from(number).map_or(Dimension::Any, Dimension::Fixed),
                    (2, Value::Bytes(name)) if !name.is_empty() => size = Dimension::Named(text(name)),
                    _ => {}
                }
            }
            shape.push(size);
        }
    }
    Ok(shape)
}

/// TensorProto.DataType; the error is its name.
fn element(code: u64) -> Result<Element, String> {
    Ok(Element::Of(match code {
        1 => TensorType::F32,
        2 => TensorType::U8,
        6 => TensorType::I32,
        7 => TensorType::I64,
        10 => TensorType::F16,
        11 => TensorType::F64,
        16 => TensorType::Bf16,
        9 => return Ok(Element::Bool),
        3 => return Err("i8".to_owned()),
        4 => return Err("u16".to_owned()),
        5 => return Err("i16".to_owned()),
        8 => return Err("strings".to_owned()),
        12 => return Err("u32".to_owned()),
        13 => return Err("u64".to_owned()),
        code => return Err(format!("ONNX element type {code}")),
    }))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of one protobuf message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, length: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.number()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or("it ends in the middle, or is damaged"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOTION: &[u8] = include_bytes!("../../../functions/examples/motion/models/motion.onnx");

    #[test]
    fn a_model_says_what_goes_in_and_what_comes_out() {
        let signature = Description::read(MOTION).unwrap().signature.unwrap();
        let show = |ports: &[Port]| ports.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(show(&signature.inputs), ["window: f32 [1, 100, 6]"]);
        assert_eq!(show(&signature.outputs), ["probabilities: f32 [1, 4]"]);
    }

    #[test]
    fn no_cut_of_a_model_passes_for_a_whole_one() {
        for length in 0..MOTION.len() {
            // Cut between two fields of the outermost message, all that is there is whole; the opset is then missing,
            // which the engines refuse.
            if let Ok(description) = Description::read(&MOTION[..length]) {
                assert!(description.signature.is_ok() && length > MOTION.len() - 200, "cut to {length}");
            }
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        for (file, reason) in [
            (&b""[..], "it is empty"),
            (b"hello, world", "its first bytes are not those of an ONNX file"),
            (b"<!DOCTYPE html><html>", "its first bytes are not those of an ONNX file"),
            (b"\x08\x08", "its first bytes are not those of an ONNX file"),
            (&MOTION[..1000], "it ends in the middle, or is damaged"),
        ] {
            assert_eq!(Description::read(file).unwrap_err(), reason);
        }
    }
}
