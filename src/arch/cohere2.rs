//! Command R7B and A: one layer norm without a bias before attention and feed-forward layer, which stand beside each other;
//! only layers with a window know positions (Cohere 2025, arXiv 2504.00698).

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, outline::Outline},
    error::Result,
    layers::{attention::AttentionOptions, norm::NormOptions, sublayer::Branch},
};

/// What logits are multiplied with where the file does not say, as the class has it.
pub(crate) const LOGIT_SCALE: f64 = 0.0625;

/// What surrounds the blocks.
pub(super) fn outline(config: &ModelConfig) -> Outline {
    Outline {
        norm: ("norm", norm(config)),
        logit_multiplier: Some(config.multipliers.logits.unwrap_or(LOGIT_SCALE)),
        ..Outline::usual(config)
    }
}

fn norm(config: &ModelConfig) -> NormOptions {
    NormOptions { bias: false, ..NormOptions::layer(config.norm_eps) }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let (config, plain) = (load.config, load.plain_attention());
    let bias = config.attention_bias.unwrap_or(false);
    let options = AttentionOptions {
        qkv_bias: bias,
        output_bias: bias,
        rope: plain.rope.filter(|_| load.window.is_some()),
        ..load.plain_attention()
    };
    let norm = || load.norm("input_layernorm", norm(config));
    Ok(Block::parallel([
        Branch::behind(norm()?, load.attention(options)?),
        Branch::behind(norm()?, load.gated_mlp(false)?),
    ]))
}
