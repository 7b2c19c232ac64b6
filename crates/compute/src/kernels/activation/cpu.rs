//! Activations and gates on the CPU.

use super::{Activation, Gate};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range, written},
    simd::{Kernel, LANES, Level, Simd},
};

/// All rows' gates.
pub(super) fn gated(level: Level, gate_up: Rows<'_>, gate: Gate) -> Vec<f32> {
    each_row(gate_up.count, gate_up.width / 2, |row, out| {
        let (first, up) = gate_up.row(row).split_at(out.len());
        level.run(GateRow { rows: [first, up], gate, out });
    })
}

/// All rows' activations.
pub(super) fn activated(level: Level, x: Rows<'_>, activation: Activation) -> Vec<f32> {
    each_row(x.count, x.width, |row, out| level.run(ActivationRow { x: x.row(row), activation, out }))
}

fn each_row(count: usize, width: usize, run: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(count, 4 * width, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let out = unsafe { out.cleared_mut(rows.start * width, rows.len() * width) };
            for (row, out) in rows.zip(out.chunks_exact_mut(width.max(1))) {
                run(row, out);
            }
        });
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(count * width, write) }
}

struct GateRow<'a> {
    rows: [&'a [f32]; 2],
    gate: Gate,
    out: &'a mut [f32],
}

impl Kernel for GateRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [gate, up] = self.rows;
        gate_row(simd, self.gate, gate, up, self.out);
    }
}

struct ActivationRow<'a> {
    x: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl Kernel for ActivationRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        activate_row(simd, self.activation, self.x, self.out);
    }
}

/// One row of a gate.
#[inline(always)]
pub(in crate::kernels) fn gate_row<S: Simd>(simd: S, kind: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gate, gate_tail) = gate.as_chunks::<LANES>();
    let (up, up_tail) = up.as_chunks::<LANES>();
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        simd.store(apply_gate(simd, kind, simd.load(gate), simd.load(up)), out);
    }
    if !gate_tail.is_empty() {
        let (gate, up) = (simd.load_partial(gate_tail, 0.0), simd.load_partial(up_tail, 0.0));
        simd.store_partial(apply_gate(simd, kind, gate, up), out_tail);
    }
}

/// One row of an activation.
#[inline(always)]
pub(in crate::kernels) fn activate_row<S: Simd>(simd: S, activation: Activation, x: &[f32], out: &mut [f32]) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for (x, out) in x.iter().zip(out) {
        simd.store(activate(simd, activation, simd.load(x)), out);
    }
    if !x_tail.is_empty() {
        simd.store_partial(activate(simd, activation, simd.load_partial(x_tail, 0.0)), out_tail);
    }
}

#[inline(always)]
fn apply_gate<S: Simd>(simd: S, kind: Gate, gate: S::F, up: S::F) -> S::F {
    match kind {
        Gate::Of(activation) => simd.mul(activate(simd, activation, gate), up),
        Gate::Sigmoid => {
            let decay = simd.exp(simd.sub(simd.zero(), gate));
            simd.div(up, simd.add(simd.splat(1.0), decay))
        }
        Gate::Clipped { alpha, limit } => {
            let gate = simd.min(gate, simd.splat(limit));
            let up = simd.max(simd.min(up, simd.splat(limit)), simd.splat(-limit));
            let decay = simd.exp(simd.mul(gate, simd.splat(-alpha)));
            let swish = simd.div(gate, simd.add(simd.splat(1.0), decay));
            simd.mul(swish, simd.add(up, simd.splat(1.0)))
        }
    }
}

/// One vector of an activation.
#[inline(always)]
pub(in crate::kernels) fn activate<S: Simd>(simd: S, activation: Activation, x: S::F) -> S::F {
    match activation {
        Activation::Silu => {
            let decay = simd.exp(simd.sub(simd.zero(), x));
            simd.div(x, simd.add(simd.splat(1.0), decay))
        }
        Activation::GeluTanh => gelu_tanh(simd, x),
        Activation::Gelu => gelu(simd, x),
        Activation::Relu => simd.max(x, simd.zero()),
    }
}

/// `x (1 + tanh u) / 2 = x / (1 + e^-2u)` with `u = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    const TWICE: f32 = -2.0 * 0.797_884_6;
    let cubic = simd.fma(simd.mul(x, x), simd.splat(TWICE * 0.044_715), simd.splat(TWICE));
    let power = simd.max(simd.min(simd.mul(cubic, x), simd.splat(88.0)), simd.splat(-88.0));
    simd.div(x, simd.add(simd.splat(1.0), simd.exp(power)))
}

/// `max(x, 0) - |x| erfc(|x| / √2) / 2`, the complementary error function by formula 7.1.26 of Abramowitz and Stegun's
/// handbook, whose error is below 1.5e-7.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    const COEFFICIENTS: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let magnitude = simd.max(x, simd.sub(simd.zero(), x));
    let z = simd.mul(simd.min(magnitude, simd.splat(12.0)), simd.splat(std::f32::consts::FRAC_1_SQRT_2));
    let one = simd.splat(1.0);
    let t = simd.div(one, simd.fma(z, simd.splat(0.327_591_1), one));
    let mut sum = simd.zero();
    for coefficient in COEFFICIENTS {
        sum = simd.mul(simd.add(sum, simd.splat(coefficient)), t);
    }
    let decay = simd.exp(simd.sub(simd.zero(), simd.mul(z, z)));
    let tail = simd.mul(simd.mul(sum, decay), simd.splat(0.5));
    simd.sub(simd.max(x, simd.zero()), simd.mul(magnitude, tail))
}
