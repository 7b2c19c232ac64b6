//! Q8_0: 32 signed bytes and a half scale; `w = scale * q`.

use super::{
    PAIR, PanelFormat, QUADS, Quad, Quantized, STEP, Simd, WeightFormat, f16_at,
    units::{self, Factors, Units},
};

/// What a scale may be times its unit, so that its product with -128 has 16 bits.
const LIMIT: f32 = 255.0;
/// Bytes of a block in the file.
const BLOCK: usize = 2 + STEP;

pub(in super::super) struct Q8_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Step {
    factors: Factors,
    /// As the file has them.
    weights: [[Quad; QUADS]; PAIR],
}

impl PanelFormat for Q8_0 {
    type Head = Units;
    type Step = Step;
    const FORMAT: WeightFormat = WeightFormat::Q8_0;

    fn pack(outputs: &[&[u8]], panel: usize, head: &mut Self::Head, steps: &mut [Self::Step]) {
        for (lane, output) in outputs.iter().enumerate() {
            let blocks = output.as_chunks::<BLOCK>().0;
            let (unit, factors) = units::split(blocks.iter().map(|block| f16_at(block, 0)), LIMIT);
            head[panel][lane] = unit;
            for ((step, block), factor) in steps.iter_mut().zip(blocks).zip(factors) {
                step.factors[panel][lane] = factor;
                for (quad, q) in step.weights[panel].iter_mut().zip(block[2..].as_chunks::<4>().0) {
                    quad[lane] = *q;
                }
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (weight, &q) in weights.iter_mut().zip(&block[2..]) {
            *weight = scale * f32::from(q as i8);
        }
    }

    fn gather(head: &Self::Head, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (step, weights) in steps.iter().zip(weights.chunks_mut(STEP)) {
            let scale = units::scale(head[panel][lane], step.factors[panel][lane]);
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = scale * f32::from(step.weights[panel][k / 4][lane][k % 4] as i8);
            }
        }
    }
}

impl Quantized for Q8_0 {
    const OFFSET: u8 = 128;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS] {
        let (weights, mut quads) = (&step.weights[panel], [simd.splat_i32(0); QUADS]);
        for k in 0..QUADS {
            quads[k] = simd.sub_bytes(simd.load_bytes(&weights[k]), Self::OFFSET);
        }
        quads
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
