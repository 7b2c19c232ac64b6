//! Sequences whose hidden states are wanted, and no token: what the chunks of their prompts have come to so far.
//!
//! A mean is summed in float64 in the order of the tokens, so that neither the chunks nor who else is in the batch change
//! a bit of it.

use std::{collections::HashMap, ops::Range};

use crate::{
    engine::executor::{PlannedRow, StepPlan},
    error::{Error, Result},
    ids::SequenceId,
    params::Pooling,
};

/// Of the sequences that were admitted to be pooled and not retired.
#[derive(Default)]
pub(super) struct Pools {
    pools: HashMap<SequenceId, Pool>,
}

/// One sequence.
struct Pool {
    pooling: Pooling,
    /// Of the tokens so far; only of [`Pooling::Mean`].
    sum: Vec<f64>,
    /// How many these are.
    num_tokens: u32,
}

impl Pools {
    pub(super) fn admit(&mut self, id: SequenceId, pooling: Pooling) {
        self.pools.insert(id, Pool { pooling, sum: Vec::new(), num_tokens: 0 });
    }

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.pools.remove(&id);
    }

    pub(super) fn contains(&self, id: SequenceId) -> bool {
        self.pools.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.pools.len()
    }

    /// Takes in what a step computed: `states` gives the hidden states of some of its rows, one after another. Gives the
    /// vectors of the sequences whose prompts end in it.
    ///
    /// # Errors
    /// `Internal` where a prompt was not computed from its beginning, or the states are not as many as the rows.
    pub(super) fn take_in(
        &mut self,
        plan: &StepPlan,
        states: impl FnOnce(&[u32]) -> Result<Vec<f32>>,
    ) -> Result<Vec<(SequenceId, Vec<f32>)>> {
        if self.pools.is_empty() {
            return Ok(Vec::new());
        }
        let (mut wanted, mut parts) = (Vec::<u32>::new(), Vec::new());
        for row in &plan.rows {
            let Some(pool) = self.pools.get(&row.id) else { continue };
            let start = wanted.len();
            wanted.extend(pool.wants(row).map(|k| k as u32));
            if wanted.len() > start {
                parts.push((row, start..wanted.len()));
            }
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let states = states(&wanted)?;
        let size = states.len() / wanted.len();
        let mut pooled = Vec::new();
        for (row, part) in parts {
            let Some(pool) = self.pools.get_mut(&row.id) else { continue };
            let states = states.get(part.start * size..part.end * size);
            let states = states.ok_or_else(|| Error::internal("fewer hidden states than tokens"))?;
            pooled.extend(pool.take_in(row, states, size)?.map(|vector| (row.id, vector)));
        }
        Ok(pooled)
    }
}

impl Pool {
    /// The tokens of a step whose states it needs.
    fn wants(&self, row: &PlannedRow) -> Range<usize> {
        let Range { start, end } = row.query;
        match self.pooling {
            Pooling::Mean => start..end,
            Pooling::Last if row.samples => end.saturating_sub(1)..end,
            Pooling::Last => end..end,
        }
    }

    /// Takes in the states of the tokens that it wanted of a row; its vector where they were the last.
    fn take_in(&mut self, row: &PlannedRow, states: &[f32], size: usize) -> Result<Option<Vec<f32>>> {
        if self.pooling == Pooling::Last {
            return Ok(Some(states.to_vec()));
        }
        if row.context_len == 0 {
            self.sum.clear();
            self.sum.resize(size, 0.0);
            self.num_tokens = 0;
        }
        if row.context_len != self.num_tokens {
            let why =
                format!("sequence {}: a mean of {} tokens goes on at {}", row.id, self.num_tokens, row.context_len);
            return Err(Error::internal(why));
        }
        for state in states.chunks_exact(size) {
            self.sum.iter_mut().zip(state).for_each(|(sum, &x)| *sum += f64::from(x));
            self.num_tokens += 1;
        }
        let count = f64::from(self.num_tokens);
        Ok(row.samples.then(|| self.sum.iter().map(|sum| (sum / count) as f32).collect()))
    }
}
