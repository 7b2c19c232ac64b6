//! The first pass: blocks for those who run, at the cost of others if need be.

use std::time::Instant;

use super::{Place, Scheduler};
use crate::engine::{
    executor::{BlockCopy, StepPlan},
    faults::{Fault, planted},
    sequence::{Key, Sequence, Status},
};

/// What the reserve pass leaves to the admit pass.
pub(super) struct Left {
    /// Tokens.
    pub(super) budget: usize,
    /// The first running sequence that lacks blocks: nobody behind it takes any.
    pub(super) starved: Option<Place>,
}

impl Scheduler {
    /// First pass. Returns what the running sequences leave of the budget, and the first of them that had to go
    /// without blocks.
    pub(super) fn reserve(&mut self, now: Instant, plan: &mut StepPlan) -> Left {
        let mut left = Left { budget: self.max_num_batched_tokens, starved: None };
        let mut i = 0;
        while let Some(&(place, key)) = self.running.get(i) {
            let num_tokens = self.num_plannable_tokens(&self.sequences[key]);
            if num_tokens > 0 && self.stalls(key, now) {
                continue;
            }
            let ready = num_tokens > 0 && self.reserve_blocks(key, num_tokens, &mut plan.block_copies);
            self.sequences[key].ready = ready;
            if ready {
                left.budget = left.budget.saturating_sub(num_tokens);
            } else if num_tokens > 0 {
                left.starved = left.starved.or(Some(place));
            }
            // Places are as old as the step: who gave its blocks up for this one may have stood before it.
            let to_here = &self.running[..self.running.len().min(i + 1)];
            i = to_here.iter().rposition(|&(_, other)| other == key).map_or(i, |at| at + 1);
        }
        left
    }

    /// Blocks for a sequence's next so many tokens and for those it may sample, at the cost of others if need be.
    pub(super) fn reserve_blocks(&mut self, key: Key, num_tokens: usize, copies: &mut Vec<BlockCopy>) -> bool {
        let num_lookahead = if planted(Fault::LookaheadForgotten) { 0 } else { self.max_tokens_per_step - 1 };
        let sequence = &mut self.sequences[key];
        // Ahead of the token under way it may still be forked a token before that one, as at the end of a prompt.
        let position = sequence.num_computed_tokens - usize::from(sequence.num_uncomputed_tokens() == 0);
        self.blocks.leave_behind(&mut sequence.table, &sequence.tokens, position);
        loop {
            let sequence = &mut self.sequences[key];
            let write = sequence.num_computed_tokens..sequence.num_computed_tokens + num_tokens + num_lookahead;
            if self.blocks.reserve(&mut sequence.table, write, copies) {
                return true;
            }
            if self.evict_lease(false) {
                continue;
            }
            if let Some(victim) = self.victim(key) {
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

    /// Who gives up blocks for this sequence: a stalled one, or else the last of those who come later.
    fn victim(&self, key: Key) -> Option<Key> {
        self.sequences
            .iter()
            .filter(|(_, other)| !other.table.is_empty())
            .filter(|&(other, sequence)| other != key && (sequence.is_stalled() || self.gives_way(other, key)))
            .max_by_key(|&(other, sequence)| (sequence.is_stalled(), self.place(other)))
            .map(|(other, _)| other)
    }

    /// Whether a sequence comes late enough for another one to have its blocks. Of two tenants, one must have been served so
    /// much more that it stays ahead when the tokens in its blocks are lost: else they would take turns in computing the same
    /// again. Its prompt counts whole, as it was charged, computed or not; its answer by half, because how far it is ahead
    /// grows with its answer while the other one waits, who would else wait for its end.
    fn gives_way(&self, key: Key, to: Key) -> bool {
        let (own, other): (&Sequence, &Sequence) = (&self.sequences[key], &self.sequences[to]);
        if own.tenant_key == other.tenant_key {
            return own.order() > other.order();
        }
        let lost = if self.takes_all { 0 } else { own.prompt.len() + own.num_output_tokens() / 2 };
        self.place(key) > self.place(to).after(self.tenants.cost(own.tenant_key, lost))
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
        if sequence.cached_tokens.is_some() && !planted(Fault::PreemptionUntold) {
            self.preempted.push(sequence.id);
        }
        self.preemptions += 1;
        self.refused = None;
        if sequence.status == Status::Running {
            self.set_status(key, Status::Waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::EngineConfig,
        engine::{
            executor::Executor,
            fake::{FakeExecutor, FakeOptions},
            sequence::Reader,
        },
        ids::{SequenceId, TokenId},
    };

    /// Has room for everything.
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

    #[test]
    fn who_gives_its_blocks_up_takes_nobodys_turn_with_it() {
        // Two blocks for each of three, and a third for two of them.
        let config = EngineConfig { block_size: 4, num_blocks: 6, max_model_len: 16, ..EngineConfig::default() };
        let mut scheduler = Scheduler::new(&config, 1);
        let mut executor = FakeExecutor::new(&config, FakeOptions::default());
        let (mut plan, mut events, now) = (StepPlan::default(), Vec::new(), Instant::now());
        for id in 1..=3 {
            let prompt = [TokenId(id); 7].into();
            scheduler.add(Sequence::new(SequenceId(id.into()), prompt, Arc::default(), Arc::new(Roomy))).unwrap();
        }
        for _ in 0..2 {
            assert!(scheduler.schedule(now, &mut plan, &mut events));
            executor.submit(&plan).unwrap();
            scheduler.apply(executor.collect().unwrap(), &mut events).unwrap();
        }
        // The third stands first, as it may where its place has changed since the step began.
        scheduler.running.rotate_right(1);
        scheduler.reserve(now, &mut plan);
        let mut ready: Vec<_> = scheduler.sequences().filter(|sequence| sequence.ready).map(|s| s.id.0).collect();
        ready.sort_unstable();
        assert_eq!((scheduler.stats().preemptions, ready), (1, vec![1, 2]));
    }
}
