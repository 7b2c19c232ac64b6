//! `logit_bias`: added to the logits of single tokens, before anything else looks at them.

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

/// Adds a bias to some tokens' logits.
pub(super) struct LogitBias {
    bias: Vec<(TokenId, f32)>,
}

impl LogitsProcessor for LogitBias {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        if let Some((token, _)) = params.logit_bias.iter().find(|(token, _)| token.index() >= context.vocab_size) {
            let why = format!("is no token of this model, whose vocabulary has {}", context.vocab_size);
            return Err(Error::invalid(format!("logit_bias[{token}]"), why));
        }
        Ok((!params.logit_bias.is_empty()).then(|| Self { bias: params.logit_bias.clone() }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let logits = candidates.logits_mut();
        for &(token, bias) in &self.bias {
            logits[token.index()] += bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{self, context};

    #[test]
    fn biases_are_added_and_masked_tokens_stay_masked() {
        let params = SamplingParams {
            logit_bias: vec![(TokenId(0), 2.5), (TokenId(2), -100.0), (TokenId(3), 100.0)],
            ..SamplingParams::default()
        };
        let processor = LogitBias::from_params(&params, &context(4)).unwrap().unwrap();
        let logits = [1.0, 1.0, 1.0, f32::NEG_INFINITY];
        assert_eq!(test_cases::logits_after(&processor, &logits, 0), [3.5, 1.0, -99.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused_by_name() {
        let params = SamplingParams { logit_bias: vec![(TokenId(4), 1.0)], ..SamplingParams::default() };
        let error = LogitBias::from_params(&params, &context(4)).err().unwrap();
        assert_eq!(error.violations[0].field, "logit_bias[4]");
    }
}
