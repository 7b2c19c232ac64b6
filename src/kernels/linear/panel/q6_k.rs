//! Q6_K: 256 numbers of 6 bits in 16 groups; `w = (scale * group_scale) * (q - 32)`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{HALF_EXPONENT, Tile, TileSimd};
use super::{
    LANES, NibblePair, PanelFormat, STEP, Simd, Sink, ToBf16ByHalf, WeightFormat, f16_at, half_exponent, nibbles,
    scaled_half,
};

const GROUPS: usize = 16;
const GROUP_LEN: usize = 16;
const GROUPS_A_STEP: usize = STEP / GROUP_LEN;
/// Where in the file's block the low nibbles, the high bits, the group scales and the scale begin.
const LOW_AT: usize = 0;
const HIGH_AT: usize = 128;
const SCALES_AT: usize = 192;
const SCALE_AT: usize = 208;

pub(in super::super) struct Q6K;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    groups: [Group; GROUPS],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Group {
    scales: [i8; LANES],
    quads: [Quad; GROUP_LEN / 4],
}

/// Four weights of sixteen outputs.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Quad {
    /// The low 4 bits.
    low: [NibblePair; 2],
    /// The high 2 bits, the first weight's lowest.
    high: [u8; LANES],
}

/// The file takes 128 weights as four runs of 32: two runs share 64 bytes of nibbles (runs 0 and 1 the low ones),
/// all four share 32 bytes of high bits.
fn quant(block: &[u8], k: usize) -> u8 {
    let (half, run, l) = (k / 128, k / 32 % 4, k % 32);
    let low = block[LOW_AT + half * 64 + run % 2 * 32 + l] >> (run / 2 * 4) & 0xf;
    let high = block[HIGH_AT + half * 32 + l] >> (run * 2) & 3;
    low | high << 4
}

/// Calls `put` with each pair of a step, its group's scale and its numbers less 32.
macro_rules! for_each_pair {
    ($simd:expr, $packed:expr, $step:expr, |$pair:ident, $scale:ident, $even:ident, $odd:ident| $put:expr) => {
        let offset = $simd.splat(-32.0);
        for (g, group) in $packed.groups[$step * GROUPS_A_STEP..($step + 1) * GROUPS_A_STEP].iter().enumerate() {
            let $scale = group_scale($simd, $packed, group);
            for (index, quad) in group.quads.iter().enumerate() {
                let high = $simd.load_u8(&quad.high);
                let [low, next] = [$simd.load_u8(&quad.low[0]), $simd.load_u8(&quad.low[1])];
                let even = $simd.or($simd.and(low, 0xf), $simd.and($simd.shl::<4>(high), 0x30));
                let odd = $simd.or($simd.shr::<4>(low), $simd.and($simd.shl::<2>(high), 0x30));
                let [$even, $odd] = [$simd.add($simd.to_f32(even), offset), $simd.add($simd.to_f32(odd), offset)];
                let $pair = g * (GROUP_LEN / 2) + index * 2;
                $put;
                let even = $simd.or($simd.and(next, 0xf), $simd.and(high, 0x30));
                let odd = $simd.or($simd.shr::<4>(next), $simd.and($simd.shr::<2>(high), 0x30));
                let [$even, $odd] = [$simd.add($simd.to_f32(even), offset), $simd.add($simd.to_f32(odd), offset)];
                let $pair = $pair + 1;
                $put;
            }
        }
    };
}

impl PanelFormat for Q6K {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q6K;
    const STEPS: usize = GROUPS / GROUPS_A_STEP;

    fn exponent(outputs: &[&[u8]]) -> i32 {
        let blocks = outputs.iter().flat_map(|bytes| bytes.chunks_exact(Self::FORMAT.block_bytes()));
        // Numbers are at most 32 from zero, scales of groups at most 128.
        half_exponent(blocks.map(|block| 32.0 * 128.0 * f16_at(block, SCALE_AT).to_f32()))
    }

    fn pack(outputs: &[&[u8]], exponent: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = scaled_half(f16_at(block, SCALE_AT), exponent);
            for (g, group) in packed.groups.iter_mut().enumerate() {
                group.scales[lane] = block[SCALES_AT + g] as i8;
                for (quad_index, quad) in group.quads.iter_mut().enumerate() {
                    let q: [u8; 4] = std::array::from_fn(|k| quant(block, g * GROUP_LEN + quad_index * 4 + k));
                    quad.low[0][lane] = nibbles(q[0], q[1]);
                    quad.low[1][lane] = nibbles(q[2], q[3]);
                    quad.high[lane] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
                }
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, SCALE_AT).to_f32();
        for (k, weight) in weights.iter_mut().enumerate() {
            let group_scale = f32::from(block[SCALES_AT + k / GROUP_LEN] as i8);
            *weight = scale * group_scale * (f32::from(quant(block, k)) - 32.0);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Block, step: usize, sink: &mut impl Sink<S>) {
        for_each_pair!(simd, packed, step, |pair, scale, even, odd| {
            sink.put(pair, simd.mul(even, scale), simd.mul(odd, scale));
        });
    }

    /// The group's scale is rounded to a half.
    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Block, step: usize, sink: &mut impl Sink<S>) {
        let mut sink = ToBf16ByHalf { simd, sink };
        for_each_pair!(simd, packed, step, |pair, scale, even, odd| {
            let scale = simd.round_f16(scale);
            sink.put(pair, simd.mul(even, scale), simd.mul(odd, scale));
        });
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILE_EXPONENT: i32 = HALF_EXPONENT;

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn write_tile(simd: TileSimd, packed: &Block, step: usize, tile: &mut Tile) {
        let groups = &packed.groups[step * GROUPS_A_STEP..(step + 1) * GROUPS_A_STEP];
        for (group, rows) in groups.iter().zip(tile.0.as_chunks_mut::<{ GROUP_LEN / 2 }>().0) {
            let scales = simd.twice_each_rounded(group_scale(simd.avx512(), packed, group));
            for (quad, rows) in group.quads.iter().zip(rows.as_chunks_mut::<2>().0) {
                let first = simd.halves_from_six_bits::<false>(&quad.low[0], &quad.high);
                simd.store_cut(simd.multiply_halves(first, scales), &mut rows[0]);
                let second = simd.halves_from_six_bits::<true>(&quad.low[1], &quad.high);
                simd.store_cut(simd.multiply_halves(second, scales), &mut rows[1]);
            }
        }
    }
}

#[inline(always)]
fn group_scale<S: Simd>(simd: S, packed: &Block, group: &Group) -> S::F {
    simd.mul(simd.load_f16(&packed.scales), simd.to_f32(simd.load_i8(&group.scales)))
}
