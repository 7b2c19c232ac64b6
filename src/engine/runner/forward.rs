//! What a runner has a model through: all of a step but sampling. One implementation runs models of ours over paged blocks, the
//! other gives each sequence a copy of a model that keeps everything inside.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::{
    engine::executor::StepPlan,
    error::{Error, Result},
    kernels::{follow::Chosen, sample::Draw},
    layers::{context::LinearObserver, lora::AdapterRows},
};

/// A step on its way through a model.
pub(super) struct Step<'a> {
    pub(super) plan: &'a StepPlan,
    /// Which rows go through which adapters, where any do.
    pub(super) adapters: Option<AdapterRows>,
    /// The plan's ids on the model's device, u32 `[num_scheduled_tokens]`, where rows of it follow others.
    pub(super) placed_ids: Option<Tensor>,
    /// Whether each row is one token, of which nothing is asked but logits.
    pub(super) decodes: bool,
}

/// A model, and what it keeps of sequences.
pub(super) trait Forward: Send {
    /// Entries of the vocabulary.
    fn vocab_size(&self) -> usize;

    /// Where it runs.
    fn device(&self) -> &Device;

    /// Tells `observer` of every Linear of ours that runs from now on.
    fn observe(&mut self, observer: Arc<dyn LinearObserver>);

    /// Forgets the sequences that are over, and what is kept beside the blocks of those that lost theirs; copies blocks.
    ///
    /// # Errors
    /// `Internal` where a block is not of the cache.
    fn begin(&mut self, plan: &StepPlan) -> Result<()>;

    /// Computes the plan's tokens, of which there are some. What comes of it can be asked for until [`end`](Self::end).
    ///
    /// # Errors
    /// `Internal` where an operation fails, or the plan is not what sequences can go on with.
    fn compute(&mut self, step: &Step<'_>) -> Result<()>;

    /// The logits `[rows.len(), vocab_size]` of tokens of the step: of those that sample, and of those before a prompt's tokens
    /// whose log-probabilities are asked for.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    fn logits(&self, step: &Step<'_>, rows: &[u32]) -> Result<Vec<f32>>;

    /// Whether it [chooses](Self::choose) tokens itself, because that takes less than giving their logits does: on a card, from
    /// which four bytes a row come instead of a vocabulary.
    fn chooses(&self) -> bool {
        false
    }

    /// Tokens drawn to follow those tokens of the step, each as its draw says. A row that no token can be drawn from has none. They
    /// are not waited for.
    ///
    /// # Errors
    /// `Internal` where an operation fails, or it chooses none.
    fn choose(&self, _step: &Step<'_>, _rows: &[u32], _draws: &[Draw]) -> Result<Chosen> {
        Err(Error::internal("this model chooses no tokens"))
    }

    /// The hidden states `[rows.len(), hidden]` of tokens of the step.
    ///
    /// # Errors
    /// `Internal` where an operation fails, or the model gives none.
    fn states(&self, rows: &[u32]) -> Result<Vec<f32>>;

    /// Lets go of what came of the step.
    fn end(&mut self);

    /// Copies of the model that sequences have.
    fn num_copies(&self) -> usize {
        0
    }

    /// Sequences that recurrent layers keep something of.
    fn num_states(&self) -> usize {
        0
    }
}
