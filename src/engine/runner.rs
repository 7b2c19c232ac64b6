//! The real [`Executor`]: packs a [`StepPlan`] into what the model takes, runs it, and samples.

mod constrained;

use self::constrained::{Constrained, Constraints};
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor};
use smallvec::{SmallVec, smallvec};

use crate::{
    arch::Model,
    engine::executor::{Executor, PlannedRow, SequenceOutput, StepOutput, StepPlan},
    error::{Error, Result},
    ids::{SequenceId, TokenId},
    kernels::{
        paged_attention::AttentionMetadata,
        pool::{Pool, for_each_mut},
    },
    layers::context::{KvCache, LinearObserver, StepContext},
    sampling::Sampler,
};

/// What a [`Runner`] is made with.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
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
    samplers: HashMap<SequenceId, Sampler>,
    /// Of those whose output must match a grammar: where in it they stand.
    constraints: Constraints,
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
        let pool = Pool::new(config.num_threads)?;
        Ok(Self {
            model,
            kv,
            pool: Arc::new(pool),
            eos_token_ids: config.eos_token_ids.clone(),
            samplers: HashMap::new(),
            constraints: Constraints::default(),
            outputs: VecDeque::new(),
            attention: AttentionMetadata::default(),
            observer: None,
        })
    }

    /// Tells `observer` of every Linear that runs from now on.
    pub fn observe(&mut self, observer: Arc<dyn LinearObserver>) {
        self.observer = Some(observer);
    }

    /// Sequences whose sampling state is held.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.samplers.len()
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        for id in &plan.retired {
            self.samplers.remove(id);
            self.constraints.remove(*id);
        }
        let vocab_size = self.model.config().vocab_size;
        for sequence in &plan.admitted {
            let sampler = Sampler::new(&sequence.params, &sequence.prompt, &self.eos_token_ids, vocab_size)?;
            self.samplers.insert(sequence.id, sampler);
            self.constraints.admit(sequence, &self.eos_token_ids)?;
        }
        let copies = plan.block_copies.iter().map(|copy| (copy.source, copy.destination)).collect::<Vec<_>>();
        self.kv.copy_blocks(&copies)?;
        if plan.token_ids.is_empty() {
            return Ok(StepOutput::default());
        }
        pack(&mut self.attention, plan, self.kv.shape().block_size);
        let sampling = plan.rows.iter().filter(|row| row.samples && !row.query.is_empty()).collect::<Vec<_>>();
        let logit_rows = sampling.iter().map(|row| row.query.end as u32 - 1).collect::<Vec<_>>();
        let step = StepContext {
            positions: &plan.positions,
            slot_mapping: &plan.slot_mapping,
            attention: &self.attention,
            kv: &self.kv,
            observer: self.observer.as_deref(),
        };
        let logits = self.model.forward(&plan.token_ids, &logit_rows, &step)?;
        if sampling.is_empty() {
            return Ok(StepOutput::default());
        }
        let mut logits = floats(logits)?;
        self.sample(&sampling, &mut logits, vocab_size)
    }

    /// Samples a token for each row from its logits, which are overwritten, rows in parallel.
    fn sample(&mut self, rows: &[&PlannedRow], logits: &mut [f32], vocab_size: usize) -> Result<StepOutput> {
        // Each row takes its own sampler and place in its grammar out of the maps, so that they can run side by side.
        let mut work = Vec::with_capacity(rows.len());
        for (row, logits) in rows.iter().zip(logits.chunks_exact_mut(vocab_size)) {
            let sampler = self.samplers.remove(&row.id);
            let sampler = sampler.ok_or_else(|| Error::internal(format!("sequence {} was never admitted", row.id)))?;
            let constrained = self.constraints.wait_for(row.id);
            work.push(RowWork { row, logits, sampler, constrained, output: None });
        }
        for_each_mut(&mut work, RowWork::run);
        let mut sequences = Vec::with_capacity(work.len());
        let mut failed = Ok(());
        for RowWork { row, sampler, constrained, output, .. } in work {
            self.samplers.insert(row.id, sampler);
            self.constraints.go_on(row.id, constrained);
            match output {
                Some(Ok(output)) => sequences.push(output),
                Some(Err(error)) => failed = failed.and(Err(error)),
                None => failed = failed.and(Err(Error::internal("a row was not sampled"))),
            }
        }
        failed.map(|()| StepOutput { sequences })
    }
}

/// What choosing a row's next tokens takes.
struct RowWork<'a> {
    row: &'a PlannedRow,
    logits: &'a mut [f32],
    sampler: Sampler,
    constrained: Option<Result<Constrained>>,
    output: Option<Result<SequenceOutput>>,
}

impl RowWork<'_> {
    fn run(&mut self) {
        let Self { row, logits, sampler, constrained, output } = self;
        let sampled = match constrained {
            // A NaN is an error of ours; the sampler says so rather than choosing an arbitrary token.
            None => sampler.sample(logits, row.num_output_tokens).map(|token| (smallvec![token], None)),
            Some(Ok(constrained)) => constrained.sample(row, logits, sampler),
            Some(Err(error)) => Ok((SmallVec::new(), Some(Err(error.clone())))),
        };
        let sampled = sampled.map_err(|e| e.context(format_args!("sequence {}", row.id)));
        *output = Some(sampled.map(|(tokens, end)| SequenceOutput { id: row.id, tokens, num_written: 0, end }));
    }
}

/// The numbers of a float32 tensor that nobody else holds, taken out of it where it is on the CPU: a vocabulary of logits
/// a row is too much to copy.
fn floats(tensor: Tensor) -> Result<Vec<f32>> {
    struct Take(RefCell<Vec<f32>>);
    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "take"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let CpuStorage::F32(numbers) = storage else { candle_core::bail!("logits are not float32") };
            match layout.contiguous_offsets() {
                Some((0, end)) if end == numbers.len() => self.0.replace(std::mem::take(numbers)),
                Some((start, end)) => self.0.replace(numbers[start..end].to_vec()),
                None => candle_core::bail!("logits do not lie in one piece"),
            };
            Ok(())
        }
    }
    let take = Take(RefCell::default());
    tensor.to_device(&Device::Cpu)?.contiguous()?.inplace_op1(&take)?;
    Ok(take.0.into_inner())
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
