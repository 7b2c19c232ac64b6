//! `allowed_token_ids` and `banned_token_ids`: tokens that alone may be chosen, and tokens that never are.

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

/// Masks all tokens but these.
pub(super) struct AllowedTokens {
    /// Sorted, each once.
    allowed: Vec<TokenId>,
}

/// Masks these tokens.
pub(super) struct BannedTokens {
    banned: Vec<TokenId>,
}

impl LogitsProcessor for AllowedTokens {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let allowed = checked("allowed_token_ids", &params.allowed_token_ids, context.vocab_size)?;
        Ok((!allowed.is_empty()).then_some(Self { allowed }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        // What lies between two allowed tokens goes; the list is as long as the request made it.
        let logits = candidates.logits_mut();
        let mut from = 0;
        for token in &self.allowed {
            logits[from..token.index()].fill(f32::NEG_INFINITY);
            from = token.index() + 1;
        }
        logits[from..].fill(f32::NEG_INFINITY);
    }
}

impl LogitsProcessor for BannedTokens {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let banned = checked("banned_token_ids", &params.banned_token_ids, context.vocab_size)?;
        Ok((!banned.is_empty()).then_some(Self { banned }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let logits = candidates.logits_mut();
        for token in &self.banned {
            logits[token.index()] = f32::NEG_INFINITY;
        }
    }
}

/// The tokens of a list, sorted, each once.
fn checked(field: &str, tokens: &[TokenId], vocab_size: usize) -> Result<Vec<TokenId>> {
    if let Some((k, token)) = tokens.iter().enumerate().find(|(_, token)| token.index() >= vocab_size) {
        let why = format!("is {token}, which is no token of this model, whose vocabulary has {vocab_size}");
        return Err(Error::invalid(format!("{field}[{k}]"), why));
    }
    let mut tokens = tokens.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{self, context};

    const MASKED: f32 = f32::NEG_INFINITY;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn only_allowed_tokens_are_left() {
        let cases: [(&[u32], [f32; 4]); 3] = [
            (&[2, 0, 2], [0.5, MASKED, 0.5, MASKED]),
            (&[3], [MASKED, MASKED, MASKED, 0.5]),
            (&[0, 1, 2, 3], [0.5; 4]),
        ];
        for (allowed, expected) in cases {
            let params = SamplingParams { allowed_token_ids: ids(allowed), ..SamplingParams::default() };
            let processor = AllowedTokens::from_params(&params, &context(4)).unwrap().unwrap();
            assert_eq!(test_cases::logits_after(&processor, &[0.5; 4], 0), expected, "{allowed:?}");
        }
    }

    #[test]
    fn banned_tokens_are_masked_at_every_index() {
        let params = SamplingParams { banned_token_ids: ids(&[1, 3]), ..SamplingParams::default() };
        let processor = BannedTokens::from_params(&params, &context(4)).unwrap().unwrap();
        for index in [0, 7] {
            assert_eq!(test_cases::logits_after(&processor, &[0.5; 4], index), [0.5, MASKED, 0.5, MASKED]);
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused_by_its_place() {
        let params = SamplingParams {
            allowed_token_ids: ids(&[1, 4]),
            banned_token_ids: ids(&[9]),
            ..SamplingParams::default()
        };
        let error = AllowedTokens::from_params(&params, &context(4)).err().unwrap();
        assert_eq!(error.violations[0].field, "allowed_token_ids[1]");
        let error = BannedTokens::from_params(&params, &context(4)).err().unwrap();
        assert_eq!(error.violations[0].field, "banned_token_ids[0]");
    }
}
