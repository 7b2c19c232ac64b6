//! SiLU times up on the CPU.

use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range, written},
    simd::{Kernel, LANES, Level, Simd},
};

pub(super) fn silu_mul(level: Level, gate_up: Rows<'_>) -> Vec<f32> {
    let width = gate_up.width / 2;
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(gate_up.count, 4 * width, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let out = unsafe { out.cleared_mut(rows.start * width, rows.len() * width) };
            for (row, out) in rows.zip(out.chunks_exact_mut(width.max(1))) {
                let (gate, up) = gate_up.row(row).split_at(width);
                level.run(Row { gate, up, out });
            }
        });
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(gate_up.count * width, write) }
}

struct Row<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        gate(simd, self.gate, self.up, self.out);
    }
}

/// One row.
#[inline(always)]
pub(in crate::kernels) fn gate<S: Simd>(simd: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gate, gate_tail) = gate.as_chunks::<LANES>();
    let (up, up_tail) = up.as_chunks::<LANES>();
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        simd.store(gated(simd, simd.load(gate), simd.load(up)), out);
    }
    if !gate_tail.is_empty() {
        simd.store_partial(gated(simd, simd.load_partial(gate_tail, 0.0), simd.load_partial(up_tail, 0.0)), out_tail);
    }
}

#[inline(always)]
fn gated<S: Simd>(simd: S, gate: S::F, up: S::F) -> S::F {
    let decay = simd.exp(simd.sub(simd.zero(), gate));
    simd.mul(simd.div(gate, simd.add(simd.splat(1.0), decay)), up)
}
