//! Llama 1 to 3 (Touvron et al. 2023, arXiv 2302.13971), and the many models that use its class.

use crate::{
    arch::{BlockLoad, block::Block},
    error::Result,
    layers::{attention::AttentionOptions, sublayer::Branch},
};

/// Loads a block of Llama: attention and a gated feed-forward layer, each behind a norm.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    // One flag for all four projections, as the class has it.
    let bias = load.config.attention_bias.unwrap_or(false);
    let options = AttentionOptions { qkv_bias: bias, output_bias: bias, ..load.plain_attention() };
    pre_norm(load, options, load.config.mlp_bias.unwrap_or(false))
}

/// Llama's block with other attention.
pub(super) fn pre_norm(load: &BlockLoad<'_>, options: AttentionOptions, mlp_bias: bool) -> Result<Block> {
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, load.attention(options)?),
        Branch::behind(load.rms_norm("post_attention_layernorm")?, load.gated_mlp(mlp_bias)?),
    ]))
}
