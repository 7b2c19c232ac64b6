//! Sequences that begin alike: the group of one request, and forks of one another.

use super::Scheduler;
use crate::{
    engine::{
        block_manager::BlockTable,
        faults::{Fault, planted},
        sequence::{Key, Sequence},
    },
    error::{Code, Error, Result},
    ids::SequenceId,
};

impl Scheduler {
    /// Puts the sequences of one request in line. The first one computes their prompt; when that is done the others join
    /// and share its blocks until they write. Where no blocks are shared, each computes it.
    ///
    /// # Errors
    /// As [`add`](Self::add), and then none of them is in line.
    pub fn add_group(&mut self, mut group: Vec<Sequence>) -> Result<()> {
        for sequence in &mut group {
            sequence.table = BlockTable::new(sequence.salt.clone());
            self.check(sequence)?;
        }
        if self.len() + self.num_siblings() + group.len() > self.max_sequences {
            let why = format!("{} requests are here already", self.len() + self.num_siblings());
            return Err(Error::new(Code::ResourceExhausted, why));
        }
        if !self.prefixes_are_shared {
            group.into_iter().for_each(|sequence| self.enter(sequence));
            return Ok(());
        }
        let mut group = group.into_iter();
        let Some(first) = group.next() else { return Ok(()) };
        if group.len() > 0 {
            self.siblings.insert(first.id, group.collect());
        }
        self.enter(first);
        Ok(())
    }

    /// Puts `child` in line, which begins with the computed tokens that `parent` and it have in common: their blocks
    /// are shared until either writes, if blocks are shared at all. The two must have the same salt.
    ///
    /// # Errors
    /// As [`add`](Self::add); `NotFound` if there is no such parent.
    pub fn fork(&mut self, parent: SequenceId, mut child: Sequence) -> Result<()> {
        let Some(parent) = self.sequences.key(parent) else {
            return Err(Error::new(Code::NotFound, format!("there is no sequence {parent} to fork")));
        };
        if self.sequences[parent].salt != child.salt {
            return Err(Error::invalid("cache_salt", "is not that of the sequence to fork"));
        }
        self.check(&mut child)?;
        self.enter_fork(parent, child);
        Ok(())
    }

    /// Lets those join that waited for a sequence's prompt.
    pub(super) fn release_siblings(&mut self, parent: Key) {
        let id = self.sequences[parent].id;
        for sibling in self.siblings.remove(&id).unwrap_or_default() {
            self.enter_fork(parent, sibling);
        }
    }

    pub(super) fn num_siblings(&self) -> usize {
        self.siblings.values().map(Vec::len).sum()
    }

    fn enter_fork(&mut self, parent: Key, mut child: Sequence) {
        let parent = &self.sequences[parent];
        let computed = &parent.tokens[..parent.num_computed_tokens];
        let known = &child.tokens[..child.tokens.len() - 1]; // The last token is always computed.
        let mut num_common = computed.iter().zip(known).take_while(|(theirs, ours)| theirs == ours).count();
        if child.needs_whole_prompt() || !self.prefixes_are_shared && !planted(Fault::StateForked) {
            num_common = 0;
        }
        child.table = self.blocks.fork(&parent.table, num_common);
        child.num_computed_tokens = num_common;
        self.refused = None;
        self.enter(child);
    }
}
