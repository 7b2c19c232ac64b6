//! Scales of blocks of 32 as small integers under a unit of a superblock, so that products of integers can be summed over
//! all of it: a scale is rounded to a multiple of the unit, which is as many times smaller than the largest as there is room.

use super::{LANES, SUPER_STEPS, Scales, Simd};

/// Scales of a panel: `factor * unit`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Units {
    /// bfloat16.
    units: [u16; LANES],
    factors: [[i16; LANES]; SUPER_STEPS],
}

impl Units {
    /// Takes an output's scales of a superblock, as far as there are, with factors of at most `limit` either way. Where one
    /// is no finite number none is.
    pub(super) fn put(&mut self, lane: usize, scales: impl Iterator<Item = half::f16> + Clone, limit: f32) {
        let scales = scales.map(half::f16::to_f32);
        let largest = scales.clone().fold(0f32, |largest, scale| largest.max(scale.abs()));
        let unit = if scales.clone().all(f32::is_finite) { round_up(largest / limit) } else { half::bf16::NAN };
        self.units[lane] = unit.to_bits();
        for (factors, scale) in self.factors.iter_mut().zip(scales) {
            // Zero where there is no unit, and where it is no number.
            factors[lane] = (scale / unit.to_f32()).round_ties_even() as i16;
        }
    }

    /// An output's scale of a step.
    pub(super) fn get(&self, lane: usize, step: usize) -> f32 {
        half::bf16::from_bits(self.units[lane]).to_f32() * f32::from(self.factors[step][lane])
    }
}

impl Scales for Units {
    #[inline(always)]
    fn units<S: Simd>(&self, simd: S) -> S::F {
        simd.load_bf16(&self.units)
    }

    #[inline(always)]
    fn factors<S: Simd>(&self, simd: S, step: usize, _: usize) -> S::I {
        simd.load_i16(&self.factors[step])
    }
}

/// The least bfloat16 that is not smaller than a number that has no sign, or NaN.
fn round_up(x: f32) -> half::bf16 {
    let nearest = half::bf16::from_f32(x);
    if nearest.to_f32() < x { half::bf16::from_bits(nearest.to_bits() + 1) } else { nearest }
}
