//! Q5_K: 256 numbers of 5 bits in 8 groups; `w = (scale * group_scale) * q - min * group_min`.

use super::{
    PAIR, PanelFormat, QUADS, Quad, Quantized, STEP, Simd, WeightFormat,
    nibbles::{self, Nibbles},
    q4_k::{self, Factors, Units, nibble},
};

/// Where in the file's block the fifth bits and the low nibbles begin; what comes before is as in Q4_K.
const HIGH_AT: usize = 16;
const QUANTS_AT: usize = 48;

pub(in super::super) struct Q5K;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Step {
    factors: [Factors; PAIR],
    weights: [Fives; PAIR],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Fives {
    low: Nibbles,
    /// The fifth bits of eight fours of inputs, the first lowest.
    high: Quad,
}

/// The fifth bits of a group are one bit of 32 bytes.
fn quant(block: &[u8], group: usize, k: usize) -> u8 {
    nibble(&block[QUANTS_AT..], group, k) | (block[HIGH_AT + k] >> group & 1) << 4
}

impl PanelFormat for Q5K {
    type Head = [Units; PAIR];
    type Step = Step;
    const FORMAT: WeightFormat = WeightFormat::Q5K;

    fn pack(outputs: &[&[u8]], panel: usize, head: &mut Self::Head, steps: &mut [Self::Step]) {
        for (lane, block) in outputs.iter().enumerate() {
            head[panel].put(lane, block);
            for (group, step) in steps.iter_mut().enumerate() {
                step.factors[panel].put(lane, block, group);
                for k in 0..STEP {
                    let quant = quant(block, group, k);
                    nibbles::put(&mut step.weights[panel].low, lane, k, quant);
                    step.weights[panel].high[lane][k % 4] |= quant >> 4 << (k / 4);
                }
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        q4_k::decode(block, weights, |group, k| quant(block, group, k));
    }

    fn gather(head: &Self::Head, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (step, weights) in steps.iter().zip(weights.chunks_mut(STEP)) {
            let fives = &step.weights[panel];
            q4_k::gather((&head[panel], &step.factors[panel]), lane, weights, |k| {
                nibbles::get(&fives.low, lane, k) | (fives.high[lane][k % 4] >> (k / 4) & 1) << 4
            });
        }
    }
}

impl Quantized for Q5K {
    const OFFSET: u8 = 0;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS] {
        const FIFTH: i32 = 0x1010_1010;
        let fives = &step.weights[panel];
        let (low, high) = (nibbles::load(simd, &fives.low), simd.load_bytes(&fives.high));
        [
            simd.or(low[0], simd.and(simd.shl::<4>(high), FIFTH)),
            simd.or(low[1], simd.and(simd.shl::<3>(high), FIFTH)),
            simd.or(low[2], simd.and(simd.shl::<2>(high), FIFTH)),
            simd.or(low[3], simd.and(simd.shl::<1>(high), FIFTH)),
            simd.or(low[4], simd.and(high, FIFTH)),
            simd.or(low[5], simd.and(simd.shr::<1>(high), FIFTH)),
            simd.or(low[6], simd.and(simd.shr::<2>(high), FIFTH)),
            simd.or(low[7], simd.and(simd.shr::<3>(high), FIFTH)),
        ]
    }

    #[inline(always)]
    fn units<S: Simd>(simd: S, head: &Self::Head, panel: usize) -> S::F {
        head[panel].scales(simd)
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, step: &Self::Step, panel: usize, _: usize) -> S::I {
        step.factors[panel].scales(simd)
    }

    #[inline(always)]
    fn min_units<S: Simd>(simd: S, head: &Self::Head, panel: usize) -> S::F {
        head[panel].mins(simd)
    }

    #[inline(always)]
    fn min_factors<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> S::I {
        step.factors[panel].mins(simd)
    }
}
