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
//!
//! A model has one or more groups of layers ([`KvCacheGroups`]), and a table a list of blocks for each. The first group's
//! contents are the chain that is looked up; a block of another group is found by the serial of the content beside it, and
//! goes with it. A group with a window gives back what no token sees any more ([`window`]).

#[cfg(test)]
mod audit;
mod events;
mod flush;
mod free_list;
mod holders;
mod prefix;
mod remembered;
mod salt;
mod table;
#[cfg(test)]
mod tests;
mod window;

use std::collections::HashMap;

pub use self::{events::BlockEvent, salt::Salt, table::BlockTable};
use self::{events::Changes, free_list::FreeList, prefix::Registered, remembered::Remembered};
use crate::{
    config::KvCacheGroups,
    ids::{BlockId, TokenId},
};

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
    /// Blocks given back because they lay before a window.
    pub left_behind: u64,
}

/// The blocks of one KV cache.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    groups: KvCacheGroups,
    /// Tokens of a sequence that a step writes, at most.
    step_tokens: usize,
    enable_prefix_caching: bool,
    hasher: BlockHasher,
    /// Tables that hold each block.
    ref_counts: Vec<u32>,
    /// Tables that hold any, and how many may.
    num_tables: usize,
    most_tables: usize,
    free: FreeList,
    /// What each block is registered with; empty where nothing ever is.
    contents: Vec<Option<Registered>>,
    /// The tokens of each content, `[num_blocks * block_size]`.
    tokens: Vec<TokenId>,
    /// Where each content is.
    index: HashMap<BlockHash, BlockId>,
    /// Where the other groups' blocks beside it are, by its serial and the group.
    beside: HashMap<(u64, usize), BlockId>,
    /// Contents that have lost their blocks and can be followed by others all the same.
    remembered: Remembered,
    next_serial: u64,
    counters: BlockCounters,
    /// For those who want to know what can be found.
    changes: Changes,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` tokens, of one group of layers that see all.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize, enable_prefix_caching: bool, hasher: BlockHasher) -> Self {
        let cached = if enable_prefix_caching { num_blocks } else { 0 };
        Self {
            block_size,
            groups: KvCacheGroups::ONE,
            step_tokens: usize::MAX,
            enable_prefix_caching,
            hasher,
            ref_counts: vec![0; num_blocks],
            num_tables: 0,
            most_tables: usize::MAX,
            free: FreeList::new(num_blocks),
            contents: (0..cached).map(|_| None).collect(),
            tokens: vec![TokenId::default(); cached * block_size],
            index: HashMap::with_capacity(cached),
            beside: HashMap::new(),
            remembered: Remembered::default(),
            next_serial: 0,
            counters: BlockCounters::default(),
            changes: Changes::default(),
        }
    }

    /// The same blocks for these groups of layers. A step writes at most `step_tokens` tokens of a sequence: groups with a
    /// window have no blocks for what comes after those.
    #[must_use]
    pub fn with_groups(self, groups: KvCacheGroups, step_tokens: usize) -> Self {
        let remembered = if groups.num_full() == 0 { Remembered::of(self.num_blocks()) } else { self.remembered };
        Self { groups, step_tokens, remembered, ..self }
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
        self.index.len() + self.beside.len()
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
}
