//! What a config.json says of a model, in the older and the newer spelling of its fields, checked.
//! [`gguf_config`](super::gguf_config) reads the same from a GGUF file.

use std::path::Path;

use serde_json::Value;

use crate::{
    arch::{
        fields::Fields,
        linear_attention::{self, LinearAttention},
        moe_config::MoeConfig,
        rope_config::{Ropes, query_growth, ropes},
        window::SlidingWindow,
    },
    error::{Error, Result},
    ids::TokenId,
    kernels::activation::Activation,
    layers::{attention::QueryGrowth, latent_attention::LatentSizes, rope::RopeConfig},
};

/// Sizes beyond which a file is taken for broken or hostile: nothing published comes near them.
pub(crate) mod limits {
    use std::ops::RangeInclusive;

    pub(crate) const HIDDEN: RangeInclusive<usize> = 1..=1 << 16;
    pub(crate) const INTERMEDIATE: RangeInclusive<usize> = 1..=1 << 20;
    pub(crate) const LAYERS: RangeInclusive<usize> = 1..=1024;
    pub(crate) const HEADS: RangeInclusive<usize> = 1..=1024;
    pub(crate) const HEAD_PART: RangeInclusive<usize> = 1..=256;
    pub(crate) const HEAD_DIM: RangeInclusive<usize> = 8..=256;
    pub(crate) const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
    pub(crate) const POSITIONS: RangeInclusive<usize> = 1..=1 << 24;
}

/// What numbers on the way are multiplied with, and pressed under, where the file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Multipliers {
    /// `embedding_multiplier`.
    pub embedding: Option<f64>,
    /// `residual_multiplier`, of what joins the residual stream.
    pub residual: Option<f64>,
    /// `attention_multiplier`, of scores.
    pub attention: Option<f64>,
    /// `query_pre_attn_scalar`: scores are divided by its square root.
    pub query_pre_attn_scalar: Option<f64>,
    /// `logits_scaling` divides logits.
    pub logits_divisor: Option<f64>,
    /// `logit_scale` multiplies them.
    pub logits: Option<f64>,
    /// `attn_logit_softcapping`.
    pub attention_softcap: Option<f64>,
    /// `final_logit_softcapping`.
    pub logit_softcap: Option<f64>,
    /// `swiglu_limit`.
    pub swiglu_limit: Option<f64>,
    /// `mscale_all_dim` of YaRN's parameters, where scores are multiplied by what it gives too.
    pub mscale_all_dim: Option<f64>,
}

/// Whose conventions weights follow, where files of one architecture differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conventions {
    /// Gemma's norms hold how far a weight is from 1, GPT-2's Linears lie `[in, out]`.
    HuggingFace,
    /// llama.cpp's converter has added the 1, and turned the Linears.
    Gguf,
}

/// Flags that would change the arithmetic in a way that no architecture here has.
const UNSUPPORTED: [&str; 3] = ["qk_layernorm", "scale_attn_by_inverse_layer_idx", "use_bidirectional_attention"];

/// A decoder-only model's sizes and options. What architectures decide differently stays as the file says it (or does
/// not), and the architecture's own file decides.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Hugging Face's class name: `Qwen3ForCausalLM`.
    pub architecture: String,
    /// The family's short name: `qwen3`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Numbers a head, 8 to 256.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square or the variance in every norm.
    pub norm_eps: f64,
    /// The nonlinearity of its feed-forward layers.
    pub activation: Activation,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Those of layers with a window, where they have their own.
    pub local_rope: Option<RopeConfig>,
    /// How queries grow with their positions, where they do.
    pub query_growth: Option<QueryGrowth>,
    /// Whether each layer turns queries and keys at all, where the file says.
    pub rope_layers: Option<Vec<bool>>,
    /// Tokens of the longest context the model knows.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// `attention_bias`, where the file says.
    pub attention_bias: Option<bool>,
    /// `mlp_bias`, where the file says.
    pub mlp_bias: Option<bool>,
    /// Sliding-window attention.
    pub sliding_window: SlidingWindow,
    /// Experts, where the model has such.
    pub moe: Option<MoeConfig>,
    /// Sizes of its attention, where keys and values come out of a latent.
    pub latent: Option<LatentSizes>,
    /// Layers that keep a state instead of keys and values, where the model has such.
    pub linear_attention: Option<LinearAttention>,
    /// What numbers on the way are multiplied with.
    pub multipliers: Multipliers,
    /// Whether attention and feed-forward layer read the stream beside each other, where the file says.
    pub parallel_residual: Option<bool>,
    /// Whose conventions the weights follow.
    pub conventions: Conventions,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins one.
    pub bos_token_id: Option<TokenId>,
}

impl ModelConfig {
    /// Reads a config.json; `path` is for messages.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field that is missing, impossible or not supported.
    pub fn from_hf_json(path: &Path, text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text).map_err(|e| Error::bad_file(path, "json", e))?;
        let root = root.as_object().ok_or_else(|| Error::bad_file(path, "json", "must be an object"))?;
        let root = Fields::new(path, root);
        let architecture =
            root.texts("architectures")?.first().copied().ok_or_else(|| root.missing("architectures"))?;
        let row = super::find(path, architecture)?;
        let defaults = (row.defaults)();
        // Of a model that sees pictures too.
        let fields = root.object("text_config")?.unwrap_or_else(|| root.clone()).with_defaults(&defaults);

        for field in UNSUPPORTED {
            if fields.flag(field)? == Some(true) {
                return Err(fields.error(field, "is true, which is not supported"));
            }
        }
        let hidden_size = fields.required_size("hidden_size", limits::HIDDEN)?;
        let num_hidden_layers = fields.required_size("num_hidden_layers", limits::LAYERS)?;
        let num_attention_heads = fields.required_size("num_attention_heads", limits::HEADS)?;
        let num_key_value_heads = fields.size("num_key_value_heads", limits::HEADS)?.unwrap_or(num_attention_heads);
        check_heads(&fields, "num_key_value_heads", num_attention_heads, num_key_value_heads)?;
        let latent = latent(&fields)?;
        if latent.is_some() && num_key_value_heads != num_attention_heads {
            let why = format!(
                "is {num_key_value_heads}, must be the {num_attention_heads} attention heads, beside kv_lora_rank"
            );
            return Err(fields.error("num_key_value_heads", why));
        }
        let linear_attention = LinearAttention::from_fields(&fields, num_hidden_layers)?;
        match (&linear_attention, row.prefixes_are_shared) {
            (Some(_), true) => {
                let why = format!("is given, but {} has no such heads", row.name);
                return Err(fields.error(linear_attention::FIELD, why));
            }
            (None, false) => return Err(fields.missing(linear_attention::FIELD)),
            _ => {}
        }
        let head_dim = match &latent {
            // The class's own `head_dim` is that of the part which is turned.
            Some(latent) => Some(latent.key()),
            None => fields.size("head_dim", 0..=usize::MAX)?,
        };
        let head_dim = check_head_dim(&fields, "head_dim", head_dim, hidden_size, num_attention_heads)?;
        let vocab_size = fields.required_size("vocab_size", limits::VOCAB)?;
        let eps = fields.number("rms_norm_eps", |x| x > 0.0 && x < 1.0, "between 0 and 1")?;
        let intermediate_size = match fields.size("intermediate_size", limits::INTERMEDIATE)? {
            Some(size) => size,
            // GPT-2's way of leaving it away.
            None if row.name == "GPT2LMHeadModel" => 4 * hidden_size,
            // All layers have experts, whose width it is.
            None => fields
                .size("moe_intermediate_size", limits::INTERMEDIATE)?
                .ok_or_else(|| fields.missing("intermediate_size"))?,
        };
        let Ropes { rope, local } = ropes(&fields, row, latent.map_or(head_dim, |latent| latent.rope))?;
        let max_position_embeddings = fields.required_size("max_position_embeddings", limits::POSITIONS)?;
        let sliding_window = SlidingWindow::from_fields(&fields, num_hidden_layers)?;
        if linear_attention.as_ref().is_some_and(|linear| linear.num_kv_layers() == 0) {
            return Err(fields.error("layer_types", "leaves no layer with keys and values, must have full_attention"));
        }
        // Some say it of the whole model alone.
        let tokens = |field: &str| match fields.value(field) {
            Some(_) => fields.token_ids(field, vocab_size),
            None => root.token_ids(field, vocab_size),
        };
        Ok(Self {
            architecture: row.name.to_owned(),
            model_type: root.text("model_type")?.unwrap_or_default().to_owned(),
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            norm_eps: eps.unwrap_or(1e-6),
            activation: activation(&fields)?,
            rope,
            local_rope: local,
            query_growth: query_growth(&fields)?,
            rope_layers: rope_layers(&fields, num_hidden_layers)?,
            max_position_embeddings,
            tie_word_embeddings: root
                .flag("tie_word_embeddings")?
                .or(fields.flag("tie_word_embeddings")?)
                .unwrap_or(row.tied),
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            sliding_window,
            moe: MoeConfig::from_fields(&fields)?,
            latent,
            linear_attention,
            multipliers: multipliers(&fields)?,
            parallel_residual: fields.flag("use_parallel_residual")?,
            conventions: Conventions::HuggingFace,
            eos_token_ids: tokens("eos_token_id")?,
            bos_token_id: tokens("bos_token_id")?.first().copied(),
        })
    }
}

impl ModelConfig {
    /// The same where sequences end at `max_model_len` tokens, which are at most `max_position_embeddings`: LongRoPE goes by
    /// it.
    #[must_use]
    pub fn up_to(self, max_model_len: usize) -> Self {
        let local_rope = self.local_rope.map(|rope| rope.up_to(max_model_len));
        Self { rope: self.rope.up_to(max_model_len), local_rope, ..self }
    }
}

/// Query heads must share key and value heads evenly.
pub(crate) fn check_heads(fields: &Fields<'_>, field: &str, heads: usize, kv_heads: usize) -> Result<()> {
    if heads.is_multiple_of(kv_heads) {
        return Ok(());
    }
    Err(fields.error(field, format!("is {kv_heads}, must divide the {heads} attention heads")))
}

/// The head size as the file gives it, or by the width of the model.
pub(crate) fn check_head_dim(
    fields: &Fields<'_>,
    field: &str,
    given: Option<usize>,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize> {
    let head_dim = given.unwrap_or(hidden_size / num_heads);
    if limits::HEAD_DIM.contains(&head_dim) && head_dim.is_multiple_of(2) {
        return Ok(head_dim);
    }
    let why = match given {
        Some(_) => format!("is {head_dim}, must be even and from 8 to 256"),
        None => format!(
            "is not given, and hidden size {hidden_size} over {num_heads} heads makes {head_dim}: must be even and from 8 to 256"
        ),
    };
    Err(fields.error(field, why))
}

/// The nonlinearity `hidden_act`; `silu` where the file does not say.
fn activation(fields: &Fields<'_>) -> Result<Activation> {
    let name = fields.text("hidden_act")?.unwrap_or("silu");
    let row = Activation::NAMES.iter().find(|row| row.0 == name);
    row.map(|row| row.1).ok_or_else(|| {
        let known = Activation::NAMES.map(|row| row.0).join(", ");
        fields.error("hidden_act", format!("is {name:?}; supported are {known}"))
    })
}

/// Which layers turn queries and keys: `no_rope_layers`, whose ones are those that do.
fn rope_layers(fields: &Fields<'_>, num_layers: usize) -> Result<Option<Vec<bool>>> {
    if let Some(layers) = fields.numbers("no_rope_layers", *limits::LAYERS.end())? {
        if layers.len() != num_layers {
            let why = format!("has {} entries for {num_layers} layers", layers.len());
            return Err(fields.error("no_rope_layers", why));
        }
        return Ok(Some(layers.iter().map(|&turns| turns != 0.0).collect()));
    }
    let interval = fields.size("no_rope_layer_interval", limits::LAYERS)?;
    Ok(interval.map(|interval| (1..=num_layers).map(|layer| layer % interval != 0).collect()))
}

/// Sizes of a latent attention; none where keys and values are made of the stream itself.
fn latent(fields: &Fields<'_>) -> Result<Option<LatentSizes>> {
    let Some(kv_rank) = fields.size("kv_lora_rank", limits::HIDDEN)? else { return Ok(None) };
    let size = |field| fields.required_size(field, limits::HEAD_PART);
    let sizes = LatentSizes {
        kv_rank,
        q_rank: fields.size("q_lora_rank", limits::HIDDEN)?,
        nope: size("qk_nope_head_dim")?,
        rope: size("qk_rope_head_dim")?,
        value: size("v_head_dim")?,
    };
    if sizes.value > sizes.key() {
        let why = format!("is {}, must be at most the key's {}", sizes.value, sizes.key());
        return Err(fields.error("v_head_dim", why));
    }
    if !sizes.rope.is_multiple_of(2) {
        return Err(fields.error("qk_rope_head_dim", format!("is {}, must be even", sizes.rope)));
    }
    Ok(Some(sizes))
}

fn multipliers(fields: &Fields<'_>) -> Result<Multipliers> {
    let scaling = match fields.object("rope_parameters")? {
        Some(newer) => Some(newer),
        None => fields.object("rope_scaling")?,
    };
    let mscale_all_dim = scaling.map(|scaling| scaling.positive("mscale_all_dim")).transpose()?.flatten();
    Ok(Multipliers {
        mscale_all_dim,
        embedding: fields.positive("embedding_multiplier")?,
        residual: fields.positive("residual_multiplier")?,
        attention: fields.positive("attention_multiplier")?,
        query_pre_attn_scalar: fields.positive("query_pre_attn_scalar")?,
        logits_divisor: fields.positive("logits_scaling")?,
        logits: fields.positive("logit_scale")?,
        attention_softcap: fields.positive("attn_logit_softcapping")?,
        logit_softcap: fields.positive("final_logit_softcapping")?,
        swiglu_limit: fields.positive("swiglu_limit")?,
    })
}
