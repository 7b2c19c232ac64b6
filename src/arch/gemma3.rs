//! Gemma 3, its text model, alone or beside that of pictures: Gemma 2's block with norms of queries and keys instead of a cap on scores, and five layers with
//! a window and positions of their own for each that sees everything (Gemma Team 2025, arXiv 2503.19786).

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, gemma2, outline::Outline},
    error::Result,
    layers::attention::{AttentionOptions, QkNorm},
};

/// What its class takes for granted: published files of the models that see pictures say little more than their widths.
pub(super) fn defaults() -> Map<String, Value> {
    let fields = [
        ("vocab_size", json!(262_208)),
        ("num_attention_heads", json!(8)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(256)),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("max_position_embeddings", json!(131_072)),
        ("query_pre_attn_scalar", json!(256)),
        ("rope_theta", json!(1e6)),
        ("rope_local_base_freq", json!(1e4)),
        ("sliding_window", json!(4096)),
    ];
    fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect()
}

/// What surrounds the blocks beside a model of pictures.
pub(super) fn outline_beside_vision(config: &ModelConfig) -> Outline {
    beside_vision(gemma2::outline(config))
}

/// The outline of a text model where a tower of pictures and its projector stand beside it.
pub(super) fn beside_vision(outline: Outline) -> Outline {
    let others = &["model.vision_tower.", "model.multi_modal_projector."];
    Outline { base: "model.language_model", others, ..outline }
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let local = load.local_rope.as_ref().filter(|_| load.window.is_some());
    let options = AttentionOptions {
        rope: Some(Arc::clone(local.unwrap_or(&load.rope))),
        qk_norm: Some(QkNorm { options: gemma2::norm(load.config), whole: false }),
        ..gemma2::attention(load)
    };
    gemma2::sandwich(load, options)
}
