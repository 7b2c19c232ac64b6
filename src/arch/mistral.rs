//! Mistral 7B and its kin: Llama's block whose layers see a sliding window where the file gives one (Jiang et al. 2023,
//! arXiv 2310.06825), all of them, or those that the file names (Ministral); queries of Ministral 3 grow with their positions.
//! Checkpoints of Mistral 3 see pictures too; what is served here is their text model.

use crate::{
    arch::{BlockLoad, block::Block, config::ModelConfig, gemma3, llama::pre_norm, outline::Outline},
    error::Result,
};

/// What surrounds the blocks beside a model of pictures.
pub(super) fn outline_beside_vision(config: &ModelConfig) -> Outline {
    gemma3::beside_vision(Outline::usual(config))
}

/// Loads a block.
pub(super) fn block(load: &BlockLoad<'_>) -> Result<Block> {
    pre_norm(load, load.plain_attention(), false)
}
