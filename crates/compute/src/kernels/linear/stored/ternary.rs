//! ggml's formats of fewer than two bits a weight: one sign, or one of three or four values. All fit Q4_0's nibbles.

use super::{Blocks, Integers, ReadOnly, WeightFormat, f16_at, rounds::two_bits};

/// 256 weights of -1, 0 and 1: five to a byte in base 3, the last sixteen four to a byte, a half scale.
pub static TQ1_0: ReadOnly = ReadOnly {
    name: "tq1_0",
    block_len: 256,
    block_bytes: 54,
    kept: WeightFormat::Q4_0,
    blocks: Blocks::Integers {
        group_len: 256,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 52);
            // A byte is a fraction of 256 in base 3; its digits come out at the top, first one first.
            let digit = |byte: u8, place: usize| {
                let rest = byte.wrapping_mul([1, 3, 9, 27, 81][place]);
                ((u16::from(rest) * 3) >> 8) as i8 - 1
            };
            for (k, quant) in quants.iter_mut().enumerate() {
                let (start, first, width) = match k {
                    0..160 => (0, 0, 32),
                    160..240 => (32, 160, 16),
                    _ => (48, 240, 4),
                };
                *quant = digit(block[start + (k - first) % width], (k - first) / width);
            }
        },
    },
};

/// 256 weights of -1, 0 and 1 (and 2): two bits each, a half scale.
pub static TQ2_0: ReadOnly = ReadOnly {
    name: "tq2_0",
    block_len: 256,
    block_bytes: 66,
    kept: WeightFormat::Q4_0,
    blocks: Blocks::Integers {
        group_len: 256,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 64);
            for (k, quant) in quants.iter_mut().enumerate() {
                *quant = two_bits(block, k) as i8 - 1;
            }
        },
    },
};

/// 128 signs under a half scale.
pub static Q1_0: ReadOnly = ReadOnly {
    name: "q1_0",
    block_len: 128,
    block_bytes: 18,
    kept: WeightFormat::Q4_0,
    blocks: Blocks::Integers {
        group_len: 128,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 0);
            for (k, quant) in quants[..128].iter_mut().enumerate() {
                *quant = if block[2 + k / 8] >> (k % 8) & 1 == 1 { 1 } else { -1 };
            }
        },
    },
};

/// 64 weights of -1 to 2, two bits each, under a half scale.
pub static Q2_0: ReadOnly = ReadOnly {
    name: "q2_0",
    block_len: 64,
    block_bytes: 18,
    kept: WeightFormat::Q4_0,
    blocks: Blocks::Integers {
        group_len: 64,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 0);
            for (k, quant) in quants[..64].iter_mut().enumerate() {
                *quant = (block[2 + k / 4] >> (2 * (k % 4)) & 3) as i8 - 1;
            }
        },
    },
};
