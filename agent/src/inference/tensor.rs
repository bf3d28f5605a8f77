//! Tensors as wasi:nn carries them: little-endian, row major, in bytes.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

#[cfg(target_endian = "big")]
compile_error!("tensors are handed to the engines as they are in wasm memory, which is little-endian");

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorType {
    /// IEEE 754 half precision.
    F16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// The upper half of a single precision number.
    Bf16,
    /// Unsigned byte. Also how a model's booleans are carried, as 0 and 1.
    U8,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
}

impl TensorType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

/// One tensor. Cheap to clone: the data is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Size of each dimension; `[1]` for a single value, as wasi:nn has it.
    pub dimensions: Vec<u32>,
    /// What the elements are.
    pub kind: TensorType,
    /// The elements, little-endian, row major.
    pub data: Bytes,
}

impl Tensor {
    /// Bytes that a tensor of this type and shape has; `None` when they cannot be counted.
    pub fn bytes_of(kind: TensorType, dimensions: &[u32]) -> Option<usize> {
        dimensions.iter().try_fold(kind.bytes(), |bytes, size| bytes.checked_mul(usize::try_from(*size).ok()?))
    }

    /// The same tensor with its data where the engines may read it: aligned to its elements. Copies only what is not, which
    /// a guest's data seldom is.
    pub(super) fn aligned(mut self) -> Self {
        if !self.data.as_ptr().addr().is_multiple_of(self.kind.bytes()) {
            self.data = Bytes::from_owner(Aligned::copy(&self.data));
        }
        self
    }
}

/// `f32 [1, 6, 100]`.
impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.dimensions)
    }
}

/// Bytes that start at a multiple of 8, the largest element.
struct Aligned {
    words: Vec<u64>,
    bytes: usize,
}

impl Aligned {
    fn copy(data: &[u8]) -> Self {
        let mut words = vec![0_u64; data.len().div_ceil(8)];
        words.as_mut_bytes()[..data.len()].copy_from_slice(data);
        Self { words, bytes: data.len() }
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &self.words.as_bytes()[..self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_cannot_be_counted_is_not_a_size() {
        assert_eq!(Tensor::bytes_of(TensorType::F32, &[1, 6, 100]), Some(2400));
        assert_eq!(Tensor::bytes_of(TensorType::F32, &[0, 6]), Some(0));
        assert_eq!(Tensor::bytes_of(TensorType::U8, &[]), Some(1));
        assert_eq!(Tensor::bytes_of(TensorType::F64, &[u32::MAX, u32::MAX, u32::MAX]), None);
    }

    #[test]
    fn data_at_an_odd_address_is_moved_and_the_rest_is_not() {
        let whole = Bytes::from_owner(Aligned::copy(&[0, 1, 2, 3, 4, 5, 6, 7, 8]));
        let tensor = |data: Bytes| Tensor { dimensions: vec![2], kind: TensorType::F32, data };
        let even = tensor(whole.slice(..8)).aligned();
        assert_eq!(even.data.as_ptr(), whole.as_ptr());
        let odd = tensor(whole.slice(1..)).aligned();
        assert_eq!(odd.data.as_ptr().addr() % 8, 0);
        assert_eq!(&odd.data[..], &whole[1..]);
    }
}
