//! SiLU times up in float64.

pub(super) fn silu_mul(gate_up: &[f32], width: usize) -> Vec<f64> {
    let row = |row: &[f32]| -> Vec<f64> {
        let (gate, up) = row.split_at(width);
        let gated = |(&gate, &up): (&f32, &f32)| f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * f64::from(up);
        gate.iter().zip(up).map(gated).collect()
    };
    gate_up.chunks_exact(2 * width).flat_map(row).collect()
}
