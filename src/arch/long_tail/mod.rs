//! The long tail: text models of candle-transformers that have no file of ours, a row each.
//!
//! Their modules keep keys and values, or a state, inside, and take one sequence. So each sequence gets a copy of the model,
//! which costs no weights: candle's tensors are counted references. What that gives up is a batch (a step runs its sequences
//! one after another), blocks (nobody goes on from what another one computed) and our kernels (everything is float32).
//! docs/long-tail.md lists every module, and what came of holding it against another implementation.

mod attention;
mod copy;
mod recurrent;
mod settings;
mod weights;

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use self::{
    copy::{Begin, Chunks},
    settings::{Settings, Sizes},
    weights::SharedTensors,
};
use crate::{
    arch::{KeepOptions, config::limits},
    config::{Dtype, KvCacheDtype, ModelFacts},
    error::{Error, Result},
    ids::TokenId,
    weights::{TensorHeader, Weights},
};

pub use self::copy::ModelCopy;

/// The longest context that is offered: most modules make tables for all of it.
const LONGEST_CONTEXT: usize = 32_768;
/// Copies of a row of logits until a token is chosen.
const LOGIT_COPIES: usize = 4;

/// A family of candle-transformers.
pub struct Family {
    /// The class name in config.json.
    pub architecture: &'static str,
    /// The module of candle-transformers' `models`.
    pub module: &'static str,
    /// What it can be given at once.
    chunks: Chunks,
    /// Reads and checks the sizes of a config.json.
    sizes: fn(&Settings) -> Result<Sizes>,
    /// Gives tensors the names, and the scale, that the module expects.
    prepare: fn(&mut HashMap<String, Tensor>) -> candle_core::Result<()>,
    /// Loads the model.
    load: fn(&FamilyLoad<'_>) -> Result<Begin>,
}

/// What a family is loaded from.
pub(crate) struct FamilyLoad<'a> {
    settings: &'a Settings,
    sizes: &'a Sizes,
    tensors: SharedTensors,
    vb: VarBuilder<'static>,
}

impl<'a> FamilyLoad<'a> {
    fn new(config: &'a LongTailConfig, tensors: SharedTensors, device: &Device) -> Self {
        let vb = VarBuilder::from_backend(Box::new(tensors.clone()), DType::F32, device.clone());
        Self { settings: &config.settings, sizes: &config.sizes, tensors, vb }
    }

    fn device(&self) -> &Device {
        self.vb.device()
    }

    /// The tensors with another one in the place of `name`.
    fn with(&self, name: &str, tensor: Tensor) -> VarBuilder<'static> {
        let tensors = self.tensors.with(name, tensor);
        VarBuilder::from_backend(Box::new(tensors), DType::F32, self.device().clone())
    }
}

/// An attention module like most.
const ATTENTION: Family = Family {
    architecture: "",
    module: "",
    chunks: Chunks::Any,
    sizes: attention::sizes,
    prepare: |_| Ok(()),
    load: attention::olmo,
};

/// A recurrent one like most.
const RECURRENT: Family = Family { chunks: Chunks::One, ..ATTENTION };

/// Every family, by name.
pub const FAMILIES: &[Family] = &[
    Family {
        architecture: "FalconForCausalLM",
        module: "falcon",
        chunks: Chunks::First,
        sizes: attention::falcon_sizes,
        prepare: attention::falcon_names,
        load: attention::falcon,
    },
    Family { architecture: "PhiForCausalLM", module: "phi", chunks: Chunks::First, load: attention::phi, ..ATTENTION },
    Family { architecture: "OlmoForCausalLM", module: "olmo", ..ATTENTION },
    Family { architecture: "GemmaForCausalLM", module: "gemma", load: attention::gemma, ..ATTENTION },
    Family { architecture: "HeliumForCausalLM", module: "helium", load: attention::helium, ..ATTENTION },
    Family {
        architecture: "Qwen2MoeForCausalLM",
        module: "qwen2_moe",
        sizes: attention::qwen2_moe_sizes,
        prepare: attention::tied_head,
        load: attention::qwen2_moe,
        ..ATTENTION
    },
    Family {
        architecture: "GPTBigCodeForCausalLM",
        module: "bigcode",
        sizes: attention::bigcode_sizes,
        load: attention::bigcode,
        ..ATTENTION
    },
    Family {
        architecture: "DeepseekV2ForCausalLM",
        module: "deepseek2",
        sizes: attention::deepseek2_sizes,
        load: attention::deepseek2,
        ..ATTENTION
    },
    Family {
        architecture: "GraniteMoeHybridForCausalLM",
        module: "granitemoehybrid",
        chunks: Chunks::First,
        sizes: attention::granite_sizes,
        load: attention::granite,
        ..ATTENTION
    },
    Family {
        architecture: "ChatGLMModel",
        module: "glm4",
        chunks: Chunks::First,
        sizes: attention::chatglm_sizes,
        load: attention::chatglm,
        ..ATTENTION
    },
    Family {
        architecture: "ChatGLMForConditionalGeneration",
        module: "glm4",
        chunks: Chunks::First,
        sizes: attention::chatglm_sizes,
        load: attention::chatglm,
        ..ATTENTION
    },
    Family {
        architecture: "Lfm2ForCausalLM",
        module: "lfm2",
        chunks: Chunks::First,
        sizes: recurrent::lfm2_sizes,
        load: recurrent::lfm2,
        ..ATTENTION
    },
    Family {
        architecture: "RecurrentGemmaForCausalLM",
        module: "recurrent_gemma",
        chunks: Chunks::First,
        sizes: recurrent::gemma_sizes,
        load: recurrent::gemma,
        ..ATTENTION
    },
    Family {
        architecture: "MambaForCausalLM",
        module: "mamba",
        sizes: recurrent::mamba_sizes,
        prepare: recurrent::mamba_names,
        load: recurrent::mamba,
        ..RECURRENT
    },
    Family {
        architecture: "Mamba2ForCausalLM",
        module: "mamba2",
        sizes: recurrent::mamba2_sizes,
        load: recurrent::mamba2,
        ..RECURRENT
    },
    Family {
        architecture: "Rwkv5ForCausalLM",
        module: "rwkv_v5",
        sizes: recurrent::rwkv_sizes,
        prepare: recurrent::rwkv_tensors,
        load: recurrent::rwkv5,
        ..RECURRENT
    },
    Family {
        architecture: "Rwkv6ForCausalLM",
        module: "rwkv_v6",
        sizes: recurrent::rwkv_sizes,
        prepare: recurrent::rwkv_tensors,
        load: recurrent::rwkv6,
        ..RECURRENT
    },
    Family {
        architecture: "Rwkv7ForCausalLM",
        module: "rwkv_v7",
        sizes: recurrent::rwkv_sizes,
        load: recurrent::rwkv7,
        ..RECURRENT
    },
];

/// What a config.json says of a model of the long tail.
pub struct LongTailConfig {
    family: &'static Family,
    settings: Settings,
    sizes: Sizes,
    /// The family's short name: `mamba`.
    pub model_type: String,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins one.
    pub bos_token_id: Option<TokenId>,
}

impl LongTailConfig {
    /// Reads a config.json; `path` is for messages. None where its architecture is not of the long tail.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field that is missing, impossible, or nothing that the module can do.
    pub fn from_hf_json(path: &Path, text: &str) -> Result<Option<Self>> {
        let settings = Settings::parse(path, text)?;
        let fields = settings.fields();
        let architecture = fields.texts("architectures")?.first().copied().unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else { return Ok(None) };
        let sizes = (family.sizes)(&settings)?;
        let sizes = Sizes { positions: sizes.positions.min(LONGEST_CONTEXT), ..sizes };
        let model_type = fields.text("model_type")?.unwrap_or_default().to_owned();
        let eos_token_ids = fields.token_ids("eos_token_id", sizes.vocab)?;
        let bos_token_id = fields.token_ids("bos_token_id", sizes.vocab)?.first().copied();
        Ok(Some(Self { family, model_type, eos_token_ids, bos_token_id, sizes, settings }))
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Rows of the embedding.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab
    }

    /// Width of the residual stream.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.sizes.hidden
    }

    /// Bytes that a token leaves in its sequence's copy of the model.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> usize {
        self.sizes.per_token.saturating_mul(size_of::<f32>())
    }

    /// What memory it takes to serve the model of these tensors. Sequences run one after another, so that what a step takes
    /// on its way is what its longest prompt takes.
    #[must_use]
    pub fn facts(&self, headers: &[TensorHeader]) -> ModelFacts {
        let bytes = |numbers: usize| numbers.saturating_mul(size_of::<f32>());
        let elements = |header: &TensorHeader| header.elements().unwrap_or(usize::MAX);
        ModelFacts {
            max_position_embeddings: self.sizes.positions,
            kv_bytes_per_token: self.kv_bytes_per_token(),
            prefixes_are_shared: false,
            state_bytes_per_sequence: bytes(self.sizes.per_sequence),
            weight_bytes: bytes(headers.iter().map(elements).fold(0, usize::saturating_add)),
            loading_bytes: bytes(headers.iter().map(elements).max().unwrap_or(0)),
            // Each may be asked for its logits: a prompt's log-probabilities are.
            activation_bytes_per_token: bytes(self.sizes.on_the_way.saturating_add(self.sizes.vocab)),
            logit_row_bytes: bytes(self.sizes.vocab.saturating_mul(LOGIT_COPIES)),
            ..ModelFacts::default()
        }
    }

    /// Whether the flags ask for numbers that these models can be computed with.
    ///
    /// # Errors
    /// `InvalidArgument` that names the flag.
    pub fn check(&self, keep: &KeepOptions) -> Result<()> {
        let refused = |flag: &str, is: String| {
            let why = format!(
                "{is} cannot be had for {}, which runs through candle-transformers in float32: leave it away",
                self.family.architecture
            );
            Err(Error::invalid(flag, why))
        };
        match (keep.dtype, keep.quantization, keep.kv_cache_dtype) {
            (Dtype::Bfloat16, ..) => refused("--dtype", "bfloat16".to_owned()),
            (_, Some(quantization), _) => refused("--quantization", format!("{quantization:?}")),
            (_, _, KvCacheDtype::Auto | KvCacheDtype::Float32) => Ok(()),
            (_, _, other) => refused("--kv-cache-dtype", format!("{other:?}")),
        }
    }
}

/// Everything that loading a model of the long tail needs.
pub struct LongTailLoad<'a> {
    /// Its tensors.
    pub weights: &'a Weights,
    /// Its sizes.
    pub config: LongTailConfig,
    /// Where it will run.
    pub device: &'a Device,
    /// Called after each tensor with how many are loaded, of how many in all.
    pub progress: &'a dyn Fn(usize, usize),
}

/// A loaded model, of which every sequence gets a copy.
pub struct LongTail {
    config: LongTailConfig,
    device: Device,
    begin: Begin,
    num_parameters: usize,
    block_parameters: usize,
}

impl LongTail {
    /// Loads every tensor of the file as float32, and computes a token to see that the module and the file agree.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file, and the tensor which is missing or misshapen.
    pub fn load(load: LongTailLoad<'_>) -> Result<Self> {
        let LongTailLoad { weights, config, device, progress } = load;
        let headers = weights.headers();
        let mut tensors = HashMap::with_capacity(headers.len());
        let (mut num_parameters, mut block_parameters) = (0, 0);
        for (k, TensorHeader { name, shape, .. }) in headers.iter().enumerate() {
            let numbers = weights.get(name, shape)?.to_f32();
            num_parameters += numbers.len();
            // Blocks are numbered.
            if name.split('.').any(|part| part.parse::<usize>().is_ok()) {
                block_parameters += numbers.len();
            }
            tensors.insert(name.clone(), Tensor::from_vec(numbers, shape.as_slice(), device)?);
            progress(k + 1, headers.len());
        }
        let path = weights.path();
        let unfit = |error: candle_core::Error| Error::bad_file(&path, config.family.architecture, error);
        (config.family.prepare)(&mut tensors).map_err(unfit)?;
        let tensors = SharedTensors::new(Arc::new(tensors));
        let begin = (config.family.load)(&FamilyLoad::new(&config, tensors, device));
        let begin = begin.map_err(|error| Error::bad_file(&path, config.family.architecture, error))?;
        let model = Self { config, device: device.clone(), begin, num_parameters, block_parameters };
        let tried = model.copy().and_then(|mut copy| copy.forward(&[TokenId(0)]));
        tried.map_err(|error| Error::bad_file(&path, model.config.family.architecture, error))?;
        Ok(model)
    }

    /// What it was loaded as.
    #[must_use]
    pub fn config(&self) -> &LongTailConfig {
        &self.config
    }

    /// Where it runs.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Numbers in its weights.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// Those in blocks.
    #[must_use]
    pub fn block_parameters(&self) -> usize {
        self.block_parameters
    }

    /// A copy for a sequence that begins.
    ///
    /// # Errors
    /// `Internal` where the module makes none.
    pub fn copy(&self) -> Result<ModelCopy> {
        Ok(ModelCopy::new((self.begin)()?, self.config.family.chunks, self.config.sizes.vocab, self.device.clone()))
    }
}

/// The number of layers, heads and so on, within what is published.
fn layers(settings: &Settings, field: &str) -> Result<usize> {
    settings.fields().required_size(field, limits::LAYERS)
}
