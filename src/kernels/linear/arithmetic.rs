//! How a Linear's products are summed: a fixed order, so that a row's result depends on nothing but the row and the
//! weights, on every instruction set.

use super::panel::{PAIRS, PanelFormat, STEP, Sink};
use crate::kernels::simd::Simd;

/// One way to sum products.
pub(super) trait Arithmetic: 'static {
    /// Running sums of a row and an output.
    const CHAINS: usize;

    /// What an input is rounded to.
    fn round(x: f32) -> f32;

    /// Adds the products of one step, `x` `[input][row]`, to the sums of `R` rows.
    fn step<S: Simd, F: PanelFormat, const R: usize>(
        simd: S,
        block: &F::Block,
        step: usize,
        x: &[f32],
        sums: &mut [S::F; R],
    );
}

/// One chain of fused multiply-adds over the inputs in order.
pub(super) struct Float32;

/// What Intel's `tdpbf16ps` does: inputs and weights are rounded to bfloat16; of the 32 inputs of a step the even ones
/// are one chain of fused multiply-adds, the odd ones another, both from zero; the sum of the two is added to the sum so
/// far. The instruction also takes results below 2^-126 for zero, which is not repeated here.
pub(super) struct Bfloat16;

impl Arithmetic for Float32 {
    const CHAINS: usize = 1;

    fn round(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn step<S: Simd, F: PanelFormat, const R: usize>(
        simd: S,
        block: &F::Block,
        step: usize,
        x: &[f32],
        sums: &mut [S::F; R],
    ) {
        F::operands(simd, block, step, &mut OneChain { simd, x: rows(x), sums });
    }
}

impl Arithmetic for Bfloat16 {
    const CHAINS: usize = 2;

    fn round(x: f32) -> f32 {
        half::bf16::from_f32(x).to_f32()
    }

    #[inline(always)]
    fn step<S: Simd, F: PanelFormat, const R: usize>(
        simd: S,
        block: &F::Block,
        step: usize,
        x: &[f32],
        sums: &mut [S::F; R],
    ) {
        let mut chains = TwoChains { simd, x: rows(x), even: [simd.zero(); R], odd: [simd.zero(); R] };
        F::operands(simd, block, step, &mut chains);
        for (sum, (even, odd)) in sums.iter_mut().zip(chains.even.into_iter().zip(chains.odd)) {
            *sum = simd.add(simd.add(even, odd), *sum);
        }
    }
}

/// A step's inputs, the even and the odd one of each pair.
#[inline(always)]
fn rows<const R: usize>(x: &[f32]) -> &[[[f32; R]; 2]; PAIRS] {
    bytemuck::from_bytes(bytemuck::cast_slice(&x[..STEP * R]))
}

struct OneChain<'a, S: Simd, const R: usize> {
    simd: S,
    x: &'a [[[f32; R]; 2]; PAIRS],
    sums: &'a mut [S::F; R],
}

impl<S: Simd, const R: usize> Sink<S> for OneChain<'_, S, R> {
    #[inline(always)]
    fn put(&mut self, pair: usize, even: S::F, odd: S::F) {
        let [x_even, x_odd] = &self.x[pair];
        multiply_add(self.simd, x_even, even, self.sums);
        multiply_add(self.simd, x_odd, odd, self.sums);
    }
}

struct TwoChains<'a, S: Simd, const R: usize> {
    simd: S,
    x: &'a [[[f32; R]; 2]; PAIRS],
    even: [S::F; R],
    odd: [S::F; R],
}

impl<S: Simd, const R: usize> Sink<S> for TwoChains<'_, S, R> {
    #[inline(always)]
    fn put(&mut self, pair: usize, even: S::F, odd: S::F) {
        let [x_even, x_odd] = &self.x[pair];
        multiply_add(self.simd, x_even, even, &mut self.even);
        multiply_add(self.simd, x_odd, odd, &mut self.odd);
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
