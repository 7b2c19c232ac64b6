//! RMS norm on the CPU: sixteen partial sums of squares, added as a tree.

use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range, written},
    simd::{Kernel, LANES, Level, Simd},
};

/// All rows, one after another.
pub(super) fn rms_norm(level: Level, x: Rows<'_>, weight: &[f32], eps: f64) -> Vec<f32> {
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(x.count, x.width, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let normed = unsafe { out.cleared_mut(rows.start * x.width, rows.len() * x.width) };
            for (row, normed) in rows.zip(normed.chunks_exact_mut(x.width)) {
                level.run(Row { x: x.row(row), weight, eps, normed });
            }
        });
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(x.count * x.width, write) }
}

/// All normed rows, then all sums.
pub(super) fn add_rms_norm(level: Level, x: Rows<'_>, residual: Rows<'_>, weight: &[f32], eps: f64) -> Vec<f32> {
    let half = x.count * x.width;
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(x.count, 2 * x.width, |rows| {
            let (start, len) = (rows.start * x.width, rows.len() * x.width);
            // SAFETY: the ranges of rows do not overlap, and neither do the halves.
            let (normed, sums) = unsafe { (out.cleared_mut(start, len), out.cleared_mut(half + start, len)) };
            let out = normed.chunks_exact_mut(x.width).zip(sums.chunks_exact_mut(x.width));
            for (row, (normed, sum)) in rows.zip(out) {
                for ((sum, x), residual) in sum.iter_mut().zip(x.row(row)).zip(residual.row(row)) {
                    *sum = x + residual;
                }
                level.run(Row { x: sum, weight, eps, normed });
            }
        });
    };
    // SAFETY: the ranges cover all rows of both halves.
    unsafe { written(2 * half, write) }
}

/// One row: `x` is one or several vectors of the weight's length.
struct Row<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f64,
    normed: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        let (weight, weight_tail) = self.weight.as_chunks::<LANES>();
        for (x, out) in self.x.chunks_exact(d).zip(self.normed.chunks_exact_mut(d)) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            let mut squares = simd.zero();
            for x in x {
                let x = simd.load(x);
                squares = simd.fma(x, x, squares);
            }
            let tail = simd.load_partial(x_tail, 0.0);
            squares = simd.fma(tail, tail, squares);
            let mean = f64::from(simd.sum(squares)) / d as f64;
            let scale = simd.splat((1.0 / (mean + self.eps).sqrt()) as f32);
            for ((x, w), out) in x.iter().zip(weight).zip(out) {
                simd.store(simd.mul(simd.mul(simd.load(x), scale), simd.load(w)), out);
            }
            let tail = simd.mul(simd.mul(tail, scale), simd.load_partial(weight_tail, 0.0));
            simd.store_partial(tail, out_tail);
        }
    }
}
