//! What must hold between the blocks and all the tables there are.

use std::collections::{HashMap, HashSet};

use super::{BlockManager, BlockTable, Salt, prefix::Registered, table::GroupBlocks};
use crate::ids::BlockId;

impl BlockManager {
    /// Checks all of it.
    pub(in crate::engine) fn audit<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), String> {
        let (mut holders, mut num_tables) = (vec![0; self.num_blocks()], 0);
        let mut salts: HashMap<BlockId, &Option<Salt>> = HashMap::new();
        for table in tables {
            num_tables += usize::from(!table.is_empty());
            for &block in table.groups.iter().flat_map(GroupBlocks::all_held) {
                if block == BlockId::NULL {
                    return Err("a table holds a block that it gave back".into());
                }
                holders[block.index()] += 1;
                if *salts.entry(block).or_insert(&table.salt) != &table.salt {
                    return Err(format!("block {block} is shared across tenants"));
                }
            }
        }
        if num_tables != self.num_tables || num_tables > self.most_tables {
            return Err(format!(
                "{num_tables} tables hold blocks, {} counted, of {}",
                self.num_tables, self.most_tables
            ));
        }
        let free: Vec<_> = self.free.iter().take(self.num_blocks() + 1).collect();
        if free.len() != self.free.len || free.iter().any(|block| self.ref_counts[block.index()] != 0) {
            return Err(format!("the free list {free:?} is not the {} blocks that nobody holds", self.free.len));
        }
        if holders != self.ref_counts {
            return Err(format!("reference counts {:?}, holders {holders:?}", self.ref_counts));
        }
        let used = holders.iter().filter(|&&count| count > 0).count();
        if used + free.len() != self.num_blocks() {
            return Err(format!("{used} used and {} free of {} blocks", free.len(), self.num_blocks()));
        }
        let registered = self.contents.iter().flatten().count();
        let content = |block: &BlockId| self.contents[block.index()].as_ref().and_then(Registered::content);
        let found = self.index.iter().filter(|(hash, block)| content(block).is_some_and(|found| found.hash == **hash));
        let serials: HashSet<_> = self.index.values().filter_map(content).map(|content| content.serial).collect();
        let beside = self.beside.iter().filter(|((serial, group), block)| {
            matches!(&self.contents[block.index()], Some(Registered::Beside { serial: s, group: g }) if (s, g) == (serial, group))
                && serials.contains(serial)
        });
        if found.count() + beside.count() != registered || self.index.len() + self.beside.len() != registered {
            let (index, beside) = (self.index.len(), self.beside.len());
            return Err(format!("{registered} blocks are registered, {index} in the index and {beside} beside these"));
        }
        if let Some(hash) = self.remembered.hashes().find(|hash| self.index.contains_key(hash)) {
            return Err(format!("the content {hash:x} has a block, and is remembered as one that has none"));
        }
        Ok(())
    }
}
