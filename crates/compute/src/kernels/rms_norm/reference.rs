//! RMS norm in float64.

pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}
