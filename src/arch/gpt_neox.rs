//! GPT-NeoX, Pythia and their kin: layer norms, biases everywhere, query, key and value of each head together in one weight,
//! attention and feed-forward layer beside each other (Black et al. 2022, arXiv 2204.06745).

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
        base: "gpt_neox",
        embedding: "embed_in",
        norm: ("final_layer_norm", NormOptions::layer(config.norm_eps)),
        head: "embed_out",
        ..Outline::usual(config)
    }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let bias = config.attention_bias.unwrap_or(true);
    let qkv = match config.conventions {
        Conventions::HuggingFace => QkvNames::FusedByHead("query_key_value"),
        Conventions::Gguf => QkvNames::Fused("query_key_value"),
    };
    let options =
        AttentionOptions { qkv, qkv_bias: bias, output: "dense", output_bias: bias, ..load.plain_attention() };
    let attention = load.loader.under("attention");
    let attention = match config.conventions {
        Conventions::HuggingFace => attention,
        // The converter put the heads into another order than adapters have them in.
        Conventions::Gguf => attention.without_adapters(),
    };
    let norm = |name: &str| load.norm(name, NormOptions::layer(config.norm_eps));
    let names = ["dense_h_to_4h", "dense_4h_to_h"];
    let branches = [
        Branch::behind(norm("input_layernorm")?, Attention::load(&attention, load.layer, options)?),
        Branch::behind(
            norm("post_attention_layernorm")?,
            PlainMlp::load(&load.loader.under("mlp"), names, mlp_sizes(config, true), config.activation)?,
        ),
    ];
    let parallel = config.parallel_residual.unwrap_or(true);
    Ok(if parallel { Block::parallel(branches) } else { Block::sequential(branches) })
}
