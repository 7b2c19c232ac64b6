//! What a config.json says of a model, in the older and the newer spelling of its fields, checked.
//! [`gguf_config`](super::gguf_config) reads the same from a GGUF file.

use std::path::Path;

use serde_json::Value;

use crate::{
    arch::fields::Fields,
    error::{Error, Result},
    ids::TokenId,
    layers::rope::{RopeConfig, RopeScaling, RopeStyle},
};

/// Sizes beyond which a file is taken for broken or hostile: nothing published comes near them.
pub(crate) mod limits {
    use std::ops::RangeInclusive;

    pub(crate) const HIDDEN: RangeInclusive<usize> = 1..=1 << 16;
    pub(crate) const INTERMEDIATE: RangeInclusive<usize> = 1..=1 << 20;
    pub(crate) const LAYERS: RangeInclusive<usize> = 1..=1024;
    pub(crate) const HEADS: RangeInclusive<usize> = 1..=1024;
    pub(crate) const HEAD_DIM: RangeInclusive<usize> = 8..=256;
    pub(crate) const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
    pub(crate) const POSITIONS: RangeInclusive<usize> = 1..=1 << 24;
}

/// Which layers see only the last so many tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlidingWindow {
    /// Tokens a sliding layer sees.
    pub size: Option<usize>,
    /// `use_sliding_window`, where the file says.
    pub enabled: Option<bool>,
    /// `max_window_layers`: the layers before this one see everything.
    pub first_layer: usize,
    /// `layer_types`: whether each layer slides, where the file says; decides alone.
    pub layers: Option<Vec<bool>>,
}

impl SlidingWindow {
    /// The window of a layer; `by_default` says whether this architecture slides where the file does not say.
    #[must_use]
    pub fn of_layer(&self, layer: usize, by_default: bool) -> Option<usize> {
        let slides = match &self.layers {
            Some(layers) => layers.get(layer).copied().unwrap_or(false),
            None => self.enabled.unwrap_or(by_default) && layer >= self.first_layer,
        };
        self.size.filter(|_| slides)
    }
}

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
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
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
        let fields = Fields::new(path, root);

        let architecture =
            fields.texts("architectures")?.first().copied().ok_or_else(|| fields.missing("architectures"))?;
        for field in ["hidden_act", "hidden_activation"] {
            if let Some(other) = fields.text(field)?.filter(|&name| name != "silu") {
                return Err(fields.error(field, format!("is {other:?}; only silu is supported")));
            }
        }
        let hidden_size = fields.required_size("hidden_size", limits::HIDDEN)?;
        let num_hidden_layers = fields.required_size("num_hidden_layers", limits::LAYERS)?;
        let num_attention_heads = fields.required_size("num_attention_heads", limits::HEADS)?;
        let num_key_value_heads = fields.size("num_key_value_heads", limits::HEADS)?.unwrap_or(num_attention_heads);
        check_heads(&fields, "num_key_value_heads", num_attention_heads, num_key_value_heads)?;
        let head_dim = fields.size("head_dim", 0..=usize::MAX)?;
        let head_dim = check_head_dim(&fields, "head_dim", head_dim, hidden_size, num_attention_heads)?;
        let vocab_size = fields.required_size("vocab_size", limits::VOCAB)?;
        let eps = fields.number("rms_norm_eps", |x| x > 0.0 && x < 1.0, "between 0 and 1")?;
        let max_position_embeddings = fields.required_size("max_position_embeddings", limits::POSITIONS)?;
        Ok(Self {
            architecture: super::find(path, architecture)?.name.to_owned(),
            model_type: fields.text("model_type")?.unwrap_or_default().to_owned(),
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size", limits::INTERMEDIATE)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: eps.unwrap_or(1e-6),
            rope: rope(&fields, head_dim)?,
            max_position_embeddings,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            sliding_window: sliding_window(&fields, num_hidden_layers)?,
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
            bos_token_id: fields.token_ids("bos_token_id", vocab_size)?.first().copied(),
        })
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

/// Rotary positions, from `rope_parameters` (newer) or `rope_theta` and `rope_scaling` (older).
fn rope(fields: &Fields<'_>, head_dim: usize) -> Result<RopeConfig> {
    let newer = fields.object("rope_parameters")?;
    let older = fields.object("rope_scaling")?;
    let theta = match &newer {
        Some(newer) => newer.positive("rope_theta")?,
        None => None,
    };
    let theta = theta.or(fields.positive("rope_theta")?).unwrap_or(10_000.0);
    let scaling = match newer.as_ref().or(older.as_ref()) {
        Some(object) => rope_scaling(object)?,
        None => RopeScaling::Default,
    };
    let share = |f: &Fields<'_>| f.number("partial_rotary_factor", |x| x > 0.0 && x <= 1.0, "above 0, at most 1");
    let share = match newer.as_ref().map(share).transpose()?.flatten() {
        Some(share) => share,
        None => share(fields)?.unwrap_or(1.0),
    };
    let rotary_dim = ((head_dim as f64 * share) as usize) & !1;
    if rotary_dim == 0 {
        return Err(
            fields.error("partial_rotary_factor", format!("is {share}: no number of a head of {head_dim} turns"))
        );
    }
    Ok(RopeConfig { theta, rotary_dim, scaling, style: RopeStyle::Halves })
}

fn rope_scaling(fields: &Fields<'_>) -> Result<RopeScaling> {
    let field = if fields.value("rope_type").is_some() { "rope_type" } else { "type" };
    let required = |name: &str| fields.positive(name)?.ok_or_else(|| fields.missing(name));
    match fields.text(field)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: required("factor")? }),
        "llama3" => {
            let (low_freq_factor, high_freq_factor) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if high_freq_factor <= low_freq_factor {
                let why = format!("is {high_freq_factor}, must be above low_freq_factor {low_freq_factor}");
                return Err(fields.error("high_freq_factor", why));
            }
            let original = "original_max_position_embeddings";
            Ok(RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: fields.required_size(original, limits::POSITIONS)?,
            })
        }
        other => Err(fields.error(field, format!("is {other:?}; supported are default, linear and llama3"))),
    }
}

fn sliding_window(fields: &Fields<'_>, num_layers: usize) -> Result<SlidingWindow> {
    let size = fields.size("sliding_window", limits::POSITIONS)?;
    let types = fields.texts("layer_types")?;
    let layers = match types.len() {
        0 => None,
        n if n == num_layers => {
            let slides = |name: &&str| match *name {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => Err(fields.error(
                    "layer_types",
                    format!("has {other:?}; supported are full_attention and sliding_attention"),
                )),
            };
            Some(types.iter().map(slides).collect::<Result<Vec<_>>>()?)
        }
        n => return Err(fields.error("layer_types", format!("has {n} entries for {num_layers} layers"))),
    };
    if size.is_none() && layers.as_ref().is_some_and(|layers| layers.contains(&true)) {
        return Err(fields.missing("sliding_window"));
    }
    let first_layer = fields.size("max_window_layers", 0..=usize::MAX)?.unwrap_or(0);
    Ok(SlidingWindow { size, enabled: fields.flag("use_sliding_window")?, first_layer, layers })
}
