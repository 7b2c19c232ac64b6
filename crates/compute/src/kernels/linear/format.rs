//! The formats a weight can be kept in, as blocks along the input dimension (ggml's layouts for the quantized ones).

use std::{borrow::Cow, fmt};

use super::{fp8::filled, stored::StoredFormat};
use crate::kernels::machine::Arithmetic;

/// How a weight's numbers are kept: the formats that the kernels read. Files have [more](StoredFormat), and lack one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 32 weights: f16 scale, 16 bytes of nibbles (low half first), offset 8.
    Q4_0,
    /// 32 weights: f16 scale, 32 signed bytes.
    Q8_0,
    /// 256 weights in 8 groups: f16 scale and minimum, 6-bit group scales and minima, nibbles.
    Q4K,
    /// As [`Q4K`](Self::Q4K) with a fifth bit a number.
    Q5K,
    /// 256 weights in 16 groups: 4 + 2 bits, signed 8-bit group scales, f16 scale.
    Q6K,
    /// E4M3 with a float32 scale an output, which is for the products of NVIDIA cards and lies in no file.
    Fp8,
}

impl WeightFormat {
    /// All that the CPU has kernels for.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::BF16, Self::Q4_0, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Weights a block.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::Fp8 => 1,
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes a block, without scales that are an output's.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Fp8 => 1,
            Self::Q4_0 => 18,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether it holds plain numbers, one by one.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// What products with it are made of.
    #[must_use]
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            Self::F32 => Arithmetic::Float32,
            Self::F16 | Self::BF16 => Arithmetic::Bfloat16,
            _ => Arithmetic::Bytes,
        }
    }

    /// Bytes that `elements` weights take, or `None` where that is no whole number of blocks or overflows.
    #[must_use]
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        let blocks = elements.checked_div(self.block_len())?;
        if elements.is_multiple_of(self.block_len()) { blocks.checked_mul(self.block_bytes()) } else { None }
    }

    /// Bytes that a weight `[outputs, inputs]` takes with all its scales, or `None` as above.
    #[must_use]
    pub fn matrix_bytes(self, outputs: usize, inputs: usize) -> Option<usize> {
        match self {
            Self::Fp8 => filled(inputs).checked_add(size_of::<f32>())?.checked_mul(outputs),
            _ => self.bytes_for(outputs.checked_mul(inputs)?),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::Q4_0 => "q4_0",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Fp8 => "fp8",
        })
    }
}

/// A tensor as it lies in a file: row-major, rows of whole blocks. Borrowed from a map of the file where there is one.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// Format of the bytes.
    pub format: StoredFormat,
    /// Outermost dimension first; the last one is contiguous. `[out, in]` for a Linear.
    pub shape: Vec<usize>,
    /// `format.bytes_for(product of shape)` bytes, of any alignment.
    pub bytes: Cow<'a, [u8]>,
}
