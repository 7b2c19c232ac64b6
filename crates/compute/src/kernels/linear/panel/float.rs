//! Float32, float16 and bfloat16.

use super::{LANES, PAIR, PAIRS, PanelFormat, STEP, Simd, WeightFormat, f16_at};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::simd::amx::{Tile, TileSimd};

/// IEEE single.
pub(in super::super) struct F32;
/// IEEE half.
pub(in super::super) struct F16;
/// bfloat16.
pub(in super::super) struct Bf16;

/// The odd one of two bfloat16 beside each other.
const ODD: i32 = -0x1_0000;

/// A format of plain numbers, which are widened to be multiplied, as [`super::super::arithmetic`] has it.
pub(in super::super) trait Float: PanelFormat<Head = (), Step = [Self::Panel; PAIR]> {
    /// A panel's weights of a step.
    type Panel: bytemuck::Pod + Send + Sync;
    /// Whether a panel's step is a tile as it lies.
    const IS_TILE: bool = false;

    /// The weights of inputs `2 * pair` and `2 * pair + 1` of a step for the panel's sixteen outputs, widened.
    fn widened<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2];

    /// As [`widened`](Self::widened), rounded to what is multiplied: the nearest bfloat16 here.
    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2] {
        let [even, odd] = Self::widened(simd, packed, pair);
        [simd.round_bf16(even), simd.round_bf16(odd)]
    }

    /// The weights of inputs `4 * four` to `4 * four + 3` of a step, rounded to bfloat16: pairs of the even ones, then of the odd
    /// ones.
    #[inline(always)]
    fn pairs<S: Simd>(simd: S, packed: &Self::Panel, four: usize) -> [S::I; 2] {
        let [even, odd] = Self::operands(simd, packed, 2 * four);
        let [next_even, next_odd] = Self::operands(simd, packed, 2 * four + 1);
        [simd.pair(even, next_even), simd.pair(odd, next_odd)]
    }

    /// Writes a step, rounded to the nearest bfloat16, as a tile.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn write_tile(simd: TileSimd, packed: &Self::Panel, tile: &mut Tile) {
        for (pair, row) in tile.0.iter_mut().enumerate() {
            let [even, odd] = Self::widened(simd.avx512(), packed, pair);
            simd.store_pairs(even, odd, row);
        }
    }
}

/// Calls `put(step, pair, which of it, lane, number)` for all numbers of `N` bytes.
fn for_each_number<const N: usize>(outputs: &[&[u8]], mut put: impl FnMut(usize, usize, usize, usize, [u8; N])) {
    for (lane, bytes) in outputs.iter().enumerate() {
        for (k, number) in bytes.as_chunks::<N>().0.iter().enumerate() {
            put(k / STEP, k % STEP / 2, k % 2, lane, *number);
        }
    }
}

impl PanelFormat for F32 {
    type Head = ();
    type Step = [[[[f32; LANES]; 2]; PAIRS]; PAIR];
    const FORMAT: WeightFormat = WeightFormat::F32;

    fn pack(outputs: &[&[u8]], panel: usize, _: &mut (), steps: &mut [Self::Step]) {
        for_each_number(outputs, |step, pair, which, lane, bytes| {
            steps[step][panel][pair][which][lane] = f32::from_le_bytes(bytes)
        });
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }

    fn gather(_: &(), steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (k, weight) in weights.iter_mut().enumerate() {
            let (step, k) = (&steps[k / STEP], k % STEP);
            *weight = step[panel][k / 2][k % 2][lane];
        }
    }
}

impl Float for F32 {
    type Panel = [[[f32; LANES]; 2]; PAIRS];

    #[inline(always)]
    fn widened<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2] {
        let [even, odd] = &packed[pair];
        [simd.load(even), simd.load(odd)]
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2] {
        Self::widened(simd, packed, pair)
    }
}

impl PanelFormat for F16 {
    type Head = ();
    type Step = [[[[u16; LANES]; 2]; PAIRS]; PAIR];
    const FORMAT: WeightFormat = WeightFormat::F16;

    fn pack(outputs: &[&[u8]], panel: usize, _: &mut (), steps: &mut [Self::Step]) {
        for_each_number(outputs, |step, pair, which, lane, bytes| {
            steps[step][panel][pair][which][lane] = u16::from_le_bytes(bytes)
        });
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f16_at(block, 0).to_f32();
    }

    fn gather(_: &(), steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (k, weight) in weights.iter_mut().enumerate() {
            let (step, k) = (&steps[k / STEP], k % STEP);
            *weight = half::f16::from_bits(step[panel][k / 2][k % 2][lane]).to_f32();
        }
    }
}

impl Float for F16 {
    type Panel = [[[u16; LANES]; 2]; PAIRS];

    #[inline(always)]
    fn widened<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2] {
        let [even, odd] = &packed[pair];
        [simd.load_f16(even), simd.load_f16(odd)]
    }
}

impl PanelFormat for Bf16 {
    type Head = ();
    type Step = [[[[u16; 2]; LANES]; PAIRS]; PAIR];
    const FORMAT: WeightFormat = WeightFormat::BF16;

    fn pack(outputs: &[&[u8]], panel: usize, _: &mut (), steps: &mut [Self::Step]) {
        for_each_number(outputs, |step, pair, which, lane, bytes| {
            steps[step][panel][pair][lane][which] = u16::from_le_bytes(bytes)
        });
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }

    fn gather(_: &(), steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (k, weight) in weights.iter_mut().enumerate() {
            let (step, k) = (&steps[k / STEP], k % STEP);
            *weight = half::bf16::from_bits(step[panel][k / 2][lane][k % 2]).to_f32();
        }
    }
}

impl Float for Bf16 {
    type Panel = [[[u16; 2]; LANES]; PAIRS];
    const IS_TILE: bool = true;

    #[inline(always)]
    fn widened<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2] {
        let both = simd.load_bytes(bytemuck::cast_ref(&packed[pair]));
        [simd.as_floats(simd.shl::<16>(both)), simd.as_floats(simd.and(both, ODD))]
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Panel, pair: usize) -> [S::F; 2] {
        Self::widened(simd, packed, pair)
    }

    #[inline(always)]
    fn pairs<S: Simd>(simd: S, packed: &Self::Panel, four: usize) -> [S::I; 2] {
        let both = simd.load_bytes(bytemuck::cast_ref(&packed[2 * four]));
        let next = simd.load_bytes(bytemuck::cast_ref(&packed[2 * four + 1]));
        let even = simd.or(simd.shl::<16>(both), simd.and(next, !ODD));
        [even, simd.or(simd.and(both, ODD), simd.shr::<16>(next))]
    }
}
