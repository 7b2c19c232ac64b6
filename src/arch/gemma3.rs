//! Gemma 3, its text model: Gemma 2's block with norms of queries and keys instead of a cap on scores, and five layers with
//! a window and positions of their own for each that sees everything (Gemma Team 2025, arXiv 2503.19786).

use std::sync::Arc;

use crate::{
    arch::{BlockLoad, block::Block, gemma2},
    error::Result,
    layers::attention::{AttentionOptions, QkNorm},
};

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
