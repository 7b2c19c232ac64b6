//! Layer norm on the CPU: sixteen partial sums of the numbers, then of the squares of what is left without their mean,
//! each added as a tree.

use super::LayerNorm;
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range, written},
    simd::{Kernel, LANES, Simd},
};

/// All rows, one after another.
pub(super) fn layer_norm(op: &LayerNorm<'_>, x: Rows<'_>) -> Vec<f32> {
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(x.count, 2 * x.width, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let normed = unsafe { out.cleared_mut(rows.start * x.width, rows.len() * x.width) };
            for (row, normed) in rows.zip(normed.chunks_exact_mut(x.width)) {
                op.level.run(Row { x: x.row(row), op, normed });
            }
        });
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(x.count * x.width, write) }
}

/// One row: `x` is one or several vectors of the weight's length.
struct Row<'a> {
    x: &'a [f32],
    op: &'a LayerNorm<'a>,
    normed: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let &LayerNorm { weight, bias, eps, .. } = self.op;
        let d = weight.len();
        for (x, out) in self.x.chunks_exact(d).zip(self.normed.chunks_exact_mut(d)) {
            norm(simd, x, weight, bias, eps, out);
        }
    }
}

/// One vector of the weight's length.
#[inline(always)]
pub(in crate::kernels) fn norm<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f64,
    out: &mut [f32],
) {
    let d = weight.len();
    let (whole, tail) = x.as_chunks::<LANES>();
    let mut sum = simd.load_partial(tail, 0.0);
    for x in whole {
        sum = simd.add(sum, simd.load(x));
    }
    let mean = (f64::from(simd.sum(sum)) / d as f64) as f32;
    // Lanes past the end become zeros.
    let left = simd.sub(simd.load_partial(tail, mean), simd.splat(mean));
    let mut squares = simd.mul(left, left);
    for x in whole {
        let left = simd.sub(simd.load(x), simd.splat(mean));
        squares = simd.fma(left, left, squares);
    }
    let variance = f64::from(simd.sum(squares)) / d as f64;
    let scale = simd.splat((1.0 / (variance + eps).sqrt()) as f32);
    for start in (0..d).step_by(LANES) {
        let lanes = start..d.min(start + LANES);
        let left = simd.sub(simd.load_partial(&x[lanes.clone()], 0.0), simd.splat(mean));
        let mut y = simd.mul(simd.mul(left, scale), simd.load_partial(&weight[lanes.clone()], 0.0));
        if let Some(bias) = bias {
            y = simd.add(y, simd.load_partial(&bias[lanes.clone()], 0.0));
        }
        simd.store_partial(y, &mut out[lanes]);
    }
}
