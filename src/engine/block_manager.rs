//! Blocks of the KV cache: who holds them, which are free, and what their contents are worth to others.
use crate::ids::BlockId;
/// What one sequence holds of the cache.
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(super) blocks: Vec<BlockId>,
}
