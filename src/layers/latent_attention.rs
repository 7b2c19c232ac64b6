//! Multi-head latent attention: keys and values come out of one small latent a token, and all heads share the part of
//! the key that knows positions (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).
//!
//! The cache holds what the latent is expanded to, so that one kernel serves every architecture: a token takes
//! `2 × heads × (nope + rope)` numbers of it rather than `latent + rope`.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{
        linear::Inputs,
        paged_attention::{Scoring, paged_attention},
        spare::give_back,
        store_kv::store_kv,
    },
    layers::{
        context::StepContext,
        linear::Linear,
        loader::TensorLoader,
        norm::{Norm, NormOptions},
        rope::Rope,
        sublayer::Sublayer,
    },
};

/// Sizes of a latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSizes {
    /// Width of the latent of keys and values, `kv_lora_rank`.
    pub kv_rank: usize,
    /// Width of the latent of queries, `q_lora_rank`, where the file has one.
    pub q_rank: Option<usize>,
    /// Numbers of a head without positions, `qk_nope_head_dim`.
    pub nope: usize,
    /// Numbers of a head that are turned, `qk_rope_head_dim`.
    pub rope: usize,
    /// Numbers of a head's value, `v_head_dim`; at most as many as of its key.
    pub value: usize,
}

impl LatentSizes {
    /// Numbers of a head's query and key.
    #[must_use]
    pub fn key(&self) -> usize {
        self.nope + self.rope
    }
}

/// What a latent attention is loaded with.
pub struct LatentOptions {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Heads.
    pub num_heads: usize,
    /// Of each.
    pub sizes: LatentSizes,
    /// Whether what leads into the latents, and out of the heads, has biases.
    pub bias: bool,
    /// Positions of the numbers that are turned.
    pub rope: Arc<Rope>,
    /// What scores are multiplied with.
    pub scale: f64,
    /// Of the latents' norms.
    pub norm: NormOptions,
}

/// One layer's attention.
pub struct LatentAttention {
    layer: usize,
    num_heads: usize,
    sizes: LatentSizes,
    rope: Arc<Rope>,
    scoring: Scoring,
    query: Query,
    /// To the latent and the key's turning part.
    compress: Linear,
    norm: Norm,
    /// From the latent to all keys, then all values.
    expand: Linear,
    output: Linear,
}

/// How queries come about.
enum Query {
    Direct(Linear),
    Latent { compress: Linear, norm: Norm, expand: Linear },
}

impl LatentAttention {
    /// Loads it under the loader's prefix; `layer` says whose part of the KV cache is used.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(loader: &TensorLoader<'_>, layer: usize, options: LatentOptions) -> Result<Self> {
        let LatentOptions { hidden_size, num_heads, sizes, bias, rope, scale, norm } = options;
        let LatentSizes { kv_rank, q_rank, nope, rope: turning, value } = sizes;
        let key = sizes.key();
        // A head's turning numbers come first here, where rotary positions look for them.
        let turning_first = move |row: usize| match row % key {
            d if d < turning => row + nope,
            _ => row - turning,
        };
        let queries = |name, input| loader.reordered_linear(name, num_heads * key, input, false, turning_first);
        let query = match q_rank {
            None => Query::Direct(queries("q_proj", hidden_size)?),
            Some(rank) => Query::Latent {
                compress: loader.linear("q_a_proj", rank, hidden_size, bias)?,
                norm: loader.norm("q_a_layernorm", rank, &norm)?,
                expand: queries("q_b_proj", rank)?,
            },
        };
        let keys = num_heads * nope;
        let keys_first = move |row: usize| match row.checked_sub(keys) {
            None => row / nope * (nope + value) + row % nope,
            Some(row) => row / value * (nope + value) + nope + row % value,
        };
        let expanded = num_heads * (nope + value);
        let expand = loader.reordered_linear("kv_b_proj", expanded, kv_rank, false, keys_first)?;
        Ok(Self {
            layer,
            num_heads,
            sizes,
            rope,
            scoring: Scoring { scale: scale as f32, softcap: None, window: usize::MAX, sinks: None },
            query,
            compress: loader.linear("kv_a_proj_with_mqa", kv_rank + turning, hidden_size, bias)?,
            norm: loader.norm("kv_a_layernorm", kv_rank, &norm)?,
            expand,
            output: loader.linear("o_proj", hidden_size, num_heads * value, bias)?,
        })
    }

    /// Queries `[tokens, heads, key]` of rows `x`.
    fn queries(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        let q = match &self.query {
            Query::Direct(linear) => linear.forward(Inputs::Rows(x), None, step)?,
            Query::Latent { compress, norm, expand } => {
                let latent = compress.forward(Inputs::Rows(x), None, step)?;
                expand.forward(norm.of(&latent), None, step)?
            }
        };
        let q = q.reshape((q.dim(0)?, self.num_heads, self.sizes.key()))?;
        self.rope.forward(&q, None, step.positions)
    }

    /// Keys and values `[tokens, heads, key]` of rows `x`; a value's last numbers are 0 where it is shorter than a key.
    fn keys_and_values(&self, x: &Tensor, step: &StepContext<'_>) -> Result<(Tensor, Tensor)> {
        let LatentSizes { kv_rank, nope, rope, value, .. } = self.sizes;
        let compressed = self.compress.forward(Inputs::Rows(x), None, step)?;
        let (tokens, heads) = (compressed.dim(0)?, self.num_heads);
        let latent = compressed.narrow(1, 0, kv_rank)?.contiguous()?;
        let turning = compressed.narrow(1, kv_rank, rope)?.contiguous()?.reshape((tokens, 1, rope))?;
        let turned = self.rope.forward(&turning, None, step.positions)?;
        let expanded = self.expand.forward(self.norm.of(&latent), None, step)?;
        let keys = expanded.narrow(1, 0, heads * nope)?.contiguous()?.reshape((tokens, heads, nope))?;
        let k = Tensor::cat(&[turned.broadcast_as((tokens, heads, rope))?.contiguous()?, keys], 2)?;
        let v = expanded.narrow(1, heads * nope, heads * value)?.contiguous()?.reshape((tokens, heads, value))?;
        Ok((k, v.pad_with_zeros(2, 0, self.sizes.key() - value)?))
    }
}

impl Sublayer for LatentAttention {
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let x = x.tensor()?;
        let q = self.queries(&x, step)?;
        let (k, v) = self.keys_and_values(&x, step)?;
        let (kv, group) = step.kv_layer(self.layer)?;
        store_kv(&k, &v, kv, &group.slot_mapping)?;
        let attended = paged_attention(&q, kv, &group.attention, &self.scoring)?;
        [q, k, v].into_iter().for_each(give_back);
        let (tokens, heads, value) = (attended.dim(0)?, self.num_heads, self.sizes.value);
        let values = attended.reshape((tokens, heads, self.sizes.key()))?.narrow(2, 0, value)?;
        let values = values.contiguous()?.reshape((tokens, heads * value))?;
        self.output.forward(Inputs::Rows(&values), onto, step)
    }
}
