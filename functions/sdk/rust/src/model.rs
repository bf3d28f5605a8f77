//! Models on the gateway: tensors in, tensors out.

use crate::failure::Failure;
use crate::host;

/// A model of the gateway, by its name in gateway.toml. Needs the capability `model:NAME`.
pub fn model(name: &str) -> Model<'_> {
    Model { name }
}

/// See [`model`].
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    name: &'a str,
}

impl Model<'_> {
    /// Runs the model once.
    ///
    /// # Errors
    /// [`Failure::Reject`] when the model is unknown or not granted, or an input has another name, type or shape than the
    /// model wants; [`Failure::Retry`] when the engine failed.
    pub fn run<'a>(self, inputs: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Outputs, Failure> {
        host::infer(self.name, inputs.into_iter().collect())
            .map(Outputs)
            .map_err(|failure| failure.about(format_args!("model `{}`", self.name)))
    }
}

/// What a model returned: tensors by name.
#[derive(Clone, Debug)]
pub struct Outputs(Vec<(String, Tensor)>);

impl Outputs {
    /// The output of that name.
    ///
    /// # Errors
    /// [`Failure::Reject`], which names the outputs that there are.
    pub fn get(&self, name: &str) -> Result<&Tensor, Failure> {
        self.0.iter().find(|(output, _)| output == name).map(|(_, tensor)| tensor).ok_or_else(|| {
            let names: Vec<_> = self.0.iter().map(|(output, _)| output.as_str()).collect();
            Failure::reject(format_args!("the model has no output `{name}`, only `{}`", names.join("`, `")))
        })
    }

    /// The elements of the output of that name, in row-major order.
    ///
    /// # Errors
    /// [`Failure::Reject`] when there is no such output, or its elements are of another type.
    pub fn values<T: Element>(&self, name: &str) -> Result<Vec<T>, Failure> {
        self.get(name)?.values().map_err(|failure| failure.about(format_args!("output `{name}`")))
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum TensorKind {
    F16,
    F32,
    F64,
    Bf16,
    U8,
    I32,
    I64,
}

impl TensorKind {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// An array of numbers with a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub(crate) kind: TensorKind,
    pub(crate) shape: Vec<u32>,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    /// A tensor of `values` in row-major order.
    ///
    /// # Errors
    /// [`Failure::Reject`] when `shape` asks for another number of values.
    pub fn new<T: Element>(shape: impl Into<Vec<u32>>, values: &[T]) -> Result<Self, Failure> {
        let mut data = Vec::with_capacity(values.len() * T::KIND.bytes());
        for value in values {
            value.write(&mut data);
        }
        Self::from_bytes(T::KIND, shape, data)
    }

    /// A tensor of little-endian elements; the way to the types that Rust has no name for.
    ///
    /// # Errors
    /// [`Failure::Reject`] when `shape` asks for another number of bytes.
    pub fn from_bytes(kind: TensorKind, shape: impl Into<Vec<u32>>, data: impl Into<Vec<u8>>) -> Result<Self, Failure> {
        let (shape, data) = (shape.into(), data.into());
        let elements = shape.iter().try_fold(1, |product: usize, &side| product.checked_mul(side as usize));
        if elements.and_then(|elements| elements.checked_mul(kind.bytes())) != Some(data.len()) {
            let values = data.len() / kind.bytes();
            return Err(Failure::reject(format_args!("a tensor of shape {shape:?} cannot hold {values} values")));
        }
        Ok(Self { kind, shape, data })
    }

    /// The type of its elements.
    pub fn kind(&self) -> TensorKind {
        self.kind
    }

    /// Length of each side, outermost first.
    pub fn shape(&self) -> &[u32] {
        &self.shape
    }

    /// Its elements, little-endian, in row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Its elements in row-major order.
    ///
    /// # Errors
    /// [`Failure::Reject`] when they are of another type.
    pub fn values<T: Element>(&self) -> Result<Vec<T>, Failure> {
        if self.kind != T::KIND {
            return Err(Failure::reject(format_args!("the tensor holds {:?}, not {:?}", self.kind, T::KIND)));
        }
        Ok(self.data.chunks_exact(T::KIND.bytes()).map(T::read).collect())
    }
}

/// A number that tensors hold: `f32`, `f64`, `u8`, `i32`, `i64`.
pub trait Element: Copy + private::Sealed {
    /// Its name among tensors.
    const KIND: TensorKind;
    #[doc(hidden)]
    fn write(self, data: &mut Vec<u8>);
    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Self;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($number:ty => $kind:ident),+) => {$(
        impl private::Sealed for $number {}
        impl Element for $number {
            const KIND: TensorKind = TensorKind::$kind;
            fn write(self, data: &mut Vec<u8>) {
                data.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                let mut value = [0; size_of::<$number>()];
                value.copy_from_slice(bytes);
                Self::from_le_bytes(value)
            }
        }
    )+};
}

elements!(f32 => F32, f64 => F64, u8 => U8, i32 => I32, i64 => I64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were_put_in() {
        let tensor = Tensor::new([2, 2], &[1.5_f32, -2.0, 0.0, f32::MAX]).unwrap();
        assert_eq!(tensor.values::<f32>().unwrap(), [1.5, -2.0, 0.0, f32::MAX]);
        assert_eq!(Tensor::new([3], &[i64::MIN, 0, 7]).unwrap().values::<i64>().unwrap(), [i64::MIN, 0, 7]);
    }

    #[test]
    fn a_shape_that_does_not_fit_is_refused() {
        let failure = Tensor::new([2, 3], &[0_u8; 5]).unwrap_err();
        assert_eq!(failure, Failure::reject("a tensor of shape [2, 3] cannot hold 5 values"));
        assert!(Tensor::from_bytes(TensorKind::F16, [1 << 31, 1 << 31, 8], []).is_err());
    }

    #[test]
    fn a_wrong_output_name_or_type_is_told() {
        let outputs = Outputs(vec![("p".into(), Tensor::new([1], &[0.5_f32]).unwrap())]);
        let wrong_name = outputs.values::<f32>("q").unwrap_err();
        assert_eq!(wrong_name, Failure::reject("the model has no output `q`, only `p`"));
        let wrong_type = outputs.values::<i64>("p").unwrap_err();
        assert_eq!(wrong_type, Failure::reject("output `p`: the tensor holds F32, not I64"));
    }
}
