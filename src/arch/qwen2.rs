//! Qwen2 and Qwen2.5: Llama's block with biases on query, key and value, and windows only where the file turns them on
//! (Yang et al. 2024, arXiv 2407.10671).

use crate::{
    arch::{BlockLoad, block::Block, llama::pre_norm},
    error::Result,
    layers::attention::AttentionOptions,
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    pre_norm(load, AttentionOptions { qkv_bias: true, ..load.plain_attention() }, false)
}
