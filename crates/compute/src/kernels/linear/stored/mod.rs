//! What a weight can be stored as in a file: a format that the kernels have panels of, or one that is only read, and
//! packed while loading as the nearest that they have.

mod four_bits;
mod grids;
mod iq;
mod rounds;
mod ternary;

use std::fmt;

use half::f16;

pub use four_bits::{IQ4_NL, IQ4_XS, MXFP4, NVFP4};
pub use iq::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
pub use rounds::{Q2_K, Q3_K, Q4_1, Q5_0, Q5_1, Q8_1, Q8_K};
pub use ternary::{Q1_0, Q2_0, TQ1_0, TQ2_0};

use super::format::WeightFormat;

/// Every format that is only read.
pub static READ_ONLY: [&ReadOnly; 22] = [
    &Q4_1, &Q5_0, &Q5_1, &Q8_1, &Q2_K, &Q3_K, &Q8_K, &IQ2_XXS, &IQ2_XS, &IQ2_S, &IQ3_XXS, &IQ3_S, &IQ1_S, &IQ1_M,
    &IQ4_NL, &IQ4_XS, &TQ1_0, &TQ2_0, &Q1_0, &Q2_0, &MXFP4, &NVFP4,
];

/// How the numbers of a tensor in a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredFormat {
    /// As the kernels read them.
    Kept(WeightFormat),
    /// As they do not: packed as [`ReadOnly::kept`].
    ReadOnly(&'static ReadOnly),
}

impl StoredFormat {
    /// Weights a block.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::Kept(format) => format.block_len(),
            Self::ReadOnly(format) => format.block_len,
        }
    }

    /// Bytes a block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Kept(format) => format.block_bytes(),
            Self::ReadOnly(format) => format.block_bytes,
        }
    }

    /// Whether it holds plain numbers, one by one.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::Kept(format) if format.is_float())
    }

    /// What it is packed as where nothing else is asked for.
    #[must_use]
    pub fn kept(self) -> WeightFormat {
        match self {
            Self::Kept(format) => format,
            Self::ReadOnly(format) => format.kept,
        }
    }

    /// Bytes that `elements` weights take, or `None` where that is no whole number of blocks or overflows.
    #[must_use]
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        let blocks = elements / self.block_len();
        if elements.is_multiple_of(self.block_len()) { blocks.checked_mul(self.block_bytes()) } else { None }
    }
}

impl From<WeightFormat> for StoredFormat {
    fn from(format: WeightFormat) -> Self {
        Self::Kept(format)
    }
}

impl PartialEq<WeightFormat> for StoredFormat {
    fn eq(&self, format: &WeightFormat) -> bool {
        *self == Self::Kept(*format)
    }
}

impl fmt::Display for StoredFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(format) => format.fmt(f),
            Self::ReadOnly(format) => f.write_str(format.name),
        }
    }
}

/// A format of ggml's that has no panels: how to read it, and what it is packed as.
#[derive(Debug)]
pub struct ReadOnly {
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
    kept: WeightFormat,
    blocks: Blocks,
}

impl PartialEq for ReadOnly {
    /// Names are unique.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ReadOnly {}

/// What is in a block.
#[derive(Debug)]
enum Blocks {
    /// Small integers under scales, of which there is one for each so many weights: laid out anew as the kept format has
    /// them, the numbers themselves stay.
    Integers { group_len: usize, decode: fn(&[u8], &mut Integers) },
    /// Something that the kept format cannot say: quantized again.
    Numbers(fn(&[u8], &mut [f32])),
}

/// A block of up to 256 weights as integers; weight `k` is `scale * group_scales[k / group_len] * quants[k]`, rounded to
/// float32 after each product.
struct Integers {
    scale: f32,
    group_scales: [i8; 16],
    quants: [i8; 256],
}

impl Integers {
    const EMPTY: Self = Self { scale: 0.0, group_scales: [1; 16], quants: [0; 256] };
}

impl ReadOnly {
    /// What it is packed as: the format that keeps the error.
    #[must_use]
    pub fn kept(&self) -> WeightFormat {
        self.kept
    }

    /// The weights of whole blocks, in float32 as ggml's reference dequantizes them.
    pub(super) fn to_f32(&self, bytes: &[u8], weights: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.block_bytes).zip(weights.chunks_exact_mut(self.block_len));
        match self.blocks {
            Blocks::Numbers(decode) => blocks.for_each(|(block, weights)| decode(block, weights)),
            Blocks::Integers { group_len, decode } => {
                let mut integers = Integers::EMPTY;
                for (block, weights) in blocks {
                    decode(block, &mut integers);
                    for (k, weight) in weights.iter_mut().enumerate() {
                        let scale = integers.scale * f32::from(integers.group_scales[k / group_len]);
                        *weight = scale * f32::from(integers.quants[k]);
                    }
                }
            }
        }
    }

    /// The bytes of whole blocks in the kept format, where its integers can be taken over. Scales become halves: where
    /// the product of a block's and a group's scale has more bits than a half, the last are rounded.
    pub(super) fn to_kept(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let Blocks::Integers { group_len, decode } = self.blocks else { return None };
        let write = match self.kept {
            // Their blocks have one scale for 32 weights.
            WeightFormat::Q4_0 if group_len >= 32 => write_q4_0,
            WeightFormat::Q8_0 if group_len >= 32 => write_q8_0,
            WeightFormat::Q6K => write_q6_k,
            _ => return None,
        };
        let blocks = bytes.len() / self.block_bytes;
        let mut kept = Vec::with_capacity(self.kept.bytes_for(blocks * self.block_len)?);
        let mut integers = Integers::EMPTY;
        for block in bytes.chunks_exact(self.block_bytes) {
            decode(block, &mut integers);
            write(&integers, self.block_len, group_len, &mut kept);
        }
        Some(kept)
    }
}

/// Calls `put` with the scale, as a half, and the integers of each 32 weights.
fn for_each_32(integers: &Integers, len: usize, group_len: usize, mut put: impl FnMut([u8; 2], &[i8])) {
    for (k, quants) in integers.quants[..len].chunks_exact(32).enumerate() {
        let scale = integers.scale * f32::from(integers.group_scales[k * 32 / group_len]);
        put(f16::from_f32(scale).to_le_bytes(), quants);
    }
}

fn write_q8_0(integers: &Integers, len: usize, group_len: usize, kept: &mut Vec<u8>) {
    for_each_32(integers, len, group_len, |scale, quants| {
        kept.extend(scale);
        kept.extend(quants.iter().map(|&q| q as u8));
    });
}

fn write_q4_0(integers: &Integers, len: usize, group_len: usize, kept: &mut Vec<u8>) {
    for_each_32(integers, len, group_len, |scale, quants| {
        kept.extend(scale);
        let (low, high) = quants.split_at(16);
        kept.extend(low.iter().zip(high).map(|(low, high)| (low + 8) as u8 | ((high + 8) as u8) << 4));
    });
}

/// A block of 256: `ql`, `qh`, sixteen scales and a half, as `panel/q6_k.rs` reads them.
fn write_q6_k(integers: &Integers, _: usize, group_len: usize, kept: &mut Vec<u8>) {
    let quant = |k: usize| (integers.quants[k] + 32) as u8;
    let halves = [0, 128];
    for half in halves {
        kept.extend((0..64).map(|j| quant(half + j) & 0xf | (quant(half + 64 + j) & 0xf) << 4));
    }
    for half in halves {
        let high = |j: usize| (0..4).map(move |row| (quant(half + 32 * row + j) >> 4) << (2 * row));
        kept.extend((0..32).map(|j| high(j).sum::<u8>()));
    }
    kept.extend((0..16).map(|group| integers.group_scales[group * 16 / group_len] as u8));
    kept.extend(f16::from_f32(integers.scale).to_le_bytes());
}

/// A little-endian half at `at`, widened.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A little-endian number at `at`.
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// A little-endian number at `at`.
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Number `k` of four bits, the low half of a byte first.
fn nibble(bytes: &[u8], k: usize) -> u8 {
    bytes[k / 2] >> (4 * (k % 2)) & 0xf
}

/// Number `k` of 32 of four bits in 16 bytes: the low halves, then the high ones.
fn split_nibble(bytes: &[u8], k: usize) -> u8 {
    bytes[k % 16] >> (4 * (k / 16)) & 0xf
}

#[cfg(test)]
mod tests;
