//! OLMo 2: norms after each layer instead of before, and of all queries and all keys at once (OLMo Team 2024,
//! arXiv 2501.00656).

use crate::{
    arch::{BlockLoad, block::Block},
    error::Result,
    layers::{
        attention::{AttentionOptions, QkNorm},
        norm::NormOptions,
        sublayer::{Branch, Sublayer},
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let bias = load.config.attention_bias.unwrap_or(false);
    let qk_norm = Some(QkNorm { options: NormOptions::rms(load.config.norm_eps), whole: true });
    post_norm(load, AttentionOptions { qkv_bias: bias, output_bias: bias, qk_norm, ..load.plain_attention() })
}

/// A block with norms after each layer alone.
pub(super) fn post_norm(load: &BlockLoad<'_>, options: AttentionOptions) -> Result<Block> {
    let branch = |layer: Box<dyn Sublayer>, after: &str| -> Result<Branch> {
        Ok(Branch { before: None, layer, after: Some(load.rms_norm(after)?), multiplier: None })
    };
    Ok(Block::sequential([
        branch(Box::new(load.attention(options)?), "post_attention_layernorm")?,
        branch(Box::new(load.gated_mlp(false)?), "post_feedforward_layernorm")?,
    ]))
}
