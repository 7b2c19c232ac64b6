//! Which of the states of recurrent layers are whose.
//!
//! A sequence takes one with its first row and keeps it until it ends or loses its blocks. As many sequences hold blocks at
//! once as there are states, so there is always one to take.

use std::collections::HashMap;

use crate::{
    engine::executor::StepPlan,
    error::{Error, Result},
    ids::{SequenceId, StateSlot},
    layers::state::{StateCache, StepStates},
};

/// The states of the sequences that run, where the model has recurrent layers.
#[derive(Default)]
pub(super) struct States {
    cache: Option<StateCache>,
    /// Whose each slot is, and how many of its tokens the state has seen.
    owners: HashMap<SequenceId, Owned>,
    free: Vec<StateSlot>,
    /// Of a step's rows; reused from step to step.
    slots: Vec<StateSlot>,
}

#[derive(Clone, Copy)]
struct Owned {
    slot: StateSlot,
    tokens: usize,
}

impl States {
    /// Of a model's states, all free.
    pub(super) fn new(cache: Option<StateCache>) -> Self {
        let num_slots = cache.as_ref().map_or(0, StateCache::num_slots);
        let free = (0..num_slots as u32).rev().map(StateSlot).collect();
        Self { cache, free, ..Self::default() }
    }

    /// Whether the model has such layers.
    pub(super) fn are_kept(&self) -> bool {
        self.cache.is_some()
    }

    /// States that are taken.
    pub(super) fn num_taken(&self) -> usize {
        self.owners.len()
    }

    /// Gives back the states of who has ended or lost its blocks, and finds or takes those of the rows.
    ///
    /// # Errors
    /// `Internal` where more sequences run than there are states, or one goes on from where its state is not.
    pub(super) fn follow(&mut self, plan: &StepPlan) -> Result<()> {
        self.slots.clear();
        if self.cache.is_none() {
            return Ok(());
        }
        for id in plan.retired.iter().chain(&plan.preempted) {
            self.free.extend(self.owners.remove(id).map(|owned| owned.slot));
        }
        for row in &plan.rows {
            let owned = self.owners.get(&row.id).copied();
            let slot = match owned {
                Some(owned) => owned.slot,
                None => self.free.pop().ok_or_else(|| {
                    let why = format!("sequence {}: all {} states are taken", row.id, self.owners.len());
                    Error::internal(why)
                })?,
            };
            let (seen, context) = (owned.map_or(0, |owned| owned.tokens), row.context_len as usize);
            self.owners.insert(row.id, Owned { slot, tokens: context + row.query.len() });
            self.slots.push(slot);
            // One that begins anew forgets what its state was.
            if context > 0 && context != seen {
                let why = format!("sequence {}: a state after {seen} tokens goes on at {context}", row.id);
                return Err(Error::internal(why));
            }
        }
        Ok(())
    }

    /// What the layers are told of them.
    pub(super) fn of_step(&self) -> Option<StepStates<'_>> {
        self.cache.as_ref().map(|cache| StepStates { cache, slots: &self.slots })
    }
}
