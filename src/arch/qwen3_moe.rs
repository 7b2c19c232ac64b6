//! Qwen3 with experts: Qwen3's attention, and a softmax over all experts of which the best are taken.

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, mixtral::experts, moe_config::MoeConfig, qwen3},
    error::{Error, Result},
    kernels::activation::Gate,
    layers::{
        mlp::{GatedNames, MlpSizes},
        moe::{Moe, Routing, Scores},
        sublayer::{Branch, Sublayer},
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let moe = moe(load.config)?;
    let after = load.rms_norm("post_attention_layernorm")?;
    let layer: Box<dyn Sublayer> = match moe.in_layer(load.layer) {
        true => Box::new(sparse(load, moe)?),
        false => Box::new(load.gated_mlp(false)?),
    };
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, load.attention(qwen3::attention(load))?),
        Branch { before: Some(after), layer, after: None, multiplier: None },
    ]))
}

fn sparse(load: &BlockLoad<'_>, moe: &MoeConfig) -> Result<Moe> {
    let config = load.config;
    let loader = load.loader.under("mlp");
    let routing = Routing {
        experts_per_token: moe.experts_per_token,
        scores: Scores::Softmax,
        renormalize: moe.renormalize.unwrap_or(true),
        scale: 1.0,
        selection_bias: None,
        groups: (1, 1),
    };
    let intermediate = moe.intermediate_size.unwrap_or(config.intermediate_size);
    let sizes = MlpSizes { hidden: config.hidden_size, intermediate, bias: false };
    let experts =
        experts(&loader.under("experts"), moe.num_experts, GatedNames::USUAL, sizes, Gate::Of(config.activation))?;
    Moe::new(loader.exact().linear("gate", moe.num_experts, config.hidden_size, false)?, routing, experts, None)
}

/// The experts, which the architecture must have.
pub(super) fn moe(config: &ModelConfig) -> Result<&MoeConfig> {
    config.moe.as_ref().ok_or_else(|| {
        let why = format!("{}: num_experts is missing from the model's configuration", config.architecture);
        Error::new(crate::error::Code::FailedPrecondition, why)
    })
}
