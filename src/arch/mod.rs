//! The architectures: a table of names, and [`CausalLm`] which owns everything of a model but its block.
//!
//! To add one: write `arch/x.rs` with a type that implements [`Block`], and add a row to [`ARCHITECTURES`].

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};

use crate::{
    arch::{causal_lm::CausalLm, config::ModelConfig},
    config::{Dtype, KvCacheDtype, Quantization},
    error::{Error, Result},
    ids::TokenId,
    kernels::linear::format::WeightFormat,
    layers::{
        context::{KvCache, KvCacheShape, StepContext},
        keep::Keep,
        loader::TensorLoader,
        rope::Rope,
    },
    weights::Weights,
};

pub mod causal_lm;
pub mod config;
mod fields;
pub mod generation_config;
pub mod gguf_config;
pub mod llama;
pub mod mistral;
pub mod pre_norm;
pub mod qwen2;
pub mod qwen3;
pub mod shapes;

/// One architecture that can be served.
pub struct Architecture {
    /// The class name in config.json.
    pub name: &'static str,
    /// `general.architecture` of its GGUF files; none where they go by another's name.
    pub gguf: Option<&'static str>,
    load: fn(&ModelLoad<'_>) -> Result<Arc<dyn Model>>,
}

/// Every architecture, by name.
pub const ARCHITECTURES: &[Architecture] = &[
    row::<llama::LlamaBlock>("LlamaForCausalLM", Some("llama")),
    row::<mistral::MistralBlock>("MistralForCausalLM", None),
    row::<qwen2::Qwen2Block>("Qwen2ForCausalLM", Some("qwen2")),
    row::<qwen3::Qwen3Block>("Qwen3ForCausalLM", Some("qwen3")),
];

const fn row<B: Block>(name: &'static str, gguf: Option<&'static str>) -> Architecture {
    Architecture { name, gguf, load: |load| Ok(Arc::new(CausalLm::<B>::load(load)?)) }
}

/// One block of a model: everything between two states of the residual stream.
pub trait Block: Sized + Send + Sync + 'static {
    /// Loads block number `layer`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    fn load(block: &BlockLoad<'_>) -> Result<Self>;

    /// Runs it over all tokens of a step.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor>;
}

/// What a [`Block`] is loaded from.
pub struct BlockLoad<'a> {
    /// Tensors under `model.layers.N`.
    pub loader: TensorLoader<'a>,
    /// Of the model.
    pub config: &'a ModelConfig,
    /// Which block.
    pub layer: usize,
    /// Shared by all blocks.
    pub rope: Arc<Rope>,
}

/// A loaded model, whatever its architecture.
pub trait Model: Send + Sync {
    /// What it was loaded as.
    fn config(&self) -> &ModelConfig;

    /// What came of loading it.
    fn info(&self) -> &ModelInfo;

    /// Runs the blocks over a step's `token_ids` (as many as `step.positions`); gives what comes out of the last one,
    /// `[token_ids.len(), hidden]`.
    ///
    /// # Errors
    /// `Internal` where an operation fails or an index is not of this model, cache or step.
    fn hidden(&self, token_ids: &[TokenId], step: &StepContext<'_>) -> Result<Tensor>;

    /// The logits `[logit_rows.len(), vocab]` of the tokens at `logit_rows` of [`hidden`](Self::hidden)'s result; the
    /// head runs over those alone. A row's logits do not depend on which others are asked for with it.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn logits(&self, hidden: &Tensor, logit_rows: &[u32], step: &StepContext<'_>) -> Result<Tensor>;

    /// Both.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn forward(&self, token_ids: &[TokenId], logit_rows: &[u32], step: &StepContext<'_>) -> Result<Tensor> {
        self.logits(&self.hidden(token_ids, step)?, logit_rows, step)
    }

    /// A KV cache for it.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible sizes.
    fn new_kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache>;
}

/// Facts about a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Numbers in its weights, a tied head counted once.
    pub num_parameters: usize,
    /// Those in blocks: all but the embedding, the last norm and the head.
    pub block_parameters: usize,
    /// Bytes of its weights as they are kept.
    pub weight_bytes: usize,
    /// Format of its Linears (of the first block's query, where a file mixes them): `bfloat16`, `q4_k`.
    pub dtype: String,
    /// Sizes of a KV cache of one block of one token.
    pub kv_shape: KvCacheShape,
}

/// In which format weights are kept.
#[must_use]
pub fn keep(dtype: Dtype, quantization: Option<Quantization>) -> Keep {
    match (quantization, dtype) {
        (Some(Quantization::Q8_0), _) => Keep::Quantized(WeightFormat::Q8_0),
        (Some(Quantization::Q6K), _) => Keep::Quantized(WeightFormat::Q6K),
        (Some(Quantization::Q5K), _) => Keep::Quantized(WeightFormat::Q5K),
        (Some(Quantization::Q4K), _) => Keep::Quantized(WeightFormat::Q4K),
        (Some(Quantization::Q4_0), _) => Keep::Quantized(WeightFormat::Q4_0),
        (None, Dtype::Auto) => Keep::AsStored,
        (None, Dtype::Float32) => Keep::Widened(WeightFormat::F32),
        (None, Dtype::Bfloat16) => Keep::Widened(WeightFormat::BF16),
    }
}

/// The type of KV blocks for a model whose Linears are kept in `format`.
#[must_use]
pub fn kv_dtype(asked: KvCacheDtype, dtype: Dtype, format: WeightFormat) -> DType {
    match (asked, dtype, format) {
        (KvCacheDtype::Float32, ..)
        | (KvCacheDtype::Auto, Dtype::Float32, _)
        | (KvCacheDtype::Auto, Dtype::Auto, WeightFormat::F32) => DType::F32,
        (KvCacheDtype::Float16, ..) => DType::F16,
        (KvCacheDtype::Auto | KvCacheDtype::Bfloat16, ..) => DType::BF16,
        (KvCacheDtype::Fp8, ..) => DType::F8E4M3,
    }
}

/// Everything that loading a model needs.
pub struct ModelLoad<'a> {
    /// Its tensors.
    pub weights: &'a Weights,
    /// Its sizes.
    pub config: &'a ModelConfig,
    /// Where it will run.
    pub device: &'a Device,
    /// What its numbers are kept in.
    pub dtype: Dtype,
    /// What weights stored as plain numbers are quantized to.
    pub quantization: Option<Quantization>,
    /// What keys and values are kept in.
    pub kv_cache_dtype: KvCacheDtype,
    /// Called after each tensor with how many are loaded, of how many in all.
    pub progress: &'a dyn Fn(usize, usize),
}

/// Loads a model of any architecture of the table.
///
/// # Errors
/// `FailedPrecondition` that names the file and the field or tensor at fault.
pub fn load(load: &ModelLoad<'_>) -> Result<Arc<dyn Model>> {
    let row = find(&load.weights.path(), &load.config.architecture)?;
    (row.load)(load)
}

/// The architecture that the file at `path` calls for.
fn find(path: &Path, architecture: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| row.name == architecture).ok_or_else(|| {
        let known = ARCHITECTURES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        let given: String = architecture.chars().take(80).collect();
        Error::bad_file(path, "architectures", format!("is {given:?}; supported are {known}"))
    })
}
