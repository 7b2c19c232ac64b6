//! Q4_K: 256 nibbles in 8 groups, which are steps; `w = (scale * group_scale) * q - min * group_min`.

use super::{
    LANES, PAIR, PanelFormat, QUADS, Quantized, STEP, Simd, WeightFormat, f16_at,
    nibbles::{self, Nibbles},
    scale_at, widened,
};

/// Where in the file's block the 6-bit scales and the nibbles begin.
const SCALES_AT: usize = 4;
const QUANTS_AT: usize = 16;

pub(in super::super) struct Q4K;

/// Scales and minima of a superblock of a panel, in float16.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Units {
    scales: [u16; LANES],
    mins: [u16; LANES],
}

/// Scales and minima of a step of a panel. The 6-bit numbers of the file lie in whole bytes here: 4 bytes more a block.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Factors {
    scales: [u8; LANES],
    mins: [u8; LANES],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Step {
    factors: [Factors; PAIR],
    weights: [Nibbles; PAIR],
}

impl Units {
    /// Takes those of a file's block for an output.
    pub(super) fn put(&mut self, lane: usize, block: &[u8]) {
        self.scales[lane] = scale_at(block, 0);
        self.mins[lane] = scale_at(block, 2);
    }

    #[inline(always)]
    pub(super) fn scales<S: Simd>(&self, simd: S) -> S::F {
        simd.load_f16(&self.scales)
    }

    #[inline(always)]
    pub(super) fn mins<S: Simd>(&self, simd: S) -> S::F {
        simd.load_f16(&self.mins)
    }
}

impl Factors {
    /// Takes those of a group of a file's block for an output.
    pub(super) fn put(&mut self, lane: usize, block: &[u8], group: usize) {
        (self.scales[lane], self.mins[lane]) = scale_and_min(block, group);
    }

    #[inline(always)]
    pub(super) fn scales<S: Simd>(&self, simd: S) -> S::I {
        simd.load_u8(&self.scales)
    }

    #[inline(always)]
    pub(super) fn mins<S: Simd>(&self, simd: S) -> S::I {
        simd.load_u8(&self.mins)
    }
}

/// A group's scale and minimum. The first four groups have theirs in the low 6 bits of bytes 0..4 and 4..8, the others
/// their low 4 bits in bytes 8..12 and the high 2 bits on top of the former.
fn scale_and_min(block: &[u8], group: usize) -> (u8, u8) {
    let s = &block[SCALES_AT..QUANTS_AT];
    if group < 4 {
        (s[group] & 63, s[group + 4] & 63)
    } else {
        (s[group + 4] & 0xf | s[group - 4] >> 6 << 4, s[group + 4] >> 4 | s[group] >> 6 << 4)
    }
}

/// Weights of a file's block, given its integers.
pub(super) fn decode(block: &[u8], weights: &mut [f32], quant: impl Fn(usize, usize) -> u8) {
    let (scale, min) = (f16_at(block, 0).to_f32(), f16_at(block, 2).to_f32());
    for (group, weights) in weights.chunks_mut(STEP).enumerate() {
        let (group_scale, group_min) = scale_and_min(block, group);
        let (scale, min) = (scale * f32::from(group_scale), min * f32::from(group_min));
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = f32::from(quant(group, k)).mul_add(scale, -min);
        }
    }
}

/// Two groups share 32 bytes: the first has the low nibbles, the second the high ones.
pub(super) fn nibble(bytes: &[u8], group: usize, k: usize) -> u8 {
    let byte = bytes[group / 2 * 32 + k];
    if group.is_multiple_of(2) { byte & 0xf } else { byte >> 4 }
}

impl PanelFormat for Q4K {
    type Head = [Units; PAIR];
    type Step = Step;
    const FORMAT: WeightFormat = WeightFormat::Q4K;

    fn pack(outputs: &[&[u8]], panel: usize, head: &mut Self::Head, steps: &mut [Self::Step]) {
        for (lane, block) in outputs.iter().enumerate() {
            head[panel].put(lane, block);
            for (group, step) in steps.iter_mut().enumerate() {
                step.factors[panel].put(lane, block, group);
                let quant = |k: usize| nibble(&block[QUANTS_AT..], group, k);
                (0..STEP).for_each(|k| nibbles::put(&mut step.weights[panel], lane, k, quant(k)));
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        decode(block, weights, |group, k| nibble(&block[QUANTS_AT..], group, k));
    }

    fn gather(head: &Self::Head, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (step, weights) in steps.iter().zip(weights.chunks_mut(STEP)) {
            let scales = (&head[panel], &step.factors[panel]);
            gather(scales, lane, weights, |k| nibbles::get(&step.weights[panel], lane, k));
        }
    }
}

/// An output's weights of a step, given its integers.
pub(super) fn gather(
    (units, factors): (&Units, &Factors),
    lane: usize,
    weights: &mut [f32],
    quant: impl Fn(usize) -> u8,
) {
    let scale = widened(units.scales[lane]) * f32::from(factors.scales[lane]);
    let min = widened(units.mins[lane]) * f32::from(factors.mins[lane]);
    for (k, weight) in weights.iter_mut().enumerate() {
        *weight = f32::from(quant(k)).mul_add(scale, -min);
    }
}

impl Quantized for Q4K {
    const OFFSET: u8 = 0;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Step, panel: usize) -> [S::I; QUADS] {
        nibbles::load(simd, &step.weights[panel])
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
