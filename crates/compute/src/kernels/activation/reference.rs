//! Activations and gates in float64.

use super::{Activation, Gate};

pub(in crate::kernels) fn activation(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * (1.0 + error_function(x / 2f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * (1.0 + u.tanh()) / 2.0
        }
        Activation::Relu => x.max(0.0),
    }
}

/// By its integral, with Simpson's rule.
fn error_function(x: f64) -> f64 {
    const STEPS: usize = 2000;
    let end = x.clamp(-6.0, 6.0);
    let h = end / STEPS as f64;
    let weight = |k: usize| if k == 0 || k == STEPS { 1.0 } else { 2.0 + 2.0 * (k % 2) as f64 };
    let sum: f64 = (0..=STEPS).map(|k| weight(k) * (-(k as f64 * h).powi(2)).exp()).sum();
    2.0 / std::f64::consts::PI.sqrt() * sum * h / 3.0
}

pub(super) fn gated(gate_up: &[f32], width: usize, gate: Gate) -> Vec<f64> {
    let one = |(&g, &up): (&f32, &f32)| {
        let (g, up) = (f64::from(g), f64::from(up));
        match gate {
            Gate::Of(kind) => activation(g, kind) * up,
            Gate::Sigmoid => up / (1.0 + (-g).exp()),
            Gate::Clipped { alpha, limit } => {
                let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                let (g, up) = (g.min(limit), up.clamp(-limit, limit));
                g / (1.0 + (-alpha * g).exp()) * (up + 1.0)
            }
        }
    };
    let row = |row: &[f32]| row[..width].iter().zip(&row[width..]).map(one).collect::<Vec<_>>();
    gate_up.chunks_exact(2 * width).flat_map(row).collect()
}
