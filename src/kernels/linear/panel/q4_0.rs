//! Q4_0: 32 nibbles and a half scale; `w = scale * (q - 8)`.

use super::{
    LANES, PAIR, PanelFormat, QUADS, Quantized, Simd, WeightFormat, f16_at,
    nibbles::{self, Nibbles},
    scale_at, widened,
};

pub(in super::super) struct Q4_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [[u16; LANES]; PAIR],
    quants: [Nibbles; PAIR],
}

/// The file has the first sixteen weights in the low nibbles, the other sixteen in the high ones.
fn quant(block: &[u8], k: usize) -> u8 {
    let byte = block[2 + k % 16];
    if k < 16 { byte & 0xf } else { byte >> 4 }
}

impl PanelFormat for Q4_0 {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q4_0;

    fn pack(outputs: &[&[u8]], panel: usize, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[panel][lane] = scale_at(block, 0);
            (0..32).for_each(|k| nibbles::put(&mut packed.quants[panel], lane, k, quant(block, k)));
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(quant(block, k)) - 8.0);
        }
    }

    fn gather(packed: &Block, panel: usize, lane: usize, weights: &mut [f32]) {
        let scale = widened(packed.scales[panel][lane]);
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(nibbles::get(&packed.quants[panel], lane, k)) - 8.0);
        }
    }
}

impl Quantized for Q4_0 {
    const OFFSET: u8 = 8;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, packed: &Block, panel: usize, _: usize) -> [S::I; QUADS] {
        nibbles::load(simd, &packed.quants[panel])
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, packed: &Block, panel: usize, _: usize, _: usize) -> S::F {
        simd.load_f16(&packed.scales[panel])
    }
}
