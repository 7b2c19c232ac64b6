//! The block that Llama set and most who followed kept: norm, attention, add, norm, MLP, add.

use candle_core::Tensor;

use crate::{
    arch::{BlockLoad, config::ModelConfig},
    error::Result,
    layers::{
        attention::{Attention, AttentionOptions},
        context::StepContext,
        mlp::GatedMlp,
        norm::RmsNorm,
    },
};

/// Attention and a gated MLP, each behind a norm.
pub struct PreNormBlock {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    mlp: GatedMlp,
}

impl PreNormBlock {
    /// Loads the block with these options of its attention.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(block: &BlockLoad<'_>, options: AttentionOptions, mlp_bias: bool) -> Result<Self> {
        let BlockLoad { loader, config, layer, rope } = block;
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            input_norm: loader.rms_norm("input_layernorm", hidden, eps)?,
            attention: Attention::load(&loader.under("self_attn"), *layer, options, rope.clone())?,
            post_attention_norm: loader.rms_norm("post_attention_layernorm", hidden, eps)?,
            mlp: GatedMlp::load(&loader.under("mlp"), hidden, config.intermediate_size, mlp_bias)?,
        })
    }

    /// Runs it over all tokens of a step.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    pub fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        let x = self.attention.forward_onto(x, self.input_norm.of(x), step)?;
        self.mlp.forward_onto(&x, self.post_attention_norm.of(&x), step)
    }
}

/// Attention as the configuration's sizes have it: no biases, no norms of queries and keys, no window.
#[must_use]
pub fn plain_attention(config: &ModelConfig) -> AttentionOptions {
    AttentionOptions {
        hidden_size: config.hidden_size,
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        qkv_bias: false,
        output_bias: false,
        qk_norm_eps: None,
        window: None,
    }
}
