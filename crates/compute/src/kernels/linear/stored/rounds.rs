//! ggml's formats of evenly spaced values without panels: the first round's (Q4_1 to Q8_1) and the K-quants' rest.

use super::{Blocks, Integers, ReadOnly, WeightFormat, f16_at, split_nibble, u32_at};

/// 32 weights: half scale and minimum, nibbles.
pub static Q4_1: ReadOnly = ReadOnly {
    name: "q4_1",
    block_len: 32,
    block_bytes: 20,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Numbers(|block, weights| {
        let (scale, least) = (f16_at(block, 0), f16_at(block, 2));
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(split_nibble(&block[4..], k)) + least;
        }
    }),
};

/// 32 weights: half scale, a fifth bit of each, nibbles; offset 16.
pub static Q5_0: ReadOnly = ReadOnly {
    name: "q5_0",
    block_len: 32,
    block_bytes: 22,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 0);
            for (k, quant) in quants[..32].iter_mut().enumerate() {
                *quant = five_bits(&block[2..], k) as i8 - 16;
            }
        },
    },
};

/// As [`Q4_1`] with a fifth bit of each.
pub static Q5_1: ReadOnly = ReadOnly {
    name: "q5_1",
    block_len: 32,
    block_bytes: 24,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Numbers(|block, weights| {
        let (scale, least) = (f16_at(block, 0), f16_at(block, 2));
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(five_bits(&block[4..], k)) + least;
        }
    }),
};

/// 32 weights: half scale, their sum, signed bytes. ggml makes it of inputs only; it is read all the same.
pub static Q8_1: ReadOnly = ReadOnly {
    name: "q8_1",
    block_len: 32,
    block_bytes: 36,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 0);
            quants.iter_mut().zip(&block[4..36]).for_each(|(quant, &byte)| *quant = byte as i8);
        },
    },
};

/// 256 weights in 16 groups: four bits each of scale and minimum a group, two bits a weight, half scale and minimum.
pub static Q2_K: ReadOnly = ReadOnly {
    name: "q2_k",
    block_len: 256,
    block_bytes: 84,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Numbers(|block, weights| {
        let (scale, minimum) = (f16_at(block, 80), f16_at(block, 82));
        for (group, weights) in weights.chunks_exact_mut(16).enumerate() {
            let both = block[group];
            let (scale, minimum) = (scale * f32::from(both & 0xf), minimum * f32::from(both >> 4));
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = scale * f32::from(two_bits(&block[16..], 16 * group + k)) - minimum;
            }
        }
    }),
};

/// 256 weights in 16 groups: two low bits a weight and a mask of third ones, scales of six bits, a half scale.
/// The integers fit Q6_K's.
pub static Q3_K: ReadOnly = ReadOnly {
    name: "q3_k",
    block_len: 256,
    block_bytes: 110,
    kept: WeightFormat::Q6K,
    blocks: Blocks::Integers {
        group_len: 16,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 108);
            let packed = &block[96..108];
            for (group, scale) in group_scales.iter_mut().enumerate() {
                let low = packed[group % 8] >> (4 * (group / 8)) & 0xf;
                let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
                *scale = (low | high << 4) as i8 - 32;
            }
            for (k, quant) in quants.iter_mut().enumerate() {
                let third = block[k % 32] >> (k / 32) & 1;
                *quant = two_bits(&block[32..], k) as i8 - 4 * (1 - third as i8);
            }
        },
    },
};

/// 256 weights: float32 scale, signed bytes, their sums. ggml makes it of inputs only; it is read all the same.
pub static Q8_K: ReadOnly = ReadOnly {
    name: "q8_k",
    block_len: 256,
    block_bytes: 292,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 256,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f32::from_bits(u32_at(block, 0));
            quants.iter_mut().zip(&block[4..260]).for_each(|(quant, &byte)| *quant = byte as i8);
        },
    },
};

/// Number `k` of 32: four bytes of fifth bits, then nibbles.
fn five_bits(bytes: &[u8], k: usize) -> u8 {
    split_nibble(&bytes[4..], k) | ((u32_at(bytes, 0) >> k & 1) as u8) << 4
}

/// Number `k` of 256 of two bits, in the K-quants' order: rows of 32 in turn through the bits of 32 bytes.
pub(super) fn two_bits(bytes: &[u8], k: usize) -> u8 {
    let (half, row, column) = (k / 128, k / 32 % 4, k % 32);
    bytes[32 * half + column] >> (2 * row) & 3
}
