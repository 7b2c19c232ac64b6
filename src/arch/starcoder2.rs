//! StarCoder2: layer norms, biases everywhere, a plain feed-forward layer, and a window (Lozhkov et al. 2024,
//! arXiv 2402.19173).

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, outline::Outline, parts::mlp_sizes},
    error::Result,
    layers::{attention::AttentionOptions, mlp::PlainMlp, norm::NormOptions, sublayer::Branch},
};

/// What surrounds the blocks.
pub(super) fn outline(config: &ModelConfig) -> Outline {
    Outline { norm: ("norm", NormOptions::layer(config.norm_eps)), ..Outline::usual(config) }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let bias = config.attention_bias.unwrap_or(true);
    let options = AttentionOptions { qkv_bias: bias, output_bias: bias, ..load.plain_attention() };
    let norm = |name: &str| load.norm(name, NormOptions::layer(config.norm_eps));
    let sizes = mlp_sizes(config, bias);
    let mlp = PlainMlp::load(&load.loader.under("mlp"), ["c_fc", "c_proj"], sizes, config.activation)?;
    Ok(Block::sequential([
        Branch::behind(norm("input_layernorm")?, load.attention(options)?),
        Branch::behind(norm("post_attention_layernorm")?, mlp),
    ]))
}
