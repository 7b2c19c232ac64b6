//! `logprobs`: how likely the chosen token and its rivals were before anything was done to the logits.

use super::{
    candidates::{Candidate, top_of},
    sampler::checked_max,
    softmax::sum_exp,
};
use crate::{error::Result, ids::TokenId, params::TokenLogprobs};

/// The log-probabilities of a token that was given, not chosen, from the logits of the position before it.
///
/// # Errors
/// `Internal` where a logit is NaN or `+inf`.
pub fn of_given(raw: &[f32], token: TokenId, n: usize) -> Result<TokenLogprobs> {
    Ok(of_token(raw, checked_max(raw)?, token, n, &mut Vec::new()))
}

/// The log-probabilities of one position, taken from the raw logits (vLLM's `raw_logprobs`, its default): before bias,
/// penalties, temperature and truncation.
///
/// `raw` are the logits as the model gave them, `max` the largest of them; `top` is scratch.
pub(super) fn of_token(raw: &[f32], max: f32, chosen: TokenId, n: usize, top: &mut Vec<Candidate>) -> TokenLogprobs {
    let log_total = f64::from(max) + sum_exp(raw, max).ln();
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    top_of(raw, n, top);
    TokenLogprobs {
        chosen: raw.get(chosen.index()).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: top.iter().map(|candidate| (candidate.id, logprob(candidate.logit))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let probs = [0.1f32, 0.2, 0.4, 0.2, 0.1];
        let raw = probs.map(|p| p.ln() + 7.0);
        let logprobs = of_token(&raw, 0.4f32.ln() + 7.0, TokenId(0), 3, &mut Vec::new());
        assert!((logprobs.chosen - 0.1f32.ln()).abs() < 1e-6);
        for ((token, logprob), expected) in logprobs.top.iter().zip([(2, 0.4f32), (1, 0.2), (3, 0.2)]) {
            assert_eq!(token.0, expected.0);
            assert!((logprob - expected.1.ln()).abs() < 1e-6);
        }
        assert_eq!(logprobs.top.len(), 3);
    }

    #[test]
    fn no_alternatives_are_reported_where_none_were_asked_for() {
        let logprobs = of_token(&[0.0, 0.0], 0.0, TokenId(1), 0, &mut Vec::new());
        assert!(logprobs.top.is_empty());
        assert!((logprobs.chosen - 0.5f32.ln()).abs() < 1e-6);
    }
}
