//! The cases of llama.cpp's `tests/test-sampling.cpp` (MIT), all 41: its samplers and ours give the same distributions.

use super::{
    Candidates, SamplingContext, chain, is_greedy,
    test_cases::{assert_close, observe, softmax},
};
use crate::{ids::TokenId, params::SamplingParams};

/// What a case turns on.
enum Knob {
    Temperature(f32),
    /// Temperature, range, exponent.
    DynamicTemperature(f32, f32, f32),
    TopK(u32),
    TopP(f32),
    MinP(f32),
    Typical(f32),
    /// Probability, threshold.
    Xtc(f32, f32),
    TopNSigma(f32),
    /// Last tokens, repetition, frequency, presence.
    Penalties(&'static [u32], f32, f32, f32),
    /// Last tokens, multiplier, allowed length, how many of the last tokens, breakers; the base is 1.1.
    Dry(&'static [u32], f32, u32, i32, &'static [&'static [u32]]),
}

use Knob::*;

/// A knob, the distribution before, and what is left of it.
#[rustfmt::skip]
const CASES: [(Knob, &[f32], &[f32]); 41] = [
    (Temperature(1.0), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (Temperature(0.0), &[0.1, 0.2, 0.3, 0.4], &[0.0, 0.0, 0.0, 1.0]),
    (DynamicTemperature(1.0, 0.0, 1.0), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (DynamicTemperature(0.0, 0.0, 1.0), &[0.1, 0.2, 0.3, 0.4], &[0.0, 0.0, 0.0, 1.0]),
    (TopK(1), &[0.1, 0.2, 0.3, 0.4], &[1.0]),
    (TopK(3), &[0.1, 0.2, 0.3, 0.4], &[0.44444, 0.33333, 0.22222]),
    (TopK(4), &[0.1, 0.2, 0.3, 0.4], &[0.4, 0.3, 0.2, 0.1]),
    (TopK(0), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (TopP(0.0), &[0.1, 0.2, 0.3, 0.4], &[1.0]),
    (TopP(0.7), &[0.1, 0.2, 0.3, 0.4], &[0.571429, 0.428571]),
    (TopP(0.8), &[0.1, 0.2, 0.3, 0.4], &[0.44444, 0.33333, 0.22222]),
    (TopP(1.0), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (MinP(0.0), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (MinP(0.24), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (MinP(0.26), &[0.1, 0.2, 0.3, 0.4], &[0.2222222, 0.3333333, 0.4444444]),
    (MinP(0.49), &[0.1, 0.2, 0.3, 0.4], &[0.2222222, 0.3333333, 0.4444444]),
    (MinP(0.51), &[0.1, 0.2, 0.3, 0.4], &[0.4285714, 0.5714286]),
    (MinP(0.74), &[0.1, 0.2, 0.3, 0.4], &[0.4285714, 0.5714286]),
    (MinP(0.76), &[0.1, 0.2, 0.3, 0.4], &[1.0]),
    (MinP(1.0), &[0.1, 0.2, 0.3, 0.4], &[1.0]),
    (MinP(1.05), &[0.1, 0.2, 0.3, 0.4], &[1.0]),
    (Xtc(0.99, 0.09), &[0.4, 0.3, 0.2, 0.1], &[0.1]),
    (Xtc(0.99, 0.19), &[0.4, 0.3, 0.2, 0.1], &[0.2, 0.1]),
    (Xtc(0.99, 0.29), &[0.4, 0.3, 0.2, 0.1], &[0.3, 0.2, 0.1]),
    (Xtc(0.99, 0.39), &[0.4, 0.3, 0.2, 0.1], &[0.4, 0.3, 0.2, 0.1]),
    (Typical(0.5), &[0.97, 0.01, 0.01, 0.01], &[0.97]),
    (Typical(0.5), &[0.4, 0.2, 0.2, 0.2], &[0.2, 0.2, 0.2]),
    (Penalties(&[0], 50.0, 0.0, 0.0), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.0, 0.25, 0.25, 0.25, 0.25]),
    (Penalties(&[0, 1, 2], 50.0, 0.0, 0.0), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.0, 0.0, 0.0, 0.5, 0.5]),
    (Penalties(&[0, 1, 2, 0, 0], 50.0, 0.0, 0.0), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.0, 0.0, 0.0, 0.5, 0.5]),
    (Penalties(&[0], 1.0, 5.0, 5.0), &[0.2, 0.2, 0.2, 0.2, 0.2], &[1.1e-05, 0.249997, 0.249997, 0.249997, 0.249997]),
    (Penalties(&[0, 1, 2], 1.0, 5.0, 5.0), &[0.2, 0.2, 0.2, 0.2, 0.2], &[2.3e-05, 2.3e-05, 2.3e-05, 0.499966, 0.499966]),
    (Penalties(&[0, 1, 2, 0, 0], 1.0, 5.0, 5.0), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.0, 2.3e-05, 2.3e-05, 0.499977, 0.499977]),
    (Dry(&[0, 1], 1.0, 2, 4, &[]), &[0.25, 0.25, 0.25, 0.25], &[0.25, 0.25, 0.25, 0.25]),
    (Dry(&[0, 1, 2, 0, 1], 1.0, 2, 5, &[]), &[0.25, 0.25, 0.25, 0.25], &[0.296923, 0.296923, 0.109232, 0.296923]),
    (Dry(&[0, 1, 3, 4, 0, 1], 1.0, 2, 6, &[&[3]]), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.2, 0.2, 0.2, 0.2, 0.2]),
    (Dry(&[0, 1, 2, 0, 1], 2.0, 2, 5, &[]), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
    (Dry(&[0, 1, 2, 3, 4, 0, 1], 1.0, 4, 7, &[]), &[0.2, 0.2, 0.2, 0.2, 0.2], &[0.2, 0.2, 0.2, 0.2, 0.2]),
    (TopNSigma(1.0), &[0.1, 0.2, 0.3, 0.4], &[0.571429, 0.428571, 0.0, 0.0]),
    (TopNSigma(0.0), &[0.1, 0.2, 0.3, 0.4], &[0.1, 0.2, 0.3, 0.4]),
    (TopNSigma(3.0), &[0.1, 0.2, 0.3, 0.4], &[0.4, 0.3, 0.2, 0.1]),
];

impl Knob {
    fn params(&self) -> SamplingParams {
        let off = SamplingParams::default();
        match *self {
            Temperature(temperature) => SamplingParams { temperature, ..off },
            DynamicTemperature(temperature, dynatemp_range, dynatemp_exponent) => {
                SamplingParams { temperature, dynatemp_range, dynatemp_exponent, ..off }
            }
            TopK(top_k) => SamplingParams { top_k, ..off },
            // 0 is out of range here; it stands for as little as there is.
            TopP(top_p) => SamplingParams { top_p: top_p.max(f32::MIN_POSITIVE), ..off },
            MinP(min_p) => SamplingParams { min_p, ..off },
            Typical(typical_p) => SamplingParams { typical_p, ..off },
            Xtc(xtc_probability, xtc_threshold) => SamplingParams { xtc_probability, xtc_threshold, ..off },
            TopNSigma(top_n_sigma) => SamplingParams { top_n_sigma, ..off },
            Penalties(_, repetition_penalty, frequency_penalty, presence_penalty) => {
                SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, ..off }
            }
            Dry(_, dry_multiplier, dry_allowed_length, dry_penalty_last_n, _) => {
                SamplingParams { dry_multiplier, dry_base: 1.1, dry_allowed_length, dry_penalty_last_n, ..off }
            }
        }
    }

    /// The probabilities that our processors leave, the largest first.
    fn left_of(&self, probs: &[f32]) -> Vec<f32> {
        let params = self.params();
        let (last_tokens, breakers) = match *self {
            Penalties(last_tokens, ..) => (last_tokens, &[][..]),
            Dry(last_tokens, _, _, _, breakers) => (last_tokens, breakers),
            _ => (&[][..], &[][..]),
        };
        let ids = |ids: &&[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
        let breakers: Vec<_> = breakers.iter().map(ids).collect();
        let vocab_size = probs.len();
        let context = SamplingContext { vocab_size, dry_breakers: &breakers, ..SamplingContext::default() };
        let mut processors = chain(&params, &context).unwrap();
        let (mut logits, mut kept) = (probs.iter().map(|p| p.ln()).collect::<Vec<_>>(), Vec::new());
        let mut candidates = Candidates::new(&mut logits, &mut kept);
        for processor in &mut processors {
            observe(processor.as_mut(), last_tokens);
            processor.apply(&mut candidates, 0);
        }
        if is_greedy(&params) {
            candidates.keep_top(1);
        }
        let mut left: Vec<f32> = match candidates.kept() {
            Some(kept) => kept.iter().map(|candidate| candidate.logit).collect(),
            None => candidates.logits_mut().to_vec(),
        };
        left.resize(vocab_size, f32::NEG_INFINITY);
        let mut left = softmax(&left);
        left.sort_by(|a, b| b.total_cmp(a));
        left
    }
}

#[test]
fn every_case_of_llama_cpp_comes_out_the_same() {
    for (k, (knob, probs, expected)) in CASES.iter().enumerate() {
        let mut expected = expected.to_vec();
        // XTC's cases are written as before renormalization.
        let total: f32 = expected.iter().sum();
        expected.iter_mut().for_each(|p| *p /= total);
        expected.resize(probs.len(), 0.0);
        expected.sort_by(|a, b| b.total_cmp(a));
        assert_close(&knob.left_of(probs), &expected, 1e-5, &format!("case {k}"));
    }
}
