//! The door, and the second pass: who of those in line gets a row.

use std::time::Instant;

use smallvec::SmallVec;

use super::{Scheduler, reserve::Left};
use crate::{
    engine::{
        executor::{BlockCopy, StepPlan},
        faults::{Fault, planted},
        sequence::{Key, Order, Sequence, Status, TenantKey},
    },
    error::{Code, Error, Result},
};

/// Steps after which one that was refused is looked at again, where there are several tenants.
const LOOK_AGAIN: u64 = 16;

impl Scheduler {
    /// Second pass.
    pub(super) fn admit(&mut self, mut left: Left, now: Instant, plan: &mut StepPlan) {
        let mut passed = SmallVec::<[(TenantKey, Order); 4]>::new();
        while let Some(key) = self.tenants.next(&passed) {
            let (tenant, order) = (self.sequences[key].tenant_key, self.sequences[key].order());
            let place = self.place(key);
            let is_full = left.budget == 0 || self.running.len() >= self.max_num_seqs;
            let outranks = self.running.last().is_some_and(|&(last, _)| place < last);
            if is_full && !outranks || left.starved.is_some_and(|starved| starved < place) || self.was_refused(order) {
                break;
            }
            // Its tokens from before it lost its row may still be on their way.
            if self.sequences[key].outstanding.is_some() && !planted(Fault::OutstandingIgnored) {
                passed.push((tenant, order));
                continue;
            }
            if self.stalls(key, now) {
                continue;
            }
            if !self.reserve_all_blocks(key, &mut plan.block_copies) {
                self.refused = Some((order, self.step));
                break;
            }
            if self.running.len() >= self.max_num_seqs
                && let Some(&(_, last)) = self.running.last()
            {
                self.set_status(last, Status::Waiting);
            }
            self.set_status(key, Status::Running);
            let sequence = &mut self.sequences[key];
            sequence.ready = true;
            let num_uncomputed = sequence.num_uncomputed_tokens();
            left.budget = left.budget.saturating_sub(num_uncomputed);
            // What is computed again after a preemption was charged for.
            if sequence.charged_tokens.is_none() {
                sequence.charged_tokens = Some(num_uncomputed);
                self.tenants.charge(tenant, num_uncomputed);
                self.tenants.settle();
            }
        }
    }

    /// Whether there were too few blocks for a sequence, and still are. Of several tenants one may meanwhile have been
    /// served so much that it gives way.
    fn was_refused(&self, order: Order) -> bool {
        let is_new = |step| !self.tenants.is_shared() || self.step < step + LOOK_AGAIN;
        self.refused.is_some_and(|(refused, step)| refused == order && is_new(step))
    }

    /// The same for a sequence that may hold none yet: takes over what the prefix cache has.
    pub(super) fn reserve_all_blocks(&mut self, key: Key, copies: &mut Vec<BlockCopy>) -> bool {
        let sequence = &mut self.sequences[key];
        let is_new = sequence.table.is_empty();
        // What must be computed, for the prompt's log-probabilities or a mean over it, is not taken from the cache.
        let wants_cached = is_new && !sequence.needs_whole_prompt();
        let leased = if wants_cached { self.adopt_lease(key) } else { None };
        let sequence = &mut self.sequences[key];
        if wants_cached {
            let cached = leased.unwrap_or_else(|| self.blocks.adopt_prefix(&mut sequence.table, &sequence.tokens));
            sequence.num_computed_tokens = cached;
        }
        let num_tokens = self.sequences[key].num_uncomputed_tokens();
        let reserved = self.reserve_blocks(key, num_tokens, copies);
        if let Some(leased) = leased.filter(|_| !reserved) {
            self.restore_lease(key, leased);
            return false;
        }
        let sequence = &mut self.sequences[key];
        if !reserved && is_new {
            self.blocks.release(&mut sequence.table);
            sequence.num_computed_tokens = 0;
        }
        if reserved && planted(Fault::RegisteredBeforeComputed) {
            self.blocks.register(&mut sequence.table, &sequence.tokens, sequence.tokens.len());
        }
        reserved
    }

    /// Whether a request can be taken, and where it will end at the latest.
    pub(super) fn check(&self, sequence: &mut Sequence) -> Result<()> {
        // What is pooled needs no place for a token after it.
        let limit = self.max_len + usize::from(sequence.pooling.is_some());
        let prompt = sequence.prompt.len();
        if prompt == 0 {
            return Err(Error::invalid("prompt", "is empty, must have at least one token"));
        }
        if prompt >= limit {
            let most = limit.saturating_sub(1);
            return Err(Error::invalid("prompt", format!("has {prompt} tokens, at most {most} can be answered here")));
        }
        sequence.max_len = match sequence.params.max_tokens {
            None => limit,
            Some(max_tokens) if prompt + max_tokens as usize <= limit => prompt + max_tokens as usize,
            Some(max_tokens) => {
                let most = limit - prompt;
                let description = format!("is {max_tokens}, at most {most} fit here after a prompt of {prompt} tokens");
                return Err(Error::invalid("max_tokens", description));
            }
        };
        let here = self.len() + self.num_siblings();
        if here >= self.max_sequences {
            return Err(Error::new(Code::ResourceExhausted, format!("{here} requests are here already")));
        }
        if self.sequences.key(sequence.id).is_some() {
            return Err(Error::internal(format!("sequence {} was added twice", sequence.id)));
        }
        let most_held = sequence.guard.as_ref().map_or(0, |guard| guard.most_held());
        if sequence.reader.capacity() < sequence.room_needed(self.max_tokens_per_step) + most_held {
            return Err(Error::internal("a reader must have room for the tokens of one step"));
        }
        Ok(())
    }
}
