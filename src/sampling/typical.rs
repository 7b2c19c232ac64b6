//! `typical_p`: keeps tokens about as surprising as the model expects (Meister et al. 2022, "Locally Typical Sampling").

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy};
use crate::{error::Result, params::SamplingParams};

/// Orders tokens by `|-ln p - H|`, the distance of their surprise from the entropy, and keeps the first until their
/// probability reaches `typical_p`; the token that reaches it is kept.
pub(super) struct Typical {
    mass: f64,
}

impl LogitsProcessor for Typical {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.typical_p >= 1.0 || is_greedy(params);
        Ok((!off).then(|| Self { mass: f64::from(params.typical_p) }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        candidates.keep_typical(self.mass);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sampling::test_cases::{context, probabilities_after, softmax};

    fn after(typical_p: f32, logits: &[f32]) -> Vec<f32> {
        let params = SamplingParams { typical_p, ..SamplingParams::default() };
        let processor = Typical::from_params(&params, &context(logits.len())).unwrap().unwrap();
        probabilities_after(&processor, logits, 0)
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_a_full_sort_keeps(
            logits in prop::collection::vec(-12.0f32..6.0, 1..500),
            typical_p in 0.01f32..0.99,
        ) {
            let probs: Vec<f64> = softmax(&logits).into_iter().map(f64::from).collect();
            let entropy: f64 = probs.iter().map(|p| -p * p.max(1e-300).ln()).sum();
            let mut order: Vec<usize> = (0..probs.len()).collect();
            let score = |&k: &usize| (-probs[k].ln() - entropy).abs();
            order.sort_by(|a, b| score(a).total_cmp(&score(b)));
            let left = after(typical_p, &logits);
            let kept = left.iter().filter(|&&p| p > 0.0).count();
            let reached: f64 = order[..kept].iter().map(|&k| probs[k]).sum();
            let before: f64 = order[..kept - 1].iter().map(|&k| probs[k]).sum();
            prop_assert!(reached >= f64::from(typical_p) - 1e-4 && before < f64::from(typical_p) + 1e-4);
            // Those kept are the first by score, ties and rounding aside.
            let worst = left.iter().enumerate().filter(|(_, p)| **p > 0.0).map(|(k, _)| score(&k)).fold(0.0, f64::max);
            prop_assert!(worst <= score(&order[kept - 1]) + 1e-4);
        }
    }

    #[test]
    fn masked_tokens_are_never_typical() {
        let left = after(0.99, &[f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY]);
        assert_eq!((left[0], left[3]), (0.0, 0.0));
        assert!(Typical::from_params(&SamplingParams::default(), &context(4)).unwrap().is_none());
    }
}
