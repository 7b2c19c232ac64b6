//! Qwen2 and Qwen2.5: Llama's block with biases on query, key and value, and windows only where the file turns them on
//! (Yang et al. 2024, arXiv 2407.10671).

use candle_core::Tensor;

use crate::{
    arch::{
        Block, BlockLoad,
        pre_norm::{PreNormBlock, plain_attention},
    },
    error::Result,
    layers::{attention::AttentionOptions, context::StepContext},
};

/// A block of Qwen2.
pub struct Qwen2Block(PreNormBlock);

impl Block for Qwen2Block {
    fn load(block: &BlockLoad<'_>) -> Result<Self> {
        let window = block.config.sliding_window.of_layer(block.layer, false);
        let options = AttentionOptions { qkv_bias: true, window, ..plain_attention(block.config) };
        Ok(Self(PreNormBlock::load(block, options, false)?))
    }

    fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        self.0.forward(x, step)
    }
}
