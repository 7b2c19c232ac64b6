//! Linear in float64, straight from the definition.

/// `x Wᵀ + bias` of row-major `x` `[m, inputs]` and `w` `[outputs, inputs]`.
pub(super) fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let row = |x: &[f32]| -> Vec<f64> {
        let outputs = w.chunks_exact(inputs).enumerate();
        outputs.map(|(n, w)| dot(x, w) + bias.map_or(0.0, |bias| f64::from(bias[n]))).collect()
    };
    x.chunks_exact(inputs).flat_map(row).collect()
}
