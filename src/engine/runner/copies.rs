//! Models of the long tail: a copy a sequence, rows of a step one after another.
//!
//! The plan's blocks count tokens here, and hold none. A copy is made where a row begins at its sequence's first token, and goes
//! with the sequence, or with its blocks: so there are never more copies than sequences that hold blocks, nor more tokens in
//! them than blocks have places.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use candle_core::{Device, Tensor};

use super::forward::{Forward, Step};
use crate::{
    arch::long_tail::{LongTail, ModelCopy},
    engine::executor::{PlannedRow, StepPlan},
    error::{Error, Result},
    ids::SequenceId,
    layers::context::LinearObserver,
};

/// A model and its copies.
pub(super) struct Copies {
    model: Arc<LongTail>,
    copies: HashMap<SequenceId, ModelCopy>,
    /// Logits of the step's tokens that somebody asks for, by their place in it.
    logits: HashMap<u32, Tensor>,
}

impl Copies {
    pub(super) fn new(model: Arc<LongTail>) -> Self {
        Self { model, copies: HashMap::new(), logits: HashMap::new() }
    }

    /// Runs a row through its sequence's copy, in pieces that end with the tokens whose logits somebody asks for.
    fn compute_row(&mut self, row: &PlannedRow, plan: &StepPlan) -> Result<()> {
        // A copy that failed is not put back.
        let copy = self.copies.remove(&row.id).filter(|_| row.context_len > 0);
        let mut copy = match copy {
            None if row.context_len == 0 => self.model.copy()?,
            Some(copy) if copy.num_tokens() == row.context_len as usize => copy,
            other => {
                let has = other.map_or(0, |copy| copy.num_tokens());
                let why = format!("sequence {} goes on at {}, its copy has {has} tokens", row.id, row.context_len);
                return Err(Error::internal(why));
            }
        };
        let mut start = row.query.start;
        for end in ends(row) {
            let logits = copy.forward(&plan.token_ids[start..end])?;
            self.logits.insert(end as u32 - 1, logits);
            start = end;
        }
        if start < row.query.end {
            copy.forward(&plan.token_ids[start..row.query.end])?;
        }
        self.copies.insert(row.id, copy);
        Ok(())
    }
}

/// Where pieces of a row end: behind each token whose logits somebody asks for.
fn ends(row: &PlannedRow) -> BTreeSet<usize> {
    // The token before a prompt's token predicts it.
    let before = |position: u32| row.query.start + (position - row.context_len) as usize;
    let mut ends: BTreeSet<usize> = row.prompt_targets.clone().map(before).collect();
    if row.samples {
        ends.insert(row.query.end);
    }
    ends
}

impl Forward for Copies {
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn observe(&mut self, _: Arc<dyn LinearObserver>) {}

    fn begin(&mut self, plan: &StepPlan) -> Result<()> {
        for id in plan.retired.iter().chain(&plan.preempted) {
            self.copies.remove(id);
        }
        match plan.block_copies.is_empty() {
            true => Ok(()),
            false => Err(Error::internal("blocks are to be copied, and hold nothing")),
        }
    }

    fn compute(&mut self, step: &Step<'_>) -> Result<()> {
        step.plan.rows.iter().try_for_each(|row| self.compute_row(row, step.plan))
    }

    fn logits(&self, _: &Step<'_>, rows: &[u32]) -> Result<Vec<f32>> {
        let mut logits = Vec::with_capacity(rows.len() * self.vocab_size());
        for row in rows {
            let tensor = self.logits.get(row).ok_or_else(|| Error::internal(format!("no logits of token {row}")))?;
            logits.extend(tensor.to_vec1::<f32>()?);
        }
        Ok(logits)
    }

    fn states(&self, _: &[u32]) -> Result<Vec<f32>> {
        Err(Error::internal("models of candle-transformers give no hidden states"))
    }

    fn end(&mut self) {
        self.logits.clear();
    }

    fn num_copies(&self) -> usize {
        self.copies.len()
    }
}
