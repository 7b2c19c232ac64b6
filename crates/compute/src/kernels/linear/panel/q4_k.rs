//! Q4_K: 256 nibbles in 8 groups; `w = (scale * group_scale) * q - min * group_min`.

use super::{
    LANES, PAIR, PanelFormat, QUADS, Quantized, STEP, SUPER_STEPS, Scales, Simd, WeightFormat, f16_at,
    nibbles::{self, Nibbles},
    scale_at, widened,
};

/// A group is a step.
const GROUPS: usize = SUPER_STEPS;
/// Where in the file's block the 6-bit scales and the nibbles begin.
const SCALES_AT: usize = 4;
const QUANTS_AT: usize = 16;

pub(in super::super) struct Q4K;

/// Scales and minima of a panel. The 6-bit numbers of the file lie in whole bytes here: 4 bytes more a block.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct WithMins {
    scales: [u16; LANES],
    mins: [u16; LANES],
    group_scales: [[u8; LANES]; GROUPS],
    group_mins: [[u8; LANES]; GROUPS],
}

impl WithMins {
    /// Takes those of a file's block for an output.
    pub(super) fn put(&mut self, lane: usize, block: &[u8]) {
        self.scales[lane] = scale_at(block, 0);
        self.mins[lane] = scale_at(block, 2);
        for group in 0..GROUPS {
            (self.group_scales[group][lane], self.group_mins[group][lane]) = scale_and_min(block, group);
        }
    }

    /// An output's scale and minimum of a group.
    pub(super) fn get(&self, lane: usize, group: usize) -> (f32, f32) {
        let scale = widened(self.scales[lane]) * f32::from(self.group_scales[group][lane]);
        (scale, widened(self.mins[lane]) * f32::from(self.group_mins[group][lane]))
    }
}

impl Scales for WithMins {
    #[inline(always)]
    fn units<S: Simd>(&self, simd: S) -> S::F {
        simd.load_f16(&self.scales)
    }

    #[inline(always)]
    fn factors<S: Simd>(&self, simd: S, step: usize, _: usize) -> S::I {
        simd.load_u8(&self.group_scales[step])
    }

    #[inline(always)]
    fn min_units<S: Simd>(&self, simd: S) -> S::F {
        simd.load_f16(&self.mins)
    }

    #[inline(always)]
    fn min_factors<S: Simd>(&self, simd: S, step: usize) -> S::I {
        simd.load_u8(&self.group_mins[step])
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
    type Head = [WithMins; PAIR];
    type Step = [Nibbles; PAIR];
    const FORMAT: WeightFormat = WeightFormat::Q4K;

    fn pack(outputs: &[&[u8]], panel: usize, head: Option<&mut Self::Head>, steps: &mut [Self::Step]) {
        let Some(head) = head else { return };
        for (lane, block) in outputs.iter().enumerate() {
            head[panel].put(lane, block);
            for (group, step) in steps.iter_mut().enumerate() {
                (0..STEP).for_each(|k| nibbles::put(&mut step[panel], lane, k, nibble(&block[QUANTS_AT..], group, k)));
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        decode(block, weights, |group, k| nibble(&block[QUANTS_AT..], group, k));
    }

    fn gather(head: Option<&Self::Head>, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        gather(head, panel, lane, weights, |group, k| nibbles::get(&steps[group][panel], lane, k));
    }
}

/// An output's weights of a superblock, given its integers.
pub(super) fn gather(
    head: Option<&[WithMins; PAIR]>,
    panel: usize,
    lane: usize,
    weights: &mut [f32],
    quant: impl Fn(usize, usize) -> u8,
) {
    let Some(head) = head else { return };
    for (group, weights) in weights.chunks_mut(STEP).enumerate() {
        let (scale, min) = head[panel].get(lane, group);
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = f32::from(quant(group, k)).mul_add(scale, -min);
        }
    }
}

impl Quantized for Q4K {
    type Scales = WithMins;
    const OFFSET: u8 = 0;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS] {
        nibbles::load(simd, &step[panel])
    }
}
