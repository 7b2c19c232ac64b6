//! Q4_0: 32 nibbles and a half scale; `w = scale * (q - 8)`.

use super::{
    PAIR, PanelFormat, QUADS, Quantized, STEP, Simd, WeightFormat, f16_at,
    nibbles::{self, Nibbles},
    units::{self, Factors, Units},
};

/// What a scale may be times its unit, so that its product with -8 has 16 bits.
const LIMIT: f32 = 4095.0;
/// Bytes of a block in the file.
const BLOCK: usize = 2 + STEP / 2;

pub(in super::super) struct Q4_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Step {
    factors: Factors,
    weights: [Nibbles; PAIR],
}

/// The file has the first sixteen weights in the low nibbles, the other sixteen in the high ones.
fn quant(block: &[u8], k: usize) -> u8 {
    let byte = block[2 + k % 16];
    if k < 16 { byte & 0xf } else { byte >> 4 }
}

impl PanelFormat for Q4_0 {
    type Head = Units;
    type Step = Step;
    const FORMAT: WeightFormat = WeightFormat::Q4_0;

    fn pack(outputs: &[&[u8]], panel: usize, head: &mut Self::Head, steps: &mut [Self::Step]) {
        for (lane, output) in outputs.iter().enumerate() {
            let blocks = output.as_chunks::<BLOCK>().0;
            let (unit, factors) = units::split(blocks.iter().map(|block| f16_at(block, 0)), LIMIT);
            head[panel][lane] = unit;
            for ((step, block), factor) in steps.iter_mut().zip(blocks).zip(factors) {
                step.factors[panel][lane] = factor;
                (0..STEP).for_each(|k| nibbles::put(&mut step.weights[panel], lane, k, quant(block, k)));
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(quant(block, k)) - 8.0);
        }
    }

    fn gather(head: &Self::Head, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (step, weights) in steps.iter().zip(weights.chunks_mut(STEP)) {
            let scale = units::scale(head[panel][lane], step.factors[panel][lane]);
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = scale * (f32::from(nibbles::get(&step.weights[panel], lane, k)) - 8.0);
            }
        }
    }
}

impl Quantized for Q4_0 {
    const OFFSET: u8 = 8;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS] {
        nibbles::load(simd, &step.weights[panel])
    }

    #[inline(always)]
    fn units<S: Simd>(simd: S, head: &Units, panel: usize) -> S::F {
        units::load(simd, head, panel)
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, step: &Step, panel: usize, _: usize) -> S::I {
        units::load_factors(simd, &step.factors, panel)
    }
}
