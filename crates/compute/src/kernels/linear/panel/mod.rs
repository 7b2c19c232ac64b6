//! How weights of each format lie in memory: panels of sixteen outputs, so that one vector holds the same inputs' weights
//! of sixteen outputs, and panels in pairs, which passes take together. A format is one file here and one row in
//! [`with_format`].

mod float;
mod nibbles;
mod q4_0;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
mod units;

pub(super) use float::{Bf16, F16, F32, Float};
pub(super) use q4_0::Q4_0;
pub(super) use q4_k::Q4K;
pub(super) use q5_k::Q5K;
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;

use super::{format::WeightFormat, packed::PAIR};
use crate::kernels::simd::{LANES, Simd};

/// Inputs a step.
pub(super) const STEP: usize = 32;
/// Pairs of neighbouring inputs a step: what tiles of bfloat16 take.
pub(super) const PAIRS: usize = STEP / 2;
/// Fours of neighbouring inputs a step: what products of bytes take.
pub(super) const QUADS: usize = STEP / 4;
/// Steps of a superblock, which the scales of integers are put together for.
pub(super) const SUPER_STEPS: usize = 8;
/// Inputs of a superblock.
pub(super) const SUPER: usize = STEP * SUPER_STEPS;

/// One storage format, in a file and packed.
///
/// A superblock of a pair of panels lies as its head, then its steps, the last one filled up with zeros.
pub(super) trait PanelFormat: 'static {
    /// What the steps of a superblock of a pair of panels have in common; of no size where there is nothing.
    type Head: bytemuck::Pod + Send + Sync;
    /// The weights of a step of a pair of panels beside each other.
    type Step: bytemuck::Pod + Send + Sync;
    /// The name of the format.
    const FORMAT: WeightFormat;

    /// Lays up to sixteen outputs' bytes of a file, each of as many inputs as a superblock has or are left, beside each other
    /// as the first or the second panel. `head` and `steps` come zeroed.
    fn pack(outputs: &[&[u8]], panel: usize, head: &mut Self::Head, steps: &mut [Self::Step]);

    /// The weights of one block of the file.
    fn decode(block: &[u8], weights: &mut [f32]);

    /// One output's weights as they are multiplied, of as many inputs of a superblock as there is room for.
    fn gather(head: &Self::Head, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]);
}

/// A format of small integers under scales: `w = unit * factor * q - min_unit * min_factor`; summed as
/// [`super::integer`] has it. Units are a superblock's, in its head; factors are a step's and lie before its weights: what passes
/// touch for the first time must lie behind what they have touched, or the processor no longer fetches ahead of them.
pub(super) trait Quantized: PanelFormat {
    /// Inputs that have a factor in common: a step, or half of one.
    const GROUP: usize = STEP;
    /// What is added to the integers to make bytes without a sign of them.
    const OFFSET: u8;
    /// Whether there are minima, of which a step has one.
    const HAS_MINS: bool = false;

    /// A step's integers plus [`OFFSET`](Self::OFFSET), inputs ascending.
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS];

    /// A panel's units.
    fn units<S: Simd>(simd: S, head: &Self::Head, panel: usize) -> S::F;

    /// A panel's factors of a group of a step, integers of less than `2^15 / |q|`.
    fn factors<S: Simd>(simd: S, step: &Self::Step, panel: usize, group: usize) -> S::I;

    /// Units of a panel's minima.
    #[inline(always)]
    fn min_units<S: Simd>(simd: S, _head: &Self::Head, _panel: usize) -> S::F {
        simd.zero()
    }

    /// Factors of a panel's minima of a step, at most 63.
    #[inline(always)]
    fn min_factors<S: Simd>(simd: S, _step: &Self::Step, _panel: usize) -> S::I {
        simd.splat_i32(0)
    }
}

/// Four inputs' integers of sixteen outputs.
pub(super) type Quad = [[u8; 4]; LANES];

/// Evaluates an expression with the [`PanelFormat`] of a [`WeightFormat`].
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        $crate::kernels::linear::panel::with_format!(@ $format, $F => $body;
            F32 => F32, F16 => F16, BF16 => Bf16, Q4_0 => Q4_0, Q8_0 => Q8_0, Q4K => Q4K, Q5K => Q5K, Q6K => Q6K;
            other => unreachable!("{other} lies in no panels"))
    };
    (@ $format:expr, $F:ident => $body:expr; $($name:ident => $panel:ident),* $(; $other:ident => $else:expr)?) => {
        match $format {
            $($crate::kernels::linear::format::WeightFormat::$name => {
                type $F = $crate::kernels::linear::panel::$panel;
                $body
            })*
            $($other => $else,)?
        }
    };
}
pub(super) use with_format;

/// As [`with_format`] where the format must be a [`Float`].
macro_rules! with_float {
    ($format:expr, $F:ident => $body:expr) => {
        $crate::kernels::linear::panel::with_format!(@ $format, $F => $body; F32 => F32, F16 => F16, BF16 => Bf16;
            other => unreachable!("{other} is no format of plain numbers"))
    };
}
pub(super) use with_float;

/// As [`with_format`] where the format must be [`Quantized`].
macro_rules! with_quantized {
    ($format:expr, $F:ident => $body:expr) => {
        $crate::kernels::linear::panel::with_format!(@ $format, $F => $body;
            Q4_0 => Q4_0, Q8_0 => Q8_0, Q4K => Q4K, Q5K => Q5K, Q6K => Q6K;
            other => unreachable!("{other} has no scales"))
    };
}
pub(super) use with_quantized;

/// A little-endian half at `at`.
fn f16_at(bytes: &[u8], at: usize) -> half::f16 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A half that is packed as a scale: infinities are made NaN, because not all instructions take one for the other.
fn scale_at(bytes: &[u8], at: usize) -> u16 {
    let scale = f16_at(bytes, at);
    if scale.is_finite() { scale } else { half::f16::NAN }.to_bits()
}

/// A packed half.
fn widened(half: u16) -> f32 {
    half::f16::from_bits(half).to_f32()
}
