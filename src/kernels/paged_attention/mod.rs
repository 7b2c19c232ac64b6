//! Attention of ragged queries over the paged KV cache.

use crate::ids::BlockId;

/// Which blocks each row of a step attends to; one for all layers of a step.
#[derive(Clone, Debug, Default)]
pub struct AttentionMetadata {
    /// Tokens a block.
    pub block_size: usize,
    /// Where each row's queries begin, and the end: `[rows + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// Tokens before each row's first query: `[rows]`.
    pub context_lens: Vec<u32>,
    /// The rows' block tables, one after another.
    pub block_tables: Vec<BlockId>,
    /// Where each row's block table begins in `block_tables`, and the end: `[rows + 1]`.
    pub cu_blocks: Vec<u32>,
}
