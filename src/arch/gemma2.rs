//! Gemma 2: norms before and after each layer, whose weights are kept as their distance from 1; every other layer with a
//! window; scores and logits under soft caps (Gemma Team 2024, arXiv 2408.00118).

use crate::{
    arch::{
        BlockLoad,
        block::Block,
        config::{Conventions, ModelConfig},
        outline::Outline,
    },
    error::Result,
    layers::{
        attention::AttentionOptions,
        norm::NormOptions,
        sublayer::{Branch, Sublayer},
    },
};

/// What surrounds the blocks, of Gemma 3 too.
pub(super) fn outline(config: &ModelConfig) -> Outline {
    Outline {
        norm: ("norm", norm(config)),
        embedding_multiplier: Some((config.hidden_size as f64).sqrt()),
        logit_softcap: config.multipliers.logit_softcap,
        ..Outline::usual(config)
    }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    sandwich(load, attention(load))
}

/// Its norms.
pub(super) fn norm(config: &ModelConfig) -> NormOptions {
    let offset = if config.conventions == Conventions::HuggingFace { 1.0 } else { 0.0 };
    NormOptions { offset, ..NormOptions::rms(config.norm_eps) }
}

/// What its attention differs in from Llama's in every layer.
pub(super) fn attention(load: &BlockLoad<'_>) -> AttentionOptions {
    let (config, plain) = (load.config, load.plain_attention());
    let bias = config.attention_bias.unwrap_or(false);
    AttentionOptions {
        qkv_bias: bias,
        output_bias: bias,
        scale: config.multipliers.query_pre_attn_scalar.map_or(plain.scale, |scalar| scalar.sqrt().recip()),
        softcap: config.multipliers.attention_softcap,
        ..plain
    }
}

/// A block with norms before and after each layer.
pub(super) fn sandwich(load: &BlockLoad<'_>, options: AttentionOptions) -> Result<Block> {
    let norm = |name: &str| load.norm(name, norm(load.config)).map(Some);
    let branch = |before: &str, layer: Box<dyn Sublayer>, after: &str| -> Result<Branch> {
        Ok(Branch { before: norm(before)?, layer, after: norm(after)?, multiplier: None })
    };
    let (attention, mlp) = (Box::new(load.attention(options)?), Box::new(load.gated_mlp(false)?));
    Ok(Block::sequential([
        branch("input_layernorm", attention, "post_attention_layernorm")?,
        branch("pre_feedforward_layernorm", mlp, "post_feedforward_layernorm")?,
    ]))
}
