//! Q6_K: 256 numbers of 6 bits in 16 groups; `w = (scale * group_scale) * (q - 32)`.

use super::{LANES, NibblePair, PanelFormat, STEP, Simd, Sink, WeightFormat, f16_at, nibbles};

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

impl PanelFormat for Q6K {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q6K;
    const STEPS: usize = GROUPS / GROUPS_A_STEP;

    fn pack(outputs: &[&[u8]], _: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = f16_at(block, SCALE_AT).to_bits();
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
        let all = simd.load_f16(&packed.scales);
        for (g, group) in packed.groups[step * GROUPS_A_STEP..(step + 1) * GROUPS_A_STEP].iter().enumerate() {
            let scale = simd.mul(all, simd.to_f32(simd.load_i8(&group.scales)));
            let offset = simd.mul(scale, simd.splat(-32.0));
            for (index, quad) in group.quads.iter().enumerate() {
                let pair = g * (GROUP_LEN / 2) + index * 2;
                let high = simd.load_u8(&quad.high);
                let [low, next] = [simd.load_u8(&quad.low[0]), simd.load_u8(&quad.low[1])];
                let even = simd.or(simd.and(low, 0xf), simd.and(simd.shl::<4>(high), 0x30));
                let odd = simd.or(simd.shr::<4>(low), simd.and(simd.shl::<2>(high), 0x30));
                let even = simd.fma(simd.to_f32(even), scale, offset);
                sink.put(pair, even, simd.fma(simd.to_f32(odd), scale, offset));
                let even = simd.or(simd.and(next, 0xf), simd.and(high, 0x30));
                let odd = simd.or(simd.shr::<4>(next), simd.and(simd.shr::<2>(high), 0x30));
                let even = simd.fma(simd.to_f32(even), scale, offset);
                sink.put(pair + 1, even, simd.fma(simd.to_f32(odd), scale, offset));
            }
        }
    }
}
