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
        for (x, out) in self.x.chunks_exact(d).zip(self.normed.chunks_exact_mut(d)) {
            norm(simd, x, self.weight, self.eps, out);
        }
    }
}

/// One vector of the weight's length.
#[inline(always)]
pub(in crate::kernels) fn norm<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    let d = weight.len();
    let (weight, weight_tail) = weight.as_chunks::<LANES>();
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
    let scale = simd.splat((1.0 / (mean + eps).sqrt()) as f32);
    for ((x, w), out) in x.iter().zip(weight).zip(out) {
        simd.store(simd.mul(simd.mul(simd.load(x), scale), simd.load(w)), out);
    }
    if !x_tail.is_empty() {
        let tail = simd.mul(simd.mul(tail, scale), simd.load_partial(weight_tail, 0.0));
        simd.store_partial(tail, out_tail);
    }
}
