//! Causal attention of one sequence and one head in float64, straight from the definition.

use super::Scoring;

/// `q` `[n, head_dim]` of head `head` at positions `context_len..`; `keys` and `values` `[context_len + n, head_dim]`.
pub(super) fn attention(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    head_dim: usize,
    scoring: &Scoring,
    head: usize,
) -> Vec<f64> {
    let &Scoring { scale, softcap, window, .. } = scoring;
    let sink = scoring.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
    let n = q.len() / head_dim;
    let context_len = keys.len() / head_dim - n;
    let row = |x: &[f32], index: usize| -> Vec<f64> {
        x[index * head_dim..(index + 1) * head_dim].iter().copied().map(f64::from).collect()
    };
    let mut out = Vec::with_capacity(q.len());
    for query in 0..n {
        let position = context_len + query;
        let visible = (position + 1).saturating_sub(window)..position + 1;
        let q = row(q, query);
        let dot = |key| q.iter().zip(row(keys, key)).map(|(a, b)| a * b).sum::<f64>() * f64::from(scale);
        let capped = |score: f64| softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh());
        let scores: Vec<f64> = visible.clone().map(dot).map(capped).collect();
        let max = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total = weights.iter().sum::<f64>() + (sink - max).exp();
        let mut sum = vec![0.0; head_dim];
        for (weight, key) in weights.iter().zip(visible) {
            for (sum, value) in sum.iter_mut().zip(row(values, key)) {
                *sum += weight / total * value;
            }
        }
        out.extend(sum);
    }
    out
}
