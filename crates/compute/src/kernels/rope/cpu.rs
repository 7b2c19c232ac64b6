//! Rotary embedding on the CPU.

use super::{Rope, RopeStyle};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range, written},
    rms_norm,
    simd::{Kernel, LANES, Simd},
};

pub(super) fn rope(op: &Rope<'_>, x: Rows<'_>) -> Vec<f32> {
    let &Rope { level, norm, positions, table, head_dim, style } = op;
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(x.count, 2 * x.width, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let out = unsafe { out.cleared_mut(rows.start * x.width, rows.len() * x.width) };
            let mut normed = vec![0.0; if norm.is_some() { head_dim } else { 0 }];
            for (row, out) in rows.zip(out.chunks_exact_mut(x.width.max(1))) {
                let (cos, sin) = table.row(positions[row] as usize).split_at(table.width / 2);
                level.run(Row { x: x.row(row), norm, normed: &mut normed, cos, sin, head_dim, style, out });
            }
        });
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(x.count * x.width, write) }
}

struct Row<'a> {
    x: &'a [f32],
    /// A weight and an epsilon.
    norm: Option<(&'a [f32], f64)>,
    /// Room for a normed head.
    normed: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
    style: RopeStyle,
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pairs = self.cos.len();
        for (x, out) in self.x.chunks_exact(self.head_dim).zip(self.out.chunks_exact_mut(self.head_dim)) {
            let x = match self.norm {
                None => x,
                Some((weight, eps)) => {
                    rms_norm::cpu::norm(simd, x, weight, eps, self.normed);
                    &*self.normed
                }
            };
            let (x, passed) = x.split_at(2 * pairs);
            let (out, passed_out) = out.split_at_mut(2 * pairs);
            passed_out.copy_from_slice(passed);
            match self.style {
                RopeStyle::Halves => {
                    let ((x1, x2), (y1, y2)) = (x.split_at(pairs), out.split_at_mut(pairs));
                    turn_halves(simd, [x1, x2, self.cos, self.sin], [y1, y2]);
                }
                RopeStyle::Interleaved => {
                    let angles = self.cos.iter().zip(self.sin);
                    for ((x, y), (&cos, &sin)) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0).zip(angles) {
                        let [x1, x2]: [f32; 2] = *x;
                        *y = [x1.mul_add(cos, -(x2 * sin)), x2.mul_add(cos, x1 * sin)];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turn_halves<S: Simd>(simd: S, from: [&[f32]; 4], to: [&mut [f32]; 2]) {
    let [x1, x2, cos, sin] = from.map(|x| x.as_chunks::<LANES>());
    let [(y1, y1_tail), (y2, y2_tail)] = to.map(|y| y.as_chunks_mut::<LANES>());
    for k in 0..y1.len() {
        let (a, b) = turn(simd, simd.load(&x1.0[k]), simd.load(&x2.0[k]), simd.load(&cos.0[k]), simd.load(&sin.0[k]));
        simd.store(a, &mut y1[k]);
        simd.store(b, &mut y2[k]);
    }
    let (x1, x2) = (simd.load_partial(x1.1, 0.0), simd.load_partial(x2.1, 0.0));
    let (a, b) = turn(simd, x1, x2, simd.load_partial(cos.1, 0.0), simd.load_partial(sin.1, 0.0));
    simd.store_partial(a, y1_tail);
    simd.store_partial(b, y2_tail);
}

#[inline(always)]
fn turn<S: Simd>(simd: S, x1: S::F, x2: S::F, cos: S::F, sin: S::F) -> (S::F, S::F) {
    let minus = simd.sub(simd.zero(), simd.mul(x2, sin));
    (simd.fma(x1, cos, minus), simd.fma(x2, cos, simd.mul(x1, sin)))
}
