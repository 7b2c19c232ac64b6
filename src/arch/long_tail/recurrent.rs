//! Families whose copies keep a state, alone or beside keys and values.

use std::collections::HashMap;

use candle_core::{DType, Result as CandleResult, Tensor};
use candle_transformers::models::{lfm2, mamba, mamba2, recurrent_gemma, rwkv_v5, rwkv_v6, rwkv_v7};
use serde_json::json;

use super::{
    FamilyLoad, LONGEST_CONTEXT,
    copy::{Begin, beside, cloned},
    layers,
    settings::{Settings, Sizes},
};
use crate::{arch::config::limits, error::Result};

/// Tokens that a convolution of Mamba sees, and numbers a channel of its state, which the modules know no others of.
const MAMBA_CONV: usize = 4;
const MAMBA_STATE: usize = 16;
/// What the modules add to the variance in every norm.
const MAMBA_EPS: f64 = 1e-5;

/// What Mamba's two modules take for granted.
fn mamba_only(settings: &Settings) -> Result<()> {
    settings.only("conv_kernel", MAMBA_CONV)?;
    settings.only("layer_norm_epsilon", MAMBA_EPS)?;
    settings.only("use_bias", false)?;
    settings.only("use_conv_bias", true)?;
    settings.only("hidden_act", "silu")?;
    settings.only("tie_word_embeddings", true)
}

/// Sizes of a model that knows no longest context: `state` numbers a layer, and widths on the way.
fn endless(settings: &Settings, state: usize, on_the_way: usize) -> Result<Sizes> {
    let fields = settings.fields();
    Ok(Sizes {
        hidden: fields.required_size("hidden_size", limits::HIDDEN)?,
        vocab: fields.required_size("vocab_size", limits::VOCAB)?,
        positions: LONGEST_CONTEXT,
        per_token: 0,
        per_sequence: layers(settings, "num_hidden_layers")?.saturating_mul(state),
        on_the_way,
    })
}

pub(super) fn mamba_sizes(settings: &Settings) -> Result<Sizes> {
    mamba_only(settings)?;
    let hidden = settings.fields().required_size("hidden_size", limits::HIDDEN)?;
    let inner = 2 * hidden;
    settings.only("expand", 2)?;
    settings.only("intermediate_size", inner)?;
    settings.only("state_size", MAMBA_STATE)?;
    settings.only("time_step_rank", hidden.div_ceil(16))?;
    endless(settings, inner * (MAMBA_STATE + MAMBA_CONV), inner * (8 * MAMBA_STATE + 8))
}

/// The module's name for the embedding is that of the first files.
pub(super) fn mamba_names(tensors: &mut HashMap<String, Tensor>) -> CandleResult<()> {
    if let Some(embedding) = tensors.remove("backbone.embeddings.weight") {
        tensors.insert("backbone.embedding.weight".to_owned(), embedding);
    }
    Ok(())
}

pub(super) fn mamba(load: &FamilyLoad<'_>) -> Result<Begin> {
    let config = mamba::Config {
        d_model: load.sizes.hidden,
        n_layer: layers(load.settings, "num_hidden_layers")?,
        vocab_size: load.sizes.vocab,
        // What the file counts is padded already.
        pad_vocab_size_multiple: 1,
    };
    let model = mamba::Model::new(&config, load.vb.pp("backbone"))?;
    let device = load.device().clone();
    let state = move || mamba::State::new(1, &config, DType::F32, &device);
    Ok(beside(state, move |ids, _, state| model.forward(&ids.squeeze(0)?, state)))
}

pub(super) fn mamba2_sizes(settings: &Settings) -> Result<Sizes> {
    mamba_only(settings)?;
    let config = mamba2_config(settings)?;
    let inner = config.d_model * config.expand;
    let channels = inner + 2 * config.ngroups * config.d_state;
    endless(settings, inner * config.d_state + channels * MAMBA_CONV, 6 * inner * config.d_state + 4 * channels)
}

fn mamba2_config(settings: &Settings) -> Result<mamba2::Config> {
    let fields = settings.fields();
    let d_model = fields.required_size("hidden_size", limits::HIDDEN)?;
    let expand = fields.size("expand", 1..=16)?.unwrap_or(2);
    let headdim = fields.required_size("head_dim", 1..=1024)?;
    // Of several groups, each is normalised by itself; the module has one norm for all.
    let ngroups = fields.required_size("n_groups", 1..=1024)?;
    settings.only("n_groups", 1)?;
    let heads = d_model * expand / headdim;
    settings.only("num_heads", heads)?;
    if heads * headdim != d_model * expand {
        let why = format!("is {headdim}, and {heads} such heads are not {expand} times {d_model}");
        return Err(fields.error("head_dim", why));
    }
    Ok(mamba2::Config {
        d_model,
        n_layer: layers(settings, "num_hidden_layers")?,
        vocab_size: fields.required_size("vocab_size", limits::VOCAB)?,
        d_state: fields.required_size("state_size", 1..=1024)?,
        expand,
        headdim,
        ngroups,
        pad_vocab_size_multiple: 1,
    })
}

pub(super) fn mamba2(load: &FamilyLoad<'_>) -> Result<Begin> {
    let config = mamba2_config(load.settings)?;
    let model = mamba2::Model::new(&config, load.vb.pp("backbone"))?;
    let device = load.device().clone();
    let state = move || mamba2::State::new(1, &config, DType::F32, &device);
    Ok(beside(state, move |ids, _, state| model.forward(&ids.squeeze(0)?, state)))
}

pub(super) fn rwkv_sizes(settings: &Settings) -> Result<Sizes> {
    let fields = settings.fields();
    let hidden = fields.required_size("hidden_size", limits::HIDDEN)?;
    let head = rwkv_head(settings)?;
    settings.only("attention_hidden_size", hidden)?;
    let wide = fields.size("intermediate_size", limits::INTERMEDIATE)?.unwrap_or(4 * hidden);
    endless(settings, hidden * (head + 2), 4 * hidden * (head + 8) + 4 * wide)
}

/// Numbers a head, which divide the width of the model.
fn rwkv_head(settings: &Settings) -> Result<usize> {
    let fields = settings.fields();
    let hidden = fields.required_size("hidden_size", limits::HIDDEN)?;
    let head = fields.size("head_size", 1..=hidden)?.unwrap_or(64);
    if !hidden.is_multiple_of(head) {
        return Err(fields.error("head_size", format!("is {head}, must divide hidden_size {hidden}")));
    }
    Ok(head)
}

/// Older and newer names for one thing, and values an eighth as large: what the heads give goes through a norm, whose epsilon
/// is 64e-5 in these models and 1e-5 in the modules. With an eighth of the numbers the two are the same, to the bit.
pub(super) fn rwkv_tensors(tensors: &mut HashMap<String, Tensor>) -> CandleResult<()> {
    const NAMES: [(&str, &str); 4] = [("_k", "_key"), ("_v", "_value"), ("_r", "_receptance"), ("_g", "_gate")];
    for name in tensors.keys().cloned().collect::<Vec<_>>() {
        let mut new = name.replace(".time_maa_", ".time_mix_");
        for (short, long) in NAMES {
            if let Some(stem) = new.strip_suffix(short).filter(|stem| stem.ends_with(".time_mix")) {
                new = format!("{stem}{long}");
            }
        }
        if let Some(mut tensor) = tensors.remove(&name) {
            if name.ends_with(".attention.value.weight") {
                tensor = (tensor / 8.0)?;
            }
            tensors.insert(new, tensor);
        }
    }
    Ok(())
}

fn rwkv_config(load: &FamilyLoad<'_>) -> Result<rwkv_v5::Config> {
    let settings = load.settings;
    settings.config(&[
        settings.or("layer_norm_epsilon", 1e-5),
        settings.or("rescale_every", 0),
        ("attention_hidden_size", json!(load.sizes.hidden)),
        ("head_size", json!(rwkv_head(settings)?)),
        // What the module takes for it: the width over this is how many heads there are.
        ("num_attention_heads", json!(rwkv_head(settings)?)),
    ])
}

pub(super) fn rwkv5(load: &FamilyLoad<'_>) -> Result<Begin> {
    let config = rwkv_config(load)?;
    let model = rwkv_v5::Model::new(&config, load.vb.clone())?;
    let device = load.device().clone();
    Ok(beside(move || rwkv_v5::State::new(1, &config, &device), move |ids, _, state| model.forward(ids, state)))
}

pub(super) fn rwkv6(load: &FamilyLoad<'_>) -> Result<Begin> {
    let config = rwkv_config(load)?;
    let model = rwkv_v6::Model::new(&config, load.vb.clone())?;
    let device = load.device().clone();
    Ok(beside(move || rwkv_v6::State::new(1, &config, &device), move |ids, _, state| model.forward(ids, state)))
}

pub(super) fn rwkv7(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    settings.only("version", "V7")?;
    let head = ("head_size", json!(rwkv_head(settings)?));
    let config: rwkv_v7::Config = settings.config(&[("version", json!("V7")), head])?;
    let model = rwkv_v7::Model::new(&config, load.vb.clone())?;
    let device = load.device().clone();
    let state = move || rwkv_v7::State::new(&config, &device);
    Ok(beside(state, move |ids, _, state| model.forward(ids, state, &ids.flatten_all()?.to_vec1::<u32>()?)))
}

pub(super) fn lfm2_sizes(settings: &Settings) -> Result<Sizes> {
    settings.unscaled()?;
    settings.only("conv_bias", false)?;
    let config = lfm2_config(settings)?;
    let fields = settings.fields();
    let attention = config.layer_types.iter().filter(|kind| **kind == lfm2::LayerType::FullAttention).count();
    let positions = config.max_position_embeddings;
    let rows = 12 * config.hidden_size + 4 * config.intermediate_size;
    Ok(Sizes {
        hidden: config.hidden_size,
        vocab: fields.required_size("vocab_size", limits::VOCAB)?,
        positions,
        per_token: attention * 2 * config.num_key_value_heads * config.head_dim(),
        per_sequence: (config.layer_types.len() - attention) * config.hidden_size * config.conv_l_cache,
        on_the_way: rows.saturating_add(4 * config.num_attention_heads * positions),
    })
}

fn lfm2_config(settings: &Settings) -> Result<lfm2::Config> {
    let fields = settings.fields();
    let hidden_size = fields.required_size("hidden_size", limits::HIDDEN)?;
    let num_attention_heads = fields.required_size("num_attention_heads", limits::HEADS)?;
    let num_hidden_layers = layers(settings, "num_hidden_layers")?;
    let kind = |kind: &&str| match *kind {
        "conv" => Ok(lfm2::LayerType::Conv),
        "full_attention" => Ok(lfm2::LayerType::FullAttention),
        other => Err(fields.error("layer_types", format!("has {other:?}, which is neither conv nor full_attention"))),
    };
    let layer_types = fields.texts("layer_types")?.iter().map(kind).collect::<Result<Vec<_>>>()?;
    if layer_types.len() != num_hidden_layers {
        let why = format!("has {} entries for {num_hidden_layers} layers", layer_types.len());
        return Err(fields.error("layer_types", why));
    }
    Ok(lfm2::Config {
        vocab_size: fields.required_size("vocab_size", limits::VOCAB)?,
        hidden_size,
        intermediate_size: lfm2_intermediate(settings)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.size("num_key_value_heads", 1..=num_attention_heads)?.unwrap_or(8),
        norm_eps: fields.positive("norm_eps")?.unwrap_or(1e-5),
        rope_theta: fields.positive("rope_theta")?.unwrap_or(1e6) as f32,
        max_position_embeddings: fields
            .size("max_position_embeddings", limits::POSITIONS)?
            .unwrap_or(LONGEST_CONTEXT)
            .min(LONGEST_CONTEXT),
        conv_l_cache: fields.size("conv_L_cache", 1..=64)?.unwrap_or(3),
        conv_bias: false,
        layer_types,
        tie_embedding: fields.flag("tie_word_embeddings")?.or(fields.flag("tie_embedding")?).unwrap_or(true),
        bos_token_id: None,
        eos_token_id: None,
        use_flash_attn: false,
    })
}

/// The width that a file's feed-forward layers have: two thirds of what it says, times a factor, rounded up, unless it says
/// that what it says is right.
fn lfm2_intermediate(settings: &Settings) -> Result<usize> {
    let fields = settings.fields();
    let asked = match fields.size("block_ff_dim", limits::INTERMEDIATE)? {
        Some(asked) => asked,
        None => fields.required_size("intermediate_size", limits::INTERMEDIATE)?,
    };
    if fields.flag("block_auto_adjust_ff_dim")? == Some(false) {
        return Ok(asked);
    }
    let factor = fields.positive("block_ffn_dim_multiplier")?.unwrap_or(1.0);
    let multiple = fields.size("block_multiple_of", 1..=1 << 16)?.unwrap_or(256);
    let adjusted = ((2 * asked / 3) as f64 * factor) as usize;
    Ok(adjusted.next_multiple_of(multiple))
}

pub(super) fn lfm2(load: &FamilyLoad<'_>) -> Result<Begin> {
    let config = lfm2_config(load.settings)?;
    let model = lfm2::Model::new(&config, load.vb.clone())?;
    // Its tables are shared by all copies of it.
    let empty = lfm2::Cache::new(true, load.vb.dtype(), &config, load.device())?;
    Ok(beside(move || Ok(empty.clone()), move |ids, position, cache| model.forward(ids, position, cache)))
}

pub(super) fn gemma_sizes(settings: &Settings) -> Result<Sizes> {
    let fields = settings.fields();
    let hidden = fields.required_size("hidden_size", limits::HIDDEN)?;
    let heads = fields.required_size("num_attention_heads", limits::HEADS)?;
    let kv_heads = fields.required_size("num_key_value_heads", 1..=heads)?;
    let head_dim = fields.required_size("head_dim", limits::HEAD_DIM)?;
    let window = fields.required_size("attention_window_size", limits::POSITIONS)?;
    let width = fields.size("lru_width", limits::HIDDEN)?.unwrap_or(hidden);
    let conv = fields.size("conv1d_width", 2..=64)?.unwrap_or(4);
    let kinds = match fields.texts("block_types")? {
        kinds if kinds.is_empty() => fields.texts("_block_types")?,
        kinds => kinds,
    };
    if kinds.is_empty() {
        return Err(fields.missing("block_types"));
    }
    let num_layers = layers(settings, "num_hidden_layers")?;
    let attention = (0..num_layers).filter(|k| kinds[k % kinds.len()] == "attention").count();
    let wide = fields.required_size("intermediate_size", limits::INTERMEDIATE)?;
    // The module's attention sees all that came before, the model's a window of it: they are the same no further than this.
    let positions = window.min(LONGEST_CONTEXT);
    Ok(Sizes {
        hidden,
        vocab: fields.required_size("vocab_size", limits::VOCAB)?,
        positions,
        per_token: attention * 2 * kv_heads * head_dim,
        per_sequence: (num_layers - attention) * width * conv,
        on_the_way: 12 * width.max(hidden) + 3 * wide + (4 * heads).saturating_mul(positions),
    })
}

pub(super) fn gemma(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    let config: recurrent_gemma::Config = settings.config(&[
        settings.or("attention_bias", false),
        settings.or("logits_soft_cap", 30.0),
        settings.or("rms_norm_eps", 1e-6),
        settings.or("rope_theta", 10_000.0),
        settings.or("partial_rotary_factor", 0.5),
        settings.or("conv1d_width", 4),
        settings.or("hidden_activation", "gelu_pytorch_tanh"),
        ("max_seq_len", json!(load.sizes.positions)),
    ])?;
    let model = recurrent_gemma::Model::new(&config, load.vb.pp("model"))?;
    Ok(cloned(model, |model, ids, position| model.forward(ids, position)))
}
