//! Layer norm in float64.

pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        let one = |((&x, &w), &b): ((&f32, &f32), &f32)| (f64::from(x) - mean) * scale * f64::from(w) + f64::from(b);
        x.iter().zip(weight).zip(bias).map(one).collect()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}
