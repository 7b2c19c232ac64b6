//! Self-attention over the paged KV cache, with query, key and value as one product (grouped queries: Ainslie et al.
//! 2023, arXiv 2305.13245).

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    kernels::{
        activation::Gate,
        linear::Inputs,
        paged_attention::{Scoring, paged_attention},
        rope::HeadNorm,
        spare::give_back,
        store_kv::store_kv,
    },
    layers::{
        context::StepContext,
        linear::Linear,
        loader::TensorLoader,
        norm::{Norm, NormKind, NormOptions},
        rope::Rope,
        sublayer::Sublayer,
    },
};

/// What differs between the attentions of architectures.
#[derive(Clone)]
pub struct AttentionOptions {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// How the file has query, key and value.
    pub qkv: QkvNames,
    /// Whether they have biases.
    pub qkv_bias: bool,
    /// The output's name.
    pub output: &'static str,
    /// Whether it has a bias.
    pub output_bias: bool,
    /// Norms of queries and keys, where there are such.
    pub qk_norm: Option<QkNorm>,
    /// Rotary positions; none in layers that know no positions.
    pub rope: Option<Arc<Rope>>,
    /// How queries grow with their positions, where they do.
    pub growth: Option<QueryGrowth>,
    /// A token sees this many tokens, itself the last of them; without it, all before it.
    pub window: Option<usize>,
    /// What scores are multiplied with.
    pub scale: f64,
    /// The bound that scores are pressed under by a tanh.
    pub softcap: Option<f64>,
    /// Whether each head has a sink.
    pub sinks: bool,
    /// Whether what comes of a head is multiplied with the sigmoid of a gate, which stands behind its query in the file.
    pub gated: bool,
}

/// Queries that grow by `1 + beta ln(1 + ⌊position / original⌋)`, so that attention over many tokens stays as sharp as over
/// few (Llama 4's, in Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    /// How steeply.
    pub beta: f64,
    /// Tokens of the first training: queries within them are left as they are.
    pub original_max_position_embeddings: usize,
}

impl QueryGrowth {
    /// What a query at this position is multiplied with.
    fn at(&self, position: u32) -> f32 {
        let lengths = position as usize / self.original_max_position_embeddings.max(1);
        (1.0 + self.beta * (lengths as f64).ln_1p()) as f32
    }

    /// Queries `[tokens, heads, head_dim]` of tokens at these positions.
    fn grow(&self, queries: Tensor, positions: &[u32]) -> Result<Tensor> {
        let factors: Vec<f32> = positions.iter().map(|&position| self.at(position)).collect();
        if factors.iter().all(|factor| *factor == 1.0) {
            return Ok(queries);
        }
        let factors = Tensor::from_vec(factors, (positions.len(), 1, 1), queries.device())?;
        Ok(queries.broadcast_mul(&factors)?)
    }
}

/// How a file has the projections to query, key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvNames {
    /// Each by itself.
    Apart([&'static str; 3]),
    /// As one, all queries first, then all keys, then all values.
    Fused(&'static str),
    /// As one, head by head its query, key and value.
    FusedByHead(&'static str),
}

impl QkvNames {
    /// What most call them.
    pub const USUAL: Self = Self::Apart(["q_proj", "k_proj", "v_proj"]);
}

/// The norms `q_norm` and `k_norm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNorm {
    /// Both alike.
    pub options: NormOptions,
    /// Whether one norm goes over all heads together, rather than one over each.
    pub whole: bool,
}

/// One layer's attention.
pub struct Attention {
    layer: usize,
    options: AttentionOptions,
    scoring: Scoring,
    qkv: Linear,
    output: Linear,
    /// Of queries and keys.
    norms: Option<[Norm; 2]>,
}

impl Attention {
    /// Loads the Linears, and `q_norm`, `k_norm` and `sinks` if asked for, under the loader's prefix; `layer` says whose
    /// part of the KV cache is used.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(loader: &TensorLoader<'_>, layer: usize, options: AttentionOptions) -> Result<Self> {
        let AttentionOptions { hidden_size, num_heads, num_kv_heads, head_dim, qkv_bias, .. } = options;
        let (q_size, kv_size) = (num_heads * head_dim, num_kv_heads * head_dim);
        let qkv = match options.qkv {
            QkvNames::Apart([q, k, v]) => {
                let parts = [(q, q_size), (k, kv_size), (v, kv_size)];
                if options.gated {
                    loader.gated_qkv_linear("qkv_proj", parts, head_dim, hidden_size, qkv_bias)?
                } else {
                    loader.stacked_linear("qkv_proj", &parts, hidden_size, qkv_bias)?
                }
            }
            // No file has gates that way.
            _ if options.gated => return Err(Error::internal("gates beside fused queries")),
            QkvNames::Fused(name) => loader.linear(name, q_size + 2 * kv_size, hidden_size, qkv_bias)?,
            QkvNames::FusedByHead(name) => {
                // Row `d` of part `p` of head `h` stands at `(3h + p) * head_dim + d`, and goes where all parts `p` are.
                let from = move |row: usize| (3 * (row % q_size / head_dim) + row / q_size) * head_dim + row % head_dim;
                loader.reordered_linear(name, 3 * q_size, hidden_size, qkv_bias, from)?
            }
        };
        let norms = match &options.qk_norm {
            Some(QkNorm { options, whole }) => {
                let size = |whole_size| if *whole { whole_size } else { head_dim };
                Some([loader.norm("q_norm", size(q_size), options)?, loader.norm("k_norm", size(kv_size), options)?])
            }
            None => None,
        };
        let sinks = if options.sinks { Some(loader.numbers("sinks", num_heads)?.into()) } else { None };
        Ok(Self {
            layer,
            scoring: Scoring {
                scale: options.scale as f32,
                softcap: options.softcap.map(|cap| cap as f32),
                window: options.window.unwrap_or(usize::MAX),
                sinks,
            },
            qkv,
            output: loader.linear(options.output, hidden_size, q_size, options.output_bias)?,
            norms,
            options,
        })
    }

    /// The norms of a query's and of a key's head that go before their turning, none among them; `None` where norms are others.
    fn norms_by_head(&self) -> Option<Option<[HeadNorm<'_>; 2]>> {
        match &self.norms {
            None => Some(None),
            Some(norms) if !self.norms_whole() && norms.iter().all(|norm| norm.kind() == NormKind::Rms) => {
                Some(Some(norms.each_ref().map(Norm::of_heads)))
            }
            Some(_) => None,
        }
    }

    /// Norms and turns queries and keys, and writes keys and values to the tokens' slots; the queries are the result.
    fn place_and_store(&self, qkv: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        let AttentionOptions { num_heads, num_kv_heads, .. } = self.options;
        let [q_norm, k_norm] = self.norms.as_ref().map_or([None; 2], |norms| norms.each_ref().map(Some));
        let q = self.place(&qkv.narrow(1, 0, num_heads)?, q_norm, step)?;
        let k = self.place(&qkv.narrow(1, num_heads, num_kv_heads)?, k_norm, step)?;
        let v = qkv.narrow(1, num_heads + num_kv_heads, num_kv_heads)?;
        let (kv, group) = step.kv_layer(self.layer)?;
        store_kv(&k, &v, kv, &group.slot_mapping)?;
        give_back(k);
        Ok(q)
    }

    /// Norms heads `[tokens, heads, head_dim]` and turns them by their tokens' positions.
    fn place(&self, heads: &Tensor, norm: Option<&Norm>, step: &StepContext<'_>) -> Result<Tensor> {
        let normed = match norm {
            Some(norm) if self.norms_whole() => {
                Some(norm.forward(&heads.flatten_from(1)?)?.reshape(heads.shape().clone())?)
            }
            Some(norm) => Some(norm.forward(heads)?),
            None => None,
        };
        let heads = normed.as_ref().unwrap_or(heads);
        match &self.options.rope {
            Some(rope) => rope.forward(heads, None, step.positions),
            None => Ok(heads.clone()),
        }
    }

    fn norms_whole(&self) -> bool {
        self.options.qk_norm.is_some_and(|norm| norm.whole)
    }
}

impl Sublayer for Attention {
    /// Writes the tokens' keys and values to their slots first, so that tokens of one chunk see each other.
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let AttentionOptions { num_heads, num_kv_heads, head_dim, .. } = self.options;
        let qkv = self.qkv.forward(x, None, step)?;
        let gates = if self.options.gated { num_heads } else { 0 };
        let qkv = qkv.reshape((qkv.dim(0)?, num_heads + 2 * num_kv_heads + gates, head_dim))?;
        let (kv, group) = step.kv_layer(self.layer)?;
        let q = match (&self.options.rope, self.norms_by_head()) {
            (Some(rope), Some(norms)) => {
                rope.forward_and_store(&qkv, num_heads, norms, step.positions, kv, &group.slot_mapping)?
            }
            _ => self.place_and_store(&qkv, step)?,
        };
        let q = match &self.options.growth {
            Some(growth) => growth.grow(q, step.positions)?,
            None => q,
        };
        let attended = paged_attention(&q, kv, &group.attention, &self.scoring)?;
        if self.options.gated {
            let gates = qkv.narrow(1, num_heads + 2 * num_kv_heads, num_heads)?.flatten_from(1)?;
            let gated = Tensor::cat(&[gates, attended], 1)?;
            [q, qkv].into_iter().for_each(give_back);
            let y = self.output.forward(Inputs::Gated(&gated, Gate::Sigmoid), onto, step);
            give_back(gated);
            return y;
        }
        [q, qkv].into_iter().for_each(give_back);
        let y = self.output.forward(Inputs::Rows(&attended), onto, step);
        give_back(attended);
        y
    }
}
