//! ggml's formats whose four bits choose one of sixteen uneven values: IQ4 (spaced as weights are), MXFP4 and NVFP4
//! (4-bit floats under a scale of 8 bits).

use super::{Blocks, Integers, ReadOnly, WeightFormat, f16_at, nibble, split_nibble, u16_at};

/// The values of IQ4.
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of a float of four bits (E2M1: sign, two bits of exponent, one of mantissa).
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights under a half scale.
pub static IQ4_NL: ReadOnly = ReadOnly {
    name: "iq4_nl",
    block_len: 32,
    block_bytes: 18,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, quants, .. }| {
            *scale = f16_at(block, 0);
            look_up(&IQ4_VALUES, &block[2..], &mut quants[..32]);
        },
    },
};

/// 256 weights in 8 groups: half scale, scales of six bits.
pub static IQ4_XS: ReadOnly = ReadOnly {
    name: "iq4_xs",
    block_len: 256,
    block_bytes: 136,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0);
            let high = u16_at(block, 2);
            for (group, quants) in quants.chunks_exact_mut(32).enumerate() {
                let high = (high >> (2 * group) & 3) as u8;
                group_scales[group] = (nibble(&block[4..], group) | high << 4) as i8 - 32;
                look_up(&IQ4_VALUES, &block[8 + 16 * group..], quants);
            }
        },
    },
};

/// 32 weights under a power of two (OCP Microscaling Formats, MXFP4).
pub static MXFP4: ReadOnly = ReadOnly {
    name: "mxfp4",
    block_len: 32,
    block_bytes: 17,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, quants, .. }| {
            // Half of 2^(e - 127), the values being doubled; the two least are no normal float32.
            let e = u32::from(block[0]);
            *scale = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
            look_up(&E2M1_DOUBLED, &block[1..], &mut quants[..32]);
        },
    },
};

/// 64 weights in 4 groups, each under a scale that is an unsigned float of 8 bits (E4M3).
pub static NVFP4: ReadOnly = ReadOnly {
    name: "nvfp4",
    block_len: 64,
    block_bytes: 36,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Numbers(|block, weights| {
        for (group, weights) in weights.chunks_exact_mut(16).enumerate() {
            let (scale, bytes) = (half_of_e4m3(block[group]), &block[4 + 8 * group..]);
            for (k, weight) in weights.iter_mut().enumerate() {
                let number = bytes[k % 8] >> (4 * (k / 8)) & 0xf;
                *weight = scale * f32::from(E2M1_DOUBLED[usize::from(number)]);
            }
        }
    }),
};

/// Half the value of an unsigned E4M3; its not-a-number counts as zero.
fn half_of_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}

fn look_up(values: &[i8; 16], bytes: &[u8], quants: &mut [i8]) {
    for (k, quant) in quants.iter_mut().enumerate() {
        *quant = values[usize::from(split_nibble(bytes, k))];
    }
}
