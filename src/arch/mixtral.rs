//! Mixtral: Mistral's attention, and experts of which each token gets the best, weighed by a softmax over those (Jiang et
//! al. 2024, arXiv 2401.04088).

use crate::{
    arch::{BlockLoad, block::Block, parts::mlp_sizes, qwen3_moe::moe},
    error::Result,
    kernels::{
        activation::Gate,
        route::{Routing, Scores},
    },
    layers::{
        loader::TensorLoader,
        mlp::{GatedMlp, GatedNames, MlpSizes},
        moe::Moe,
        sublayer::Branch,
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let config = load.config;
    let moe = moe(config)?;
    let loader = load.loader.under("block_sparse_moe");
    let routing = Routing {
        experts_per_token: moe.experts_per_token,
        scores: Scores::SoftmaxOfTaken,
        renormalize: false,
        scale: 1.0,
        selection_bias: None,
        groups: (1, 1),
    };
    let attention = load.attention(load.plain_attention())?;
    let names = GatedNames::Apart(["w1", "w3", "w2"]);
    let gate = Gate::Of(config.activation);
    let experts = experts(&loader.under("experts"), moe.num_experts, names, mlp_sizes(config, false), gate)?;
    let router = loader.exact().linear("gate", moe.num_experts, config.hidden_size, false)?;
    Ok(Block::sequential([
        Branch::behind(load.rms_norm("input_layernorm")?, attention),
        Branch::behind(load.rms_norm("post_attention_layernorm")?, Moe::new(router, routing, experts, None)?),
    ]))
}

/// All experts under a loader's prefix.
pub(super) fn experts(
    loader: &TensorLoader<'_>,
    count: usize,
    names: GatedNames,
    sizes: MlpSizes,
    gate: Gate,
) -> Result<Vec<GatedMlp>> {
    (0..count).map(|expert| GatedMlp::load(&loader.expert(expert, count), names, sizes, gate)).collect()
}
