//! gpt-oss: attention sinks, every other layer with a window, positions stretched by YaRN, and experts with biases and a
//! clipped gate (OpenAI 2025, arXiv 2508.10925).

use candle_core::Tensor;

use crate::{
    arch::{BlockLoad, block::Block, parts::mlp_sizes, qwen3_moe::moe},
    error::Result,
    kernels::{
        activation::Gate,
        route::{Routing, Scores},
    },
    layers::{
        attention::AttentionOptions,
        loader::TensorLoader,
        mlp::{GatedMlp, GatedNames, MlpSizes},
        moe::Moe,
        sublayer::Branch,
    },
};

/// Of the gate's sigmoid, as the class has it.
const ALPHA: f32 = 1.702;
/// Of the gate, where the file does not say.
pub(crate) const LIMIT: f64 = 7.0;

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let moe = moe(config)?;
    let bias = config.attention_bias.unwrap_or(true);
    let options = AttentionOptions { qkv_bias: bias, output_bias: bias, sinks: true, ..load.plain_attention() };
    let attention = load.attention(options)?;
    let routing = Routing {
        experts_per_token: moe.experts_per_token,
        scores: Scores::SoftmaxOfTaken,
        renormalize: false,
        scale: 1.0,
        selection_bias: None,
        groups: (1, 1),
    };
    let loader = load.loader.under("mlp");
    let gate = Gate::Clipped { alpha: ALPHA, limit: config.multipliers.swiglu_limit.unwrap_or(LIMIT) as f32 };
    let experts = loader.under("experts");
    let expert = |expert| self::expert(&experts.expert(expert, moe.num_experts), mlp_sizes(config, true), gate);
    let experts = (0..moe.num_experts).map(expert).collect::<Result<Vec<_>>>()?;
    let router = loader.exact().linear("router", moe.num_experts, config.hidden_size, true)?;
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, attention),
        Branch::behind(load.rms_norm("post_attention_layernorm")?, Moe::new(router, routing, experts, None)?),
    ]))
}

/// One expert: by GGUF's way, gate and up apart, or by Hugging Face's, `[in, out]` with the rows of gate and up taking turns.
fn expert(loader: &TensorLoader<'_>, sizes: MlpSizes, gate: Gate) -> Result<GatedMlp> {
    if loader.contains_part("gate_proj.weight") {
        return GatedMlp::load(loader, GatedNames::USUAL, sizes, gate);
    }
    let MlpSizes { hidden, intermediate, .. } = sizes;
    // Row `r` of the gate's half is every other row, beginning with the first; of the up half with the second.
    let from = |row: usize| 2 * (row % intermediate) + row / intermediate;
    let both = loader.expert_matrix("gate_up_proj", 2 * intermediate, hidden)?;
    let weight = crate::layers::raw::rows(&both, (0..2 * intermediate).map(from))?;
    let biases = loader.numbers("gate_up_proj_bias", 2 * intermediate)?;
    let biases = (0..2 * intermediate).map(|row| biases[from(row)]).collect::<Vec<_>>();
    let bias = Tensor::from_vec(biases, 2 * intermediate, loader.device())?;
    let gate_up = loader.linear_of("gate_up_proj", &[weight], Some(bias))?;
    let down = loader.expert_matrix("down_proj", hidden, intermediate)?;
    let bias = Tensor::from_vec(loader.numbers("down_proj_bias", hidden)?, hidden, loader.device())?;
    Ok(GatedMlp::new(gate_up, loader.linear_of("down_proj", &[down], Some(bias))?, gate))
}
