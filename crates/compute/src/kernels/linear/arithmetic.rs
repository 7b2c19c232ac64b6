//! How a Linear's products are summed: a fixed order, so that a row's result depends on nothing but the row and the
//! weights, on every instruction set.
//!
//! Float32 weights: one chain of fused multiply-adds over the inputs in order.
//!
//! All others, what Intel's `tdpbf16ps` does: inputs and weights are rounded to bfloat16; of the 32 inputs of a step the
//! even ones are one chain of fused multiply-adds, the odd ones another, both from zero; the sum of the two is added to
//! the sum so far. The instruction also takes results below 2^-126 for zero, which is not repeated here. Inputs in two
//! terms are two such additions a step, first of the rounded inputs, then of what rounding lost.

use super::{
    format::WeightFormat,
    panel::{Float, PAIRS, STEP},
};
use crate::kernels::simd::Simd;

const fn is_float32<F: Float>() -> bool {
    matches!(F::FORMAT, WeightFormat::F32)
}

/// Running sums of a row and an output.
pub(super) const fn chains<F: Float>() -> usize {
    if is_float32::<F>() { 1 } else { 2 }
}

/// What an input is rounded to.
pub(super) fn round<F: Float>(x: f32) -> f32 {
    if is_float32::<F>() { x } else { half::bf16::from_f32(x).to_f32() }
}

/// Adds the products of one step, `x` `[input][row]`, to the sums of `R` rows.
#[inline(always)]
pub(super) fn step<S: Simd, F: Float, const R: usize>(simd: S, weights: &F::Panel, x: &[f32], sums: &mut [S::F; R]) {
    let x: &[[[f32; R]; 2]; PAIRS] = bytemuck::from_bytes(bytemuck::cast_slice(&x[..STEP * R]));
    if const { is_float32::<F>() } {
        for (pair, [x_even, x_odd]) in x.iter().enumerate() {
            let [even, odd] = F::operands(simd, weights, pair);
            multiply_add(simd, x_even, even, sums);
            multiply_add(simd, x_odd, odd, sums);
        }
        return;
    }
    let (mut evens, mut odds) = ([simd.zero(); R], [simd.zero(); R]);
    for (pair, [x_even, x_odd]) in x.iter().enumerate() {
        let [even, odd] = F::operands(simd, weights, pair);
        multiply_add(simd, x_even, even, &mut evens);
        multiply_add(simd, x_odd, odd, &mut odds);
    }
    for (sum, (even, odd)) in sums.iter_mut().zip(evens.into_iter().zip(odds)) {
        *sum = simd.add(simd.add(even, odd), *sum);
    }
}

#[inline(always)]
fn multiply_add<S: Simd, const R: usize>(simd: S, x: &[f32; R], weights: S::F, sums: &mut [S::F; R]) {
    // Two loops, because the compiler does not unroll one of 24 steps.
    for r in 0..R / 2 {
        sums[r] = simd.fma(simd.splat(x[r]), weights, sums[r]);
    }
    for r in R / 2..R {
        sums[r] = simd.fma(simd.splat(x[r]), weights, sums[r]);
    }
}
