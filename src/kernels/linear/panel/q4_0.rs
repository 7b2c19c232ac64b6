//! Q4_0: 32 nibbles and a half scale; `w = scale * (q - 8)`.

use super::{LANES, NibblePair, PAIRS, PanelFormat, Simd, Sink, WeightFormat, f16_at, nibbles};
use crate::kernels::linear::arithmetic::Bfloat16;

pub(in super::super) struct Q4_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    pairs: [NibblePair; PAIRS],
}

/// The file has the first sixteen weights in the low nibbles, the other sixteen in the high ones.
fn quant(block: &[u8], k: usize) -> u8 {
    let byte = block[2 + k % 16];
    if k < 16 { byte & 0xf } else { byte >> 4 }
}

impl PanelFormat for Q4_0 {
    type Block = Block;
    type Arithmetic = Bfloat16;
    const FORMAT: WeightFormat = WeightFormat::Q4_0;

    fn pack(outputs: &[&[u8]], _: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = f16_at(block, 0).to_bits();
            for (k, pair) in packed.pairs.iter_mut().enumerate() {
                pair[lane] = nibbles(quant(block, 2 * k), quant(block, 2 * k + 1));
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(quant(block, k)) - 8.0);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Block, _: usize, sink: &mut impl Sink<S>) {
        let scale = simd.load_f16(&packed.scales);
        let offset = simd.mul(scale, simd.splat(-8.0));
        for (index, pair) in packed.pairs.iter().enumerate() {
            let pair = simd.load_u8(pair);
            let even = simd.fma(simd.to_f32(simd.and(pair, 0xf)), scale, offset);
            sink.put(index, even, simd.fma(simd.to_f32(simd.shr::<4>(pair)), scale, offset));
        }
    }
}
