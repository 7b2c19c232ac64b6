//! Rows whose tokens are chosen where the logits are: those that ask for nothing but the most likely token, or for one drawn by
//! temperature, `min_p`, `top_k` and `top_p`. Four bytes a row come back, not a vocabulary.
//!
//! What decides is the sequence alone. Were a whole batch's logits fetched because one row needs its own, the others' seeds
//! would draw by another order of summing, and a token would depend on who else is there.

use super::{Runner, forward::Step, newest::Drawn};
use crate::{engine::executor::PlannedRow, error::Result, kernels::sample::Draw};

impl Runner {
    /// Has the tokens of those of these rows drawn for which the model can do that, in the order of the rows, and gives the others.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    pub(super) fn choose<'a>(
        &self,
        step: &Step<'_>,
        rows: Vec<&'a PlannedRow>,
    ) -> Result<(Option<Drawn>, Vec<&'a PlannedRow>)> {
        if !self.model.chooses() {
            return Ok((None, rows));
        }
        let (mut draws, mut drawn, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            match self.draw(row) {
                Some(draw) => {
                    draws.push(draw);
                    drawn.push(row);
                }
                None => others.push(row),
            }
        }
        if drawn.is_empty() {
            return Ok((None, others));
        }
        let tokens = self.model.choose(step, &super::logit_rows(&drawn), &draws)?;
        Ok((Some(Drawn { sequences: drawn.into_iter().map(|row| row.id).collect(), tokens }), others))
    }

    /// How a row's token is drawn, where nothing else is asked for.
    fn draw(&self, row: &PlannedRow) -> Option<Draw> {
        let sequence = self.samplers.get(&row.id).filter(|_| !self.constraints.holds(row.id))?;
        sequence.sampler.draw(row.num_output_tokens)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{Arc, Mutex},
    };

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{
        engine::{
            executor::{AdmittedSequence, Executor, StepPlan},
            runner::{RunnerConfig, forward::Forward},
        },
        error::Error,
        ids::{SequenceId, TokenId},
        kernels::{follow::Chosen, sample::sample},
        layers::context::LinearObserver,
        params::SamplingParams,
    };

    const VOCAB: usize = 40;
    /// The row that has no sound logits.
    const BROKEN: u32 = 99;

    /// A model whose logits of a row depend on the row alone, and which chooses tokens itself, or not.
    struct Model {
        chooses: bool,
        /// Rows whose logits were asked for.
        fetched: Arc<Mutex<Vec<u32>>>,
    }

    fn logits(rows: &[u32]) -> Vec<f32> {
        let logit = |row: u32, id: u32| {
            if row == BROKEN { f32::NAN } else { ((id * 37 + row * 11) % 41) as f32 / 8.0 }
        };
        rows.iter().flat_map(|&row| (0..VOCAB as u32).map(move |id| logit(row, id))).collect()
    }

    impl Forward for Model {
        fn vocab_size(&self) -> usize {
            VOCAB
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
            self.fetched.lock().unwrap().extend(rows);
            Ok(logits(rows))
        }
        fn chooses(&self) -> bool {
            self.chooses
        }
        fn choose(&self, _: &Step<'_>, rows: &[u32], draws: &[Draw]) -> Result<Chosen> {
            sample(&Tensor::from_vec(logits(rows), (rows.len(), VOCAB), &Device::Cpu).unwrap(), draws)
        }
        fn states(&self, _: &[u32]) -> Result<Vec<f32>> {
            Err(Error::internal("nobody asks"))
        }
        fn end(&mut self) {}
    }

    /// The token of each row, none of one that failed, and the rows whose logits were asked for. A row is one of the model's and
    /// how it is sampled.
    fn step(chooses: bool, rows: &[(u32, SamplingParams)]) -> (Vec<Option<TokenId>>, Vec<u32>) {
        let config = RunnerConfig {
            num_blocks: 1,
            block_size: 1,
            num_states: 1,
            num_threads: 1,
            eos_token_ids: Vec::new(),
            filled_steps: None,
        };
        let fetched = Arc::default();
        let mut runner = Runner::over(Box::new(Model { chooses, fetched: Arc::clone(&fetched) }), &config).unwrap();
        let id = |k: usize| SequenceId(k as u64 + 1);
        let admitted = rows.iter().enumerate().map(|(k, (_, params))| AdmittedSequence {
            id: id(k),
            params: Arc::new(params.clone()),
            prompt: [TokenId(0)].into(),
            dry_breakers: [].into(),
            grammar: None,
            pooling: None,
            adapter: None,
        });
        // Rows of the model are tokens of the step, so a row stands where it says.
        let planned = rows.iter().enumerate().map(|(k, &(row, _))| PlannedRow {
            id: id(k),
            query: row as usize..row as usize + 1,
            blocks: 0..0,
            context_len: 0,
            samples: true,
            num_output_tokens: 0,
            prompt_targets: 0..0,
            max_new_tokens: 1,
            follows: None,
        });
        let plan = StepPlan {
            admitted: admitted.collect(),
            rows: planned.collect(),
            token_ids: vec![TokenId(0); BROKEN as usize + 1],
            positions: vec![0; BROKEN as usize + 1],
            ..StepPlan::default()
        };
        runner.submit(&plan).unwrap();
        let output = runner.collect().unwrap();
        assert_eq!(output.sequences.len() + output.failed.len(), rows.len());
        let token = |k| output.sequences.iter().find(|sequence| sequence.id == id(k)).map(|found| found.tokens[0].id);
        let tokens = (0..rows.len()).map(token).collect();
        let fetched = fetched.lock().unwrap().clone();
        (tokens, fetched)
    }

    fn drawn(seed: u64) -> SamplingParams {
        SamplingParams { seed: Some(seed), ..SamplingParams::default() }
    }

    fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    #[test]
    fn only_rows_that_ask_for_more_than_a_draw_have_their_logits_fetched() {
        let rows = [
            (0, greedy()),
            (1, drawn(1)),
            (2, SamplingParams { repetition_penalty: 1.1, ..drawn(2) }),
            (3, SamplingParams { temperature: 0.7, top_k: 5, top_p: 0.9, min_p: 0.01, ..drawn(3) }),
            (4, SamplingParams { logprobs: Some(1), ..greedy() }),
        ];
        let (tokens, fetched) = step(true, &rows);
        assert_eq!(fetched, [2, 4]);
        assert!(tokens.iter().all(Option::is_some));
        assert_eq!(step(false, &rows).1, [0, 1, 2, 3, 4], "a model that chooses nothing");
    }

    #[test]
    fn a_rows_token_does_not_depend_on_who_else_is_there() {
        let penalized = SamplingParams { repetition_penalty: 1.1, ..drawn(5) };
        for seed in 0..50 {
            let own = (7, SamplingParams { temperature: 1.5, top_k: 20, top_p: 0.9, ..drawn(seed) });
            let alone = step(true, std::slice::from_ref(&own)).0[0];
            let crowd = [(1, penalized.clone()), own, (2, greedy()), (3, drawn(4))];
            assert_eq!(step(true, &crowd).0[1], alone, "{seed}");
        }
        let alone = step(true, &[(2, greedy())]).0[0];
        assert_eq!(step(true, &[(1, drawn(1)), (2, greedy())]).0[1], alone, "among rows that are drawn");
    }

    #[test]
    fn what_is_drawn_is_what_the_sampler_draws_and_with_truncation_is_among_the_same_tokens() {
        let tokens = |chooses, params: SamplingParams| {
            let seeded = |seed| (seed as u32 % 20, SamplingParams { seed: Some(seed), ..params.clone() });
            step(chooses, &(0..400).map(seeded).collect::<Vec<_>>()).0
        };
        for temperature in [0.0, 0.4, 1.0, 3.0] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            assert_eq!(tokens(true, params.clone()), tokens(false, params), "temperature {temperature}");
        }
        for params in [
            SamplingParams { top_k: 4, ..drawn(0) },
            SamplingParams { top_p: 0.5, temperature: 0.8, ..drawn(0) },
            SamplingParams { min_p: 0.4, ..drawn(0) },
        ] {
            let of_row = |chooses| {
                let tokens = tokens(chooses, params.clone()).into_iter().enumerate();
                tokens.filter(|(seed, _)| seed % 20 == 3).map(|(_, token)| token.unwrap()).collect::<BTreeSet<_>>()
            };
            // 20 draws among a few tokens: whatever is drawn, nothing else is.
            let (ours, theirs) = (of_row(true), of_row(false));
            assert!(ours.len() > 1 && ours.union(&theirs).count() <= 9, "{params:?}: {ours:?} {theirs:?}");
        }
    }

    #[test]
    fn a_row_without_a_token_ends_alone() {
        for other in [greedy(), drawn(1)] {
            let (tokens, _) = step(true, &[(0, other.clone()), (BROKEN, other.clone()), (1, other)]);
            assert_eq!(tokens.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        }
    }
}
