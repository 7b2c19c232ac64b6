//! Weights of eight-bit floats under scales: one for the tensor, one a row, or one for each block (DeepSeek V3's
//! `weight_scale_inv`, which is multiplied with in spite of its name). They become bfloat16, where `--quantization` can
//! take them on.

use half::{bf16, f16};

use super::view::View;
use crate::kernels::pool::for_each_mut;

/// Rows and columns of a block that has a scale, where the configuration does not say.
const DEFAULT_BLOCK: [usize; 2] = [128, 128];

/// The number that each byte stands for, where the dtype is of eight bits.
fn table(dtype: &str) -> Option<Vec<f32>> {
    let number = |byte: u8| match dtype {
        "F8_E4M3" => e4m3(byte),
        // A half without its last byte.
        _ => f16::from_bits(u16::from(byte) << 8).to_f32(),
    };
    matches!(dtype, "F8_E4M3" | "F8_E5M2").then(|| (0..=u8::MAX).map(number).collect())
}

/// A float of a sign, four bits of exponent and three of mantissa, without infinities (OCP 8-bit floating point, E4M3).
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (0xf, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte >> 7 == 1 { -magnitude } else { magnitude }
}

/// A checked weight and its scales.
pub(super) struct Fp8<'a> {
    bytes: &'a [u8],
    table: Vec<f32>,
    columns: usize,
    scales: Vec<f32>,
    /// Scales a row of blocks.
    scales_across: usize,
    block: [usize; 2],
}

impl<'a> Fp8<'a> {
    /// Takes a weight, if it is one of eight bits, with what it is multiplied by.
    pub(super) fn new(
        weight: &View<'a>,
        scale: Option<&View<'_>>,
        block: Option<[usize; 2]>,
    ) -> Option<Result<Self, String>> {
        let table = table(weight.dtype)?;
        let columns = weight.shape.last().copied().unwrap_or(1);
        let rows = weight.bytes.len().checked_div(columns).unwrap_or(0);
        let whole =
            Self { bytes: weight.bytes, table, columns, scales: vec![1.0], scales_across: 1, block: [rows, columns] };
        let Some(scale) = scale else { return Some(Ok(whole)) };
        let Some(scales) = scale.floats() else {
            return Some(Err(format!("has scales in {}, but only F32, F16 and BF16 are read", scale.dtype)));
        };
        let block = block.unwrap_or(DEFAULT_BLOCK);
        let blocks =
            [rows, columns].iter().zip(block).map(|(size, block)| size.div_ceil(block.max(1))).collect::<Vec<_>>();
        Some(match scale.shape {
            _ if scales.len() == 1 => Ok(Self { scales, ..whole }),
            [n] | [n, 1] if *n == rows => Ok(Self { scales, block: [1, columns], ..whole }),
            shape if *shape == blocks && weight.shape.len() == 2 => {
                Ok(Self { scales, scales_across: blocks[1], block, ..whole })
            }
            shape => Err(format!("of shape {:?} has scales of shape {shape:?}, which do not fit it", weight.shape)),
        })
    }

    /// The weights in bfloat16.
    pub(super) fn to_bf16(&self) -> Vec<u8> {
        let mut widened = vec![0u8; 2 * self.bytes.len()];
        if self.columns == 0 {
            return widened;
        }
        let rows = widened.chunks_exact_mut(2 * self.columns).zip(self.bytes.chunks_exact(self.columns)).enumerate();
        for_each_mut(&mut rows.collect::<Vec<_>>(), |(row, (to, from))| {
            let scales = &self.scales[*row / self.block[0].max(1) * self.scales_across..];
            for (column, (to, &byte)) in to.as_chunks_mut::<2>().0.iter_mut().zip(*from).enumerate() {
                let number = self.table[usize::from(byte)] * scales[column / self.block[1]];
                *to = bf16::from_f32(number).to_le_bytes();
            }
        });
        widened
    }
}
