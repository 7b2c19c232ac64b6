//! Q5_K: 256 numbers of 5 bits in 8 groups; `w = (scale * group_scale) * q - min * group_min`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{HALF_EXPONENT, Tile, TileSimd};
use super::{
    LANES, PAIRS, PanelFormat, STEP, Simd, Sink, ToBf16ByHalf, TwoPairs, WeightFormat, f16_at, half_exponent,
    put_nibbles, q4_k::scale_and_min, scaled_half,
};

const GROUPS: usize = 8;
/// A group is a step.
const GROUP_LEN: usize = STEP;
/// Where in the file's block the fifth bits and the low nibbles begin; what comes before is as in Q4_K.
const HIGH_AT: usize = 16;
const QUANTS_AT: usize = 48;

pub(in super::super) struct Q5K;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    mins: [u16; LANES],
    groups: [Group; GROUPS],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Group {
    scales: [u8; LANES],
    mins: [u8; LANES],
    eights: [Eight; GROUP_LEN / 8],
}

/// Eight inputs of sixteen outputs.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Eight {
    low: [TwoPairs; 2],
    /// The fifth bits, the first input's lowest.
    high: [u8; LANES],
}

/// Two groups share 32 bytes of nibbles, the first has the low ones; the fifth bits of a group are one bit of 32 bytes.
fn quant(block: &[u8], group: usize, k: usize) -> u8 {
    let byte = block[QUANTS_AT + group / 2 * 32 + k];
    let low = if group.is_multiple_of(2) { byte & 0xf } else { byte >> 4 };
    low | (block[HIGH_AT + k] >> group & 1) << 4
}

/// Calls `put` with the numbers of each pair of a group, as floats.
macro_rules! for_each_pair {
    ($simd:expr, $group:expr, |$pair:ident, $even:ident, $odd:ident| $put:expr) => {
        for (index, eight) in $group.eights.iter().enumerate() {
            let high = $simd.load_u8(&eight.high);
            let [low, next] = $simd.load_i8_pairs(bytemuck::cast_ref(&eight.low[0]));
            let $even = fifth_bit($simd, low, $simd.shl::<4>(high));
            let $odd = fifth_bit($simd, next, $simd.shl::<3>(high));
            let $pair = 4 * index;
            $put;
            let $even = fifth_bit($simd, $simd.shr::<4>(low), $simd.shl::<2>(high));
            let $odd = fifth_bit($simd, $simd.shr::<4>(next), $simd.shl::<1>(high));
            let $pair = 4 * index + 1;
            $put;
            let [low, next] = $simd.load_i8_pairs(bytemuck::cast_ref(&eight.low[1]));
            let $even = fifth_bit($simd, low, high);
            let $odd = fifth_bit($simd, next, $simd.shr::<1>(high));
            let $pair = 4 * index + 2;
            $put;
            let $even = fifth_bit($simd, $simd.shr::<4>(low), $simd.shr::<2>(high));
            let $odd = fifth_bit($simd, $simd.shr::<4>(next), $simd.shr::<3>(high));
            let $pair = 4 * index + 3;
            $put;
        }
    };
}

impl PanelFormat for Q5K {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q5K;
    const STEPS: usize = GROUPS;

    fn exponent(outputs: &[&[u8]]) -> i32 {
        let blocks = outputs.iter().flat_map(|bytes| bytes.chunks_exact(Self::FORMAT.block_bytes()));
        // Numbers are below 32, scales and minima of groups below 64.
        half_exponent(
            blocks.flat_map(|block| [32.0 * 64.0 * f16_at(block, 0).to_f32(), 64.0 * f16_at(block, 2).to_f32()]),
        )
    }

    fn pack(outputs: &[&[u8]], exponent: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = scaled_half(f16_at(block, 0), exponent);
            packed.mins[lane] = scaled_half(f16_at(block, 2), exponent);
            for (g, group) in packed.groups.iter_mut().enumerate() {
                (group.scales[lane], group.mins[lane]) = scale_and_min(block, g);
                let mut low = [[[0; 2]; LANES]; PAIRS / 2];
                put_nibbles(&mut low, lane, |k| quant(block, g, k));
                for (index, eight) in group.eights.iter_mut().enumerate() {
                    for (to, from) in eight.low.iter_mut().zip(&low[2 * index..]) {
                        to[lane] = from[lane];
                    }
                    eight.high[lane] = (0..8).map(|bit| (quant(block, g, 8 * index + bit) >> 4) << bit).sum();
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
        let (scale, min) = group_scale_and_min(simd, packed, step);
        let offset = simd.mul(min, simd.splat(-1.0));
        for_each_pair!(simd, packed.groups[step], |pair, even, odd| {
            sink.put(pair, simd.fma(even, scale, offset), simd.fma(odd, scale, offset));
        });
    }

    /// As Q4_K rounds.
    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Block, step: usize, sink: &mut impl Sink<S>) {
        let mut sink = ToBf16ByHalf { simd, sink };
        let (scale, min) = group_scale_and_min(simd, packed, step);
        let (scale, min) = (simd.round_f16(scale), simd.round_f16(min));
        for_each_pair!(simd, packed.groups[step], |pair, even, odd| {
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
        for (eight, rows) in packed.groups[step].eights.iter().zip(tile.0.as_chunks_mut::<4>().0) {
            let Eight { low: [first, second], high } = eight;
            let halves = [
                simd.halves_from_five_bits::<0>(first, high),
                simd.halves_from_five_bits::<1>(first, high),
                simd.halves_from_five_bits::<2>(second, high),
                simd.halves_from_five_bits::<3>(second, high),
            ];
            for (halves, row) in halves.into_iter().zip(rows) {
                simd.store_cut(simd.subtract_halves(simd.multiply_halves(halves, scales), mins), row);
            }
        }
    }
}

#[inline(always)]
fn group_scale_and_min<S: Simd>(simd: S, packed: &Block, group: usize) -> (S::F, S::F) {
    let Group { scales, mins, .. } = &packed.groups[group];
    let scale = simd.mul(simd.load_f16(&packed.scales), simd.to_f32(simd.load_u8(scales)));
    (scale, simd.mul(simd.load_f16(&packed.mins), simd.to_f32(simd.load_u8(mins))))
}

/// The number of four low bits and of a fifth that is where it counts.
#[inline(always)]
fn fifth_bit<S: Simd>(simd: S, low: S::I, high: S::I) -> S::F {
    simd.to_f32(simd.or(simd.and(low, 0xf), simd.and(high, 0x10)))
}
