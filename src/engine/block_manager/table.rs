//! What one sequence holds of the cache.

use smallvec::SmallVec;

use super::{BlockHash, Salt};
use crate::ids::BlockId;

/// What one sequence holds of the cache, in order. Must be given back with
/// [`BlockManager::release`](super::BlockManager::release).
#[derive(Debug, Default)]
pub struct BlockTable {
    /// A list a group of layers, or none before the first block.
    pub(super) groups: SmallVec<[GroupBlocks; 1]>,
    /// Who may share them.
    pub(super) salt: Option<Salt>,
    /// Hashes of the first full blocks' tokens, as far as they were needed. They outlive a release.
    pub(super) hashes: Vec<BlockHash>,
    /// Serials of the first full blocks' contents: those that were registered, or found registered by others.
    pub(super) serials: Vec<u64>,
}

/// The blocks of one group.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupBlocks {
    /// In order.
    pub(super) blocks: Vec<BlockId>,
    /// The first so many lie before the group's window and were given back: they are [`BlockId::NULL`].
    pub(super) num_behind: usize,
}

impl GroupBlocks {
    /// A block that is held.
    pub(super) fn held(&self, i: usize) -> Option<BlockId> {
        self.blocks.get(i).copied().filter(|_| i >= self.num_behind)
    }

    /// Those that are held.
    pub(super) fn all_held(&self) -> &[BlockId] {
        &self.blocks[self.num_behind..]
    }
}

impl BlockTable {
    /// An empty one that shares blocks with those of the same salt.
    #[must_use]
    pub fn new(salt: Option<Salt>) -> Self {
        Self { salt, ..Self::default() }
    }

    /// Who may share its blocks.
    #[must_use]
    pub fn salt(&self) -> Option<&Salt> {
        self.salt.as_ref()
    }

    /// The blocks of each group, in order; [`BlockId::NULL`] in front, where they were given back.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &[BlockId]> {
        self.groups.iter().map(|group| &group.blocks[..])
    }

    /// Blocks that it holds.
    #[must_use]
    pub fn num_held(&self) -> usize {
        self.groups.iter().map(|group| group.all_held().len()).sum()
    }

    /// Blocks of `block_size` tokens that every group has a place for.
    #[must_use]
    pub fn num_covered(&self) -> usize {
        self.groups.iter().map(|group| group.blocks.len()).min().unwrap_or(0)
    }

    /// Whether blocks before a window were given back.
    #[must_use]
    pub fn has_left_behind(&self) -> bool {
        self.groups.iter().any(|group| group.num_behind > 0)
    }

    /// Whether it covers nothing. (One that covers what its windows have left behind may hold no block either.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.blocks.is_empty())
    }
}
