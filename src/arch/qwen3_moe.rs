//! Qwen3 with experts: Qwen3's attention, and a softmax over all experts of which the best are taken.

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, mixtral::experts, moe_config::MoeConfig, qwen3},
    error::{Error, Result},
    kernels::{
        activation::Gate,
        route::{Routing, Scores},
    },
    layers::{
        loader::TensorLoader,
        mlp::{GatedMlp, GatedNames, MlpSizes},
        moe::Moe,
        sublayer::{Branch, Sublayer},
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let moe = moe(load.config)?;
    let after = load.rms_norm("post_attention_layernorm")?;
    let layer: Box<dyn Sublayer> = match moe.in_layer(load.layer) {
        true => Box::new(sparse(load, moe, None)?),
        false => Box::new(load.gated_mlp(false)?),
    };
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, load.attention(qwen3::attention(load))?),
        Branch { before: Some(after), layer, after: None, multiplier: None },
    ]))
}

/// Its layer of experts, which Qwen's later models have too, with one more of the width `weighed` for every token.
pub(super) fn sparse(load: &BlockLoad<'_>, moe: &MoeConfig, weighed: Option<usize>) -> Result<Moe> {
    let config = load.config;
    let (loader, count) = (load.loader.under("mlp"), moe.num_experts);
    let routing = Routing {
        experts_per_token: moe.experts_per_token,
        scores: Scores::Softmax,
        renormalize: moe.renormalize.unwrap_or(true),
        scale: 1.0,
        selection_bias: None,
        groups: (1, 1),
    };
    let intermediate = moe.intermediate_size.unwrap_or(config.intermediate_size);
    let sizes = |intermediate| MlpSizes { hidden: config.hidden_size, intermediate, bias: false };
    let gate = Gate::Of(config.activation);
    let of_experts = loader.under("experts");
    let experts = match of_experts.contains("gate_up_proj") {
        true => (0..count)
            .map(|k| stacked(&of_experts.expert(k, count), sizes(intermediate), gate))
            .collect::<Result<_>>()?,
        false => experts(&of_experts, count, GatedNames::USUAL, sizes(intermediate), gate)?,
    };
    let exact = loader.exact();
    let Some(width) = weighed else {
        return Moe::new(exact.linear("gate", count, config.hidden_size, false)?, routing, experts, None);
    };
    let scores = [("gate", count), ("shared_expert_gate", 1)];
    let router = exact.stacked_linear("gate", &scores, config.hidden_size, false)?;
    let weighed = GatedMlp::load(&loader.under("shared_expert"), GatedNames::USUAL, sizes(width), gate)?;
    Ok(Moe::new(router, routing, experts, None)?.with_weighed(weighed))
}

/// One expert of a file that has those of all as one tensor, gate and up together.
fn stacked(loader: &TensorLoader<'_>, sizes: MlpSizes, gate: Gate) -> Result<GatedMlp> {
    let MlpSizes { hidden, intermediate, .. } = sizes;
    let gate_up =
        loader.linear_of("gate_up_proj", &[loader.get("gate_up_proj", &[2 * intermediate, hidden])?], None)?;
    let down = loader.linear_of("down_proj", &[loader.get("down_proj", &[hidden, intermediate])?], None)?;
    Ok(GatedMlp::new(gate_up, down, gate))
}

/// The experts, which the architecture must have.
pub(super) fn moe(config: &ModelConfig) -> Result<&MoeConfig> {
    config.moe.as_ref().ok_or_else(|| {
        let why = format!("{}: num_experts is missing from the model's configuration", config.architecture);
        Error::new(crate::error::Code::FailedPrecondition, why)
    })
}
