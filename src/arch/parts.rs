//! Parts that most blocks have in common: Llama's attention and feed-forward layer, from which architectures differ.

use std::sync::Arc;

use crate::{
    arch::{BlockLoad, config::ModelConfig},
    error::Result,
    kernels::activation::Gate,
    layers::{
        attention::{Attention, AttentionOptions, QkvNames},
        mlp::{GatedMlp, GatedNames, MlpSizes},
        norm::{Norm, NormOptions},
    },
};

impl BlockLoad<'_> {
    /// Attention as the configuration's sizes have it: no biases, no norms of queries and keys, the layer's window.
    #[must_use]
    pub fn plain_attention(&self) -> AttentionOptions {
        let config = self.config;
        AttentionOptions {
            hidden_size: config.hidden_size,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            qkv: QkvNames::USUAL,
            qkv_bias: false,
            output: "o_proj",
            output_bias: false,
            qk_norm: None,
            rope: Some(Arc::clone(&self.rope)),
            growth: config.query_growth,
            window: self.window,
            scale: (config.head_dim as f64).sqrt().recip(),
            softcap: None,
            sinks: false,
            gated: false,
        }
    }

    /// The attention `self_attn`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn attention(&self, options: AttentionOptions) -> Result<Attention> {
        Attention::load(&self.loader.under("self_attn"), self.layer, options)
    }

    /// The feed-forward layer `mlp`, by its usual names.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn gated_mlp(&self, bias: bool) -> Result<GatedMlp> {
        self.named_mlp(GatedNames::USUAL, bias)
    }

    /// The feed-forward layer `mlp` by these names.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn named_mlp(&self, names: GatedNames, bias: bool) -> Result<GatedMlp> {
        let gate = Gate::Of(self.config.activation);
        GatedMlp::load(&self.loader.under("mlp"), names, mlp_sizes(self.config, bias), gate)
    }

    /// A norm of the residual stream.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn norm(&self, name: &str, options: NormOptions) -> Result<Norm> {
        self.loader.norm(name, self.config.hidden_size, &options)
    }

    /// An RMS norm of it.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn rms_norm(&self, name: &str) -> Result<Norm> {
        self.norm(name, NormOptions::rms(self.config.norm_eps))
    }
}

/// Sizes of the feed-forward layer.
#[must_use]
pub fn mlp_sizes(config: &ModelConfig, bias: bool) -> MlpSizes {
    MlpSizes { hidden: config.hidden_size, intermediate: config.intermediate_size, bias }
}
