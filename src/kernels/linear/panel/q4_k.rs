//! Q4_K: 256 nibbles in 8 groups; `w = (scale * group_scale) * q - min * group_min`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{HALF_EXPONENT, Tile, TileSimd};
use super::{
    LANES, PAIRS, PanelFormat, STEP, Simd, Sink, ToBf16ByHalf, TwoPairs, WeightFormat, f16_at, for_each_nibble_pair,
    half_exponent, put_nibbles, scaled_half,
};

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
    quants: [TwoPairs; PAIRS / 2],
}

/// A group's scale and minimum. The first four groups have theirs in the low 6 bits of bytes 0..4 and 4..8, the others
/// their low 4 bits in bytes 8..12 and the high 2 bits on top of the former.
pub(super) fn scale_and_min(block: &[u8], group: usize) -> (u8, u8) {
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
    const FORMAT: WeightFormat = WeightFormat::Q4K;
    const STEPS: usize = GROUPS;

    fn exponent(outputs: &[&[u8]]) -> i32 {
        let blocks = outputs.iter().flat_map(|bytes| bytes.chunks_exact(Self::FORMAT.block_bytes()));
        // Numbers are below 16, scales and minima of groups below 64.
        half_exponent(
            blocks.flat_map(|block| [16.0 * 64.0 * f16_at(block, 0).to_f32(), 64.0 * f16_at(block, 2).to_f32()]),
        )
    }

    fn pack(outputs: &[&[u8]], exponent: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = scaled_half(f16_at(block, 0), exponent);
            packed.mins[lane] = scaled_half(f16_at(block, 2), exponent);
            for (g, group) in packed.groups.iter_mut().enumerate() {
                (group.scales[lane], group.mins[lane]) = scale_and_min(block, g);
                put_nibbles(&mut group.quants, lane, |k| quant(block, g, k));
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
        let (scale, min) = group_scale_and_min(simd, packed, step);
        let offset = simd.mul(min, simd.splat(-1.0));
        for_each_nibble_pair!(simd, packed.groups[step].quants, |pair, even, odd| {
            sink.put(pair, simd.fma(even, scale, offset), simd.fma(odd, scale, offset));
        });
    }

    /// The group's scale and minimum are rounded to halves, and so is the product that the minimum is taken from.
    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Block, step: usize, sink: &mut impl Sink<S>) {
        let mut sink = ToBf16ByHalf { simd, sink };
        let (scale, min) = group_scale_and_min(simd, packed, step);
        let (scale, min) = (simd.round_f16(scale), simd.round_f16(min));
        for_each_nibble_pair!(simd, packed.groups[step].quants, |pair, even, odd| {
            let [even, odd] = [simd.round_f16(simd.mul(even, scale)), simd.round_f16(simd.mul(odd, scale))];
            sink.put(pair, simd.sub(even, min), simd.sub(odd, min));
        });
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILE_EXPONENT: i32 = HALF_EXPONENT;

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn write_tile(simd: TileSimd, packed: &Block, step: usize, tile: &mut Tile) {
        let (scale, min) = group_scale_and_min(simd.avx512(), packed, step);
        let (scales, mins) = (simd.twice_each_rounded(scale), simd.twice_each_rounded(min));
        let numbers = simd.nibble_table(0);
        for (two, rows) in packed.groups[step].quants.iter().zip(tile.0.as_chunks_mut::<2>().0) {
            let [first, second] = simd.look_up_nibbles(numbers, two);
            simd.store_cut(simd.subtract_halves(simd.multiply_halves(first, scales), mins), &mut rows[0]);
            simd.store_cut(simd.subtract_halves(simd.multiply_halves(second, scales), mins), &mut rows[1]);
        }
    }
}

#[inline(always)]
fn group_scale_and_min<S: Simd>(simd: S, packed: &Block, group: usize) -> (S::F, S::F) {
    let Group { scales, mins, .. } = &packed.groups[group];
    let scale = simd.mul(simd.load_f16(&packed.scales), simd.to_f32(simd.load_u8(scales)));
    (scale, simd.mul(simd.load_f16(&packed.mins), simd.to_f32(simd.load_u8(mins))))
}
