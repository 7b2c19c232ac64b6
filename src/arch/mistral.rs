//! Mistral 7B and its kin: Llama's block whose layers see a sliding window where the file gives one (Jiang et al. 2023,
//! arXiv 2310.06825), all of them, or those that the file names (Ministral).

use crate::{
    arch::{BlockLoad, block::Block, llama::pre_norm},
    error::Result,
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    pre_norm(load, load.plain_attention(), false)
}
