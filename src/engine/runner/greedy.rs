//! Rows that all take the most likely token: it is chosen where the logits are.

use smallvec::smallvec;

use super::{Runner, failure, forward::Step};
use crate::{
    engine::executor::{PlannedRow, SequenceOutput, StepOutput},
    error::{Error, Result},
    ids::TokenId,
    params::SampledToken,
};

impl Runner {
    /// The tokens of these rows, whose logits are those of `logit_rows`, where all of them take the most likely one and the
    /// model can say which that is for less than their logits cost.
    pub(super) fn most_likely(
        &self,
        step: &Step<'_>,
        rows: &[&PlannedRow],
        logit_rows: &[u32],
    ) -> Result<Option<Vec<Option<TokenId>>>> {
        let takes = |row: &&PlannedRow| {
            let sequence = self.samplers.get(&row.id).filter(|_| !self.constraints.holds(row.id));
            sequence.is_some_and(|sequence| sequence.sampler.takes_most_likely(row.num_output_tokens))
        };
        if rows.iter().all(takes) { self.model.most_likely(step, logit_rows) } else { Ok(None) }
    }
}

/// What comes of rows with these tokens.
pub(super) fn take(rows: &[&PlannedRow], tokens: Vec<Option<TokenId>>, output: &mut StepOutput) {
    for (row, token) in rows.iter().zip(tokens) {
        match token {
            Some(id) => output.sequences.push(SequenceOutput {
                id: row.id,
                tokens: smallvec![SampledToken { id, logprobs: None }],
                num_written: 0,
                complete: false,
            }),
            None => {
                let why = "the model's logits hold a NaN or infinity, or nothing but -inf";
                output.failed.push(failure(row.id, Error::internal(why)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;

    use super::*;
    use crate::{
        engine::{
            executor::{AdmittedSequence, Executor, StepPlan},
            runner::{RunnerConfig, forward::Forward},
        },
        ids::SequenceId,
        layers::context::LinearObserver,
        params::SamplingParams,
    };

    /// A model on a card: its most likely tokens are 3, and none for the second row asked for; its logits say 1.
    struct OnCard;

    impl Forward for OnCard {
        fn vocab_size(&self) -> usize {
            4
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
        fn observe(&mut self, _: Arc<dyn LinearObserver>) {}
        fn begin(&mut self, _: &StepPlan) -> Result<()> {
            Ok(())
        }
        fn compute(&mut self, _: &Step<'_>) -> Result<()> {
            Ok(())
        }
        fn logits(&self, _: &Step<'_>, rows: &[u32]) -> Result<Vec<f32>> {
            Ok([0.0, 9.0, 0.0, 0.0].repeat(rows.len()))
        }
        fn most_likely(&self, _: &Step<'_>, rows: &[u32]) -> Result<Option<Vec<Option<TokenId>>>> {
            Ok(Some((0..rows.len()).map(|row| (row != 1).then_some(TokenId(3))).collect()))
        }
        fn states(&self, _: &[u32]) -> Result<Vec<f32>> {
            Err(Error::internal("nobody asks"))
        }
        fn end(&mut self) {}
    }

    /// The tokens, and the sequences that failed, of a step of sequences sampled so.
    fn step(params: &[SamplingParams]) -> (Vec<TokenId>, Vec<SequenceId>) {
        let config =
            RunnerConfig { num_blocks: 1, block_size: 1, num_states: 1, num_threads: 1, eos_token_ids: Vec::new() };
        let mut runner = Runner::over(Box::new(OnCard), &config).unwrap();
        let id = |k: usize| SequenceId(k as u64 + 1);
        let admitted = params.iter().enumerate().map(|(k, params)| AdmittedSequence {
            id: id(k),
            params: Arc::new(params.clone()),
            prompt: [TokenId(0)].into(),
            dry_breakers: [].into(),
            grammar: None,
            pooling: None,
            adapter: None,
        });
        let rows = (0..params.len()).map(|k| PlannedRow {
            id: id(k),
            query: k..k + 1,
            blocks: 0..0,
            context_len: 0,
            samples: true,
            num_output_tokens: 0,
            prompt_targets: 0..0,
            max_new_tokens: 1,
        });
        let plan = StepPlan {
            admitted: admitted.collect(),
            rows: rows.collect(),
            token_ids: vec![TokenId(0); params.len()],
            positions: vec![0; params.len()],
            ..StepPlan::default()
        };
        runner.submit(&plan).unwrap();
        let output = runner.collect().unwrap();
        let tokens = output.sequences.iter().map(|sequence| sequence.tokens[0].id).collect();
        (tokens, output.failed.iter().map(|(id, _)| *id).collect())
    }

    #[test]
    fn greedy_rows_are_chosen_where_the_logits_are_and_one_without_a_token_ends_alone() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let (tokens, failed) = step(&[greedy.clone(), greedy.clone(), greedy]);
        assert_eq!((tokens, failed), (vec![TokenId(3); 2], vec![SequenceId(2)]));
    }

    #[test]
    fn one_row_that_needs_its_logits_has_all_of_them_sampled() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let penalized = SamplingParams { repetition_penalty: 1.1, ..greedy.clone() };
        assert_eq!(step(&[greedy, penalized]), (vec![TokenId(1); 2], vec![]));
    }
}
