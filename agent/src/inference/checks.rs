//! The tests of a model: inputs and what must come out. A model that fails them never takes over.

use std::collections::BTreeMap;

use bytes::Bytes;
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Number;

use super::tensor::{Tensor, TensorType};

/// Largest difference that passes when a test names none.
const TOLERANCE: f64 = 1e-4;

/// A tests file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checks {
    pub(super) tests: Vec<Check>,
}

/// One run and what must come out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    name: Option<String>,
    inputs: BTreeMap<String, Written>,
    /// Outputs that are not named may be anything.
    outputs: BTreeMap<String, Written>,
    /// Largest difference of an element, as a number.
    tolerance: Option<f64>,
}

/// A tensor as it is written in JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    r#type: TensorType,
    shape: Vec<u32>,
    data: Vec<Number>,
}

impl Checks {
    /// Reads a tests file.
    ///
    /// # Errors
    /// With what is wrong with it, and where.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let checks: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if checks.tests.is_empty() {
            return Err("it has no tests".to_owned());
        }
        for (at, check) in checks.tests.iter().enumerate() {
            if check.outputs.is_empty() {
                return Err(format!("test \"{}\" expects no outputs", check.name(at)));
            }
            for (name, written) in check.inputs.iter().chain(&check.outputs) {
                written.tensor().map_err(|error| format!("\"{name}\" of test \"{}\" {error}", check.name(at)))?;
            }
        }
        Ok(checks)
    }
}

impl Check {
    /// Its name, or its number, counted from 1.
    pub(super) fn name(&self, at: usize) -> String {
        self.name.clone().unwrap_or_else(|| (at + 1).to_string())
    }

    /// What to run the model on.
    pub(super) fn inputs(&self) -> Vec<(String, Tensor)> {
        let tensor = |(name, written): (&String, &Written)| Some((name.clone(), written.tensor().ok()?));
        self.inputs.iter().filter_map(tensor).collect()
    }

    /// Compares what came out with what must.
    ///
    /// # Errors
    /// With the largest difference.
    pub(super) fn compare(&self, outputs: &[(String, Tensor)]) -> Result<(), String> {
        let tolerance = self.tolerance.unwrap_or(TOLERANCE);
        for (name, written) in &self.outputs {
            let Some((_, got)) = outputs.iter().find(|(output, _)| output == name) else {
                let names: Vec<_> = outputs.iter().map(|(output, _)| format!("\"{output}\"")).collect();
                return Err(format!("it has no output \"{name}\"; it gives {}", names.join(", ")));
            };
            let wanted = written.tensor()?;
            let one = |dimensions: &[u32]| dimensions.iter().all(|size| *size == 1);
            let single = one(&got.dimensions) && one(&wanted.dimensions);
            if got.kind != wanted.kind || !(got.dimensions == wanted.dimensions || single) {
                return Err(format!("output \"{name}\" is {got}, expected {wanted}"));
            }
            compare(&numbers(got), &numbers(&wanted), tolerance)
                .map_err(|error| format!("output \"{name}\" {error}"))?;
        }
        Ok(())
    }
}

fn compare(got: &[f64], wanted: &[f64], tolerance: f64) -> Result<(), String> {
    let difference = |(got, wanted): (&f64, &f64)| {
        let both_nan = got.is_nan() && wanted.is_nan();
        let difference = if both_nan { 0.0 } else { (got - wanted).abs() };
        if difference.is_nan() { f64::INFINITY } else { difference }
    };
    let differences: Vec<f64> = got.iter().zip(wanted).map(difference).collect();
    let beyond = differences.iter().filter(|difference| **difference > tolerance).count();
    let worst = differences.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    match worst {
        Some((at, worst)) if *worst > tolerance => Err(format!(
            "differs at {beyond} of {} places; at {at} it is {}, expected {} ± {tolerance}",
            got.len(),
            got[at],
            wanted[at]
        )),
        _ => Ok(()),
    }
}

impl Written {
    #[expect(clippy::cast_possible_truncation, reason = "a test's number is rounded to the type that it names")]
    fn tensor(&self) -> Result<Tensor, String> {
        let elements: usize = self.shape.iter().map(|size| *size as usize).product();
        if elements != self.data.len() {
            return Err(format!("has {} numbers, but shape {:?} takes {elements}", self.data.len(), self.shape));
        }
        let kind = self.r#type;
        let mut data = Vec::with_capacity(elements * kind.bytes());
        for number in &self.data {
            let float = number.as_f64().unwrap_or(f64::NAN);
            let whole = || number.as_i64().ok_or_else(|| format!("has {number}, which is not of {kind}"));
            let out_of_range = |_| format!("has {number}, which is not of {kind}");
            match kind {
                TensorType::F16 => data.extend(f16::from_f64(float).to_le_bytes()),
                TensorType::F32 => data.extend((float as f32).to_le_bytes()),
                TensorType::F64 => data.extend(float.to_le_bytes()),
                TensorType::Bf16 => data.extend(bf16::from_f64(float).to_le_bytes()),
                TensorType::U8 => data.push(u8::try_from(whole()?).map_err(out_of_range)?),
                TensorType::I32 => data.extend(i32::try_from(whole()?).map_err(out_of_range)?.to_le_bytes()),
                TensorType::I64 => data.extend(whole()?.to_le_bytes()),
            }
        }
        Ok(Tensor { dimensions: self.shape.clone(), kind, data: Bytes::from(data) })
    }
}

/// A tensor's elements as numbers.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    fn each<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
    }
    let data = &tensor.data;
    match tensor.kind {
        TensorType::F16 => each(data, |bytes| f16::from_le_bytes(bytes).to_f64()),
        TensorType::F32 => each(data, |bytes| f64::from(f32::from_le_bytes(bytes))),
        TensorType::F64 => each(data, f64::from_le_bytes),
        TensorType::Bf16 => each(data, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        TensorType::U8 => each(data, |[byte]| f64::from(byte)),
        TensorType::I32 => each(data, |bytes| f64::from(i32::from_le_bytes(bytes))),
        TensorType::I64 => each(data, |bytes| i64::from_le_bytes(bytes) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(outputs: &str) -> Result<Checks, String> {
        Checks::read(format!(r#"{{"tests": [{{"inputs": {{}}, "outputs": {outputs}}}]}}"#).as_bytes())
    }

    #[track_caller]
    fn malformed(outputs: &str, message: &str) {
        assert_eq!(checks(outputs).unwrap_err(), message);
    }

    #[test]
    fn a_malformed_test_is_named() {
        malformed("{}", "test \"1\" expects no outputs");
        malformed(
            r#"{"y": {"type": "f32", "shape": [2], "data": [1]}}"#,
            "\"y\" of test \"1\" has 1 numbers, but shape [2] takes 2",
        );
        malformed(
            r#"{"y": {"type": "u8", "shape": [1], "data": [256]}}"#,
            "\"y\" of test \"1\" has 256, which is not of u8",
        );
        malformed(
            r#"{"y": {"type": "i32", "shape": [1], "data": [0.5]}}"#,
            "\"y\" of test \"1\" has 0.5, which is not of i32",
        );
        assert_eq!(Checks::read(br#"{"tests": []}"#).unwrap_err(), "it has no tests");
        let error = checks(r#"{"y": {"type": "float", "shape": [1], "data": [1]}}"#).unwrap_err();
        assert!(error.starts_with("unknown variant `float`, expected one of `f16`, `f32`"), "{error}");
    }

    #[test]
    fn every_type_is_compared_within_its_tolerance() {
        for kind in ["f16", "f32", "f64", "bf16", "u8", "i32", "i64"] {
            let output = |number: u8| {
                let text = format!(r#"{{"y": {{"type": "{kind}", "shape": [1, 2], "data": [{number}, 7]}}}}"#);
                checks(&text).unwrap().tests.remove(0)
            };
            let tensor = |check: &Check| vec![("y".to_owned(), check.outputs["y"].tensor().unwrap())];
            let (three, four) = (output(3), output(4));
            assert_eq!(three.compare(&tensor(&three)), Ok(()));
            assert_eq!(
                three.compare(&tensor(&four)).unwrap_err(),
                "output \"y\" differs at 1 of 2 places; at 0 it is 4, expected 3 ± 0.0001"
            );
        }
    }

    #[test]
    fn a_number_that_is_none_differs_from_any() {
        assert!(compare(&[f64::NAN], &[1.0], 1e9).is_err());
        assert!(compare(&[1.0], &[f64::NAN], 1e9).is_err());
        assert!(compare(&[f64::NAN], &[f64::NAN], 0.0).is_ok());
        assert!(compare(&[f64::INFINITY], &[1.0], 1e9).is_err());
    }

    #[test]
    fn another_shape_or_a_missing_output_fails() {
        let check = checks(r#"{"y": {"type": "f32", "shape": [2], "data": [1, 2]}}"#).unwrap().tests.remove(0);
        let mut tensor = check.outputs["y"].tensor().unwrap();
        tensor.dimensions = vec![1, 2];
        let named = |name: &str| vec![(name.to_owned(), tensor.clone())];
        assert_eq!(check.compare(&named("y")).unwrap_err(), "output \"y\" is f32 [1, 2], expected f32 [2]");
        assert_eq!(check.compare(&named("z")).unwrap_err(), "it has no output \"y\"; it gives \"z\"");
    }
}
