//! GPT-2: learned positions, layer norms, biases everywhere, Linears that lie `[in, out]` in its own files (Radford et al.
//! 2019).

use crate::{
    arch::{
        BlockLoad,
        block::Block,
        config::{Conventions, ModelConfig},
        outline::Outline,
        parts::mlp_sizes,
    },
    error::Result,
    layers::{
        attention::{Attention, AttentionOptions, QkvNames},
        mlp::PlainMlp,
        norm::NormOptions,
        sublayer::Branch,
    },
};

/// What surrounds the blocks.
pub(super) fn outline(config: &ModelConfig) -> Outline {
    Outline {
        base: "transformer",
        embedding: "wte",
        positions: Some("wpe"),
        layers: "h",
        norm: ("ln_f", NormOptions::layer(config.norm_eps)),
        ..Outline::usual(config)
    }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let loader = match config.conventions {
        Conventions::HuggingFace => load.loader.transposed(),
        Conventions::Gguf => load.loader.clone(),
    };
    let options = AttentionOptions {
        qkv: QkvNames::Fused("c_attn"),
        qkv_bias: true,
        output: "c_proj",
        output_bias: true,
        rope: None,
        ..load.plain_attention()
    };
    let norm = |name: &str| load.norm(name, NormOptions::layer(config.norm_eps));
    let mlp = PlainMlp::load(&loader.under("mlp"), ["c_fc", "c_proj"], mlp_sizes(config, true), config.activation)?;
    Ok(Block::sequential([
        Branch::behind(norm("ln_1")?, Attention::load(&loader.under("attn"), load.layer, options)?),
        Branch::behind(norm("ln_2")?, mlp),
    ]))
}
