//! Self-attention over the paged KV cache, with query, key and value as one product (grouped queries: Ainslie et al.
//! 2023, arXiv 2305.13245).

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{
        linear::Inputs,
        paged_attention::{Scoring, paged_attention},
        store_kv::store_kv,
    },
    layers::{context::StepContext, linear::Linear, loader::TensorLoader, norm::RmsNorm, rope::Rope},
};

/// What differs between the attentions of architectures.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the output has one.
    pub output_bias: bool,
    /// Epsilon of the norms of each query and key head, where there are such.
    pub qk_norm_eps: Option<f64>,
    /// A token sees this many tokens, itself the last of them; without it, all before it.
    pub window: Option<usize>,
}

/// One layer's attention.
pub struct Attention {
    layer: usize,
    options: AttentionOptions,
    scoring: Scoring,
    qkv: Linear,
    output: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    rope: Arc<Rope>,
}

impl Attention {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj`, and `q_norm` and `k_norm` if asked for, under the loader's
    /// prefix; `layer` says whose part of the KV cache is used.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(loader: &TensorLoader<'_>, layer: usize, options: AttentionOptions, rope: Arc<Rope>) -> Result<Self> {
        let AttentionOptions { hidden_size, num_heads, num_kv_heads, head_dim, .. } = options;
        let (q_size, kv_size) = (num_heads * head_dim, num_kv_heads * head_dim);
        let parts = [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)];
        let qk_norm = match options.qk_norm_eps {
            Some(eps) => Some((loader.rms_norm("q_norm", head_dim, eps)?, loader.rms_norm("k_norm", head_dim, eps)?)),
            None => None,
        };
        Ok(Self {
            layer,
            scoring: Scoring {
                window: options.window.unwrap_or(usize::MAX),
                ..Scoring::plain((head_dim as f32).sqrt().recip())
            },
            qkv: loader.stacked_linear("qkv_proj", &parts, hidden_size, options.qkv_bias)?.in_two_terms(),
            output: loader.linear("o_proj", hidden_size, q_size, options.output_bias)?,
            qk_norm,
            rope,
            options,
        })
    }

    /// Adds what it makes of `x` to the residual stream `onto`, both `[tokens, hidden]`. Writes the tokens' keys and values
    /// to their slots first, so that tokens of one chunk see each other.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward_onto(&self, onto: &Tensor, x: Inputs<'_>, step: &StepContext<'_>) -> Result<Tensor> {
        let AttentionOptions { num_heads, num_kv_heads, head_dim, .. } = self.options;
        let tokens = onto.dim(0)?;
        let qkv = self.qkv.forward(x, step)?.reshape((tokens, num_heads + 2 * num_kv_heads, head_dim))?;
        let [q_norm, k_norm] = match &self.qk_norm {
            Some((q_norm, k_norm)) => [Some(q_norm.of_heads()), Some(k_norm.of_heads())],
            None => [None, None],
        };
        let q = self.rope.forward(&qkv.narrow(1, 0, num_heads)?, q_norm, step.positions)?;
        let k = self.rope.forward(&qkv.narrow(1, num_heads, num_kv_heads)?, k_norm, step.positions)?;
        let v = qkv.narrow(1, num_heads + num_kv_heads, num_kv_heads)?;
        let kv = step.kv.layer(self.layer)?;
        store_kv(&k, &v, kv, step.slot_mapping)?;
        let attended = paged_attention(&q, kv, step.attention, &self.scoring)?;
        self.output.forward_onto(onto, Inputs::Rows(&attended), step)
    }
}
