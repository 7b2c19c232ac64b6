//! The real [`Executor`]: packs a [`StepPlan`] into what the model takes, runs it, and samples.

mod chosen;
mod constrained;
mod copies;
mod decoding;
mod forward;
mod newest;
mod paged;
mod pools;
mod states;

use self::{
    constrained::{Constrained, Constraints},
    copies::Copies,
    forward::{Forward, Step},
    newest::{Drawn, Newest},
    paged::Paged,
    pools::Pools,
};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Weak},
};

use smallvec::smallvec;

use crate::{
    arch::{Model, long_tail::LongTail},
    engine::executor::{Executor, ParamsEdit, PlannedRow, Rewind, SequenceOutput, StepOutput, StepPlan},
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    kernels::{
        pool::{Pool, for_each_mut},
        spare,
    },
    layers::{
        context::LinearObserver,
        lora::{Adapter, AdapterRows},
    },
    params::{PromptLogprobs, SampledToken, SampledTokens},
    sampling::{Sampler, SamplingContext, logprobs_of_given},
};

/// What a [`Runner`] is made with.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Sequences that hold blocks at once, of a model that keeps states beside them.
    pub num_states: usize,
    /// Threads to compute with; 0 is one a core.
    pub num_threads: usize,
    /// Tokens that end a sequence, which `min_tokens` holds back.
    pub eos_token_ids: Vec<TokenId>,
    /// Steps that are filled up to a few sizes, where that makes them faster.
    pub filled_steps: Option<FilledSteps>,
}

/// Steps of one token a sequence, filled up to a few numbers of rows, so that a card has each of these recorded and runs it with one
/// launch. Any other device computes the rows that nobody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilledSteps {
    /// Sequences; larger steps are computed as they come.
    pub most_rows: usize,
    /// Tokens that a sequence may have.
    pub max_model_len: usize,
}

/// Runs steps of one model on one KV cache, or with a copy of the model for each sequence.
///
/// A step is computed when it is submitted; its output waits to be collected. All work, sampling included, happens on
/// the runner's own thread pool. On a card a step is queued when it is submitted, and where the card chooses all of its tokens
/// nobody waits for it before it is collected: the next one may be submitted meanwhile.
pub struct Runner {
    model: Box<dyn Forward>,
    pool: Arc<Pool>,
    eos_token_ids: Vec<TokenId>,
    /// Of the sequences that were admitted and not retired.
    samplers: HashMap<SequenceId, Box<Sampling>>,
    /// Of those whose output must match a grammar: where in it they stand.
    constraints: Constraints,
    /// Of those whose hidden states are wanted: what has come of them.
    pools: Pools,
    /// What rows of the next step may follow.
    newest: Newest,
    /// Steps submitted and not collected, and the tokens of theirs that are still to come.
    outputs: VecDeque<(StepOutput, Option<Drawn>)>,
}

impl Runner {
    /// A runner with its own KV cache and threads.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible sizes, `Internal` where threads cannot be started.
    pub fn new(model: Arc<dyn Model>, config: &RunnerConfig) -> Result<Self> {
        Self::over(Box::new(Paged::new(model, config)?), config)
    }

    /// A runner that gives each sequence a copy of its own of a model of the long tail.
    ///
    /// # Errors
    /// `Internal` where threads cannot be started.
    pub fn with_copies(model: Arc<LongTail>, config: &RunnerConfig) -> Result<Self> {
        Self::over(Box::new(Copies::new(model)), config)
    }

    fn over(model: Box<dyn Forward>, config: &RunnerConfig) -> Result<Self> {
        let pool = Pool::new(config.num_threads)?;
        Ok(Self {
            model,
            pool: Arc::new(pool),
            eos_token_ids: config.eos_token_ids.clone(),
            samplers: HashMap::new(),
            constraints: Constraints::default(),
            pools: Pools::default(),
            newest: Newest::default(),
            outputs: VecDeque::new(),
        })
    }

    /// Tells `observer` of every Linear that runs from now on.
    pub fn observe(&mut self, observer: Arc<dyn LinearObserver>) {
        self.model.observe(observer);
    }

    /// Copies of the model that sequences have; 0 of one that runs over blocks.
    #[must_use]
    pub fn num_copies(&self) -> usize {
        self.model.num_copies()
    }

    /// Sequences whose state is held.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.samplers.len() + self.pools.len()
    }

    /// Sequences that recurrent layers keep something of.
    #[must_use]
    pub fn num_states(&self) -> usize {
        self.model.num_states()
    }

    fn run(&mut self, plan: &StepPlan) -> Result<(StepOutput, Option<Drawn>)> {
        let newest = std::mem::take(&mut self.newest);
        for id in &plan.retired {
            self.samplers.remove(id);
            self.constraints.remove(*id);
            self.pools.remove(*id);
        }
        let vocab_size = self.model.vocab_size();
        for sequence in &plan.admitted {
            if let Some(pooling) = sequence.pooling {
                self.pools.admit(sequence.id, pooling);
                continue;
            }
            let context = SamplingContext {
                prompt: &sequence.prompt,
                eos_token_ids: &self.eos_token_ids,
                vocab_size,
                dry_breakers: &sequence.dry_breakers,
            };
            let sampler = Sampler::new(&sequence.params, &context)?;
            let prompt = sequence.params.prompt_logprobs.map(|n| (sequence.prompt.clone(), n as usize));
            let adapter = sequence.adapter.clone();
            let sampling = Sampling { sampler, prompt, adapter, constrained: None, sampled: None };
            self.samplers.insert(sequence.id, Box::new(sampling));
            self.constraints.admit(sequence, &self.eos_token_ids)?;
        }
        for Rewind { id, index, removed } in &plan.rewinds {
            if let Some(sequence) = self.samplers.get_mut(id) {
                sequence.sampler.rewind(*index, removed);
            }
        }
        for edit in &plan.edits {
            if let Some(sequence) = self.samplers.get_mut(&edit.id) {
                sequence.sampler = self::resumed(edit, &self.eos_token_ids, vocab_size)?;
            }
        }
        self.model.begin(plan)?;
        if plan.token_ids.is_empty() {
            return Ok((StepOutput::default(), None));
        }
        let samples = |row: &&PlannedRow| row.samples && !row.query.is_empty() && !self.pools.contains(row.id);
        let sampling = plan.rows.iter().filter(samples).collect::<Vec<_>>();
        let adapters = self.adapters(plan)?;
        let decodes = adapters.is_none() && plan.rows.iter().all(|row| self.decodes(row));
        let step = Step { plan, adapters, placed_ids: newest.ids_of(plan)?, decodes };
        self.model.compute(&step)?;
        let mut output = StepOutput::default();
        self.prompt_logprobs(&step, &mut output)?;
        output.pooled = self.pools.take_in(plan, |rows| self.model.states(rows))?;
        let (drawn, sampling) = self.choose(&step, sampling)?;
        if sampling.is_empty() {
            self.newest = Newest::of(plan, drawn.as_ref(), self.model.chooses());
            self.model.end();
            return Ok((output, drawn));
        }
        let mut logits = self.model.logits(&step, &logit_rows(&sampling))?;
        self.model.end();
        let sampled = self.sample(&sampling, &mut logits, vocab_size, &mut output);
        spare::keep(logits);
        sampled.map(|()| (output, drawn))
    }

    /// Whether a row is one token, of which nothing is asked but logits.
    fn decodes(&self, row: &PlannedRow) -> bool {
        row.query.len() == 1 && row.samples && row.prompt_targets.is_empty() && !self.pools.contains(row.id)
    }

    /// Which of the step's rows go through which adapters.
    fn adapters(&self, plan: &StepPlan) -> Result<Option<AdapterRows>> {
        let mut ranges = Vec::new();
        for row in &plan.rows {
            let Some(adapter) = self.samplers.get(&row.id).and_then(|sequence| sequence.adapter.as_ref()) else {
                continue;
            };
            let adapter = adapter.upgrade();
            let adapter =
                adapter.ok_or_else(|| Error::internal(format!("the adapter of sequence {} is gone", row.id)))?;
            ranges.push((adapter, row.query.clone()));
        }
        AdapterRows::new(ranges.into_iter(), plan.token_ids.len(), self.model.device())
    }

    /// The log-probabilities of the prompts' tokens that the rows ask for, a few rows of logits at a time, so that a
    /// long prompt takes no more memory than a short one.
    fn prompt_logprobs(&self, step: &Step<'_>, output: &mut StepOutput) -> Result<()> {
        for row in step.plan.rows.iter().filter(|row| !row.prompt_targets.is_empty()) {
            let sequence = self.samplers.get(&row.id);
            let sequence =
                sequence.ok_or_else(|| Error::internal(format!("sequence {} was never admitted", row.id)))?;
            let targets = row.prompt_targets.clone();
            let (mut tokens, mut failed) = (Vec::with_capacity(targets.len()), None);
            for start in targets.clone().step_by(PROMPT_ROWS as usize) {
                let positions = start..targets.end.min(start + PROMPT_ROWS);
                // The token before predicts it.
                let first = row.query.start as u32 + (start - 1 - row.context_len);
                let logit_rows: Vec<u32> = (first..first + positions.len() as u32).collect();
                let logits = self.model.logits(step, &logit_rows)?;
                match sequence.given(positions, &logits) {
                    Ok(given) => tokens.extend(given),
                    Err(error) => failed = Some(error),
                }
                spare::keep(logits);
            }
            match failed {
                None => output.prompts.push((row.id, PromptLogprobs { start: targets.start, tokens })),
                Some(error) => output.failed.push(failure(row.id, error)),
            }
        }
        Ok(())
    }

    /// Samples a token for each row from its logits, which are overwritten, rows in parallel.
    fn sample(
        &mut self,
        rows: &[&PlannedRow],
        logits: &mut [f32],
        vocab_size: usize,
        output: &mut StepOutput,
    ) -> Result<()> {
        // Each row takes its own sampler and place in its grammar out of the maps, so that they can run side by side.
        let mut work = Vec::with_capacity(rows.len());
        for (row, logits) in rows.iter().zip(logits.chunks_exact_mut(vocab_size)) {
            let sampling = self.samplers.remove(&row.id);
            let mut sampling =
                sampling.ok_or_else(|| Error::internal(format!("sequence {} was never admitted", row.id)))?;
            sampling.constrained = self.constraints.wait_for(row.id);
            work.push((*row, logits, sampling));
        }
        for_each_mut(&mut work, |(row, logits, sampling)| sampling.sample(row, logits));
        output.sequences.reserve(work.len());
        let mut broken = Ok(());
        for (row, _, mut sampling) in work {
            let (constrained, sampled) = (sampling.constrained.take(), sampling.sampled.take());
            self.samplers.insert(row.id, sampling);
            self.constraints.go_on(row.id, constrained);
            match sampled {
                Some(Ok((tokens, complete))) => {
                    output.sequences.push(SequenceOutput { id: row.id, tokens, num_written: 0, complete });
                }
                // Its logits, its grammar and its wishes are a row's own, and so is its end.
                Some(Err(error)) => output.failed.push(failure(row.id, error)),
                None => broken = Err(Error::internal("a row was not sampled")),
            }
        }
        broken
    }
}

/// The tokens of a step whose logits these rows are sampled from, which have some.
fn logit_rows(rows: &[&PlannedRow]) -> Vec<u32> {
    rows.iter().map(|row| row.query.end as u32 - 1).collect()
}

/// The end of a sequence, alone. Whoever runs the server hears of it where the request is not to blame: weights or an
/// adapter whose numbers overflow do that.
fn failure(id: SequenceId, error: Error) -> (SequenceId, Error) {
    if error.code == Code::Internal {
        tracing::error!(%error, "sequence {id} ends");
    }
    (id, error)
}

/// New tokens of a row, and whether nothing may follow them.
type Sampled = (SampledTokens, bool);

/// Rows of logits that are held at once for a prompt's log-probabilities.
const PROMPT_ROWS: u32 = 32;

/// What is kept of an admitted sequence.
struct Sampling {
    sampler: Sampler,
    /// The prompt, and how many alternatives are reported a token, where its log-probabilities are asked for.
    prompt: Option<(Arc<[TokenId]>, usize)>,
    /// What stands beside the model's weights for it, as long as there are rows of it.
    adapter: Option<Weak<Adapter>>,
    /// Its place in its grammar while its row is sampled, where it has one.
    constrained: Option<Result<Constrained>>,
    /// What a step chose, until it is collected.
    sampled: Option<Result<Sampled>>,
}

impl Sampling {
    /// Chooses a row's next tokens from its logits.
    fn sample(&mut self, row: &PlannedRow, logits: &mut [f32]) {
        let Self { sampler, constrained, sampled, .. } = self;
        let chosen = match constrained {
            // A NaN is an error of ours; the sampler says so rather than choosing an arbitrary token.
            None => sampler.sample(logits, row.num_output_tokens).map(|token| (smallvec![token], false)),
            Some(Ok(constrained)) => constrained.sample(row, logits, sampler),
            Some(Err(error)) => Err(error.clone()),
        };
        *sampled = Some(chosen.map_err(|e| e.context(format_args!("sequence {}", row.id))));
    }

    /// The prompt's tokens at `positions` with their log-probabilities, from the logits that predict them.
    fn given(&self, positions: Range<u32>, logits: &[f32]) -> Result<Vec<SampledToken>> {
        let (prompt, n) = self.prompt.as_ref().ok_or_else(|| Error::internal("a prompt that was not kept"))?;
        let ids = prompt.get(positions.start as usize..positions.end as usize).unwrap_or_default();
        let rows = logits.chunks_exact(logits.len() / ids.len().max(1));
        let mut work: Vec<_> = ids.iter().zip(rows).map(|(&id, row)| (id, row, None)).collect();
        for_each_mut(&mut work, |(id, row, found)| *found = Some(logprobs_of_given(row, *id, *n)));
        let token = |(id, _, found): (TokenId, _, Option<Result<_>>)| {
            let logprobs = found.ok_or_else(|| Error::internal("a row was not looked at"))??;
            Ok(SampledToken { id, logprobs: Some(Box::new(logprobs)) })
        };
        work.into_iter().map(token).collect()
    }
}

/// A sampler that has seen what the sequence said so far. Mirostat begins anew.
fn resumed(edit: &ParamsEdit, eos_token_ids: &[TokenId], vocab_size: usize) -> Result<Sampler> {
    let (prompt, dry_breakers) = (&edit.prompt[..], &edit.dry_breakers[..]);
    let context = SamplingContext { prompt, eos_token_ids, vocab_size, dry_breakers };
    let mut sampler = Sampler::new(&edit.params, &context)?;
    edit.output.iter().for_each(|&token| sampler.observe_forced(token));
    Ok(sampler)
}

impl Executor for Runner {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        let pool = Arc::clone(&self.pool);
        let output = pool.install(|| self.run(plan))?;
        self.outputs.push_back(output);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        let (mut output, drawn) =
            self.outputs.pop_front().ok_or_else(|| Error::internal("a step was collected that nobody submitted"))?;
        if let Some(drawn) = drawn {
            drawn.wait(&mut output)?;
        }
        Ok(output)
    }

    fn runs_ahead(&self) -> bool {
        self.newest.may_be_followed()
    }
}
