//! Blocks of the KV cache: who holds them, which are free, and which contents can be shared.
//!
//! A block is *held* while any [`BlockTable`] lists it, and free otherwise; free blocks form a list in the order in
//! which they will be reused. A full block whose tokens have been computed is *registered*: its content can be found
//! by the hash of its tokens and of all before them, while it is held and, until it is reused (*evicted*), while it
//! is free.
//!
//! A hash only finds a candidate. Every registered content has a serial number that is never used again and remembers
//! the serial of the content before it, so a candidate is trusted if its tokens, its salt and its parent's serial
//! are those looked for: then, by induction, so is everything before it. Prefix caching by chained hashes is vLLM's
//! idea (`docs/design/prefix_caching.md` there); the serials are what makes it exact.

mod events;
mod flush;

use std::{collections::HashMap, ops::Range, sync::Arc};

pub use self::events::BlockEvent;
use self::events::Changes;
use super::{
    executor::BlockCopy,
    faults::{Fault, planted},
};
use crate::ids::{BlockId, TokenId};

/// Names a block's tokens and all before them.
pub type BlockHash = u128;

/// Maps the hash of what came before, and some bytes, to a hash. [`blake3_128`] outside of tests.
pub type BlockHasher = fn(BlockHash, &[u8]) -> BlockHash;

/// The first 128 bits of BLAKE3 over the parent's hash and the bytes.
#[must_use]
pub fn blake3_128(parent: BlockHash, bytes: &[u8]) -> BlockHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.to_le_bytes()).update(bytes);
    let mut hash = [0; 16];
    hasher.finalize_xof().fill(&mut hash);
    BlockHash::from_le_bytes(hash)
}

/// What one sequence holds of the cache, in order. Must be given back with [`BlockManager::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    /// The blocks.
    blocks: Vec<BlockId>,
    /// Who may share them.
    salt: Option<Arc<str>>,
    /// Hashes of the first full blocks' tokens, as far as they were needed. They outlive a release.
    hashes: Vec<BlockHash>,
    /// Serials of the first full blocks' contents: those that were registered, or found registered by others.
    serials: Vec<u64>,
}

impl BlockTable {
    /// An empty one that shares blocks with those of the same salt.
    #[must_use]
    pub fn new(salt: Option<Arc<str>>) -> Self {
        Self { salt, ..Self::default() }
    }

    /// Who may share its blocks.
    #[must_use]
    pub fn salt(&self) -> Option<&Arc<str>> {
        self.salt.as_ref()
    }

    /// The blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounters {
    /// Tokens looked up in the prefix cache.
    pub queries_tokens: u64,
    /// … of which it had this many.
    pub hits_tokens: u64,
    /// Contents given up because their block was needed.
    pub evictions: u64,
    /// Blocks copied because they were to be written and somebody else held them too.
    pub copies: u64,
    /// Times one hash stood for two contents.
    pub collisions: u64,
}

/// A registered content.
#[derive(Debug)]
struct Content {
    hash: BlockHash,
    serial: u64,
    parent: Option<u64>,
    parent_hash: Option<BlockHash>,
    salt: Option<Arc<str>>,
}

/// The blocks of one KV cache.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    enable_prefix_caching: bool,
    hasher: BlockHasher,
    /// Tables that hold each block.
    ref_counts: Vec<u32>,
    /// Tables that hold any, and how many may.
    num_tables: usize,
    most_tables: usize,
    free: FreeList,
    /// What each block is registered with.
    contents: Vec<Option<Content>>,
    /// The tokens of each registered block, `[num_blocks * block_size]`.
    tokens: Vec<TokenId>,
    /// Where each registered content is.
    index: HashMap<BlockHash, BlockId>,
    next_serial: u64,
    counters: BlockCounters,
    /// For those who want to know what can be found.
    changes: Changes,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` tokens.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize, enable_prefix_caching: bool, hasher: BlockHasher) -> Self {
        let cached = if enable_prefix_caching { num_blocks } else { 0 };
        Self {
            block_size,
            enable_prefix_caching,
            hasher,
            ref_counts: vec![0; num_blocks],
            num_tables: 0,
            most_tables: usize::MAX,
            free: FreeList::new(num_blocks),
            contents: (0..num_blocks).map(|_| None).collect(),
            tokens: vec![TokenId::default(); cached * block_size],
            index: HashMap::with_capacity(cached),
            next_serial: 0,
            counters: BlockCounters::default(),
            changes: Changes::default(),
        }
    }

    /// The same of which at most `most` tables hold blocks at once, as far as [`reserve`](Self::reserve) gives them any.
    #[must_use]
    pub fn with_most_tables(self, most: usize) -> Self {
        Self { most_tables: most, ..self }
    }

    /// Tokens a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// All blocks.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that can be had, with or without a cached content.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.free.len
    }

    /// Blocks whose content can be found.
    pub fn num_cached(&self) -> usize {
        self.index.len()
    }

    /// Blocks that tables hold.
    #[must_use]
    pub fn num_used(&self) -> usize {
        self.num_blocks() - self.num_free()
    }

    /// Share of the blocks that tables hold, 0 to 1.
    #[must_use]
    pub fn usage(&self) -> f64 {
        self.num_used() as f64 / self.num_blocks().max(1) as f64
    }

    /// What has happened since the start.
    #[must_use]
    pub fn counters(&self) -> BlockCounters {
        self.counters
    }

    /// Counts a lookup that came to something; the caller knows whether it is the sequence's first.
    pub fn record_query(&mut self, query_tokens: usize, hit_tokens: usize) {
        self.counters.queries_tokens += query_tokens as u64;
        self.counters.hits_tokens += hit_tokens as u64;
    }

    /// Fills an empty table with the registered blocks that hold the longest prefix of `tokens`. Returns the number of
    /// tokens that need not be computed: all in these blocks, except that the very last token always is, since
    /// somebody wants to see what comes after it.
    pub fn adopt_prefix(&mut self, table: &mut BlockTable, tokens: &[TokenId]) -> usize {
        debug_assert!(table.is_empty());
        if !self.enable_prefix_caching {
            return 0;
        }
        for (i, chunk) in tokens.chunks_exact(self.block_size).enumerate() {
            let hash = self.hash(table, i, chunk);
            let Some((block, serial)) = self.find(hash, table, chunk) else { break };
            self.hold(block);
            table.blocks.push(block);
            table.serials.push(serial);
        }
        self.num_tables += usize::from(!table.is_empty());
        (table.blocks.len() * self.block_size).min(tokens.len().saturating_sub(1))
    }

    /// Of the tokens of a prompt, how many the cache has now: what [`adopt_prefix`](Self::adopt_prefix) would say.
    pub fn lookup(&mut self, salt: Option<Arc<str>>, tokens: &[TokenId]) -> usize {
        let mut table = BlockTable::new(salt);
        if !self.enable_prefix_caching {
            return 0;
        }
        for (i, chunk) in tokens.chunks_exact(self.block_size).enumerate() {
            let hash = self.hash(&mut table, i, chunk);
            let Some((_, serial)) = self.find(hash, &table, chunk) else { break };
            table.serials.push(serial);
        }
        (table.serials.len() * self.block_size).min(tokens.len().saturating_sub(1))
    }

    /// Makes the table cover the positions `write` with blocks that can be written: takes free blocks, and replaces
    /// those that others hold too by copies, to be made before the step (pushed on `copies`). Does all or, if there
    /// are too few free blocks or one table too many, nothing and returns false.
    pub fn reserve(&mut self, table: &mut BlockTable, write: Range<usize>, copies: &mut Vec<BlockCopy>) -> bool {
        let first = (write.start / self.block_size).min(table.blocks.len());
        let num_new = write.end.div_ceil(self.block_size).saturating_sub(table.blocks.len());
        let num_shared = table.blocks[first..].iter().filter(|&&block| self.is_shared(block)).count();
        let is_first = table.blocks.is_empty() && num_new > 0;
        let is_one_too_many = is_first && self.num_tables >= self.most_tables && !planted(Fault::TablesUncounted);
        if num_new + num_shared > self.free.len || is_one_too_many {
            return false;
        }
        self.num_tables += usize::from(is_first);
        for i in first..table.blocks.len() {
            let block = table.blocks[i];
            if self.is_shared(block) {
                let copy = self.take();
                copies.push(BlockCopy { source: block, destination: copy });
                self.counters.copies += 1;
                self.let_go(block);
                table.blocks[i] = copy;
            } else if i >= table.serials.len() && !planted(Fault::ContentNotForgotten) {
                // The block may be registered with what its former holders had in it. (Where the table agrees with
                // that content, what will be written is what is there.)
                self.forget(block);
            }
        }
        for _ in 0..num_new {
            let block = self.take();
            table.blocks.push(block);
        }
        true
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
            let serial = match self.find(hash, table, chunk) {
                Some((_, serial)) => serial,
                None => self.enter(i, hash, table, chunk),
            };
            table.serials.push(serial);
        }
    }

    /// A table over the same blocks, as far as they hold the first `num_tokens` tokens; the last block may be partly
    /// filled.
    pub fn fork(&mut self, table: &BlockTable, num_tokens: usize) -> BlockTable {
        let num_full = num_tokens / self.block_size;
        let blocks = table.blocks[..num_tokens.div_ceil(self.block_size)].to_vec();
        blocks.iter().for_each(|&block| self.hold(block));
        self.num_tables += usize::from(!blocks.is_empty());
        BlockTable {
            blocks,
            salt: table.salt.clone(),
            hashes: table.hashes[..num_full.min(table.hashes.len())].to_vec(),
            serials: table.serials[..num_full.min(table.serials.len())].to_vec(),
        }
    }

    /// Gives back the blocks behind the first `num_tokens` tokens, and forgets what the table knows of the contents
    /// behind them: other tokens will be written there.
    pub fn truncate(&mut self, table: &mut BlockTable, num_tokens: usize) {
        let num_full = num_tokens / self.block_size;
        table.hashes.truncate(num_full);
        table.serials.truncate(num_full);
        self.num_tables -= usize::from(!table.is_empty() && num_tokens == 0);
        while table.blocks.len() > num_tokens.div_ceil(self.block_size) {
            let Some(block) = table.blocks.pop() else { return };
            self.let_go(block);
        }
    }

    /// Gives all blocks back, the last first: what nothing depends on is evicted first.
    pub fn release(&mut self, table: &mut BlockTable) {
        table.serials.clear();
        self.num_tables -= usize::from(!table.is_empty());
        while let Some(block) = table.blocks.pop() {
            self.let_go(block);
        }
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

    fn hold(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.index()];
        if *count == 0 {
            self.free.remove(block);
            *count = 1;
        } else if !planted(Fault::RefcountForgotten) {
            *count += 1;
        }
    }

    fn let_go(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.index()];
        *count -= 1;
        if *count > 0 {
            return;
        }
        let is_cached = self.contents[block.index()].is_some();
        for _ in 0..if planted(Fault::FreedTwice) { 2 } else { 1 } {
            if is_cached {
                self.free.push_back(block);
            } else {
                self.free.push_front(block);
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
            (0, Some(salt)) if !planted(Fault::SaltIgnored) => (self.hasher)(1, salt.as_bytes()),
            (0, _) => 0,
            _ => table.hashes[i - 1],
        };
        let hash = (self.hasher)(parent, bytemuck::cast_slice(chunk));
        table.hashes.push(hash);
        hash
    }

    /// The registered block with these tokens, after the contents that the table has, and its serial.
    fn find(&mut self, hash: BlockHash, table: &BlockTable, chunk: &[TokenId]) -> Option<(BlockId, u64)> {
        let &block = self.index.get(&hash)?;
        let content = self.contents[block.index()].as_ref()?;
        let same_tokens = self.tokens[block.index() * self.block_size..][..self.block_size] == *chunk;
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

    /// Registers block `i` of a table. Whatever had the same hash (another content, or the same after a parent that is no
    /// longer cached) cannot be found any more.
    fn enter(&mut self, i: usize, hash: BlockHash, table: &BlockTable, chunk: &[TokenId]) -> u64 {
        let block = table.blocks[i];
        self.forget(block);
        if let Some(&other) = self.index.get(&hash) {
            self.forget(other);
        }
        self.index.insert(hash, block);
        let serial = self.next_serial;
        self.next_serial += 1;
        let (parent, salt) = (table.serials.last().copied(), table.salt.clone());
        let parent_hash = i.checked_sub(1).map(|before| table.hashes[before]);
        self.changes.push(salt.as_ref(), || BlockEvent::Stored { hash, parent: parent_hash, tokens: chunk.into() });
        self.contents[block.index()] = Some(Content { hash, serial, parent, parent_hash, salt });
        self.tokens[block.index() * self.block_size..][..self.block_size].copy_from_slice(chunk);
        serial
    }

    /// Makes a block's content impossible to find; says whether there was one.
    fn forget(&mut self, block: BlockId) -> bool {
        let Some(content) = self.contents[block.index()].take() else { return false };
        self.index.remove(&content.hash);
        self.changes.push(content.salt.as_ref(), || BlockEvent::Removed { hash: content.hash });
        true
    }

    /// Checks everything that must hold between the blocks and all the tables there are.
    #[cfg(test)]
    pub(super) fn audit<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), String> {
        let (mut holders, mut num_tables) = (vec![0; self.num_blocks()], 0);
        let mut salts: HashMap<BlockId, &Option<Arc<str>>> = HashMap::new();
        for table in tables {
            num_tables += usize::from(!table.is_empty());
            for &block in &table.blocks {
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
        let found = self.index.iter().filter(|(hash, block)| {
            self.contents[block.index()].as_ref().is_some_and(|content| content.hash == **hash)
        });
        if found.count() != registered || self.index.len() != registered {
            return Err(format!("{registered} contents, {} index entries", self.index.len()));
        }
        Ok(())
    }
}

/// Blocks in the order of their reuse: a list through an array, so that any of them leaves in constant time.
#[derive(Debug)]
struct FreeList {
    /// Each block's neighbours, and last those of the ring's open end.
    links: Vec<Link>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

impl FreeList {
    /// All of `num_blocks`, the lowest first.
    fn new(num_blocks: usize) -> Self {
        let ring = num_blocks as u32 + 1;
        let links = (0..ring).map(|i| Link { previous: (i + ring - 1) % ring, next: (i + 1) % ring }).collect();
        Self { links, len: num_blocks }
    }

    fn end(&self) -> u32 {
        self.links.len() as u32 - 1
    }

    fn push_front(&mut self, block: BlockId) {
        self.insert(block, self.links[self.end() as usize].next);
    }

    fn push_back(&mut self, block: BlockId) {
        self.insert(block, self.end());
    }

    fn insert(&mut self, block: BlockId, next: u32) {
        let previous = self.links[next as usize].previous;
        self.links[block.index()] = Link { previous, next };
        self.links[previous as usize].next = block.0;
        self.links[next as usize].previous = block.0;
        self.len += 1;
    }

    fn remove(&mut self, block: BlockId) {
        let Link { previous, next } = self.links[block.index()];
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.len -= 1;
    }

    /// The first one; the caller knows that there is one.
    fn pop_front(&mut self) -> BlockId {
        debug_assert!(self.len > 0);
        let block = BlockId(self.links[self.end() as usize].next);
        self.remove(block);
        block
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = BlockId> {
        let mut at = self.end();
        std::iter::from_fn(move || {
            at = self.links[at as usize].next;
            (at != self.end()).then_some(BlockId(at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(num_blocks: usize) -> BlockManager {
        BlockManager::new(num_blocks, 2, true, blake3_128)
    }

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    /// Computes `tokens` into a new table, after what the cache has of them.
    fn computed(manager: &mut BlockManager, tokens: &[TokenId]) -> (BlockTable, usize) {
        let mut table = BlockTable::default();
        let cached = manager.adopt_prefix(&mut table, tokens);
        assert!(manager.reserve(&mut table, cached..tokens.len(), &mut Vec::new()));
        manager.register(&mut table, tokens, tokens.len());
        (table, cached)
    }

    #[test]
    fn the_leaves_of_a_prompt_are_evicted_before_its_root() {
        let mut manager = manager(4);
        let prompt = tokens(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let (mut table, _) = computed(&mut manager, &prompt);
        manager.release(&mut table);
        let (mut other, _) = computed(&mut manager, &tokens(&[9, 9]));
        assert_eq!(manager.counters().evictions, 1);
        manager.release(&mut other);
        assert_eq!(computed(&mut manager, &prompt).1, 6, "only the last block is lost");
    }

    #[test]
    fn free_blocks_without_content_go_first() {
        let mut manager = manager(4);
        let prompt = tokens(&[1, 2, 3, 4, 5]);
        let (mut table, _) = computed(&mut manager, &prompt);
        manager.release(&mut table);
        let (_held, _) = computed(&mut manager, &tokens(&[9, 9, 9, 9]));
        assert_eq!(manager.counters().evictions, 0);
        assert_eq!(computed(&mut manager, &prompt[..4]).1, 3);
    }

    #[test]
    fn usage_leaves_out_what_can_be_had() {
        let mut manager = manager(4);
        let (mut table, _) = computed(&mut manager, &tokens(&[1, 2, 3, 4]));
        assert_eq!((manager.usage(), manager.num_free()), (0.5, 2));
        manager.release(&mut table);
        assert_eq!((manager.usage(), manager.num_free()), (0.0, 4));
    }

    #[test]
    fn what_follows_a_duplicate_is_found_after_the_original() {
        let mut manager = manager(8);
        let (short, long) = (tokens(&[1, 2]), tokens(&[1, 2, 3, 4, 5]));
        let (mut one, mut other) = (BlockTable::default(), BlockTable::default());
        for (table, tokens) in [(&mut one, &short), (&mut other, &long)] {
            assert_eq!(manager.adopt_prefix(table, tokens), 0);
            assert!(manager.reserve(table, 0..tokens.len(), &mut Vec::new()));
        }
        manager.register(&mut one, &short, 2);
        manager.register(&mut other, &long, 5);
        assert_ne!(one.blocks[0], other.blocks[0]);
        let (third, cached) = computed(&mut manager, &long);
        assert_eq!((cached, &third.blocks[..2]), (4, &[one.blocks[0], other.blocks[1]][..]));
    }

    #[test]
    fn a_fork_copies_the_partly_filled_block_that_it_writes() {
        let mut manager = manager(4);
        let prompt = tokens(&[1, 2, 3]);
        let (mut table, _) = computed(&mut manager, &prompt);
        let mut fork = manager.fork(&table, 3);
        let mut copies = Vec::new();
        assert!(manager.reserve(&mut fork, 3..4, &mut copies));
        assert_eq!(copies, [BlockCopy { source: table.blocks[1], destination: fork.blocks[1] }]);
        assert!(manager.reserve(&mut table, 3..4, &mut copies));
        assert_eq!(copies.len(), 1, "the other is alone with it then");
        manager.audit([&table, &fork].into_iter()).unwrap();
    }

    #[test]
    fn a_reservation_that_does_not_fit_takes_nothing() {
        let mut manager = manager(2);
        let mut table = BlockTable::default();
        assert!(!manager.reserve(&mut table, 0..5, &mut Vec::new()));
        assert_eq!((table.is_empty(), manager.num_free()), (true, 2));
    }
}
