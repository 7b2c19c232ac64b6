//! The prefix cache: what blocks are registered with, and how it is found again.

use super::{BlockEvent, BlockHash, BlockManager, BlockTable, Salt};
use crate::{
    engine::faults::{Fault, planted},
    ids::{BlockId, TokenId},
};

/// What a block is registered with.
#[derive(Debug)]
pub(super) enum Registered {
    /// Of the first group: a content.
    Content(Content),
    /// Of another group: what stands beside the content with this serial.
    Beside { serial: u64, group: usize },
}

/// A registered content.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) hash: BlockHash,
    pub(super) serial: u64,
    pub(super) parent: Option<u64>,
    pub(super) parent_hash: Option<BlockHash>,
    pub(super) salt: Option<Salt>,
}

impl Registered {
    pub(super) fn content(&self) -> Option<&Content> {
        match self {
            Self::Content(content) => Some(content),
            Self::Beside { .. } => None,
        }
    }
}

impl BlockManager {
    /// Fills an empty table with the registered blocks that hold the longest prefix of `tokens` which a step can go on from.
    /// Returns the number of tokens that need not be computed: all in these blocks, except that the very last token always
    /// is, since somebody wants to see what comes after it.
    pub fn adopt_prefix(&mut self, table: &mut BlockTable, tokens: &[TokenId]) -> usize {
        debug_assert!(table.is_empty());
        let found = self.find_prefix(table, tokens);
        let next = self.next_position(found.len(), tokens.len());
        self.enter_groups(table);
        for (group, list) in table.groups.iter_mut().enumerate() {
            list.num_behind = self.first_seen(group, next).min(found.len());
            list.blocks.resize(list.num_behind, BlockId::NULL);
            for (&block, &serial) in found.iter().zip(&table.serials).skip(list.num_behind) {
                let block = if group == 0 { block } else { self.beside.get(&(serial, group)).copied() };
                let Some(block) = block else { break }; // None is missing of a prefix that is usable.
                self.hold(block);
                list.blocks.push(block);
            }
        }
        self.num_tables += usize::from(!table.is_empty());
        next
    }

    /// Of the tokens of a prompt, how many the cache has now: what [`adopt_prefix`](Self::adopt_prefix) would say.
    pub fn lookup(&mut self, salt: Option<Salt>, tokens: &[TokenId]) -> usize {
        let found = self.find_prefix(&mut BlockTable::new(salt), tokens);
        self.next_position(found.len(), tokens.len())
    }

    /// The first group's blocks of the longest prefix of `tokens` that a step can go on from, none where a block is gone that
    /// such a step does not see; the table gets their serials.
    pub(super) fn find_prefix(&mut self, table: &mut BlockTable, tokens: &[TokenId]) -> Vec<Option<BlockId>> {
        let mut found = Vec::new();
        if !self.enable_prefix_caching {
            return found;
        }
        for (i, chunk) in tokens.chunks_exact(self.block_size).enumerate() {
            let hash = self.hash(table, i, chunk);
            let Some((block, serial)) = self.find(hash, table, chunk) else { break };
            found.push(block);
            table.serials.push(serial);
        }
        let num_usable = self.usable(&found, &table.serials, tokens.len());
        table.serials.truncate(num_usable);
        found.truncate(num_usable);
        found
    }

    /// Registers the blocks whose tokens all are among the first `num_computed`. Where somebody else has registered the
    /// same content already, his stays the one to be found.
    pub fn register(&mut self, table: &mut BlockTable, tokens: &[TokenId], num_computed: usize) {
        if !self.enable_prefix_caching {
            return;
        }
        for i in table.serials.len()..num_computed / self.block_size {
            let chunk = &tokens[i * self.block_size..][..self.block_size];
            let hash = self.hash(table, i, chunk);
            let serial = match (self.find(hash, table, chunk), table.groups.first().and_then(|list| list.held(i))) {
                (Some((None, serial)), Some(block)) => {
                    self.give_block(block, hash, chunk);
                    serial
                }
                (Some((_, serial)), _) => serial,
                (None, Some(block)) => self.enter(block, i, hash, table, chunk),
                // It was given back before it was known to be computed: nothing after it can be found either.
                (None, None) => return,
            };
            table.serials.push(serial);
            for (group, list) in table.groups.iter().enumerate().skip(1) {
                if let Some(block) = list.held(i).filter(|_| !self.beside.contains_key(&(serial, group))) {
                    self.forget(block);
                    self.beside.insert((serial, group), block);
                    self.contents[block.index()] = Some(Registered::Beside { serial, group });
                }
            }
        }
    }

    /// The hash of block `i` of a table, whose tokens are `chunk`; block `i - 1` has been hashed before.
    fn hash(&self, table: &mut BlockTable, i: usize, chunk: &[TokenId]) -> BlockHash {
        if let Some(&hash) = table.hashes.get(i) {
            return hash;
        }
        let parent = match (i, &table.salt) {
            _ if planted(Fault::HashWithoutParent) => 0,
            (0, Some(salt)) if !planted(Fault::SaltIgnored) => (self.hasher)(1, salt.words().as_bytes()),
            (0, _) => 0,
            _ => table.hashes[i - 1],
        };
        let hash = (self.hasher)(parent, bytemuck::cast_slice(chunk));
        table.hashes.push(hash);
        hash
    }

    /// The content with these tokens, after the contents that the table has: its block, if it still has one, and its serial.
    fn find(&mut self, hash: BlockHash, table: &BlockTable, chunk: &[TokenId]) -> Option<(Option<BlockId>, u64)> {
        let block = self.index.get(&hash).copied();
        let (content, tokens) = match block {
            Some(block) => (self.contents[block.index()].as_ref()?.content()?, self.tokens_of(block)),
            None => self.remembered.get(hash)?,
        };
        let same_tokens = *tokens == *chunk;
        let same_parent = content.parent == table.serials.last().copied();
        let same_salt = content.salt == table.salt;
        if (same_tokens || planted(Fault::TokensNotCompared))
            && (same_parent || planted(Fault::ParentNotCompared))
            && (same_salt || planted(Fault::SaltIgnored))
        {
            return Some((block, content.serial));
        }
        self.counters.collisions += 1;
        None
    }

    /// Registers a block as the `i`-th of a table's first group. Whatever had the same hash (another content, or the same
    /// after a parent that is no longer cached) cannot be found any more.
    fn enter(&mut self, block: BlockId, i: usize, hash: BlockHash, table: &BlockTable, chunk: &[TokenId]) -> u64 {
        self.forget(block);
        if let Some(&other) = self.index.get(&hash) {
            self.forget(other);
        }
        self.remembered.take(hash);
        let serial = self.next_serial;
        self.next_serial += 1;
        let (parent, salt) = (table.serials.last().copied(), table.salt.clone());
        let parent_hash = i.checked_sub(1).map(|before| table.hashes[before]);
        self.put(block, Content { hash, serial, parent, parent_hash, salt }, chunk);
        serial
    }

    /// Registers a block with a remembered content.
    fn give_block(&mut self, block: BlockId, hash: BlockHash, chunk: &[TokenId]) {
        if let Some(content) = self.remembered.take(hash) {
            self.forget(block);
            self.put(block, content, chunk);
        }
    }

    fn put(&mut self, block: BlockId, content: Content, chunk: &[TokenId]) {
        let Content { hash, parent_hash: parent, ref salt, .. } = content;
        self.changes.push(salt.as_ref(), || BlockEvent::Stored { hash, parent, tokens: chunk.into() });
        self.index.insert(hash, block);
        self.tokens[block.index() * self.block_size..][..self.block_size].copy_from_slice(chunk);
        self.contents[block.index()] = Some(Registered::Content(content));
    }

    fn tokens_of(&self, block: BlockId) -> &[TokenId] {
        &self.tokens[block.index() * self.block_size..][..self.block_size]
    }

    /// Makes what a block is registered with impossible to find; says whether there was anything. A content takes what
    /// stands beside it along.
    pub(super) fn forget(&mut self, block: BlockId) -> bool {
        match self.contents.get_mut(block.index()).and_then(Option::take) {
            None => return false,
            Some(Registered::Beside { serial, group }) => drop(self.beside.remove(&(serial, group))),
            Some(Registered::Content(content)) => {
                self.index.remove(&content.hash);
                self.changes.push(content.salt.as_ref(), || BlockEvent::Removed { hash: content.hash });
                for group in 1..self.groups.count() {
                    if let Some(beside) = self.beside.remove(&(content.serial, group)) {
                        self.contents[beside.index()] = None;
                    }
                }
                let first = block.index() * self.block_size;
                self.remembered.keep(content, &self.tokens[first..first + self.block_size]);
            }
        }
        true
    }
}
