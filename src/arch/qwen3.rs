//! Qwen3: Llama's block with a norm on each query and key head (Yang et al. 2025, arXiv 2505.09388).

use crate::{
    arch::{BlockLoad, block::Block, llama::pre_norm},
    error::Result,
    layers::{
        attention::{AttentionOptions, QkNorm},
        norm::NormOptions,
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    pre_norm(load, attention(load), false)
}

/// Its attention, which the model with experts has too.
pub(super) fn attention(load: &BlockLoad<'_>) -> AttentionOptions {
    let config = load.config;
    let bias = config.attention_bias.unwrap_or(false);
    AttentionOptions {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm { options: NormOptions::rms(config.norm_eps), whole: false }),
        ..load.plain_attention()
    }
}
