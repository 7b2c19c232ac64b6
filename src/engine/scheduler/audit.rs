//! What tests may see and check of a scheduler's books.

use super::Scheduler;
use crate::engine::{block_manager::BlockCounters, sequence::Sequence};

impl Scheduler {
    /// All sequences, for tests.
    pub(in crate::engine) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter().map(|(_, sequence)| sequence)
    }

    /// The blocks' counters, for tests.
    pub(in crate::engine) fn block_counters(&self) -> BlockCounters {
        self.blocks.counters()
    }

    /// Tenants that something is known of, for tests.
    pub(in crate::engine) fn num_known_tenants(&self) -> usize {
        self.tenants.num_known()
    }

    /// Checks everything that must hold between two calls.
    pub(in crate::engine) fn audit(&self) -> Result<(), String> {
        let leased = self.leases.held.values().map(|held| &held.table);
        self.blocks.audit(self.sequences.iter().map(|(_, sequence)| &sequence.table).chain(leased))?;
        if self.running.len() > self.max_num_seqs {
            return Err(format!("{} rows, at most {}", self.running.len(), self.max_num_seqs));
        }
        let (waiting, running) = self.tenants.audit()?;
        if waiting + running + self.stalled.len() != self.len() || running != self.running.len() {
            return Err("a sequence is in no list or in two".into());
        }
        if self.is_empty() && self.tenants.num_known() > 0 {
            return Err(format!("{} tenants are known of whom nothing is here", self.tenants.num_known()));
        }
        for (_, sequence) in self.sequences.iter() {
            if sequence.is_ahead && sequence.outstanding.is_none() {
                return Err(format!("sequence {} is ahead of no token", sequence.id));
            }
            if sequence.num_computed_tokens > sequence.tokens.len() {
                return Err(format!("sequence {} has computed more tokens than it has", sequence.id));
            }
            if sequence.num_computed_tokens > 0 && sequence.table.is_empty() {
                return Err(format!("sequence {} has computed tokens in no block", sequence.id));
            }
        }
        let outstanding = self.sequences.iter().filter(|(_, sequence)| sequence.outstanding.is_some()).count();
        if outstanding != self.num_outstanding {
            return Err(format!("{outstanding} sequences wait for tokens, {} counted", self.num_outstanding));
        }
        Ok(())
    }
}
