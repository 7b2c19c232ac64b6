//! Q6_K: 256 numbers of 6 bits in 16 groups; `w = (scale * group_scale) * (q - 32)`.

use super::{
    LANES, PAIR, PanelFormat, QUADS, Quad, Quantized, STEP, Simd, WeightFormat, f16_at,
    nibbles::{self, Nibbles},
    scale_at, widened,
};

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
pub(in super::super) struct Step {
    factors: [[[i8; LANES]; GROUPS_A_STEP]; PAIR],
    weights: [Sixes; PAIR],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Sixes {
    low: Nibbles,
    /// The high two bits of four fours of inputs each, the first lowest.
    high: [Quad; 2],
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
    /// Scales in float16.
    type Head = [[u16; LANES]; PAIR];
    type Step = Step;
    const FORMAT: WeightFormat = WeightFormat::Q6K;

    fn pack(outputs: &[&[u8]], panel: usize, head: &mut Self::Head, steps: &mut [Self::Step]) {
        for (lane, block) in outputs.iter().enumerate() {
            head[panel][lane] = scale_at(block, SCALE_AT);
            for (index, step) in steps.iter_mut().enumerate() {
                for (group, factors) in step.factors[panel].iter_mut().enumerate() {
                    factors[lane] = block[SCALES_AT + index * GROUPS_A_STEP + group] as i8;
                }
                for k in 0..STEP {
                    let quant = quant(block, index * STEP + k);
                    nibbles::put(&mut step.weights[panel].low, lane, k, quant);
                    step.weights[panel].high[k / 16][lane][k % 4] |= quant >> 4 << (k / 4 % 4 * 2);
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

    fn gather(head: &Self::Head, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        let scale = widened(head[panel][lane]);
        for (step, weights) in steps.iter().zip(weights.chunks_mut(STEP)) {
            let sixes = &step.weights[panel];
            for (k, weight) in weights.iter_mut().enumerate() {
                let high = sixes.high[k / 16][lane][k % 4] >> (k / 4 % 4 * 2) & 3;
                let quant = nibbles::get(&sixes.low, lane, k) | high << 4;
                let group_scale = f32::from(step.factors[panel][k / GROUP_LEN][lane]);
                *weight = scale * group_scale * (f32::from(quant) - 32.0);
            }
        }
    }
}

impl Quantized for Q6K {
    const GROUP: usize = GROUP_LEN;
    const OFFSET: u8 = 32;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS] {
        const HIGH: i32 = 0x3030_3030;
        let sixes = &step.weights[panel];
        let mut quads = nibbles::load(simd, &sixes.low);
        for half in 0..2 {
            let high = simd.load_bytes(&sixes.high[half]);
            quads[4 * half] = simd.or(quads[4 * half], simd.and(simd.shl::<4>(high), HIGH));
            quads[4 * half + 1] = simd.or(quads[4 * half + 1], simd.and(simd.shl::<2>(high), HIGH));
            quads[4 * half + 2] = simd.or(quads[4 * half + 2], simd.and(high, HIGH));
            quads[4 * half + 3] = simd.or(quads[4 * half + 3], simd.and(simd.shr::<2>(high), HIGH));
        }
        quads
    }

    #[inline(always)]
    fn units<S: Simd>(simd: S, head: &Self::Head, panel: usize) -> S::F {
        simd.load_f16(&head[panel])
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, step: &Self::Step, panel: usize, group: usize) -> S::I {
        simd.load_i8(&step.factors[panel][group])
    }
}
