//! The architectures: a table of names, and [`CausalLm`](causal_lm::CausalLm) which owns everything of a model but its blocks.
//!
//! To add one: write `arch/x.rs` with a function that loads a [`Block`], and add a row to [`ARCHITECTURES`]
//! (docs/adding-a-model.md).

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use crate::{
    arch::{
        block::Block, causal_lm::CausalLm, config::ModelConfig, linear_attention::LinearAttention, outline::Outline,
        window::Sliding,
    },
    config::{Dtype, KvCacheDtype, KvCacheGroups, Quantization},
    error::{Error, Result},
    ids::TokenId,
    kernels::linear::format::WeightFormat,
    layers::{
        context::{KvCache, KvCacheShape, StepContext},
        keep::Keep,
        loader::TensorLoader,
        lora::AdaptableLinear,
        rope::{Rope, RopeStyle},
        state::StateCache,
    },
    weights::Weights,
};

pub mod block;
pub mod causal_lm;
pub mod cohere2;
pub mod config;
pub mod deepseek_v3;
pub mod exaone4;
mod fields;
pub mod footprint;
pub mod gemma2;
pub mod gemma3;
pub mod generation_config;
pub mod gguf_config;
pub(crate) mod gguf_family;
pub(crate) mod gguf_latent;
mod gguf_linear_attention;
mod gguf_rope;
pub mod glm4;
pub mod gpt2;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod granite;
pub mod linear_attention;
pub mod llama;
pub mod long_tail;
pub mod mistral;
pub mod mixtral;
pub mod moe_config;
pub mod olmo2;
pub mod outline;
pub mod parts;
pub mod peft;
pub mod phi3;
pub mod pooling_config;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_5;
pub mod qwen3_moe;
pub mod rope_config;
pub mod served;
pub mod shapes;
pub mod smollm3;
pub mod stablelm;
pub mod starcoder2;
pub mod window;

/// One architecture that can be served.
pub struct Architecture {
    /// The class name in config.json.
    pub name: &'static str,
    /// `general.architecture` of its GGUF files; none where they go by another's name.
    pub gguf: Option<&'static str>,
    /// Whether the head is the embedding where config.json does not say.
    tied: bool,
    /// As [`Model::prefixes_are_shared`].
    prefixes_are_shared: bool,
    /// Which numbers of a head rotary positions pair.
    rope_style: RopeStyle,
    /// The share of a head that is turned where config.json does not say.
    partial_rotary_factor: f64,
    /// Which layers see the last tokens only, where config.json does not say.
    sliding: Sliding,
    /// Fields that its class has values for where a config.json leaves them out, beyond what all classes share.
    defaults: fn() -> Map<String, Value>,
    /// What surrounds the blocks.
    outline: fn(&ModelConfig) -> Outline,
    /// Loads a block.
    block: fn(&BlockLoad<'_>) -> Result<Block>,
}

/// What most architectures do.
const USUAL: Architecture = Architecture {
    name: "",
    gguf: None,
    tied: false,
    prefixes_are_shared: true,
    rope_style: RopeStyle::Halves,
    partial_rotary_factor: 1.0,
    sliding: Sliding::Never,
    defaults: Map::new,
    outline: Outline::usual,
    block: llama::block,
};

/// What Qwen's models with recurrent layers do.
const QWEN3_5: Architecture = Architecture {
    prefixes_are_shared: false,
    partial_rotary_factor: 0.25,
    outline: qwen3_5::outline,
    block: qwen3_5::block,
    ..USUAL
};

/// What Mistral's models do.
const MISTRAL: Architecture = Architecture { sliding: Sliding::Always, block: mistral::block, ..USUAL };

/// What Gemma 3 does.
const GEMMA3: Architecture = Architecture {
    tied: true,
    sliding: Sliding::ButEvery(6),
    defaults: gemma3::defaults,
    outline: gemma2::outline,
    block: gemma3::block,
    ..USUAL
};

/// Every architecture, by name.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "LlamaForCausalLM", gguf: Some("llama"), ..USUAL },
    Architecture { name: "MistralForCausalLM", ..MISTRAL },
    Architecture { name: "MinistralForCausalLM", ..MISTRAL },
    Architecture { name: "Ministral3ForCausalLM", ..MISTRAL },
    Architecture { name: "Mistral3ForConditionalGeneration", outline: mistral::outline_beside_vision, ..MISTRAL },
    Architecture { name: "MixtralForCausalLM", sliding: Sliding::Always, block: mixtral::block, ..USUAL },
    Architecture {
        name: "Qwen2ForCausalLM",
        gguf: Some("qwen2"),
        sliding: Sliding::WhereAsked,
        block: qwen2::block,
        ..USUAL
    },
    Architecture {
        name: "Qwen3ForCausalLM",
        gguf: Some("qwen3"),
        sliding: Sliding::WhereAsked,
        block: qwen3::block,
        ..USUAL
    },
    Architecture {
        name: "Qwen3MoeForCausalLM",
        gguf: Some("qwen3moe"),
        sliding: Sliding::WhereAsked,
        block: qwen3_moe::block,
        ..USUAL
    },
    Architecture { name: "Qwen3_5ForCausalLM", gguf: Some("qwen35"), ..QWEN3_5 },
    Architecture { name: "Qwen3_5ForConditionalGeneration", outline: qwen3_5::outline_beside_vision, ..QWEN3_5 },
    Architecture { name: "Qwen3_5MoeForCausalLM", gguf: Some("qwen35moe"), ..QWEN3_5 },
    Architecture { name: "Qwen3_5MoeForConditionalGeneration", outline: qwen3_5::outline_beside_vision, ..QWEN3_5 },
    Architecture { name: "Qwen3NextForCausalLM", gguf: Some("qwen3next"), ..QWEN3_5 },
    Architecture { name: "Phi3ForCausalLM", gguf: Some("phi3"), sliding: Sliding::Always, block: phi3::block, ..USUAL },
    Architecture {
        name: "Gemma2ForCausalLM",
        gguf: Some("gemma2"),
        tied: true,
        sliding: Sliding::ButEvery(2),
        outline: gemma2::outline,
        block: gemma2::block,
        ..USUAL
    },
    Architecture { name: "Gemma3ForCausalLM", gguf: Some("gemma3"), ..GEMMA3 },
    Architecture { name: "Gemma3ForConditionalGeneration", outline: gemma3::outline_beside_vision, ..GEMMA3 },
    Architecture {
        name: "SmolLM3ForCausalLM",
        gguf: Some("smollm3"),
        tied: true,
        sliding: Sliding::WhereAsked,
        block: smollm3::block,
        ..USUAL
    },
    Architecture { name: "Olmo2ForCausalLM", gguf: Some("olmo2"), block: olmo2::block, ..USUAL },
    Architecture {
        name: "GraniteForCausalLM",
        gguf: Some("granite"),
        outline: granite::outline,
        block: granite::block,
        ..USUAL
    },
    Architecture {
        name: "Glm4ForCausalLM",
        gguf: Some("glm4"),
        rope_style: RopeStyle::Interleaved,
        partial_rotary_factor: 0.5,
        block: glm4::block,
        ..USUAL
    },
    Architecture {
        name: "Starcoder2ForCausalLM",
        gguf: Some("starcoder2"),
        tied: true,
        sliding: Sliding::Always,
        outline: starcoder2::outline,
        block: starcoder2::block,
        ..USUAL
    },
    Architecture {
        name: "GPT2LMHeadModel",
        gguf: Some("gpt2"),
        tied: true,
        outline: gpt2::outline,
        block: gpt2::block,
        ..USUAL
    },
    Architecture {
        name: "GptOssForCausalLM",
        gguf: Some("gpt-oss"),
        sliding: Sliding::ButEvery(2),
        block: gpt_oss::block,
        ..USUAL
    },
    Architecture {
        name: "Cohere2ForCausalLM",
        gguf: Some("cohere2"),
        tied: true,
        rope_style: RopeStyle::Interleaved,
        sliding: Sliding::ButEvery(4),
        outline: cohere2::outline,
        block: cohere2::block,
        ..USUAL
    },
    Architecture {
        name: "Exaone4ForCausalLM",
        gguf: Some("exaone4"),
        sliding: Sliding::ButEvery(4),
        block: exaone4::block,
        ..USUAL
    },
    Architecture {
        name: "StableLmForCausalLM",
        gguf: Some("stablelm"),
        partial_rotary_factor: 0.25,
        outline: starcoder2::outline,
        block: stablelm::block,
        ..USUAL
    },
    Architecture {
        name: "DeepseekV3ForCausalLM",
        gguf: Some("deepseek2"),
        rope_style: RopeStyle::Interleaved,
        block: deepseek_v3::block,
        ..USUAL
    },
    Architecture {
        name: "GPTNeoXForCausalLM",
        gguf: Some("gptneox"),
        partial_rotary_factor: 0.25,
        outline: gpt_neox::outline,
        block: gpt_neox::block,
        ..USUAL
    },
];

impl Architecture {
    /// What surrounds the blocks.
    pub(crate) fn outline(&self, config: &ModelConfig) -> Outline {
        (self.outline)(config)
    }

    /// Tokens that a layer sees, the newest included; without it, all.
    pub(crate) fn window(&self, config: &ModelConfig, layer: usize) -> Option<usize> {
        config.sliding_window.of(self.sliding, layer)
    }

    /// The windows of all layers that have keys and values, those left out that are as long as any sequence: what these are
    /// kept for.
    fn kv_windows(&self, config: &ModelConfig) -> Vec<Option<usize>> {
        let narrow = |window: &usize| *window < config.max_position_embeddings;
        let keeps_a_state =
            |layer: usize| config.linear_attention.as_ref().is_some_and(|linear| linear.of_layer(layer).0);
        let layers = (0..config.num_hidden_layers).filter(|&layer| !keeps_a_state(layer));
        layers.map(|layer| self.window(config, layer).filter(narrow)).collect()
    }
}

/// What a [`Block`] is loaded from.
pub struct BlockLoad<'a> {
    /// Tensors of this block.
    pub loader: TensorLoader<'a>,
    /// Of the model.
    pub config: &'a ModelConfig,
    /// Which block.
    pub layer: usize,
    /// Tokens that it sees, itself the last of them; without it, all before it.
    pub window: Option<usize>,
    /// Shared by all blocks.
    pub rope: Arc<Rope>,
    /// Of layers with a window, where they have positions of their own.
    pub local_rope: Option<Arc<Rope>>,
}

/// A loaded model, whatever its architecture.
pub trait Model: Send + Sync {
    /// What it was loaded as.
    fn config(&self) -> &ModelConfig;

    /// What came of loading it.
    fn info(&self) -> &ModelInfo;

    /// Whether all that it keeps of a sequence stands in blocks. Where it does not, a sequence is computed from its first
    /// token and goes on from nothing but what its own last row left.
    fn prefixes_are_shared(&self) -> bool {
        true
    }

    /// The Linears that adapters may stand beside, and where they are.
    fn adaptable(&self) -> (&[AdaptableLinear], &Device);

    /// Runs the blocks over a step's `token_ids` (as many as `step.positions`), or what `step.placed_ids` has in their place; gives what comes out of the last one,
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

    /// The tokens at `rows` of [`hidden`](Self::hidden)'s result after the last norm, float32 `[rows.len(), hidden]`: what
    /// transformers call `last_hidden_state`. A row does not depend on which others are asked for with it.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    fn states(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor>;

    /// `hidden` and `logits`.
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

    /// States of so many sequences for its recurrent layers; none where it has no such layers.
    ///
    /// # Errors
    /// `Internal` for impossible sizes, `ResourceExhausted` where there is no memory.
    fn new_states(&self, _num_slots: usize) -> Result<Option<StateCache>> {
        Ok(None)
    }
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
    /// Which layers share blocks of it.
    pub kv_groups: KvCacheGroups,
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
        (Some(Quantization::Fp8), _) => Keep::Quantized(WeightFormat::Fp8),
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

/// What a model's numbers are to be kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepOptions {
    /// To compute with.
    pub dtype: Dtype,
    /// What weights stored as plain numbers are quantized to.
    pub quantization: Option<Quantization>,
    /// Keys and values.
    pub kv_cache_dtype: KvCacheDtype,
}

/// Sizes of a KV cache of one block of one token.
#[must_use]
pub fn kv_shape(config: &ModelConfig, dtype: DType) -> KvCacheShape {
    KvCacheShape {
        num_layers: config.linear_attention.as_ref().map_or(config.num_hidden_layers, LinearAttention::num_kv_layers),
        num_blocks: 1,
        block_size: 1,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        dtype,
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
    Ok(Arc::new(CausalLm::load(row, load)?))
}

/// The architecture that the file at `path` calls for.
pub(crate) fn find(path: &Path, architecture: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| row.name == architecture).ok_or_else(|| {
        let known = ARCHITECTURES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        let given: String = architecture.chars().take(80).collect();
        let tail = long_tail::FAMILIES.iter().map(|family| family.architecture).collect::<Vec<_>>().join(", ");
        let why = format!("is {given:?}; supported are {known}, and served through candle-transformers {tail}");
        Error::bad_file(path, "architectures", why)
    })
}
