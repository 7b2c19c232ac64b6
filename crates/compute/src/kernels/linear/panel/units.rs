//! Scales of blocks of 32 as small integers under a unit of a superblock, so that products of integers can be summed over
//! all of it: a scale is rounded to a multiple of the unit, which is as many times smaller than the largest as there is room.

use super::{LANES, PAIR, Simd};

/// Units of a superblock of a pair of panels, in bfloat16.
pub(super) type Units = [[u16; LANES]; PAIR];
/// Factors of a step of a pair of panels: a scale is `factor * unit`.
pub(super) type Factors = [[i16; LANES]; PAIR];

/// An output's scales of a superblock, as far as there are, as a unit and factors of at most `limit` either way. Where one is no
/// finite number none is.
pub(super) fn split(
    scales: impl Iterator<Item = half::f16> + Clone,
    limit: f32,
) -> (u16, impl Iterator<Item = i16> + Clone) {
    let scales = scales.map(half::f16::to_f32);
    let largest = scales.clone().fold(0f32, |largest, scale| largest.max(scale.abs()));
    let unit = if scales.clone().all(f32::is_finite) { round_up(largest / limit) } else { half::bf16::NAN };
    // Zero where there is no unit, and where it is no number.
    (unit.to_bits(), scales.map(move |scale| (scale / unit.to_f32()).round_ties_even() as i16))
}

/// An output's scale of a step.
pub(super) fn scale(unit: u16, factor: i16) -> f32 {
    half::bf16::from_bits(unit).to_f32() * f32::from(factor)
}

#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, units: &Units, panel: usize) -> S::F {
    simd.load_bf16(&units[panel])
}

#[inline(always)]
pub(super) fn load_factors<S: Simd>(simd: S, factors: &Factors, panel: usize) -> S::I {
    simd.load_i16(&factors[panel])
}

/// The least bfloat16 that is not smaller than a number that has no sign, or NaN.
fn round_up(x: f32) -> half::bf16 {
    let nearest = half::bf16::from_f32(x);
    if nearest.to_f32() < x { half::bf16::from_bits(nearest.to_bits() + 1) } else { nearest }
}
