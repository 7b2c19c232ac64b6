//! `repetition_penalty`, `frequency_penalty`, `presence_penalty`: against saying again what was said.

use std::collections::HashMap;

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{error::Result, ids::TokenId, params::SamplingParams};

/// The three penalties, applied in this order: repetition, frequency, presence.
///
/// As in vLLM (and OpenAI's definition) repetition looks at prompt and output, the other two at the output alone;
/// llama.cpp applies all three to one window of the last tokens, prompt included.
pub(super) struct Penalties {
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// How often each token was generated: 0 for one that only the prompt has. As many entries as the sequence has
    /// different tokens.
    seen: HashMap<TokenId, u32>,
}

impl LogitsProcessor for Penalties {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let (repetition, frequency, presence) =
            (params.repetition_penalty, params.frequency_penalty, params.presence_penalty);
        if repetition == 1.0 && frequency == 0.0 && presence == 0.0 {
            return Ok(None);
        }
        let prompt = if repetition == 1.0 { &[] } else { context.prompt };
        let in_vocabulary = prompt.iter().filter(|token| token.index() < context.vocab_size);
        Ok(Some(Self { repetition, frequency, presence, seen: in_vocabulary.map(|&token| (token, 0)).collect() }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let logits = candidates.logits_mut();
        for (token, &count) in &self.seen {
            let Some(logit) = logits.get_mut(token.index()).filter(|logit| logit.is_finite()) else { continue };
            let repeated = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            let presence = if count > 0 { self.presence } else { 0.0 };
            let penalized = repeated - self.frequency * count as f32 - presence;
            // An extreme penalty must neither mask the last token nor make an infinity that beats all others.
            *logit = penalized.clamp(f32::MIN, f32::MAX);
        }
    }

    fn observe(&mut self, token: TokenId) {
        let count = self.seen.entry(token).or_default();
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sampling::test_cases::{self, assert_close, context};

    fn penalties(repetition: f32, frequency: f32, presence: f32) -> SamplingParams {
        SamplingParams {
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..SamplingParams::default()
        }
    }

    fn after(params: &SamplingParams, prompt: &[u32], output: &[u32], logits: &[f32]) -> Vec<f32> {
        let prompt: Vec<_> = prompt.iter().copied().map(TokenId).collect();
        let context = SamplingContext { prompt: &prompt, ..context(logits.len()) };
        let mut processor = Penalties::from_params(params, &context).unwrap().unwrap();
        output.iter().for_each(|&token| processor.observe(TokenId(token)));
        test_cases::logits_after(&processor, logits, 0)
    }

    /// The cases of llama.cpp's `tests/test-sampling.cpp`, five equally likely tokens; its `last_tokens` as output.
    #[test]
    fn llama_cpp_agrees_on_generated_tokens() {
        let (repeat, both) = (penalties(50.0, 0.0, 0.0), penalties(1.0, 5.0, 5.0));
        let cases: [(&SamplingParams, &[u32], [f32; 5]); 6] = [
            (&repeat, &[0], [0.0, 0.25, 0.25, 0.25, 0.25]),
            (&repeat, &[0, 1, 2], [0.0, 0.0, 0.0, 0.5, 0.5]),
            (&repeat, &[0, 1, 2, 0, 0], [0.0, 0.0, 0.0, 0.5, 0.5]),
            (&both, &[0], [1.1e-5, 0.249_997, 0.249_997, 0.249_997, 0.249_997]),
            (&both, &[0, 1, 2], [2.3e-5, 2.3e-5, 2.3e-5, 0.499_966, 0.499_966]),
            (&both, &[0, 1, 2, 0, 0], [0.0, 2.3e-5, 2.3e-5, 0.499_977, 0.499_977]),
        ];
        for (params, output, expected) in cases {
            let logits = after(params, &[], output, &[0.2f32.ln(); 5]);
            assert_close(&test_cases::softmax(&logits), &expected, 1e-5, &format!("{params:?} after {output:?}"));
        }
    }

    #[test]
    fn the_prompt_counts_for_repetition_alone() {
        assert_eq!(
            after(&penalties(2.0, 1.0, 0.5), &[0, 1, 0], &[1, 2, 2], &[4.0, 4.0, -4.0, 4.0]),
            [2.0, 2.0 - 1.0 - 0.5, -8.0 - 2.0 - 0.5, 4.0]
        );
    }

    #[test]
    fn extreme_penalties_leave_finite_logits() {
        for repetition in [f32::MIN_POSITIVE, f32::MAX] {
            let logits = after(&penalties(repetition, 2.0, -2.0), &[0, 1], &[0], &[20.0, -20.0, f32::NEG_INFINITY]);
            assert!(logits[0].is_finite() && logits[1].is_finite(), "{logits:?}");
            assert_eq!(logits[2], f32::NEG_INFINITY);
        }
    }

    proptest! {
        #[test]
        fn counting_as_we_go_is_counting_afterwards(
            prompt in prop::collection::vec(0u32..12, 0..30),
            output in prop::collection::vec(0u32..12, 0..60),
            repetition in 0.1f32..3.0,
            frequency in -2.0f32..2.0,
            presence in -2.0f32..2.0,
        ) {
            let logits: Vec<f32> = (0..12).map(|k| k as f32 - 6.0).collect();
            let incremental = after(&penalties(repetition, frequency, presence), &prompt, &output, &logits);
            for (token, (&logit, &penalized)) in (0u32..).zip(logits.iter().zip(&incremental)) {
                let count = output.iter().filter(|&&other| other == token).count() as f32;
                let mut expected = logit;
                if count > 0.0 || prompt.contains(&token) {
                    expected = if logit > 0.0 { logit / repetition } else { logit * repetition };
                }
                expected = expected - frequency * count - if count > 0.0 { presence } else { 0.0 };
                prop_assert_eq!(penalized, expected);
            }
        }
    }
}
