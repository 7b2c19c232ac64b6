//! Q5_K: 256 numbers of 5 bits in 8 groups; `w = (scale * group_scale) * q - min * group_min`.

use super::{
    PAIR, PanelFormat, QUADS, Quad, Quantized, STEP, Simd, WeightFormat,
    nibbles::{self, Nibbles},
    q4_k::{self, GROUPS, Scales, nibble},
};

/// Where in the file's block the fifth bits and the low nibbles begin; what comes before is as in Q4_K.
const HIGH_AT: usize = 16;
const QUANTS_AT: usize = 48;

pub(in super::super) struct Q5K;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [Scales; PAIR],
    quants: [[Group; GROUPS]; PAIR],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Group {
    low: Nibbles,
    /// The fifth bits of eight fours of inputs, the first lowest.
    high: Quad,
}

/// The fifth bits of a group are one bit of 32 bytes.
fn quant(block: &[u8], group: usize, k: usize) -> u8 {
    nibble(&block[QUANTS_AT..], group, k) | (block[HIGH_AT + k] >> group & 1) << 4
}

impl PanelFormat for Q5K {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q5K;
    const STEPS: usize = GROUPS;

    fn pack(outputs: &[&[u8]], panel: usize, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[panel].put(lane, block);
            for (index, group) in packed.quants[panel].iter_mut().enumerate() {
                for k in 0..STEP {
                    let quant = quant(block, index, k);
                    nibbles::put(&mut group.low, lane, k, quant);
                    group.high[lane][k % 4] |= quant >> 4 << (k / 4);
                }
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        q4_k::decode(block, weights, |group, k| quant(block, group, k));
    }

    fn gather(packed: &Block, panel: usize, lane: usize, weights: &mut [f32]) {
        for (index, weights) in weights.chunks_mut(STEP).enumerate() {
            let (scale, min) = packed.scales[panel].get(lane, index);
            let group = &packed.quants[panel][index];
            for (k, weight) in weights.iter_mut().enumerate() {
                let high = group.high[lane][k % 4] >> (k / 4) & 1;
                let quant = nibbles::get(&group.low, lane, k) | high << 4;
                *weight = f32::from(quant).mul_add(scale, -min);
            }
        }
    }
}

impl Quantized for Q5K {
    const OFFSET: u8 = 0;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, packed: &Block, panel: usize, step: usize) -> [S::I; QUADS] {
        const FIFTH: i32 = 0x1010_1010;
        let group = &packed.quants[panel][step];
        let (low, high) = (nibbles::load(simd, &group.low), simd.load_bytes(&group.high));
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
    fn scales<S: Simd>(simd: S, packed: &Block, panel: usize, step: usize, _: usize) -> S::F {
        packed.scales[panel].scales(simd, step)
    }

    #[inline(always)]
    fn mins<S: Simd>(simd: S, packed: &Block, panel: usize, step: usize) -> S::F {
        packed.scales[panel].mins(simd, step)
    }
}
