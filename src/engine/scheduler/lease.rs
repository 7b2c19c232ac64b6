//! Blocks that a conversation keeps between two of its turns.
//!
//! When a sequence with a lease ends, its table is not given back: the lease has it, with the tokens that stand in it,
//! until the conversation's next sequence takes it over, as far as both begin alike. Leased blocks are bounded, and the
//! first to go when blocks are needed: those of the lease that was used the longest ago, before anybody is preempted.
//! Pinned ones, of which there may be fewer, go only where the first in line could not run otherwise. Where nobody can go on
//! from blocks alone, leases hold none.

use std::{collections::HashMap, sync::Arc};

use super::Scheduler;
use crate::{
    engine::{
        block_manager::BlockTable,
        faults::{Fault, planted},
        sequence::{Key, LeaseHolder, Sequence},
    },
    ids::TokenId,
};

/// Free blocks, as a part of all, below which the next lease to go is warned.
const WARN_BELOW: usize = 8;

/// What one lease holds.
pub(super) struct Held {
    holder: Arc<dyn LeaseHolder>,
    pub(super) table: BlockTable,
    /// Those whose keys and values are in the table.
    tokens: Vec<TokenId>,
    pinned: bool,
    /// Larger is later.
    used: u64,
}

/// All leases that hold blocks between two sequences.
pub(super) struct Leases {
    pub(super) held: HashMap<u64, Held>,
    max_blocks: usize,
    max_pinned_blocks: usize,
    clock: u64,
}

impl Leases {
    pub(super) fn new(max_blocks: usize, max_pinned_blocks: usize) -> Self {
        Self { held: HashMap::new(), max_blocks, max_pinned_blocks, clock: 0 }
    }

    /// Blocks that leases hold; one that two of them share counts twice.
    pub(super) fn num_blocks(&self) -> usize {
        self.held.values().map(|held| held.table.num_held()).sum()
    }

    fn num_pinned_blocks(&self) -> usize {
        self.held.values().filter(|held| held.pinned).map(|held| held.table.num_held()).sum()
    }

    /// The one that was used the longest ago.
    fn oldest(&self, pinned: bool) -> Option<u64> {
        let of_kind = self.held.iter().filter(|(_, held)| held.pinned == pinned);
        of_kind.min_by_key(|(_, held)| held.used).map(|(&id, _)| id)
    }
}

impl Scheduler {
    /// Blocks that leases hold; one that two of them share counts twice.
    #[must_use]
    pub fn num_leased_blocks(&self) -> usize {
        self.leases.num_blocks()
    }

    /// Gives back the blocks of leases that nobody wants any more. Looks at all of them: to be called when somebody said
    /// so, not every step.
    pub fn sweep_leases(&mut self) {
        let released = self.leases.held.iter().filter(|(_, held)| held.holder.is_released());
        let released: Vec<u64> = released.map(|(&id, _)| id).collect();
        for id in released {
            self.drop_lease(id);
        }
    }

    /// Has `child` hold the blocks of `parent`'s conversation too, as far as they hold its first `num_tokens` tokens;
    /// whoever writes into one copies it. Says how many tokens that are.
    pub fn fork_lease(&mut self, parent: u64, child: Arc<dyn LeaseHolder>, num_tokens: usize) -> usize {
        if !self.prefixes_are_shared {
            return 0;
        }
        let of_running = |sequence: &&Sequence| sequence.lease.as_ref().is_some_and(|lease| lease.id() == parent);
        let (table, tokens) = if let Some(held) = self.leases.held.get(&parent) {
            (&held.table, &held.tokens[..])
        } else if let Some(sequence) = self.sequences.iter().map(|(_, s)| s).find(of_running) {
            let num_written = sequence.num_computed_tokens.min(sequence.table.num_covered() * self.blocks.block_size());
            (&sequence.table, &sequence.tokens[..num_written])
        } else {
            return 0;
        };
        let kept = tokens.len().min(num_tokens).min(child.max_tokens());
        if kept == 0 {
            return 0;
        }
        let tokens = tokens[..kept].to_vec();
        match self.blocks.fork(table, kept) {
            (_, 0) => 0,
            (table, _) => self.hold(child, table, tokens),
        }
    }

    /// A sequence ends: its lease takes its blocks over.
    pub(super) fn keep_for_lease(&mut self, sequence: &mut Sequence) {
        let Some(holder) = sequence.lease.take() else { return };
        if holder.is_released() {
            return;
        }
        if sequence.table.is_empty() {
            // It never ran, and the lease has what it had, if that was anything; or a preemption took all.
            if sequence.num_preemptions > 0 && !self.leases.held.contains_key(&holder.id()) {
                holder.lost();
            }
            return;
        }
        if !self.prefixes_are_shared {
            holder.lost();
            return;
        }
        let kept = sequence.num_computed_tokens.min(sequence.tokens.len()).min(holder.max_tokens());
        let mut table = std::mem::take(&mut sequence.table);
        if self.blocks.truncate(&mut table, kept) < kept {
            // It may hold so few that what comes after them sees what was given back. What the turn did not take stays.
            if !self.leases.held.contains_key(&holder.id()) {
                holder.lost();
            }
            return;
        }
        let mut tokens = std::mem::take(&mut sequence.tokens);
        tokens.truncate(kept);
        self.hold(holder, table, tokens);
    }

    /// Puts a table into a lease, at the cost of older ones if need be; says how many tokens it holds then.
    fn hold(&mut self, holder: Arc<dyn LeaseHolder>, mut table: BlockTable, tokens: Vec<TokenId>) -> usize {
        let (id, num_blocks) = (holder.id(), table.num_held());
        if let Some(mut older) = self.leases.held.remove(&id) {
            self.blocks.release(&mut older.table);
        }
        // Pinned ones do not make room here, and where they leave too little nobody else should in vain.
        let fits = num_blocks + self.leases.num_pinned_blocks() <= self.leases.max_blocks;
        while fits && self.leases.num_blocks() + num_blocks > self.leases.max_blocks && self.evict_lease(false) {}
        if self.leases.num_blocks() + num_blocks > self.leases.max_blocks {
            self.blocks.release(&mut table);
            holder.lost();
            return 0;
        }
        let pinned =
            holder.is_pinned() && self.leases.num_pinned_blocks() + num_blocks <= self.leases.max_pinned_blocks;
        holder.holds(tokens.len(), pinned);
        self.leases.clock += 1;
        let (used, count) = (self.leases.clock, tokens.len());
        self.leases.held.insert(id, Held { holder, table, tokens, pinned, used });
        count
    }

    /// Gives a sequence that holds no blocks those of its lease, as far as both begin alike; says how many tokens need
    /// not be computed then. The last one always is.
    pub(super) fn adopt_lease(&mut self, key: Key) -> Option<usize> {
        let sequence = &mut self.sequences[key];
        let mut held = self.leases.held.remove(&sequence.lease.as_ref()?.id())?;
        let known = &sequence.tokens[..sequence.tokens.len() - 1];
        let both = held.tokens.iter().zip(known);
        let alike = both.take_while(|(held, known)| held == known || planted(Fault::LeaseNotCompared)).count();
        // What another adapter computed is of no use.
        let common = if held.table.salt() == sequence.salt.as_ref() { alike } else { 0 };
        // Of what has a window, only what comes after it was kept: who goes back further begins anew.
        let kept = self.blocks.truncate(&mut held.table, common);
        // The turn may end before it runs, and then nobody else says so.
        held.holder.holds(0, false);
        if kept == 0 {
            return None;
        }
        sequence.table = held.table;
        Some(kept)
    }

    /// The sequence does not run yet: its lease has the blocks again.
    pub(super) fn restore_lease(&mut self, key: Key, num_tokens: usize) {
        let sequence = &mut self.sequences[key];
        let Some(holder) = sequence.lease.clone() else { return };
        let mut table = std::mem::replace(&mut sequence.table, BlockTable::new(sequence.salt.clone()));
        sequence.num_computed_tokens = 0;
        let tokens = sequence.tokens[..num_tokens].to_vec();
        if self.blocks.truncate(&mut table, num_tokens) > 0 {
            self.hold(holder, table, tokens);
        }
    }

    /// Takes the blocks of the lease that was used the longest ago; false if there is none.
    pub(super) fn evict_lease(&mut self, pinned: bool) -> bool {
        let Some(id) = self.leases.oldest(pinned) else { return false };
        if let Some(holder) = self.drop_lease(id) {
            holder.lost();
        }
        true
    }

    /// Warns whoever would go next, while there are few free blocks.
    pub(super) fn warn_leases(&self) {
        if self.blocks.num_free() < self.blocks.num_blocks() / WARN_BELOW
            && let Some(held) = self.leases.oldest(false).and_then(|id| self.leases.held.get(&id))
        {
            held.holder.warned();
        }
    }

    fn drop_lease(&mut self, id: u64) -> Option<Arc<dyn LeaseHolder>> {
        let mut held = self.leases.held.remove(&id)?;
        self.blocks.release(&mut held.table);
        self.refused = None;
        Some(held.holder)
    }
}
