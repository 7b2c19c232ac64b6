//! Qwen3.5, with and without experts, and Qwen3-Next before it: most layers keep a state of the sequence instead of keys and
//! values, and the attention of the others has an output gate; norms hold how far a weight is from 1. Its checkpoints see
//! pictures too; what is served here is their text model.

use crate::{
    arch::{
        BlockLoad,
        block::Block,
        config::{Conventions, ModelConfig},
        gemma2::norm,
        linear_attention,
        outline::Outline,
        qwen3_moe::sparse,
    },
    error::{Code, Error, Result},
    layers::{
        attention::{Attention, AttentionOptions, QkNorm},
        gated_delta_net::{DeltaNetOptions, GatedDeltaNet},
        norm::NormOptions,
        sublayer::{Branch, Sublayer},
    },
};

/// What surrounds the blocks of a checkpoint of text alone.
pub(super) fn outline(config: &ModelConfig) -> Outline {
    // The heads that guess several tokens at once are of no use here. A GGUF file has them as a block behind the last.
    Outline { norm: ("norm", norm(config)), others: &["mtp.", "blk."], ..Outline::usual(config) }
}

/// The same beside a model of pictures.
pub(super) fn outline_beside_vision(config: &ModelConfig) -> Outline {
    Outline { base: "model.language_model", others: &["mtp.", "model.visual."], ..outline(config) }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let linear = config.linear_attention.as_ref().ok_or_else(|| {
        let why = format!("{}: {} is missing from the configuration", config.architecture, linear_attention::FIELD);
        Error::new(Code::FailedPrecondition, why)
    })?;
    let mixer: Box<dyn Sublayer> = match linear.of_layer(load.layer) {
        (true, place) => Box::new(GatedDeltaNet::load(
            &load.loader.under("linear_attn"),
            place,
            DeltaNetOptions {
                hidden_size: config.hidden_size,
                sizes: linear.sizes,
                activation: config.activation,
                // Alone among the norms it holds the weight itself.
                norm: NormOptions::rms(config.norm_eps),
                rates_are_logs: config.conventions == Conventions::HuggingFace,
            },
        )?),
        (false, place) => Box::new(Attention::load(&load.loader.under("self_attn"), place, attention(load))?),
    };
    let mlp: Box<dyn Sublayer> = match &config.moe {
        Some(moe) if moe.in_layer(load.layer) => Box::new(sparse(load, moe, moe.weighed_expert_size)?),
        _ => Box::new(load.gated_mlp(false)?),
    };
    let branch = |before: &str, layer| -> Result<Branch> {
        Ok(Branch { before: Some(load.norm(before, norm(config))?), layer, after: None, multiplier: None })
    };
    Ok(Block::sequential([branch("input_layernorm", mixer)?, branch("post_attention_layernorm", mlp)?]))
}

fn attention(load: &BlockLoad<'_>) -> AttentionOptions {
    let bias = load.config.attention_bias.unwrap_or(false);
    AttentionOptions {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm { options: norm(load.config), whole: false }),
        gated: true,
        ..load.plain_attention()
    }
}
