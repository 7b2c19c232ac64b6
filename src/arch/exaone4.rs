//! EXAONE 4: norms after each layer and of each query and key head; where some layers have a window, only those know
//! positions (LG AI Research 2025, arXiv 2507.11407).

use crate::{
    arch::{BlockLoad, block::Block, olmo2::post_norm},
    error::Result,
    layers::{
        attention::{AttentionOptions, QkNorm},
        norm::NormOptions,
    },
};

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    let (config, plain) = (load.config, load.plain_attention());
    let turns = load.window.is_some() || config.sliding_window.size.is_none();
    let options = AttentionOptions {
        qk_norm: Some(QkNorm { options: NormOptions::rms(config.norm_eps), whole: false }),
        rope: plain.rope.filter(|_| turns),
        ..load.plain_attention()
    };
    post_norm(load, options)
}
