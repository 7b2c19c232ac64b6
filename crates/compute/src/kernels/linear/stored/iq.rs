//! ggml's IQ formats of one to three bits: vectors of four or eight magnitudes out of a [grid](super::grids), signs, and
//! a scale for each group.

use super::{
    Blocks, Integers, ReadOnly, WeightFormat, f16_at,
    grids::{GRID_IQ1_S, GRID_IQ2_S, GRID_IQ2_XS, GRID_IQ2_XXS, GRID_IQ3_S, GRID_IQ3_XXS},
    nibble, u16_at, u32_at,
};

/// What shifts the values of IQ1, in eighths: they are -1, 0 and 1, and a little more or less.
const IQ1_EIGHTHS: i8 = 8;

/// 256 weights in 8 groups: four grid vectors of eight, 7 bits of signs each and 4 bits of scale a group.
pub static IQ2_XXS: ReadOnly = ReadOnly {
    name: "iq2_xxs",
    block_len: 256,
    block_bytes: 66,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0) / 8.0;
            for (group, quants) in quants.chunks_exact_mut(32).enumerate() {
                let indices = &block[2 + 8 * group..];
                let packed = u32_at(indices, 4);
                group_scales[group] = odd((packed >> 28) as u8);
                for (k, quants) in quants.chunks_exact_mut(8).enumerate() {
                    put(GRID_IQ2_XXS.vector(indices[k].into()), even_signs(packed >> (7 * k)), quants);
                }
            }
        },
    },
};

/// 256 weights in 16 groups: grid vectors of eight with 7 bits of signs each, 4 bits of scale a group.
pub static IQ2_XS: ReadOnly = ReadOnly {
    name: "iq2_xs",
    block_len: 256,
    block_bytes: 74,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 16,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0) / 8.0;
            four_bit_scales(&block[66..], group_scales);
            for (k, quants) in quants.chunks_exact_mut(8).enumerate() {
                let packed = u16_at(block, 2 + 2 * k);
                put(GRID_IQ2_XS.vector((packed & 511).into()), even_signs(u32::from(packed >> 9)), quants);
            }
        },
    },
};

/// 256 weights in 16 groups: grid vectors of eight, all signs, 4 bits of scale a group.
pub static IQ2_S: ReadOnly = ReadOnly {
    name: "iq2_s",
    block_len: 256,
    block_bytes: 82,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 16,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0) / 8.0;
            four_bit_scales(&block[74..], group_scales);
            for (k, quants) in quants.chunks_exact_mut(8).enumerate() {
                let high = block[66 + k / 4] >> (2 * (k % 4)) & 3;
                put(GRID_IQ2_S.vector(index(block[2 + k], high)), block[34 + k], quants);
            }
        },
    },
};

/// 256 weights in 8 groups: grid vectors of four, 7 bits of signs for two of them, 4 bits of scale a group.
pub static IQ3_XXS: ReadOnly = ReadOnly {
    name: "iq3_xxs",
    block_len: 256,
    block_bytes: 98,
    kept: WeightFormat::Q8_0,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0) / 4.0;
            for (k, quants) in quants.chunks_exact_mut(8).enumerate() {
                let packed = u32_at(block, 66 + 4 * (k / 4));
                group_scales[k / 4] = odd((packed >> 28) as u8);
                let signs = even_signs(packed >> (7 * (k % 4)));
                let (low, high) = quants.split_at_mut(4);
                put(GRID_IQ3_XXS.vector(block[2 + 2 * k].into()), signs, low);
                put(GRID_IQ3_XXS.vector(block[3 + 2 * k].into()), signs >> 4, high);
            }
        },
    },
};

/// 256 weights in 8 groups: grid vectors of four, all signs, 4 bits of scale a group. The integers fit Q6_K's.
pub static IQ3_S: ReadOnly = ReadOnly {
    name: "iq3_s",
    block_len: 256,
    block_bytes: 110,
    kept: WeightFormat::Q6K,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0);
            for (group, scale) in group_scales[..8].iter_mut().enumerate() {
                *scale = odd(nibble(&block[106..], group));
            }
            for (k, quants) in quants.chunks_exact_mut(4).enumerate() {
                let high = block[66 + k / 8] >> (k % 8) & 1;
                let signs = nibble(&block[74..], k);
                put(GRID_IQ3_S.vector(index(block[2 + k], high)), signs, quants);
            }
        },
    },
};

/// 256 weights in 8 groups: grid vectors of eight, a shift and 3 bits of scale a group. In eighths the integers fit
/// Q6_K's; the eighth of a half scale below 2^-11 loses its last bits there.
pub static IQ1_S: ReadOnly = ReadOnly {
    name: "iq1_s",
    block_len: 256,
    block_bytes: 50,
    kept: WeightFormat::Q6K,
    blocks: Blocks::Integers {
        group_len: 32,
        decode: |block, Integers { scale, group_scales, quants }| {
            *scale = f16_at(block, 0) / 8.0;
            for (k, quants) in quants.chunks_exact_mut(8).enumerate() {
                let packed = u16_at(block, 34 + 2 * (k / 4));
                group_scales[k / 4] = odd((packed >> 12 & 7) as u8);
                let high = (packed >> (3 * (k % 4)) & 7) as u8;
                put_shifted(index(block[2 + k], high), packed >> 15 == 1, quants);
            }
        },
    },
};

/// 256 weights in 16 groups: grid vectors of eight, each with a shift, 3 bits of scale a group, and a half scale in what
/// these leave free. As [`IQ1_S`], the integers fit Q6_K's.
pub static IQ1_M: ReadOnly = ReadOnly {
    name: "iq1_m",
    block_len: 256,
    block_bytes: 56,
    kept: WeightFormat::Q6K,
    blocks: Blocks::Integers {
        group_len: 16,
        decode: |block, Integers { scale, group_scales, quants }| {
            let packed = [0, 1, 2, 3].map(|k| u16_at(block, 48 + 2 * k));
            let bits = (0..4).map(|k| packed[k] >> 12 << (4 * k)).sum::<u16>();
            *scale = half::f16::from_bits(bits).to_f32() / 8.0;
            for (group, scale) in group_scales.iter_mut().enumerate() {
                *scale = odd((packed[group / 4] >> (3 * (group % 4)) & 7) as u8);
            }
            for (k, quants) in quants.chunks_exact_mut(8).enumerate() {
                let high = nibble(&block[32..], k);
                put_shifted(index(block[k], high & 7), high & 8 != 0, quants);
            }
        },
    },
};

/// A grid vector's number from its low byte and its high bits.
fn index(low: u8, high: u8) -> usize {
    usize::from(low) | usize::from(high) << 8
}

/// A scale as it is stored: the odd numbers.
fn odd(bits: u8) -> i8 {
    2 * bits as i8 + 1
}

fn four_bit_scales(bytes: &[u8], group_scales: &mut [i8; 16]) {
    for (group, scale) in group_scales.iter_mut().enumerate() {
        *scale = odd(nibble(bytes, group));
    }
}

/// Eight signs out of the low seven bits: the last makes their number even.
fn even_signs(bits: u32) -> u8 {
    let seven = (bits & 0x7f) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// Writes magnitudes with their signs, a bit each.
fn put(magnitudes: &[i8], signs: u8, quants: &mut [i8]) {
    for (k, (quant, &magnitude)) in quants.iter_mut().zip(magnitudes).enumerate() {
        *quant = if signs >> k & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// Writes a vector of IQ1, in eighths, shifted down or up.
fn put_shifted(index: usize, down: bool, quants: &mut [i8]) {
    for (quant, &value) in quants.iter_mut().zip(GRID_IQ1_S.vector(index)) {
        *quant = IQ1_EIGHTHS * value + if down { -1 } else { 1 };
    }
}
