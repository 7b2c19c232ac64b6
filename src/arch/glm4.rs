//! GLM-4-0414: norms before and after each layer, biases on query, key and value, gate and up in one weight, and half of
//! each head turned in neighbouring pairs (GLM Team 2024, arXiv 2406.12793).

use crate::{
    arch::{BlockLoad, block::Block},
    error::Result,
    layers::{attention::AttentionOptions, mlp::GatedNames, sublayer::Branch},
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let qkv_bias = load.config.attention_bias.unwrap_or(false);
    let attention = load.attention(AttentionOptions { qkv_bias, ..load.plain_attention() })?;
    let mlp = load.named_mlp(GatedNames::Fused(["gate_up_proj", "down_proj"]), false)?;
    let after = |name: &str| load.rms_norm(name).map(Some);
    Ok(Block::sequential([
        Branch {
            after: after("post_self_attn_layernorm")?,
            ..Branch::behind(load.rms_norm("input_layernorm")?, attention)
        },
        Branch {
            after: after("post_mlp_layernorm")?,
            ..Branch::behind(load.rms_norm("post_attention_layernorm")?, mlp)
        },
    ]))
}
