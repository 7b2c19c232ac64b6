//! The gated delta rule over one sequence from its first token, in float64, as the formulas have it.

use super::{DeltaGates, DeltaHeads, Sharing};

pub(super) fn gated_delta(qkv: &[f32], gating: &[f32], gates: &DeltaGates, heads: DeltaHeads) -> Vec<f64> {
    let DeltaHeads { key_heads, value_heads, key_dim, value_dim, sharing } = heads;
    let group = value_heads / key_heads;
    let mut states = vec![vec![vec![0.0; value_dim]; key_dim]; value_heads];
    let mut out = Vec::new();
    for (row, gating) in qkv.chunks_exact(heads.qkv()).zip(gating.chunks_exact(2 * value_heads)) {
        let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let (queries, rest) = row.split_at(key_heads * key_dim);
        let (keys, values) = rest.split_at(key_heads * key_dim);
        for (head, state) in states.iter_mut().enumerate() {
            let key_head = if sharing == Sharing::Strided { head % key_heads } else { head / group };
            let unit = |x: &[f64]| -> Vec<f64> {
                let x = &x[key_head * key_dim..][..key_dim];
                let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                x.iter().map(|x| x / length).collect()
            };
            let (q, k, v) = (unit(queries), unit(keys), &values[head * value_dim..][..value_dim]);
            let share = 1.0 / (1.0 + (-f64::from(gating[head])).exp());
            let alpha = f64::from(gating[value_heads + head]) + f64::from(gates.biases[head]);
            let decay = (f64::from(gates.rates[head]) * (1.0 + alpha.exp()).ln()).exp();
            state.iter_mut().flatten().for_each(|s| *s *= decay);
            let answer =
                |state: &[Vec<f64>], x: &[f64], d: usize| (0..key_dim).map(|i| state[i][d] * x[i]).sum::<f64>();
            let corrections: Vec<f64> = (0..value_dim).map(|d| share * (v[d] - answer(state, &k, d))).collect();
            for (i, line) in state.iter_mut().enumerate() {
                line.iter_mut().zip(&corrections).for_each(|(s, correction)| *s += k[i] * correction);
            }
            out.extend((0..value_dim).map(|d| answer(state, &q, d) / (key_dim as f64).sqrt()));
        }
    }
    out
}
