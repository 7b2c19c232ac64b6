//! The real [`Executor`]: packs a [`StepPlan`] into what the model takes, runs it, and samples.

mod constrained;
mod pools;
mod states;

use self::{
    constrained::{Constrained, Constraints},
    pools::Pools,
    states::States,
};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Weak},
};

use candle_core::{Device, Tensor};
use smallvec::{SmallVec, smallvec};

use crate::{
    arch::Model,
    engine::executor::{Executor, ParamsEdit, PlannedRow, Rewind, SequenceOutput, StepOutput, StepPlan},
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    kernels::{
        paged_attention::AttentionMetadata,
        pool::{Pool, for_each_mut},
        spare,
    },
    layers::{
        context::{KvCache, LinearObserver, StepContext},
        lora::{Adapter, AdapterRows},
    },
    params::{PromptLogprobs, SampledToken},
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
}

/// Runs steps of one model on one KV cache.
///
/// A step is computed when it is submitted; its output waits to be collected. All work, sampling included, happens on
/// the runner's own thread pool.
pub struct Runner {
    model: Arc<dyn Model>,
    kv: KvCache,
    pool: Arc<Pool>,
    eos_token_ids: Vec<TokenId>,
    /// Of the sequences that were admitted and not retired.
    samplers: HashMap<SequenceId, Box<Sampling>>,
    /// Of those whose output must match a grammar: where in it they stand.
    constraints: Constraints,
    /// Of those whose hidden states are wanted: what has come of them.
    pools: Pools,
    /// Of those that hold blocks: what recurrent layers keep.
    states: States,
    /// Steps submitted and not collected.
    outputs: VecDeque<StepOutput>,
    /// Reused from step to step.
    attention: AttentionMetadata,
    observer: Option<Arc<dyn LinearObserver>>,
}

impl Runner {
    /// A runner with its own KV cache and threads.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible sizes, `Internal` where threads cannot be started.
    pub fn new(model: Arc<dyn Model>, config: &RunnerConfig) -> Result<Self> {
        let kv = model.new_kv_cache(config.num_blocks, config.block_size)?;
        let states = States::new(model.new_states(config.num_states)?);
        let pool = Pool::new(config.num_threads)?;
        Ok(Self {
            model,
            kv,
            pool: Arc::new(pool),
            eos_token_ids: config.eos_token_ids.clone(),
            samplers: HashMap::new(),
            constraints: Constraints::default(),
            pools: Pools::default(),
            states,
            outputs: VecDeque::new(),
            attention: AttentionMetadata::default(),
            observer: None,
        })
    }

    /// Tells `observer` of every Linear that runs from now on.
    pub fn observe(&mut self, observer: Arc<dyn LinearObserver>) {
        self.observer = Some(observer);
    }

    /// Sequences whose state is held.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.samplers.len() + self.pools.len()
    }

    /// Sequences that recurrent layers keep something of.
    #[must_use]
    pub fn num_states(&self) -> usize {
        self.states.num_taken()
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        for id in &plan.retired {
            self.samplers.remove(id);
            self.constraints.remove(*id);
            self.pools.remove(*id);
        }
        let vocab_size = self.model.config().vocab_size;
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
        let copies = plan.block_copies.iter().map(|copy| (copy.source, copy.destination)).collect::<Vec<_>>();
        self.kv.copy_blocks(&copies)?;
        self.states.follow(plan)?;
        if plan.token_ids.is_empty() {
            return Ok(StepOutput::default());
        }
        pack(&mut self.attention, plan, self.kv.shape().block_size);
        let samples = |row: &&PlannedRow| row.samples && !row.query.is_empty() && !self.pools.contains(row.id);
        let sampling = plan.rows.iter().filter(samples).collect::<Vec<_>>();
        let logit_rows = sampling.iter().map(|row| row.query.end as u32 - 1).collect::<Vec<_>>();
        let adapters = self.adapters(plan)?;
        let step = StepContext {
            adapters: adapters.as_ref(),
            positions: &plan.positions,
            slot_mapping: &plan.slot_mapping,
            attention: &self.attention,
            kv: &self.kv,
            states: self.states.of_step(),
            observer: self.observer.as_deref(),
        };
        let hidden = self.model.hidden(&plan.token_ids, &step)?;
        let prompts = self.prompt_logprobs(plan, &hidden, &step)?;
        let pooled = self.pools.take_in(plan, |rows| floats(&self.model.states(&hidden, rows)?))?;
        if sampling.is_empty() {
            return Ok(StepOutput { prompts, pooled, ..StepOutput::default() });
        }
        let mut logits = floats(&self.model.logits(&hidden, &logit_rows, &step)?)?;
        spare::give_back(hidden);
        let output = self.sample(&sampling, &mut logits, vocab_size);
        spare::keep(logits);
        Ok(StepOutput { prompts, pooled, ..output? })
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
        AdapterRows::new(ranges.into_iter(), plan.token_ids.len(), self.model.adaptable().1)
    }

    /// The log-probabilities of the prompts' tokens that the rows ask for, a few rows of logits at a time, so that a
    /// long prompt takes no more memory than a short one.
    fn prompt_logprobs(
        &self,
        plan: &StepPlan,
        hidden: &Tensor,
        step: &StepContext<'_>,
    ) -> Result<Vec<(SequenceId, PromptLogprobs)>> {
        let mut prompts = Vec::new();
        for row in plan.rows.iter().filter(|row| !row.prompt_targets.is_empty()) {
            let sequence = self.samplers.get(&row.id);
            let sequence =
                sequence.ok_or_else(|| Error::internal(format!("sequence {} was never admitted", row.id)))?;
            let targets = row.prompt_targets.clone();
            let mut tokens = Vec::with_capacity(targets.len());
            for start in targets.clone().step_by(PROMPT_ROWS as usize) {
                let positions = start..targets.end.min(start + PROMPT_ROWS);
                // The token before predicts it.
                let first = row.query.start as u32 + (start - 1 - row.context_len);
                let logit_rows: Vec<u32> = (first..first + positions.len() as u32).collect();
                let logits = floats(&self.model.logits(hidden, &logit_rows, step)?)?;
                tokens.extend(sequence.given(positions, &logits)?);
                spare::keep(logits);
            }
            prompts.push((row.id, PromptLogprobs { start: targets.start, tokens }));
        }
        Ok(prompts)
    }

    /// Samples a token for each row from its logits, which are overwritten, rows in parallel.
    fn sample(&mut self, rows: &[&PlannedRow], logits: &mut [f32], vocab_size: usize) -> Result<StepOutput> {
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
        let mut output = StepOutput { sequences: Vec::with_capacity(work.len()), ..StepOutput::default() };
        let mut broken = Ok(());
        for (row, _, mut sampling) in work {
            let (constrained, sampled) = (sampling.constrained.take(), sampling.sampled.take());
            let of_grammar = constrained.as_ref().is_some_and(Result::is_err);
            self.samplers.insert(row.id, sampling);
            self.constraints.go_on(row.id, constrained);
            match sampled {
                Some(Ok((tokens, complete))) => {
                    output.sequences.push(SequenceOutput { id: row.id, tokens, num_written: 0, complete });
                }
                // The request's own doing, and its own end.
                Some(Err(error)) if of_grammar || matches!(error.code, Code::Aborted | Code::InvalidArgument) => {
                    output.failed.push((row.id, error));
                }
                Some(Err(error)) => broken = broken.and(Err(error)),
                None => broken = broken.and(Err(Error::internal("a row was not sampled"))),
            }
        }
        broken.map(|()| output)
    }
}

/// New tokens of a row, and whether nothing may follow them.
type Sampled = (SmallVec<[SampledToken; 1]>, bool);

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

/// The numbers of a tensor that nobody else reads, taken out of it where it is on the CPU: a vocabulary of logits a row is
/// too much to copy.
fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(spare::take(&tensor.to_device(&Device::Cpu)?.contiguous()?)?)
}

/// Fills the metadata of attention from a plan's rows.
fn pack(attention: &mut AttentionMetadata, plan: &StepPlan, block_size: usize) {
    let AttentionMetadata { block_size: size, cu_seqlens, context_lens, block_tables, cu_blocks } = attention;
    *size = block_size;
    for ends in [&mut *cu_seqlens, &mut *cu_blocks] {
        ends.clear();
        ends.push(0);
    }
    cu_seqlens.extend(plan.rows.iter().map(|row| row.query.end as u32));
    cu_blocks.extend(plan.rows.iter().map(|row| row.blocks.end as u32));
    context_lens.clear();
    context_lens.extend(plan.rows.iter().map(|row| row.context_len));
    block_tables.clone_from(&plan.block_tables);
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
        self.outputs.pop_front().ok_or_else(|| Error::internal("a step was collected that nobody submitted"))
    }
}
