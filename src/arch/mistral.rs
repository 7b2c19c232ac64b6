//! Mistral 7B and its kin: Llama's block whose layers all see a sliding window where the file gives one (Jiang et al. 2023,
//! arXiv 2310.06825).

use candle_core::Tensor;

use crate::{
    arch::{
        Block, BlockLoad,
        pre_norm::{PreNormBlock, plain_attention},
    },
    error::Result,
    layers::{attention::AttentionOptions, context::StepContext},
};

/// A block of Mistral.
pub struct MistralBlock(PreNormBlock);

impl Block for MistralBlock {
    fn load(block: &BlockLoad<'_>) -> Result<Self> {
        let window = block.config.sliding_window.of_layer(block.layer, true);
        let options = AttentionOptions { window, ..plain_attention(block.config) };
        Ok(Self(PreNormBlock::load(block, options, false)?))
    }

    fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        self.0.forward(x, step)
    }
}
