//! Weights that Hugging Face keeps in MXFP4 (Open Compute Project, Microscaling Formats 1.0): blocks of 32 four-bit floats
//! with a power of two for each. They are widened to bfloat16 at load, which holds them exactly.

use crate::{
    error::{Code, Error, Result},
    kernels::linear::format::{RawTensor, WeightFormat},
};

/// Weights a block, and bytes.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;
/// What four bits stand for: sign, two bits of exponent, one of mantissa.
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// The exponent that stands for 1.
const BIAS: i32 = 127;

/// A matrix `[out, in]` of its blocks, `[out, in / 32]` of 16 bytes, the low half of a byte first, and their exponents.
pub(crate) fn widen(blocks: &[u8], exponents: &[u8], [out, input]: [usize; 2]) -> Result<RawTensor<'static>> {
    let count = out * input / BLOCK;
    if !input.is_multiple_of(BLOCK) || blocks.len() != count * BLOCK_BYTES || exponents.len() != count {
        let (blocks, scales) = (blocks.len(), exponents.len());
        let why = format!("an MXFP4 weight [{out}, {input}] cannot have {blocks} bytes of blocks and {scales} scales");
        return Err(Error::new(Code::FailedPrecondition, why));
    }
    let mut bytes = Vec::with_capacity(2 * out * input);
    for (block, &exponent) in blocks.chunks_exact(BLOCK_BYTES).zip(exponents) {
        let scale = 2f32.powi(i32::from(exponent) - BIAS);
        for nibble in block.iter().flat_map(|byte| [byte & 15, byte >> 4]) {
            bytes.extend(half::bf16::from_f32(VALUES[usize::from(nibble)] * scale).to_le_bytes());
        }
    }
    Ok(RawTensor { format: WeightFormat::BF16, shape: vec![out, input], bytes: bytes.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_its_values_times_its_power_of_two() {
        let mut blocks = [0u8; 32];
        (blocks[0], blocks[15], blocks[16]) = (0x7a, 0x10, 0x0f);
        let matrix = widen(&blocks, &[128, 124], [2, 32]).unwrap();
        let numbers: Vec<f32> =
            matrix.bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
        assert_eq!((numbers[0], numbers[1], numbers[31], numbers[32]), (-2.0, 12.0, 1.0, -0.75));
        assert!(numbers[2..30].iter().all(|x| *x == 0.0));
    }

    #[test]
    fn a_part_of_a_block_is_refused() {
        assert!(widen(&[0; 16], &[127], [1, 31]).is_err());
        assert!(widen(&[0; 15], &[127], [1, 32]).is_err());
        assert!(widen(&[0; 16], &[], [1, 32]).is_err());
    }
}
