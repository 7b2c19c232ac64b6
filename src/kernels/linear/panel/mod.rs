//! How weights of each format lie in memory: panels of sixteen outputs, so that one vector holds the same input's
//! weight of sixteen outputs. A format is one file here and one row in [`with_format`].

mod float;
mod q4_0;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;

pub(super) use float::{Bf16, F16, F32};
pub(super) use q4_0::Q4_0;
pub(super) use q4_k::Q4K;
pub(super) use q5_k::Q5K;
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;

use super::format::WeightFormat;
use crate::kernels::simd::{LANES, Simd};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::simd::{
    amx::{Tile, TileSimd},
    avx512::Avx512,
};

/// Inputs a step: what one bfloat16 tile takes.
pub(super) const STEP: usize = 32;
/// Pairs of neighbouring inputs a step.
pub(super) const PAIRS: usize = STEP / 2;

/// One storage format, in a file and packed.
pub(super) trait PanelFormat: 'static {
    /// Sixteen outputs' weights beside each other; a panel is one of these for each [`STEPS`](Self::STEPS) along the
    /// input, the last one filled up with zeros.
    type Block: bytemuck::Pod + Send + Sync;
    /// The name of the format.
    const FORMAT: WeightFormat;
    /// Steps a block.
    const STEPS: usize = 1;

    /// The power of two that a panel's weights are multiplied by, given its outputs' bytes of a file.
    fn exponent(_outputs: &[&[u8]]) -> i32 {
        0
    }

    /// Lays up to sixteen outputs' bytes of a file, each of as many inputs as a block has or are left, beside each
    /// other, as the weights times `2^exponent`. `packed` comes zeroed.
    fn pack(outputs: &[&[u8]], exponent: i32, packed: &mut Self::Block);

    /// The weights of one block of the file.
    fn decode(block: &[u8], weights: &mut [f32]);

    /// Widens one step of a packed block into `sink`, inputs ascending. The values are those of
    /// [`decode`](Self::decode) times the panel's power of two.
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, step: usize, sink: &mut impl Sink<S>);

    /// As [`unpack`](Self::unpack), rounded to what is multiplied: the nearest bfloat16 here.
    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Block, step: usize, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, step, &mut ToBf16 { simd, sink });
    }

    /// The power of two by which [`write_tile`](Self::write_tile) is off.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILE_EXPONENT: i32 = 0;

    /// Writes [`operands`](Self::operands), times `2^TILE_EXPONENT`, as a tile.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn write_tile(simd: TileSimd, packed: &Self::Block, step: usize, tile: &mut Tile) {
        Self::unpack(simd.avx512(), packed, step, &mut ToTile { simd, tile });
    }

    /// Whether a block is a tile as it lies.
    const IS_TILE: bool = false;
}

/// Takes the weights of a step as they are widened. Implementations are `#[inline(always)]`, which a closure cannot be.
pub(super) trait Sink<S: Simd> {
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

/// Rounds to the nearest half and cuts that to bfloat16, ties away from zero: what costs least where vectors of halves
/// are. [`HALF_EXPONENT`] and a panel's own power of two keep the halves in their range.
struct ToBf16ByHalf<'a, S, T> {
    simd: S,
    sink: &'a mut T,
}

impl<S: Simd, T: Sink<S>> Sink<S> for ToBf16ByHalf<'_, S, T> {
    #[inline(always)]
    fn put(&mut self, pair: usize, even: S::F, odd: S::F) {
        let simd = self.simd;
        let [even, odd] = [simd.as_integers(simd.round_f16(even)), simd.as_integers(simd.round_f16(odd))];
        let [even, odd] = [simd.add_i32(even, 0x8000), simd.add_i32(odd, 0x8000)];
        let [even, odd] = [simd.and(even, -0x1_0000), simd.and(odd, -0x1_0000)];
        self.sink.put(pair, simd.as_floats(even), simd.as_floats(odd));
    }
}

/// What a half's exponent is below the same bits' as a bfloat16: the biases are 15 and 127.
const HALF_EXPONENT: i32 = -112;

/// The power of two that brings the largest weight's bound to just below half of a half's range, so that the small ones
/// are far from its end.
fn half_exponent(bounds: impl Iterator<Item = f32>) -> i32 {
    let largest = bounds.map(f32::abs).filter(|bound| bound.is_finite()).fold(0.0, f32::max);
    if largest == 0.0 { 0 } else { 14 - ((largest.to_bits() >> 23) as i32 - 127) }
}

/// A half times a power of two.
fn scaled_half(half: half::f16, exponent: i32) -> u16 {
    half::f16::from_f32(half.to_f32() * 2f32.powi(exponent)).to_bits()
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

/// Evaluates an expression with the [`PanelFormat`] of a [`WeightFormat`].
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        $crate::kernels::linear::panel::with_format!(@ $format, $F => $body;
            F32 => F32, F16 => F16, BF16 => Bf16, Q4_0 => Q4_0, Q8_0 => Q8_0, Q4K => Q4K, Q5K => Q5K, Q6K => Q6K)
    };
    (@ $format:expr, $F:ident => $body:expr; $($name:ident => $panel:ident),*) => {
        match $format {
            $($crate::kernels::linear::format::WeightFormat::$name => {
                type $F = $crate::kernels::linear::panel::$panel;
                $body
            })*
        }
    };
}
pub(super) use with_format;

/// A little-endian half at `at`.
fn f16_at(bytes: &[u8], at: usize) -> half::f16 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Puts two numbers of four bits into a byte.
fn nibbles(low: u8, high: u8) -> u8 {
    low & 0xf | high << 4
}

/// Two neighbouring weights of sixteen outputs.
type NibblePair = [u8; LANES];

/// Two pairs of inputs of sixteen outputs: the first pair in the low nibbles, the second in the high ones.
type TwoPairs = [[u8; 2]; LANES];

/// Lays out a step of nibbles of one output; `quant` gives the number of an input.
fn put_nibbles(packed: &mut [TwoPairs; PAIRS / 2], lane: usize, quant: impl Fn(usize) -> u8) {
    for (k, two) in packed.iter_mut().enumerate() {
        two[lane] = [0, 1].map(|which| nibbles(quant(4 * k + which), quant(4 * k + 2 + which)));
    }
}

/// Calls `put` with the numbers of each pair of a step of nibbles, as floats.
macro_rules! for_each_nibble_pair {
    ($simd:expr, $packed:expr, |$pair:ident, $even:ident, $odd:ident| $put:expr) => {
        for (index, two) in $packed.iter().enumerate() {
            let [even, odd] = $simd.load_i8_pairs(bytemuck::cast_ref(two));
            let [$even, $odd] = [$simd.to_f32($simd.and(even, 0xf)), $simd.to_f32($simd.and(odd, 0xf))];
            let $pair = 2 * index;
            $put;
            let [even, odd] = [$simd.shr::<4>(even), $simd.shr::<4>(odd)];
            let [$even, $odd] = [$simd.to_f32($simd.and(even, 0xf)), $simd.to_f32($simd.and(odd, 0xf))];
            let $pair = 2 * index + 1;
            $put;
        }
    };
}
use for_each_nibble_pair;
