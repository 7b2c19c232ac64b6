//! SmolLM3: Llama's block, of which every fourth knows no positions (Hugging Face 2025; NoPE: Kazemnejad et al. 2023,
//! arXiv 2305.19466).

use crate::{
    arch::{BlockLoad, block::Block, llama::pre_norm},
    error::Result,
    layers::attention::AttentionOptions,
};

/// Layers of which the last knows no positions, where the file does not say.
const PERIOD: usize = 4;

/// Whether a layer knows positions, where `layers` may say it of each.
pub(crate) fn turns(layers: Option<&[bool]>, layer: usize) -> bool {
    match layers {
        Some(layers) => layers.get(layer).copied().unwrap_or(true),
        None => !(layer + 1).is_multiple_of(PERIOD),
    }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let (config, layer, plain) = (load.config, load.layer, load.plain_attention());
    let turns = turns(config.rope_layers.as_deref(), layer);
    let bias = config.attention_bias.unwrap_or(false);
    let options = AttentionOptions {
        qkv_bias: bias,
        output_bias: bias,
        rope: plain.rope.filter(|_| turns),
        ..load.plain_attention()
    };
    pre_norm(load, options, config.mlp_bias.unwrap_or(false))
}
