//! `xtc_probability`, `xtc_threshold`: now and then leaves the beaten path by excluding the top choices (p-e-w, XTC,
//! 2024).

use super::{
    Candidates, LogitsProcessor, SamplingContext,
    draw::{Purpose, uniform},
    is_greedy,
};
use crate::{error::Result, params::SamplingParams};

/// With the given probability, excludes all candidates at least as likely as the threshold but the least likely of
/// them. Whether it does is drawn by seed and index, apart from the token's own draw.
pub(super) struct Xtc {
    probability: f64,
    threshold: f64,
    seed: u64,
}

impl LogitsProcessor for Xtc {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.xtc_probability <= 0.0 || params.xtc_threshold > 0.5 || is_greedy(params);
        Ok((!off).then(|| Self {
            probability: f64::from(params.xtc_probability),
            threshold: f64::from(params.xtc_threshold),
            seed: params.seed.unwrap_or_default(),
        }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, index: u32) {
        if uniform(self.seed, index, Purpose::Xtc) < self.probability {
            let moments = candidates.moments();
            let bound = f64::from(moments.max) + self.threshold.ln() + moments.log_total();
            candidates.drop_above_but_one(bound as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{assert_close, context, probabilities_after};

    fn xtc(probability: f32, threshold: f32, seed: u64) -> SamplingParams {
        SamplingParams {
            xtc_probability: probability,
            xtc_threshold: threshold,
            seed: Some(seed),
            ..SamplingParams::default()
        }
    }

    fn after(params: &SamplingParams, probs: &[f32], index: u32) -> Vec<f32> {
        let processor = Xtc::from_params(params, &context(probs.len())).unwrap().unwrap();
        let logits: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
        probabilities_after(&processor, &logits, index)
    }

    #[test]
    fn of_equally_likely_top_choices_the_one_with_the_highest_id_stays() {
        assert_close(&after(&xtc(1.0, 0.2, 0), &[0.3, 0.3, 0.3, 0.1], 0), &[0.0, 0.0, 0.75, 0.25], 1e-6, "ties");
        assert_close(&after(&xtc(1.0, 0.5, 0), &[0.4, 0.3, 0.3], 0), &[0.4, 0.3, 0.3], 1e-6, "none is that likely");
        assert_close(&after(&xtc(1.0, 0.3, 0), &[0.5, 0.25, 0.25], 0), &[0.5, 0.25, 0.25], 1e-6, "one alone stays");
    }

    #[test]
    fn a_threshold_of_zero_never_brings_a_masked_token() {
        assert_close(&after(&xtc(1.0, 0.0, 0), &[0.6, 0.0, 0.4, 0.0], 0), &[0.0, 0.0, 1.0, 0.0], 1e-6, "masked");
    }

    #[test]
    fn it_happens_as_often_as_asked_for_and_by_seed_and_index_alone() {
        let probs = [0.6, 0.4];
        let excluded = |seed: u64, index: u32| after(&xtc(0.25, 0.1, seed), &probs, index)[0] == 0.0;
        let pattern = |seed: u64| (0..4000).map(|index| excluded(seed, index)).collect::<Vec<_>>();
        let (one, other) = (pattern(1), pattern(2));
        for pattern in [&one, &other] {
            let times = pattern.iter().filter(|&&excluded| excluded).count();
            assert!((850..1150).contains(&times), "{times} of 4000");
        }
        assert_ne!(one, other);
        assert_eq!(one, pattern(1));
    }

    #[test]
    fn it_is_off_where_it_could_never_exclude() {
        for params in [xtc(0.0, 0.1, 0), xtc(1.0, 0.51, 0), SamplingParams { temperature: 0.0, ..xtc(1.0, 0.1, 0) }] {
            assert!(Xtc::from_params(&params, &context(4)).unwrap().is_none());
        }
    }
}
