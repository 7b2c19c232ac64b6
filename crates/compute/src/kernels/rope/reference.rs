//! Rotary embedding in float64, but for the angle, which is rounded to float32 by definition.

use super::RopeStyle;

pub(super) fn rope(x: &[f32], heads: usize, positions: &[u32], inv_freq: &[f32], style: RopeStyle) -> Vec<f64> {
    let head_dim = x.len() / positions.len() / heads;
    let pairs = inv_freq.len();
    let mut out: Vec<f64> = x.iter().copied().map(f64::from).collect();
    for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let position = positions[head / heads] as f32;
        for (k, inv_freq) in inv_freq.iter().enumerate() {
            let (a, b) = match style {
                RopeStyle::Halves => (k, k + pairs),
                RopeStyle::Interleaved => (2 * k, 2 * k + 1),
            };
            let (sin, cos) = f64::from(position * inv_freq).sin_cos();
            (out[a], out[b]) = (out[a] * cos - out[b] * sin, out[b] * cos + out[a] * sin);
        }
    }
    out
}
