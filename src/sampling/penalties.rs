//! `repetition_penalty`, `frequency_penalty`, `presence_penalty`: against saying again what was said.

use std::collections::{HashMap, HashSet};

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
    /// Different tokens of the prompt, where the sequence may go back.
    in_prompt: HashSet<TokenId>,
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
        let seen: HashMap<_, _> = in_vocabulary.map(|&token| (token, 0)).collect();
        let in_prompt = if params.bad_words.is_empty() { HashSet::new() } else { seen.keys().copied().collect() };
        Ok(Some(Self { repetition, frequency, presence, seen, in_prompt }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        candidates.change(&self.seen, |logit, &count| {
            let repeated = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
            let presence = if count > 0 { self.presence } else { 0.0 };
            repeated - self.frequency * count as f32 - presence
        });
    }

    fn observe(&mut self, token: TokenId, _left: &Candidates<'_>) {
        let count = self.seen.entry(token).or_default();
        *count = count.saturating_add(1);
    }

    fn forget(&mut self, token: TokenId) {
        // What is left of a token that the prompt did not have must not look as if the prompt had it.
        if let Some(count) = self.seen.get_mut(&token) {
            *count = count.saturating_sub(1);
            if *count == 0 && !self.in_prompt.contains(&token) {
                self.seen.remove(&token);
            }
        }
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
        test_cases::observe(&mut processor, output);
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

    #[test]
    fn what_was_taken_back_does_not_count() {
        let params = SamplingParams { bad_words: vec!["x".into()], ..penalties(2.0, 1.0, 0.5) };
        let prompt = [TokenId(0)];
        let context = SamplingContext { prompt: &prompt, ..context(3) };
        let mut processor = Penalties::from_params(&params, &context).unwrap().unwrap();
        let before = test_cases::logits_after(&processor, &[4.0; 3], 0);
        test_cases::observe(&mut processor, &[0, 1, 1]);
        for token in [1, 1, 0] {
            processor.forget(TokenId(token));
        }
        assert_eq!(test_cases::logits_after(&processor, &[4.0; 3], 0), before);
        assert_eq!(before, [2.0, 4.0, 4.0]);
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
