//! Float32, float16 and bfloat16.

use super::{LANES, PAIR, PAIRS, PanelFormat, STEP, Simd, WeightFormat, f16_at};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::simd::{
    amx::{Tile, TileSimd},
    avx512::Avx512,
};

/// IEEE single.
pub(in super::super) struct F32;
/// IEEE half.
pub(in super::super) struct F16;
/// bfloat16.
pub(in super::super) struct Bf16;

/// A format of plain numbers, which are widened to be multiplied, as [`super::super::arithmetic`] has it.
pub(in super::super) trait Float: PanelFormat<Head = (), Step = [Self::Panel; PAIR]> {
    /// A panel's weights of a step.
    type Panel: bytemuck::Pod + Send + Sync;

    /// Widens a step into `sink`, inputs ascending.
    fn unpack<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>);

    /// As [`unpack`](Self::unpack), rounded to what is multiplied: the nearest bfloat16 here.
    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, &mut ToBf16 { simd, sink });
    }

    /// Writes [`operands`](Self::operands) as a tile.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn write_tile(simd: TileSimd, packed: &Self::Panel, tile: &mut Tile) {
        Self::unpack(simd.avx512(), packed, &mut ToTile { simd, tile });
    }

    /// Whether a panel's step is a tile as it lies.
    const IS_TILE: bool = false;
}

/// Takes the weights of a step as they are widened. Implementations are `#[inline(always)]`, which a closure cannot be.
pub(in super::super) trait Sink<S: Simd> {
    /// The weights of inputs `2 * pair` and `2 * pair + 1` of the step for the panel's sixteen outputs.
    fn put(&mut self, pair: usize, even: S::F, odd: S::F);
}

/// Rounds to the nearest bfloat16.
struct ToBf16<'a, S, T> {
    simd: S,
    sink: &'a mut T,
}

impl<S: Simd, T: Sink<S>> Sink<S> for ToBf16<'_, S, T> {
    #[inline(always)]
    fn put(&mut self, pair: usize, even: S::F, odd: S::F) {
        self.sink.put(pair, self.simd.round_bf16(even), self.simd.round_bf16(odd));
    }
}

/// Rounds weights into a tile.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
struct ToTile<'a> {
    simd: TileSimd,
    tile: &'a mut Tile,
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Sink<Avx512> for ToTile<'_> {
    #[inline(always)]
    fn put(&mut self, pair: usize, even: <Avx512 as Simd>::F, odd: <Avx512 as Simd>::F) {
        self.simd.store_pairs(even, odd, &mut self.tile.0[pair]);
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

    fn pack(outputs: &[&[u8]], panel: usize, _: Option<&mut ()>, steps: &mut [Self::Step]) {
        for_each_number(outputs, |step, pair, which, lane, bytes| {
            steps[step][panel][pair][which][lane] = f32::from_le_bytes(bytes)
        });
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }

    fn gather(_: Option<&()>, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (k, weight) in weights.iter_mut().enumerate() {
            let (step, k) = (&steps[k / STEP], k % STEP);
            *weight = step[panel][k / 2][k % 2][lane];
        }
    }
}

impl Float for F32 {
    type Panel = [[[f32; LANES]; 2]; PAIRS];

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>) {
        for (pair, [even, odd]) in packed.iter().enumerate() {
            sink.put(pair, simd.load(even), simd.load(odd));
        }
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, sink);
    }
}

impl PanelFormat for F16 {
    type Head = ();
    type Step = [[[[u16; LANES]; 2]; PAIRS]; PAIR];
    const FORMAT: WeightFormat = WeightFormat::F16;

    fn pack(outputs: &[&[u8]], panel: usize, _: Option<&mut ()>, steps: &mut [Self::Step]) {
        for_each_number(outputs, |step, pair, which, lane, bytes| {
            steps[step][panel][pair][which][lane] = u16::from_le_bytes(bytes)
        });
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f16_at(block, 0).to_f32();
    }

    fn gather(_: Option<&()>, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        for (k, weight) in weights.iter_mut().enumerate() {
            let (step, k) = (&steps[k / STEP], k % STEP);
            *weight = half::f16::from_bits(step[panel][k / 2][k % 2][lane]).to_f32();
        }
    }
}

impl Float for F16 {
    type Panel = [[[u16; LANES]; 2]; PAIRS];

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>) {
        for (pair, [even, odd]) in packed.iter().enumerate() {
            sink.put(pair, simd.load_f16(even), simd.load_f16(odd));
        }
    }
}

impl PanelFormat for Bf16 {
    type Head = ();
    type Step = [[[[u16; 2]; LANES]; PAIRS]; PAIR];
    const FORMAT: WeightFormat = WeightFormat::BF16;

    fn pack(outputs: &[&[u8]], panel: usize, _: Option<&mut ()>, steps: &mut [Self::Step]) {
        for_each_number(outputs, |step, pair, which, lane, bytes| {
            steps[step][panel][pair][lane][which] = u16::from_le_bytes(bytes)
        });
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }

    fn gather(_: Option<&()>, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
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
    fn unpack<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>) {
        for (pair, both) in packed.iter().enumerate() {
            let both = simd.load_bytes(bytemuck::cast_ref(both));
            let even = simd.as_floats(simd.shl::<16>(both));
            sink.put(pair, even, simd.as_floats(simd.and(both, -0x1_0000)));
        }
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Panel, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, sink);
    }
}
