//! Granite 3 and its kin: Llama's block, with multipliers for embeddings, scores, what joins the stream, and logits
//! (IBM 2024; the multipliers are of Yang et al. 2022, arXiv 2203.03466).

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, outline::Outline},
    error::Result,
    layers::{attention::AttentionOptions, sublayer::Branch},
};

/// What surrounds the blocks.
pub(super) fn outline(config: &ModelConfig) -> Outline {
    Outline {
        embedding_multiplier: config.multipliers.embedding,
        logit_multiplier: config.multipliers.logits_divisor.map(f64::recip),
        ..Outline::usual(config)
    }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let (config, plain) = (load.config, load.plain_attention());
    let bias = config.attention_bias.unwrap_or(false);
    let scale = config.multipliers.attention.unwrap_or(plain.scale);
    let attention = load.attention(AttentionOptions { qkv_bias: bias, output_bias: bias, scale, ..plain })?;
    let mlp = load.gated_mlp(config.mlp_bias.unwrap_or(false))?;
    let multiplier = config.multipliers.residual;
    Ok(Block::sequential([
        Branch { multiplier, ..Branch::behind(load.rms_norm("input_layernorm")?, attention) },
        Branch { multiplier, ..Branch::behind(load.rms_norm("post_attention_layernorm")?, mlp) },
    ]))
}
