//! DeepSeek V3, and what shares its class (R1, Kimi K2, Moonlight): latent attention, a few layers without experts, then
//! experts in groups beside one that every token gets (DeepSeek-AI 2024, arXiv 2412.19437).

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, mixtral::experts, moe_config::MoeConfig},
    error::{Code, Error, Result},
    kernels::{
        activation::Gate,
        route::{Routing, Scores},
    },
    layers::{
        latent_attention::{LatentAttention, LatentOptions},
        mlp::{GatedMlp, GatedNames, MlpSizes},
        moe::Moe,
        norm::NormOptions,
        rope::{RopeScaling, Yarn},
        sublayer::{Branch, Sublayer},
    },
};

/// What the class's latents' norms add to the mean square, whatever the file says of the others.
pub(crate) const LATENT_EPS: f64 = 1e-6;

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let layer: Box<dyn Sublayer> = match &config.moe {
        Some(moe) if moe.in_layer(load.layer) => Box::new(sparse(load, moe)?),
        _ => Box::new(load.gated_mlp(false)?),
    };
    let after = load.rms_norm("post_attention_layernorm")?;
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, attention(load)?),
        Branch { before: Some(after), layer, after: None, multiplier: None },
    ]))
}

fn attention(load: &BlockLoad<'_>) -> Result<LatentAttention> {
    let config = load.config;
    let sizes = config.latent.ok_or_else(|| {
        let why = format!("{}: kv_lora_rank is missing from the model's configuration", config.architecture);
        Error::new(Code::FailedPrecondition, why)
    })?;
    let options = LatentOptions {
        hidden_size: config.hidden_size,
        num_heads: config.num_attention_heads,
        sizes,
        bias: config.attention_bias.unwrap_or(false),
        rope: load.rope.clone(),
        scale: scale(config, sizes.key()),
        norm: NormOptions::rms(LATENT_EPS),
    };
    LatentAttention::load(&load.loader.under("self_attn"), load.layer, options)
}

/// What scores are multiplied with: under YaRN more, by the square of what `mscale_all_dim` makes of the factor.
fn scale(config: &ModelConfig, key: usize) -> f64 {
    let plain = (key as f64).sqrt().recip();
    match (&config.rope.scaling, config.multipliers.mscale_all_dim) {
        (RopeScaling::Yarn(yarn), Some(mscale)) => plain * Yarn::attention_factor(yarn.factor, mscale).powi(2),
        _ => plain,
    }
}

fn sparse(load: &BlockLoad<'_>, moe: &MoeConfig) -> Result<Moe> {
    let config = load.config;
    let num_experts = moe.num_experts;
    let (loader, gate) = (load.loader.under("mlp"), Gate::Of(config.activation));
    let intermediate = moe.intermediate_size.unwrap_or(config.intermediate_size);
    let sizes = |intermediate| MlpSizes { hidden: config.hidden_size, intermediate, bias: false };
    let shared = match moe.shared_experts {
        0 => None,
        count => {
            let all = sizes(count * intermediate);
            Some(GatedMlp::load(&loader.under("shared_experts"), GatedNames::USUAL, all, gate)?)
        }
    };
    let routing = Routing {
        experts_per_token: moe.experts_per_token,
        scores: Scores::Sigmoid,
        renormalize: moe.renormalize.unwrap_or(true),
        scale: moe.routed_scale.unwrap_or(1.0) as f32,
        selection_bias: Some(loader.numbers("gate.e_score_correction_bias", num_experts)?),
        groups: moe.groups,
    };
    let experts = experts(&loader.under("experts"), num_experts, GatedNames::USUAL, sizes(intermediate), gate)?;
    Moe::new(loader.exact().linear("gate", num_experts, config.hidden_size, false)?, routing, experts, shared)
}
