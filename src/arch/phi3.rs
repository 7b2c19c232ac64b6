//! Phi-3, Phi-3.5 and Phi-4: Llama's block with query, key and value in one weight, gate and up in another, and positions
//! stretched by LongRoPE (Abdin et al. 2024, arXiv 2404.14219).

use crate::{
    arch::{BlockLoad, block::Block},
    error::Result,
    layers::{
        attention::{AttentionOptions, QkvNames},
        mlp::GatedNames,
        sublayer::Branch,
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let options = AttentionOptions { qkv: QkvNames::Fused("qkv_proj"), ..load.plain_attention() };
    let mlp = load.named_mlp(GatedNames::Fused(["gate_up_proj", "down_proj"]), false)?;
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, load.attention(options)?),
        Branch::behind(load.rms_norm("post_attention_layernorm")?, mlp),
    ]))
}
