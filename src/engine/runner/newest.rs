//! The newest step, whose tokens may still be on the card: how rows of the next one find them there, and how they come back.

use candle_core::Tensor;
use smallvec::smallvec;

use super::failure;
use crate::{
    engine::executor::{SequenceOutput, StepOutput, StepPlan},
    error::{Error, Result},
    ids::SequenceId,
    kernels::follow::{Chosen, NONE, follow},
    params::SampledToken,
};

/// Tokens that the model draws for some rows of a step.
pub(super) struct Drawn {
    /// Whose each is.
    pub(super) sequences: Vec<SequenceId>,
    pub(super) tokens: Chosen,
}

impl Drawn {
    /// Waits for them, and says whose they are. A row without one ends alone.
    ///
    /// # Errors
    /// `Internal` where the step went wrong.
    pub(super) fn wait(self, output: &mut StepOutput) -> Result<()> {
        for (id, token) in self.sequences.into_iter().zip(self.tokens.wait()?) {
            match token {
                Some(token) => output.sequences.push(SequenceOutput {
                    id,
                    tokens: smallvec![SampledToken { id: token, logprobs: None }],
                    num_written: 0,
                    complete: false,
                }),
                None => {
                    let why = "the model's logits hold a NaN or infinity, or nothing but -inf";
                    output.failed.push(failure(id, Error::internal(why)));
                }
            }
        }
        Ok(())
    }
}

/// What of a step the next one can go on from.
#[derive(Default)]
pub(super) struct Newest {
    may_be_followed: bool,
    /// Where the tokens are, and for each row which of them is its own, or [`NONE`].
    tokens: Option<(Tensor, Vec<u32>)>,
}

impl Newest {
    /// Of a step whose tokens were all `drawn`, by a model that `chooses`.
    pub(super) fn of(plan: &StepPlan, drawn: Option<&Drawn>, chooses: bool) -> Self {
        let tokens = drawn.map(|drawn| {
            let mut sequences = drawn.sequences.iter().zip(0..).peekable();
            // They were drawn in the order of their rows.
            let mut place = |id| sequences.next_if(|&(&other, _)| other == id).map_or(NONE, |(_, place)| place);
            (drawn.tokens.tokens().clone(), plan.rows.iter().map(|row| place(row.id)).collect())
        });
        Self { may_be_followed: chooses, tokens }
    }

    /// Whether the next step may be submitted before this one is collected.
    pub(super) fn may_be_followed(&self) -> bool {
        self.may_be_followed
    }

    /// The ids of the next step, where rows of it follow rows of this one: on the device, since the host may not know them yet.
    ///
    /// # Errors
    /// `Internal` where a row follows one that chose nothing.
    pub(super) fn ids_of(&self, plan: &StepPlan) -> Result<Option<Tensor>> {
        let mut places = Vec::new();
        for row in &plan.rows {
            let Some(k) = row.follows else { continue };
            let of_row = self.tokens.as_ref().and_then(|(_, of_rows)| of_rows.get(k as usize));
            let place = of_row.copied().filter(|&place| place != NONE && row.query.len() == 1);
            let place = place.ok_or_else(|| {
                Error::internal(format!("sequence {} follows row {k} of the step before, which chose nothing", row.id))
            })?;
            places.resize(plan.token_ids.len(), NONE);
            places[row.query.start] = place;
        }
        let followed = self.tokens.as_ref().filter(|_| !places.is_empty());
        followed.map(|(tokens, _)| follow(&plan.token_ids, &places, tokens)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        time::Instant,
    };

    use candle_core::Device;

    use super::*;
    use crate::{
        config::EngineConfig,
        engine::{
            executor::Executor,
            runner::{
                Runner, RunnerConfig,
                forward::{Forward, Step},
            },
            scheduler::{End, Event, Scheduler},
            sequence::{Reader, Sequence},
        },
        ids::TokenId,
        kernels::sample::{Draw, sample},
        layers::context::LinearObserver,
        params::SamplingParams,
    };

    const VOCAB: u32 = 40;
    /// What comes after it is no number.
    const BROKEN: u32 = 39;

    /// A model whose logits depend on a token and its position, and which chooses tokens itself.
    #[derive(Default)]
    struct Model {
        ids: Vec<u32>,
        positions: Vec<u32>,
        /// Steps whose ids the host did not know.
        unknown: Arc<AtomicUsize>,
    }

    impl Forward for Model {
        fn vocab_size(&self) -> usize {
            VOCAB as usize
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
        fn observe(&mut self, _: Arc<dyn LinearObserver>) {}
        fn begin(&mut self, _: &StepPlan) -> Result<()> {
            Ok(())
        }
        fn compute(&mut self, step: &Step<'_>) -> Result<()> {
            self.unknown.fetch_add(usize::from(step.placed_ids.is_some()), Relaxed);
            self.ids = match &step.placed_ids {
                Some(ids) => ids.to_vec1()?,
                None => step.plan.token_ids.iter().map(|id| id.0).collect(),
            };
            self.positions = step.plan.positions.clone();
            Ok(())
        }
        fn logits(&self, _: &Step<'_>, rows: &[u32]) -> Result<Vec<f32>> {
            let logit = |row: &u32, id: u32| match (self.ids[*row as usize], self.positions[*row as usize]) {
                (BROKEN, _) => f32::NAN,
                (before, position) => ((before * 37 + position * 11 + id * 17) % 41) as f32 / 8.0,
            };
            Ok(rows.iter().flat_map(|row| (0..VOCAB).map(move |id| logit(row, id))).collect())
        }
        fn chooses(&self) -> bool {
            true
        }
        fn choose(&self, step: &Step<'_>, rows: &[u32], draws: &[Draw]) -> Result<Chosen> {
            let logits = Tensor::from_vec(self.logits(step, rows)?, (rows.len(), VOCAB as usize), &Device::Cpu)?;
            sample(&logits, draws)
        }
        fn states(&self, _: &[u32]) -> Result<Vec<f32>> {
            Err(Error::internal("nobody asks"))
        }
        fn end(&mut self) {}
    }

    struct Roomy;

    impl Reader for Roomy {
        fn room(&self) -> usize {
            1 << 20
        }
        fn capacity(&self) -> usize {
            1 << 20
        }
        fn cancelled(&self) -> bool {
            false
        }
    }

    /// What each sequence said, and whether it failed.
    type Answers = BTreeMap<SequenceId, (Vec<TokenId>, bool)>;

    /// Answers to sequences that are sampled in turn as `kinds` say, and in how many steps the host did not know all ids.
    fn answers(overlaps: bool, kinds: &[SamplingParams]) -> (Answers, usize) {
        let config = EngineConfig {
            block_size: 4,
            num_blocks: 24,
            max_model_len: 48,
            max_num_batched_tokens: 16,
            max_num_seqs: 5,
            ..EngineConfig::default()
        };
        let (model, mut scheduler) = (Model::default(), Scheduler::new(&config, 1));
        let unknown = Arc::clone(&model.unknown);
        let of_runner = RunnerConfig {
            num_blocks: 24,
            block_size: 4,
            num_states: 1,
            num_threads: 1,
            eos_token_ids: Vec::new(),
            filled_steps: None,
        };
        let mut runner = Runner::over(Box::new(model), &of_runner).unwrap();
        let (mut plan, mut events, mut under_way, mut next) = (StepPlan::default(), Vec::new(), 0, 0u64);
        while next < 30 || scheduler.has_work() {
            if next < 30 {
                let kind = &kinds[next as usize % kinds.len()];
                let (seed, max_tokens) = (Some(next), Some(3 + next as u32 * 5 % 23));
                let params = SamplingParams { seed, max_tokens, stop_token_ids: vec![TokenId(3)], ..kind.clone() };
                let prompt: Vec<_> = (0..1 + next * 3 % 20).map(|k| TokenId(((next + k) % 30) as u32)).collect();
                let sequence = Sequence::new(SequenceId(next), prompt.into(), Arc::new(params), Arc::new(Roomy));
                scheduler.add(sequence).unwrap();
                next += 1;
            }
            let submits = scheduler.schedule(Instant::now(), &mut plan, &mut events);
            if submits {
                runner.submit(&plan).unwrap();
                under_way += 1;
            }
            let stays = overlaps && submits && runner.runs_ahead() && scheduler.go_ahead();
            while under_way > usize::from(stays) {
                under_way -= 1;
                scheduler.apply(runner.collect().unwrap(), &mut events).unwrap();
            }
        }
        assert_eq!(runner.num_sequences(), 0);
        let mut answers = Answers::new();
        for event in events {
            match event {
                Event::Tokens { id, tokens } => answers.entry(id).or_default().0.extend(tokens.iter().map(|t| t.id)),
                Event::Ended { id, end, .. } => answers.entry(id).or_default().1 = matches!(end, End::Failed(_)),
                Event::Started { .. } | Event::Prompt { .. } => {}
            }
        }
        (answers, unknown.load(Relaxed))
    }

    #[test]
    fn answers_are_the_same_whether_or_not_the_host_knows_the_tokens_that_they_go_on_from() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let drawn = SamplingParams { temperature: 1.3, top_k: 12, top_p: 0.95, ..SamplingParams::default() };
        let penalized = SamplingParams { repetition_penalty: 1.2, ..SamplingParams::default() };
        for (kinds, most) in [(vec![greedy, drawn.clone()], false), (vec![drawn, penalized], true)] {
            let (alone, none) = answers(false, &kinds);
            let (overlapped, some) = answers(true, &kinds);
            assert_eq!(overlapped, alone);
            assert!(none == 0 && some > if most { 0 } else { 20 }, "{some} steps had ids that the host did not know");
            let failed = alone.values().filter(|(_, failed)| *failed).count();
            assert!(alone.len() == 30 && failed > 0 && failed < 30, "{failed} of 30 fail");
        }
    }

    #[test]
    fn a_row_that_follows_none_that_chose_is_refused() {
        let of_runner = RunnerConfig {
            num_blocks: 1,
            block_size: 1,
            num_states: 1,
            num_threads: 1,
            eos_token_ids: Vec::new(),
            filled_steps: None,
        };
        let mut runner = Runner::over(Box::new(Model::default()), &of_runner).unwrap();
        let mut scheduler = Scheduler::new(&EngineConfig::default(), 1);
        let prompt = [TokenId(1)].into();
        scheduler.add(Sequence::new(SequenceId(1), prompt, Arc::default(), Arc::new(Roomy))).unwrap();
        let (mut plan, mut events) = (StepPlan::default(), Vec::new());
        assert!(scheduler.schedule(Instant::now(), &mut plan, &mut events) && scheduler.go_ahead());
        assert!(scheduler.schedule(Instant::now(), &mut plan, &mut events));
        let error = runner.submit(&plan).unwrap_err();
        assert!(error.message.contains("follows row 0"), "{error}");
    }
}
