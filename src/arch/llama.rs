//! Llama 1 to 3 (Touvron et al. 2023, arXiv 2302.13971), and the many models that use its class.

use candle_core::Tensor;

use crate::{
    arch::{
        Block, BlockLoad,
        pre_norm::{PreNormBlock, plain_attention},
    },
    error::Result,
    layers::{attention::AttentionOptions, context::StepContext},
};

/// A block of Llama.
pub struct LlamaBlock(PreNormBlock);

impl Block for LlamaBlock {
    fn load(block: &BlockLoad<'_>) -> Result<Self> {
        let config = block.config;
        // One flag for all four projections, as the class has it.
        let bias = config.attention_bias.unwrap_or(false);
        let options = AttentionOptions { qkv_bias: bias, output_bias: bias, ..plain_attention(config) };
        Ok(Self(PreNormBlock::load(block, options, config.mlp_bias.unwrap_or(false))?))
    }

    fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        self.0.forward(x, step)
    }
}
