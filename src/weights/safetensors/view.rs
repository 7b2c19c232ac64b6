//! One tensor of a safetensors file as it lies there.

use half::{bf16, f16};

/// A tensor's bytes, which fit its dtype and shape where the dtype is a known one.
pub(super) struct View<'a> {
    pub(super) dtype: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl View<'_> {
    /// Its numbers, where they are floats of 16 or 32 bits.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
        }
        match self.dtype {
            "F32" => Some(each(self.bytes, f32::from_le_bytes)),
            "F16" => Some(each(self.bytes, |bytes| f16::from_le_bytes(bytes).to_f32())),
            "BF16" => Some(each(self.bytes, |bytes| bf16::from_le_bytes(bytes).to_f32())),
            _ => None,
        }
    }

    /// Its numbers, where they are integers of 32 bits.
    pub(super) fn words(&self) -> Option<Vec<u32>> {
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        matches!(self.dtype, "I32" | "U32").then(|| self.bytes.as_chunks().0.iter().map(word).collect())
    }
}
