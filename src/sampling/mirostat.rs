//! `mirostat`, `mirostat_tau`, `mirostat_eta`: keeps the surprise of the text at a level (Basu et al. 2020,
//! "Mirostat", version 2).

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy, softmax::Moments};
use crate::{error::Result, ids::TokenId, params::SamplingParams};

/// Keeps tokens of at most `mu` bits of surprise, at least the most likely one; after each token that surprised by
/// `s` bits, among those kept, `mu` becomes `mu - eta · (s - tau)`. It starts at `2 · tau`.
pub(super) struct Mirostat {
    tau: f64,
    eta: f64,
    /// `mu` after each token, the one at the start first; all, so that the sequence can go back.
    mu: Vec<f64>,
}

impl Mirostat {
    fn mu(&self) -> f64 {
        self.mu.last().copied().unwrap_or(2.0 * self.tau)
    }
}

impl LogitsProcessor for Mirostat {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.mirostat == 0 || is_greedy(params);
        let (tau, eta) = (f64::from(params.mirostat_tau), f64::from(params.mirostat_eta));
        Ok((!off).then_some(Self { tau, eta, mu: Vec::new() }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let moments = candidates.moments();
        let floor = f64::from(moments.max) + moments.log_total() - self.mu() * std::f64::consts::LN_2;
        candidates.keep_above((floor as f32).clamp(f32::MIN, moments.max.max(f32::MIN)));
    }

    fn observe(&mut self, token: TokenId, left: &Candidates<'_>) {
        let kept = left.kept().unwrap_or_default();
        let logit = kept.iter().find(|candidate| candidate.id == token).map(|candidate| candidate.logit);
        let moments = Moments::of(kept.iter().map(|candidate| candidate.logit), left.max_logit());
        let bits = |logit: f32| (moments.log_total() - f64::from(logit - moments.max)) / std::f64::consts::LN_2;
        let surprise = logit.map_or(self.tau, bits);
        self.mu.push(self.mu() - self.eta * (surprise - self.tau));
    }

    fn forget(&mut self, _token: TokenId) {
        self.mu.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::context;

    fn mirostat(tau: f32, eta: f32) -> Mirostat {
        let params = SamplingParams { mirostat: 2, mirostat_tau: tau, mirostat_eta: eta, ..SamplingParams::default() };
        Mirostat::from_params(&params, &context(8)).unwrap().unwrap()
    }

    /// The tokens that are kept of these probabilities, after which `token` is chosen.
    fn step(processor: &mut Mirostat, probs: &[f32], token: u32) -> Vec<u32> {
        let (mut logits, mut kept) = (probs.iter().map(|p| p.ln()).collect::<Vec<_>>(), Vec::new());
        let mut candidates = Candidates::new(&mut logits, &mut kept);
        processor.apply(&mut candidates, 0);
        let ids = candidates.kept().unwrap().iter().map(|candidate| candidate.id.0).collect();
        processor.observe(TokenId(token), &candidates);
        ids
    }

    #[test]
    fn the_limit_follows_the_surprise() {
        let mut processor = mirostat(1.25, 0.5);
        // mu = 2.5: 1, 2 and 3 bits. Of the two kept, 2/3 and 1/3, the likelier one surprises by log2(3/2).
        assert_eq!(step(&mut processor, &[0.5, 0.25, 0.125, 0.125], 0), [0, 1]);
        let expected = 2.5 - 0.5 * (1.5f64.log2() - 1.25);
        assert!((processor.mu() - expected).abs() < 1e-6, "{}", processor.mu());
        // The unlikelier one surprises by log2(3) bits, and mu falls.
        assert_eq!(step(&mut processor, &[0.5, 0.25, 0.125, 0.125], 1), [0, 1]);
        assert!((processor.mu() - (expected - 0.5 * (3.0f64.log2() - 1.25))).abs() < 1e-6);
    }

    #[test]
    fn one_token_is_always_kept() {
        let mut processor = mirostat(0.01, 0.0);
        assert_eq!(step(&mut processor, &[0.3, 0.3, 0.2, 0.2], 0), [0, 1]);
        assert_eq!(step(&mut processor, &[0.2, 0.3, 0.3, 0.2], 1), [1, 2]);
        assert_eq!(step(&mut mirostat(f32::MAX, 1.0), &[0.9, 0.1, 0.0], 0), [0, 1]);
    }

    #[test]
    fn what_was_taken_back_leaves_no_trace() {
        let mut processor = mirostat(1.25, 0.5);
        step(&mut processor, &[0.5, 0.25, 0.125, 0.125], 0);
        let before = processor.mu();
        step(&mut processor, &[0.5, 0.25, 0.125, 0.125], 1);
        processor.forget(TokenId(1));
        assert_eq!(processor.mu(), before);
    }
}
