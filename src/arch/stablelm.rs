//! StableLM 2: Llama's block with layer norms and a quarter of each head turned; attention and feed-forward layer may stand
//! beside each other behind one norm (Bellagente et al. 2024, arXiv 2402.17834).

use crate::{
    arch::{BlockLoad, block::Block},
    error::Result,
    layers::{attention::AttentionOptions, norm::NormOptions, sublayer::Branch},
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let norm = |name: &str| load.norm(name, NormOptions::layer(config.norm_eps));
    let qkv_bias = config.attention_bias.unwrap_or(false);
    let attention = load.attention(AttentionOptions { qkv_bias, ..load.plain_attention() })?;
    let parallel = config.parallel_residual.unwrap_or(false);
    let before_mlp = norm(if parallel { "input_layernorm" } else { "post_attention_layernorm" })?;
    let branches =
        [Branch::behind(norm("input_layernorm")?, attention), Branch::behind(before_mlp, load.gated_mlp(false)?)];
    Ok(if parallel { Block::parallel(branches) } else { Block::sequential(branches) })
}
