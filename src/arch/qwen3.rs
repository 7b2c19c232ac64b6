//! Qwen3: Llama's block with a norm on each query and key head (Yang et al. 2025, arXiv 2505.09388).

use candle_core::Tensor;

use crate::{
    arch::{
        Block, BlockLoad,
        pre_norm::{PreNormBlock, plain_attention},
    },
    error::Result,
    layers::{attention::AttentionOptions, context::StepContext},
};

/// A block of Qwen3.
pub struct Qwen3Block(PreNormBlock);

impl Block for Qwen3Block {
    fn load(block: &BlockLoad<'_>) -> Result<Self> {
        let config = block.config;
        let bias = config.attention_bias.unwrap_or(false);
        let options = AttentionOptions {
            qkv_bias: bias,
            output_bias: bias,
            qk_norm_eps: Some(config.rms_norm_eps),
            window: config.sliding_window.of_layer(block.layer, false),
            ..plain_attention(config)
        };
        Ok(Self(PreNormBlock::load(block, options, false)?))
    }

    fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        self.0.forward(x, step)
    }
}
