//! Q4_K: 256 nibbles in 8 groups; `w = (scale * group_scale) * q - min * group_min`.

use super::{LANES, NibblePair, PAIRS, PanelFormat, STEP, Simd, Sink, WeightFormat, f16_at, nibbles};
use crate::kernels::linear::arithmetic::Bfloat16;

const GROUPS: usize = 8;
/// A group is a step.
const GROUP_LEN: usize = STEP;
/// Where in the file's block the 6-bit scales and the nibbles begin.
const SCALES_AT: usize = 4;
const QUANTS_AT: usize = 16;

pub(in super::super) struct Q4K;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    mins: [u16; LANES],
    groups: [Group; GROUPS],
}

/// The 6-bit numbers of the file lie in whole bytes here: 148 bytes a block instead of 144.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Group {
    scales: [u8; LANES],
    mins: [u8; LANES],
    pairs: [NibblePair; PAIRS],
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

/// Two groups share 32 bytes: the first has the low nibbles, the second the high ones.
fn quant(block: &[u8], group: usize, k: usize) -> u8 {
    let byte = block[QUANTS_AT + group / 2 * 32 + k];
    if group.is_multiple_of(2) { byte & 0xf } else { byte >> 4 }
}

impl PanelFormat for Q4K {
    type Block = Block;
    type Arithmetic = Bfloat16;
    const FORMAT: WeightFormat = WeightFormat::Q4K;
    const STEPS: usize = GROUPS;

    fn pack(outputs: &[&[u8]], _: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = f16_at(block, 0).to_bits();
            packed.mins[lane] = f16_at(block, 2).to_bits();
            for (g, group) in packed.groups.iter_mut().enumerate() {
                (group.scales[lane], group.mins[lane]) = scale_and_min(block, g);
                for (k, pair) in group.pairs.iter_mut().enumerate() {
                    pair[lane] = nibbles(quant(block, g, 2 * k), quant(block, g, 2 * k + 1));
                }
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (scale, min) = (f16_at(block, 0).to_f32(), f16_at(block, 2).to_f32());
        for (g, weights) in weights.chunks_mut(GROUP_LEN).enumerate() {
            let (group_scale, group_min) = scale_and_min(block, g);
            let (scale, min) = (scale * f32::from(group_scale), min * f32::from(group_min));
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = f32::from(quant(block, g, k)).mul_add(scale, -min);
            }
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Block, step: usize, sink: &mut impl Sink<S>) {
        let group = &packed.groups[step];
        let scale = simd.mul(simd.load_f16(&packed.scales), simd.to_f32(simd.load_u8(&group.scales)));
        let min = simd.mul(simd.load_f16(&packed.mins), simd.to_f32(simd.load_u8(&group.mins)));
        let offset = simd.mul(min, simd.splat(-1.0));
        for (index, pair) in group.pairs.iter().enumerate() {
            let pair = simd.load_u8(pair);
            let even = simd.fma(simd.to_f32(simd.and(pair, 0xf)), scale, offset);
            sink.put(index, even, simd.fma(simd.to_f32(simd.shr::<4>(pair)), scale, offset));
        }
    }
}
