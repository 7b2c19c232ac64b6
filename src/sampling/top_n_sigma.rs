//! `top_n_sigma`: keeps the logits that stand out from the noise (Tang et al. 2024, "Top-nσ: Not All Logits Are You
//! Need").

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy};
use crate::{error::Result, params::SamplingParams};

/// Keeps logits of at least `max - n·σ`, `σ` being the standard deviation of those in play. What it keeps does not
/// depend on the temperature, because that scales `σ` too.
pub(super) struct TopNSigma {
    n: f64,
}

impl LogitsProcessor for TopNSigma {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.top_n_sigma <= 0.0 || is_greedy(params);
        Ok((!off).then(|| Self { n: f64::from(params.top_n_sigma) }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let moments = candidates.moments();
        let floor = f64::from(moments.max) - self.n * moments.deviation();
        // A floor beyond what a logit can be keeps all that are not masked.
        candidates.keep_above((floor as f32).max(f32::MIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{assert_close, context, probabilities_after};

    fn after(n: f32, logits: &[f32]) -> Vec<f32> {
        let params = SamplingParams { top_n_sigma: n, ..SamplingParams::default() };
        let processor = TopNSigma::from_params(&params, &context(logits.len())).unwrap().unwrap();
        probabilities_after(&processor, logits, 0)
    }

    #[test]
    fn logits_within_n_deviations_of_the_largest_are_kept() {
        // Mean 0, deviation 2.
        let logits = [2.0, 2.0, -2.0, -2.0];
        assert_close(&after(1.9, &logits), &[0.5, 0.5, 0.0, 0.0], 1e-6, "3.8 below the largest");
        assert!(after(2.1, &logits)[2] > 0.0);
        assert_close(&after(1.0, &[3.0; 4]), &[0.25; 4], 1e-6, "no deviation");
    }

    #[test]
    fn masked_tokens_neither_count_nor_come_back() {
        let logits = [2.0, 2.0, -2.0, -2.0, f32::NEG_INFINITY];
        assert_close(&after(1.9, &logits), &[0.5, 0.5, 0.0, 0.0, 0.0], 1e-6, "without the masked one");
        assert_eq!(after(f32::MAX, &logits)[4], 0.0);
        assert!(TopNSigma::from_params(&SamplingParams::default(), &context(4)).unwrap().is_none());
    }
}
