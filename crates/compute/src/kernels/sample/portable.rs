//! A draw in float64, with a sort: what is right, and what devices without a kernel do.

use super::Draw;
use crate::ids::TokenId;

pub(super) fn sample(logits: &[f32], draw: &Draw) -> Option<TokenId> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, |max, x| if x.is_nan() { x } else { x.max(max) });
    if logits.iter().any(|x| x.is_nan()) || !max.is_finite() {
        return None;
    }
    let distance = |logit: f32| f64::from(max - logit) / f64::from(draw.temperature);
    let mut kept: Vec<(usize, f64)> = logits.iter().map(|&logit| distance(logit)).enumerate().collect();
    kept.retain(|&(_, distance)| distance.is_finite() && (-distance).exp() >= f64::from(draw.min_p.min(1.0)));
    kept.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        let target = f64::from(draw.top_p) * kept.iter().map(|&(_, distance)| (-distance).exp()).sum::<f64>();
        let mut sum = 0.0;
        let reached = kept.iter().position(|&(_, distance)| {
            sum += (-distance).exp();
            sum >= target
        });
        kept.truncate(reached.map_or(kept.len(), |at| at + 1));
    }
    kept.sort_by_key(|&(id, _)| id);
    let target = draw.uniform * kept.iter().map(|&(_, distance)| (-distance).exp()).sum::<f64>();
    let mut sum = 0.0;
    let drawn = kept.iter().find(|(_, distance)| {
        sum += (-distance).exp();
        sum > target
    });
    drawn.or(kept.last()).map(|&(id, _)| TokenId(id as u32))
}
