//! Who holds which blocks: tables that take them, share them with others, and give them back.

use std::ops::Range;

use smallvec::SmallVec;

use super::{BlockManager, BlockTable, table::GroupBlocks};
use crate::{
    engine::{
        executor::BlockCopy,
        faults::{Fault, planted},
    },
    ids::BlockId,
};

impl BlockManager {
    /// Makes the table cover the positions `write` with blocks that can be written: takes free blocks, and replaces
    /// those that others hold too by copies, to be made before the step (pushed on `copies`). Does all or, if there
    /// are too few free blocks or one table too many, nothing and returns false. Groups with a window have what a step can
    /// write.
    pub fn reserve(&mut self, table: &mut BlockTable, write: Range<usize>, copies: &mut Vec<BlockCopy>) -> bool {
        self.enter_groups(table);
        let first = write.start / self.block_size;
        let of_step = write.end.min(write.start.saturating_add(self.step_tokens));
        let end = |group| if group < self.groups.num_full() { write.end } else { of_step };
        let num_new = |group, len: usize| end(group).div_ceil(self.block_size).saturating_sub(len);
        let mut num_needed = 0;
        let mut new = SmallVec::<[usize; 1]>::new();
        for (group, GroupBlocks { blocks, .. }) in table.groups.iter().enumerate() {
            new.push(num_new(group, blocks.len()));
            let num_shared = blocks[first.min(blocks.len())..].iter().filter(|&&block| self.is_shared(block)).count();
            num_needed += new[group] + num_shared;
        }
        let is_first = table.is_empty() && new.iter().any(|&num_new| num_new > 0);
        let is_one_too_many = is_first && self.num_tables >= self.most_tables && !planted(Fault::TablesUncounted);
        if num_needed > self.free.len || is_one_too_many {
            return false;
        }
        self.num_tables += usize::from(is_first);
        for (GroupBlocks { blocks, .. }, num_new) in table.groups.iter_mut().zip(new) {
            for (i, block) in blocks.iter_mut().enumerate().skip(first) {
                if self.is_shared(*block) {
                    let copy = self.take();
                    copies.push(BlockCopy { source: *block, destination: copy });
                    self.counters.copies += 1;
                    self.let_go(std::mem::replace(block, copy));
                } else if i >= table.serials.len() && !planted(Fault::ContentNotForgotten) {
                    // The block may be registered with what its former holders had in it. (Where the table agrees with
                    // that content, what will be written is what is there.)
                    self.forget(*block);
                }
            }
            blocks.extend((0..num_new).map(|_| self.take()));
        }
        true
    }

    /// A table over the same blocks, as far as they hold the first `num_tokens` tokens, the last of which may be partly
    /// filled; and how many tokens these are: none where their window was given back.
    pub fn fork(&mut self, table: &BlockTable, num_tokens: usize) -> (BlockTable, usize) {
        if !self.sees_enough(table, num_tokens) {
            return (BlockTable::new(table.salt.clone()), 0);
        }
        let num_full = num_tokens / self.block_size;
        let num_blocks = num_tokens.div_ceil(self.block_size);
        let mut fork = BlockTable {
            groups: SmallVec::new(),
            salt: table.salt.clone(),
            hashes: table.hashes[..num_full.min(table.hashes.len())].to_vec(),
            serials: table.serials[..num_full.min(table.serials.len())].to_vec(),
        };
        for (group, list) in table.groups.iter().enumerate() {
            let mut blocks = list.blocks[..num_blocks].to_vec();
            let num_behind = self.first_seen(group, num_tokens).max(list.num_behind).min(num_blocks);
            blocks[..num_behind].fill(BlockId::NULL);
            blocks[num_behind..].iter().for_each(|&block| self.hold(block));
            fork.groups.push(GroupBlocks { blocks, num_behind });
        }
        self.num_tables += usize::from(!fork.is_empty());
        (fork, num_tokens)
    }

    /// Gives back the blocks behind the first `num_tokens` tokens, and forgets what the table knows of the contents
    /// behind them: other tokens will be written there. Returns how many tokens the table holds then: none, and no block,
    /// where a token after these sees what was given back.
    pub fn truncate(&mut self, table: &mut BlockTable, num_tokens: usize) -> usize {
        let num_full = num_tokens / self.block_size;
        table.hashes.truncate(num_full);
        table.serials.truncate(num_full);
        if !self.sees_enough(table, num_tokens) {
            self.release(table);
            return 0;
        }
        let was_empty = table.is_empty();
        for list in &mut table.groups {
            while list.blocks.len() > num_tokens.div_ceil(self.block_size) {
                let Some(block) = list.blocks.pop() else { break };
                self.let_go(block);
            }
        }
        self.num_tables -= usize::from(!was_empty && table.is_empty());
        num_tokens
    }

    /// Gives all blocks back, the last first: what nothing depends on is evicted first.
    pub fn release(&mut self, table: &mut BlockTable) {
        self.num_tables -= usize::from(!table.is_empty());
        let len = table.groups.iter().map(|list| list.blocks.len()).max().unwrap_or(0);
        for i in (0..len).rev() {
            table.groups.iter().filter_map(|list| list.held(i)).for_each(|block| self.let_go(block));
        }
        table.groups.clear();
        table.serials.clear();
    }

    /// Gives a table that has none a list a group.
    pub(super) fn enter_groups(&self, table: &mut BlockTable) {
        table.groups.resize_with(self.groups.count(), GroupBlocks::default);
    }

    fn is_shared(&self, block: BlockId) -> bool {
        self.ref_counts[block.index()] > 1 && !planted(Fault::CopyOnWriteSkipped)
    }

    /// Takes the free block that was least recently of use.
    fn take(&mut self) -> BlockId {
        let block = self.free.pop_front();
        if self.forget(block) {
            self.counters.evictions += 1;
        }
        self.ref_counts[block.index()] = 1;
        block
    }

    pub(super) fn hold(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.index()];
        if *count == 0 {
            self.free.remove(block);
            *count = 1;
        } else if !planted(Fault::RefcountForgotten) {
            *count += 1;
        }
    }

    pub(super) fn let_go(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.index()];
        *count -= 1;
        if *count > 0 {
            return;
        }
        let is_cached = self.contents.get(block.index()).is_some_and(Option::is_some);
        for _ in 0..if planted(Fault::FreedTwice) { 2 } else { 1 } {
            if is_cached {
                self.free.push_back(block);
            } else {
                self.free.push_front(block);
            }
        }
    }
}
