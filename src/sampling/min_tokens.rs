//! `min_tokens`: no end before this many tokens, by masking whatever would end the sequence.

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

/// Masks end-of-sequence and stop tokens while fewer than `min_tokens` were generated.
///
/// As in vLLM, end-of-sequence tokens are masked even with `ignore_eos`, and stop strings are not looked at.
pub(super) struct MinTokens {
    min_tokens: u32,
    banned: Vec<TokenId>,
}

impl LogitsProcessor for MinTokens {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let mut banned: Vec<_> = context.eos_token_ids.iter().chain(&params.stop_token_ids).copied().collect();
        banned.retain(|token| token.index() < context.vocab_size);
        banned.sort_unstable();
        banned.dedup();
        if params.min_tokens == 0 || banned.is_empty() {
            return Ok(None);
        }
        if banned.len() == context.vocab_size {
            let why = "every token of the vocabulary ends the sequence, so none could be chosen; ask for 0 tokens";
            return Err(Error::invalid("min_tokens", why));
        }
        Ok(Some(Self { min_tokens: params.min_tokens, banned }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, index: u32) {
        if index < self.min_tokens {
            let logits = candidates.logits_mut();
            for token in &self.banned {
                logits[token.index()] = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{self, context};

    const MASKED: f32 = f32::NEG_INFINITY;

    #[test]
    fn ends_are_masked_until_min_tokens_were_generated() {
        let params = SamplingParams {
            min_tokens: 2,
            stop_token_ids: vec![TokenId(1), TokenId(99)],
            ..SamplingParams::default()
        };
        let context = SamplingContext { eos_token_ids: &[TokenId(3)], ..context(4) };
        let processor = MinTokens::from_params(&params, &context).unwrap().unwrap();
        for (index, expected) in [(0, [0.5, MASKED, 0.5, MASKED]), (1, [0.5, MASKED, 0.5, MASKED]), (2, [0.5; 4])] {
            assert_eq!(test_cases::logits_after(&processor, &[0.5; 4], index), expected, "index {index}");
        }
    }

    #[test]
    fn nothing_is_built_where_nothing_can_end() {
        let params = SamplingParams { min_tokens: 2, ..SamplingParams::default() };
        assert!(MinTokens::from_params(&params, &context(4)).unwrap().is_none());
        assert!(MinTokens::from_params(&SamplingParams::default(), &context(4)).unwrap().is_none());
    }

    #[test]
    fn masking_the_whole_vocabulary_is_refused() {
        let params =
            SamplingParams { min_tokens: 1, stop_token_ids: vec![TokenId(0), TokenId(1)], ..SamplingParams::default() };
        let error = MinTokens::from_params(&params, &context(2)).err().unwrap();
        assert_eq!(error.violations[0].field, "min_tokens");
    }
}
