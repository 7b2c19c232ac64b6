//! The first pass: blocks for those who run, at the cost of others if need be.

use std::time::Instant;

use super::Scheduler;
use crate::engine::{
    executor::{BlockCopy, StepPlan},
    faults::{Fault, planted},
    sequence::{Key, Order, Status},
};

/// What the reserve pass leaves to the admit pass.
pub(super) struct Left {
    /// Tokens.
    pub(super) budget: usize,
    /// The first running sequence that lacks blocks: nobody behind it takes any.
    pub(super) starved: Option<Order>,
}

impl Scheduler {
    /// First pass. Returns what the running sequences leave of the budget, and the first of them that had to go
    /// without blocks.
    pub(super) fn reserve(&mut self, now: Instant, plan: &mut StepPlan) -> Left {
        let mut left = Left { budget: self.max_num_batched_tokens, starved: None };
        let mut i = 0;
        while let Some(&(order, key)) = self.running.get(i) {
            let num_uncomputed = self.sequences[key].num_uncomputed_tokens();
            if num_uncomputed > 0 && self.stalls(key, now) {
                continue;
            }
            let ready = num_uncomputed > 0 && self.reserve_blocks(order, key, &mut plan.block_copies);
            self.sequences[key].ready = ready;
            if ready {
                left.budget = left.budget.saturating_sub(num_uncomputed);
            } else if num_uncomputed > 0 {
                left.starved = left.starved.or(Some(order));
            }
            i += 1;
        }
        left
    }

    /// Blocks for all known tokens of a sequence and for those it may sample, at the cost of others if need be.
    pub(super) fn reserve_blocks(&mut self, order: Order, key: Key, copies: &mut Vec<BlockCopy>) -> bool {
        let num_lookahead = if planted(Fault::LookaheadForgotten) { 0 } else { self.max_tokens_per_step - 1 };
        loop {
            let sequence = &mut self.sequences[key];
            let write = sequence.num_computed_tokens..sequence.tokens.len() + num_lookahead;
            if self.blocks.reserve(&mut sequence.table, write, copies) {
                return true;
            }
            if self.evict_lease(false) {
                continue;
            }
            if let Some(victim) = self.victim(order) {
                self.preempt(victim);
            } else if !self.is_alone(key) || !self.evict_lease(true) {
                return false;
            }
        }
    }

    /// Whether nobody else could give it blocks, now or later.
    pub(super) fn is_alone(&self, key: Key) -> bool {
        self.sequences.iter().all(|(other, sequence)| other == key || sequence.table.is_empty())
    }

    /// Who gives up blocks for the sequence at `order`: a stalled one, or else the last of those who come later.
    pub(super) fn victim(&self, order: Order) -> Option<Key> {
        self.sequences
            .iter()
            .filter(|(_, sequence)| !sequence.table.is_empty() && (sequence.is_stalled() || sequence.order() > order))
            .max_by_key(|(_, sequence)| (sequence.is_stalled(), sequence.order()))
            .map(|(key, _)| key)
    }

    /// Takes a sequence's blocks away; all its tokens will be computed again, as far as the prefix cache has not kept
    /// them.
    pub(super) fn preempt(&mut self, key: Key) {
        let sequence = &mut self.sequences[key];
        self.blocks.release(&mut sequence.table);
        if !planted(Fault::PreemptedKeepsComputed) {
            sequence.num_computed_tokens = 0;
        }
        sequence.num_preemptions += 1;
        self.preemptions += 1;
        self.refused = None;
        if sequence.status == Status::Running {
            self.set_status(key, Status::Waiting);
        }
    }
}
