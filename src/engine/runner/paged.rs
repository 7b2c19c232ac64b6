//! Models of ours: all rows of a step together, over blocks.

use std::{sync::Arc, time::Instant};

use candle_core::{Device, Tensor};

use super::{
    FilledSteps, RunnerConfig,
    decoding::{Decoding, blocks_of_nobody},
    forward::{Forward, Step},
    states::States,
};
use crate::{
    arch::Model,
    engine::executor::StepPlan,
    error::{Error, Result},
    kernels::{
        argmax::argmax,
        follow::Chosen,
        sample::{Draw, sample},
        spare,
    },
    layers::context::{KvCache, KvGroupStep, LinearObserver, StepContext},
};

/// A model and its KV cache.
pub(super) struct Paged {
    model: Arc<dyn Model>,
    kv: KvCache,
    states: States,
    /// Reused from step to step.
    groups: Vec<KvGroupStep>,
    observer: Option<Arc<dyn LinearObserver>>,
    /// Steps of decoding that are recorded.
    decoding: Option<Decoding>,
    /// What came of a step, while it is looked at.
    came: Option<Came>,
}

/// How far a step was computed.
enum Came {
    /// What came out of the last block.
    Hidden(Tensor),
    /// The logits of all rows.
    Logits(Tensor),
}

impl Paged {
    /// A model with a cache of its own.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible sizes.
    pub(super) fn new(model: Arc<dyn Model>, config: &RunnerConfig) -> Result<Self> {
        let states = States::new(model.new_states(config.num_states)?);
        // What a row of nobody would leave in a state is not worth a state.
        let filled = config.filled_steps.filter(|_| !states.are_kept());
        let nobodys = filled.map_or(0, |_| blocks_of_nobody(config.block_size));
        let kv = model.new_kv_cache(config.num_blocks.saturating_add(nobodys), config.block_size)?;
        let groups = vec![KvGroupStep::default(); kv.groups().count()];
        let decoding = filled.and_then(|sizes| decoding(&*model, &kv, sizes));
        Ok(Self { model, kv, states, groups, observer: None, decoding, came: None })
    }

    fn context<'a>(&'a self, step: &'a Step<'_>) -> StepContext<'a> {
        StepContext {
            placed_ids: step.placed_ids.as_ref(),
            adapters: step.adapters.as_ref(),
            positions: &step.plan.positions,
            groups: &self.groups,
            kv: &self.kv,
            states: self.states.of_step(),
            observer: self.observer.as_deref(),
        }
    }

    fn hidden(&self) -> Result<&Tensor> {
        match &self.came {
            Some(Came::Hidden(hidden)) => Ok(hidden),
            Some(Came::Logits(_)) => Err(Error::internal("a step of decoding gives logits alone")),
            None => Err(Error::internal("no step was computed")),
        }
    }

    /// The logits of these tokens of the step, where they are computed.
    fn logits_of(&self, step: &Step<'_>, rows: &[u32]) -> Result<Tensor> {
        match &self.came {
            Some(Came::Logits(logits)) if rows.len() == logits.dim(0)? => Ok(logits.clone()),
            Some(Came::Logits(logits)) => Ok(logits.index_select(&Tensor::new(rows, logits.device())?, 0)?),
            _ => self.model.logits(self.hidden()?, rows, &self.context(step)),
        }
    }
}

/// Sizes of steps of decoding, where they can be recorded.
fn decoding(model: &dyn Model, kv: &KvCache, sizes: FilledSteps) -> Option<Decoding> {
    let begun = Instant::now();
    let FilledSteps { most_rows, max_model_len } = sizes;
    match Decoding::new(model, kv, most_rows, max_model_len) {
        Ok(decoding) => {
            let (sizes, took) = (decoding.len(), begun.elapsed());
            tracing::info!("steps of up to {most_rows} sequences recorded, in {sizes} sizes and {took:.1?}");
            Some(decoding)
        }
        Err(error) => {
            tracing::warn!(%error, "steps are not recorded; --enforce-eager says so from the start");
            None
        }
    }
}

impl Forward for Paged {
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn device(&self) -> &Device {
        self.model.adaptable().1
    }

    fn observe(&mut self, observer: Arc<dyn LinearObserver>) {
        self.observer = Some(observer);
    }

    fn begin(&mut self, plan: &StepPlan) -> Result<()> {
        let copies = plan.block_copies.iter().map(|copy| (copy.source, copy.destination)).collect::<Vec<_>>();
        self.kv.copy_blocks(&copies)?;
        self.states.follow(plan)
    }

    fn compute(&mut self, step: &Step<'_>) -> Result<()> {
        let (plan, count) = (step.plan, self.groups.len());
        let (num_tokens, num_slots) = (plan.token_ids.len(), plan.slot_mapping.len());
        if num_slots != num_tokens * count {
            let why = format!("{num_slots} slots for {num_tokens} tokens in {count} KV cache groups");
            return Err(Error::internal(why));
        }
        pack(&mut self.groups, plan, self.kv.shape().block_size);
        let recorded = self.decoding.as_mut().filter(|sizes| step.decodes && sizes.has(num_tokens));
        self.came = Some(match recorded.filter(|_| self.observer.is_none()) {
            Some(sizes) => {
                let placed_ids = step.placed_ids.as_ref();
                Came::Logits(sizes.compute(&*self.model, &self.kv, plan, &self.groups, placed_ids)?)
            }
            None => Came::Hidden(self.model.hidden(&plan.token_ids, &self.context(step))?),
        });
        Ok(())
    }

    fn logits(&self, step: &Step<'_>, rows: &[u32]) -> Result<Vec<f32>> {
        let logits = self.logits_of(step, rows)?;
        match &self.came {
            // The next step's stand there too.
            Some(Came::Logits(_)) => Ok(logits.flatten_all()?.to_vec1()?),
            _ => floats(&logits),
        }
    }

    fn chooses(&self) -> bool {
        self.device().is_cuda()
    }

    fn choose(&self, step: &Step<'_>, rows: &[u32], draws: &[Draw]) -> Result<Chosen> {
        let logits = self.logits_of(step, rows)?;
        if draws.iter().all(|draw| *draw == Draw::MOST_LIKELY) { argmax(&logits) } else { sample(&logits, draws) }
    }

    fn states(&self, rows: &[u32]) -> Result<Vec<f32>> {
        floats(&self.model.states(self.hidden()?, rows)?)
    }

    fn num_states(&self) -> usize {
        self.states.num_taken()
    }

    fn end(&mut self) {
        if let Some(Came::Hidden(hidden)) = self.came.take() {
            spare::give_back(hidden);
        }
    }
}

/// The numbers of a tensor that nobody else reads, taken out of it where it is on the CPU: a vocabulary of logits a row is
/// too much to copy.
fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(spare::take(&tensor.to_device(&Device::Cpu)?.contiguous()?)?)
}

/// Fills what each group's layers are told from a plan's rows.
fn pack(groups: &mut [KvGroupStep], plan: &StepPlan, block_size: usize) {
    let count = groups.len();
    for (index, KvGroupStep { slot_mapping, attention }) in groups.iter_mut().enumerate() {
        slot_mapping.clear();
        slot_mapping.extend(plan.slot_mapping.iter().skip(index).step_by(count));
        attention.block_size = block_size;
        attention.block_tables.clear();
        for ends in [&mut attention.cu_seqlens, &mut attention.cu_blocks] {
            ends.clear();
            ends.push(0);
        }
        attention.cu_seqlens.extend(plan.rows.iter().map(|row| row.query.end as u32));
        for row in &plan.rows {
            let blocks = plan.block_tables.get(row.blocks.clone()).unwrap_or_default();
            let len = blocks.len() / count;
            attention.block_tables.extend_from_slice(&blocks[index * len..(index + 1) * len]);
            attention.cu_blocks.push(attention.block_tables.len() as u32);
        }
        attention.context_lens.clear();
        attention.context_lens.extend(plan.rows.iter().map(|row| row.context_len));
    }
}
