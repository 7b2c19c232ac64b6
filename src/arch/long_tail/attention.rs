//! Families whose copies keep keys and values.

use std::collections::HashMap;

use candle_core::{Result as CandleResult, Tensor};
use candle_transformers::models::{
    bigcode, deepseek2, falcon, gemma, glm4, granitemoehybrid as granite_hybrid, helium, olmo, phi, qwen2_moe,
};
use serde_json::{Value, json};

use super::{
    FamilyLoad, LONGEST_CONTEXT,
    copy::{Begin, beside, built, cloned},
    layers,
    settings::{Settings, Sizes},
};
use crate::{arch::config::limits, error::Result};

/// Falcon's module makes its tables for so many positions.
const FALCON_CONTEXT: usize = 5000;
/// What transformers takes for Falcon's context where the file does not say.
const FALCON_DEFAULT_CONTEXT: usize = 2048;
/// Each copy of a BigCode model has a mask of the square of this, a byte each.
const BIGCODE_CONTEXT: usize = 4096;
/// Each copy of a DeepSeek V2 has tables of its own.
const DEEPSEEK_CONTEXT: usize = 8192;

/// The numbers that attention is made of.
struct Shape {
    hidden: usize,
    layers: usize,
    heads: usize,
    /// Numbers that a token leaves in a layer: its key and its value.
    cached: usize,
    intermediate: usize,
    positions: usize,
    vocab: usize,
}

impl Shape {
    /// What copies of a model of this shape take. Scores are there up to four times: as they are, masked, and in a softmax; so
    /// are keys and values, which modules repeat for each head, and join to those before.
    fn sizes(self) -> Sizes {
        let Self { hidden, layers, heads, cached, intermediate, positions, vocab } = self;
        let positions = positions.min(LONGEST_CONTEXT);
        let rows = 8 * hidden + 4 * intermediate;
        let on_the_way = rows.saturating_add(4 * heads.saturating_mul(positions));
        Sizes { hidden, vocab, positions, per_token: layers * cached, per_sequence: 0, on_the_way }
    }
}

/// A Llama-like config.json.
fn shape(settings: &Settings) -> Result<Shape> {
    let fields = settings.fields();
    let hidden = fields.required_size("hidden_size", limits::HIDDEN)?;
    let heads = fields.required_size("num_attention_heads", limits::HEADS)?;
    let kv_heads = fields.size("num_key_value_heads", limits::HEADS)?.unwrap_or(heads);
    let head_dim = fields.size("head_dim", limits::HEAD_DIM)?.unwrap_or(hidden / heads);
    Ok(Shape {
        hidden,
        layers: layers(settings, "num_hidden_layers")?,
        heads,
        cached: 2 * kv_heads * head_dim,
        intermediate: fields.size("intermediate_size", limits::INTERMEDIATE)?.unwrap_or(4 * hidden),
        positions: fields.required_size("max_position_embeddings", limits::POSITIONS)?,
        vocab: fields.required_size("vocab_size", limits::VOCAB)?,
    })
}

/// The sizes of a Llama-like config.json.
pub(super) fn sizes(settings: &Settings) -> Result<Sizes> {
    settings.unscaled()?;
    Ok(shape(settings)?.sizes())
}

/// The context that tables are made for, as modules read it.
fn context(load: &FamilyLoad<'_>) -> (&'static str, Value) {
    ("max_position_embeddings", json!(load.sizes.positions))
}

/// Gives a head that the file leaves away the weights of the embedding.
pub(super) fn tied_head(tensors: &mut HashMap<String, Tensor>) -> CandleResult<()> {
    tie(tensors, "model.embed_tokens.weight")
}

pub(super) fn falcon_names(tensors: &mut HashMap<String, Tensor>) -> CandleResult<()> {
    tie(tensors, "transformer.word_embeddings.weight")
}

fn tie(tensors: &mut HashMap<String, Tensor>, embedding: &str) -> CandleResult<()> {
    if let (false, Some(embedding)) = (tensors.contains_key("lm_head.weight"), tensors.get(embedding).cloned()) {
        tensors.insert("lm_head.weight".to_owned(), embedding);
    }
    Ok(())
}

pub(super) fn falcon_sizes(settings: &Settings) -> Result<Sizes> {
    settings.unscaled()?;
    settings.only("alibi", false)?;
    settings.only("new_decoder_architecture", false)?;
    settings.only("multi_query", true)?;
    settings.only("rope_theta", 10_000.0)?;
    let fields = settings.fields();
    let hidden = fields.required_size("hidden_size", limits::HIDDEN)?;
    let heads = fields.required_size("num_attention_heads", limits::HEADS)?;
    settings.only("ffn_hidden_size", 4 * hidden)?;
    let positions = fields.size("max_position_embeddings", limits::POSITIONS)?.unwrap_or(FALCON_DEFAULT_CONTEXT);
    let vocab = fields.required_size("vocab_size", limits::VOCAB)?;
    let layers = layers(settings, "num_hidden_layers")?;
    let (cached, intermediate, positions) = (2 * (hidden / heads), 4 * hidden, positions.min(FALCON_CONTEXT));
    Ok(Shape { hidden, layers, heads, cached, intermediate, positions, vocab }.sizes())
}

pub(super) fn falcon(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    if settings.fields().text("activation")?.unwrap_or("gelu") == "gelu" {
        tracing::warn!(
            "candle-transformers computes Falcon's GELU by tanh: logits are a little off the published model's"
        );
    }
    let config: falcon::Config = settings.config(&[
        settings.or("layer_norm_epsilon", 1e-5),
        settings.or("initializer_range", 0.02),
        settings.or("parallel_attn", true),
        settings.or("multi_query", true),
        settings.or("bias", false),
        ("alibi", json!(false)),
        ("new_decoder_architecture", json!(false)),
        ("use_cache", json!(true)),
        ("bos_token_id", json!(0)),
        ("eos_token_id", json!(0)),
        ("hidden_dropout", json!(0.0)),
        ("attention_dropout", json!(0.0)),
        ("n_head_kv", Value::Null),
    ])?;
    let mut model = falcon::Falcon::load(load.vb.clone(), config)?;
    // Its tables are made by the first token, and then shared by all copies.
    model.forward(&Tensor::zeros((1, 1), candle_core::DType::U32, load.device())?)?;
    model.clear_kv_cache();
    Ok(cloned(model, |model, ids, _| model.forward(ids)))
}

pub(super) fn phi(load: &FamilyLoad<'_>) -> Result<Begin> {
    load.settings.only("qk_layernorm", false)?;
    let config: phi::Config = load.settings.config(&[
        load.settings.or("partial_rotary_factor", 0.5),
        load.settings.or("rope_theta", 10_000.0),
        load.settings.or("tie_word_embeddings", false),
        ("qk_layernorm", json!(false)),
        context(load),
    ])?;
    let model = phi::Model::new(&config, load.vb.clone())?;
    Ok(cloned(model, |model, ids, _| model.forward(ids)))
}

pub(super) fn olmo(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    let config: olmo::Config = settings.config(&[
        settings.or("attention_bias", false),
        settings.or("num_key_value_heads", settings.fields().required_size("num_attention_heads", limits::HEADS)?),
        settings.or("rope_theta", 10_000.0),
        settings.or("tie_word_embeddings", false),
        context(load),
    ])?;
    let model = olmo::Model::new(&config, load.vb.clone())?;
    Ok(cloned(model, |model, ids, position| model.forward(ids, position)))
}

pub(super) fn gemma(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    // Older files say `gelu` and mean this one, as transformers warns.
    let config: gemma::Config = settings.config(&[
        settings.or("attention_bias", false),
        settings.or("rope_theta", 10_000.0),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("hidden_activation", Value::Null),
        context(load),
    ])?;
    let model = gemma::Model::new(false, &config, load.vb.clone())?;
    Ok(cloned(model, |model, ids, position| model.forward(ids, position)))
}

pub(super) fn helium(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    let config: helium::Config = settings.config(&[
        settings.or("attention_bias", false),
        settings.or("mlp_bias", false),
        settings.or("rope_theta", 100_000.0),
        settings.or("tie_word_embeddings", false),
        ("bos_token_id", json!(0)),
        ("eos_token_id", json!(0)),
        context(load),
    ])?;
    let model = helium::Model::new(&config, load.vb.clone())?;
    Ok(cloned(model, |model, ids, position| model.forward(ids, position)))
}

pub(super) fn qwen2_moe_sizes(settings: &Settings) -> Result<Sizes> {
    settings.unscaled()?;
    settings.only("use_sliding_window", false)?;
    settings.only("mlp_only_layers", json!([]))?;
    settings.only("qkv_bias", true)?;
    let fields = settings.fields();
    let chosen = fields.required_size("num_experts_per_tok", 1..=1024)?;
    let expert = fields.required_size("moe_intermediate_size", limits::INTERMEDIATE)?;
    let all = fields.required_size("shared_expert_intermediate_size", limits::INTERMEDIATE)?;
    let shape = shape(settings)?;
    let intermediate = shape.intermediate.max(chosen * expert + all);
    Ok(Shape { intermediate, ..shape }.sizes())
}

pub(super) fn qwen2_moe(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    let config: qwen2_moe::Config = settings.config(&[
        settings.or("max_window_layers", 0),
        settings.or("decoder_sparse_step", 1),
        settings.or("norm_topk_prob", false),
        settings.or("rope_theta", 1_000_000.0),
        ("tie_word_embeddings", json!(false)),
        ("sliding_window", json!(LONGEST_CONTEXT)),
        ("use_sliding_window", json!(false)),
        context(load),
    ])?;
    let model = qwen2_moe::Model::new(&config, load.vb.clone())?;
    Ok(cloned(model, |model, ids, position| model.forward(ids, position)))
}

pub(super) fn bigcode_sizes(settings: &Settings) -> Result<Sizes> {
    settings.only("multi_query", true)?;
    settings.only("scale_attn_weights", true)?;
    settings.only("activation_function", "gelu_pytorch_tanh")?;
    let fields = settings.fields();
    let hidden = fields.required_size("n_embd", limits::HIDDEN)?;
    let heads = fields.required_size("n_head", limits::HEADS)?;
    let shape = Shape {
        hidden,
        layers: layers(settings, "n_layer")?,
        heads,
        cached: 2 * (hidden / heads),
        intermediate: fields.size("n_inner", limits::INTERMEDIATE)?.unwrap_or(4 * hidden),
        positions: fields.required_size("n_positions", limits::POSITIONS)?.min(BIGCODE_CONTEXT),
        vocab: fields.required_size("vocab_size", limits::VOCAB)?,
    };
    let mask = shape.positions * shape.positions;
    Ok(Sizes { per_sequence: mask / size_of::<f32>(), ..shape.sizes() })
}

pub(super) fn bigcode(load: &FamilyLoad<'_>) -> Result<Begin> {
    let fields = load.settings.fields();
    let size = |field| fields.required_size(field, 1..=1 << 24);
    let eps = fields.number("layer_norm_epsilon", |x| x > 0.0 && x < 1.0, "between 0 and 1")?.unwrap_or(1e-5);
    let (hidden, all) = (load.sizes.hidden, size("n_positions")?);
    let (num_heads, num_layers) = (size("n_head")?, size("n_layer")?);
    let inner = fields.size("n_inner", limits::INTERMEDIATE)?;
    let (vocab_size, positions) = (load.sizes.vocab, load.sizes.positions);
    // Later positions are not offered, see BIGCODE_CONTEXT.
    let first = load.vb.pp("transformer.wpe").get((all, hidden), "weight")?.narrow(0, 0, positions)?.contiguous()?;
    let vb = load.with("transformer.wpe.weight", first);
    let build = move || {
        let config = bigcode::Config {
            vocab_size,
            max_position_embeddings: positions,
            num_hidden_layers: num_layers,
            hidden_size: hidden,
            layer_norm_epsilon: eps,
            n_inner: inner,
            num_attention_heads: num_heads,
            multi_query: true,
            use_cache: true,
        };
        bigcode::GPTBigCode::load(vb.clone(), config)
    };
    Ok(built(build, |model, ids, position| model.forward(ids, position)))
}

pub(super) fn deepseek2_sizes(settings: &Settings) -> Result<Sizes> {
    settings.only("topk_method", "greedy")?;
    settings.only("norm_topk_prob", false)?;
    settings.only("scoring_func", "softmax")?;
    let fields = settings.fields();
    let part = |field| fields.required_size(field, limits::HEAD_PART);
    let (nope, rope, value) = (part("qk_nope_head_dim")?, part("qk_rope_head_dim")?, part("v_head_dim")?);
    let mut intermediate = 0;
    if let Some(experts) = fields.size("n_routed_experts", 1..=4096)? {
        let chosen = fields.required_size("num_experts_per_tok", 1..=experts)?;
        let shared = fields.size("n_shared_experts", 0..=1024)?.unwrap_or(0);
        intermediate = (chosen + shared) * fields.required_size("moe_intermediate_size", limits::INTERMEDIATE)?;
    }
    let shape = shape(settings)?;
    let shape = Shape {
        cached: shape.heads * (nope + rope + value),
        intermediate: shape.intermediate.max(intermediate),
        positions: shape.positions.min(DEEPSEEK_CONTEXT),
        ..shape
    };
    Ok(Sizes { per_sequence: shape.positions * rope, ..shape.sizes() })
}

pub(super) fn deepseek2(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    let config: deepseek2::DeepSeekV2Config = settings.config(&[
        settings.or("attention_bias", false),
        settings.or("rope_theta", 10_000.0),
        settings.or("n_group", 1),
        settings.or("topk_group", 1),
        settings.or("moe_intermediate_size", 1),
        settings.or("topk_method", "greedy"),
        settings.or("scoring_func", "softmax"),
        settings.or("tie_word_embeddings", false),
        context(load),
    ])?;
    let vb = load.vb.clone();
    Ok(built(
        move || deepseek2::DeepSeekV2::new(&config, vb.clone()),
        |model, ids, position| model.forward(ids, position),
    ))
}

pub(super) fn granite_sizes(settings: &Settings) -> Result<Sizes> {
    settings.unscaled()?;
    settings.only("position_embedding_type", "rope")?;
    settings.only("num_local_experts", 0)?;
    settings.only("tie_word_embeddings", true)?;
    settings.only("attention_bias", false)?;
    let fields = settings.fields();
    if let Some(mamba) = fields.texts("layer_types")?.into_iter().find(|kind| !kind.ends_with("attention")) {
        let why = format!("has {mamba:?}, and candle-transformers computes attention layers of this model alone");
        return Err(fields.error("layer_types", why));
    }
    let shape = shape(settings)?;
    let shared = fields.size("shared_intermediate_size", limits::INTERMEDIATE)?.unwrap_or(shape.intermediate);
    Ok(Shape { intermediate: shape.intermediate.max(2 * shared), ..shape }.sizes())
}

pub(super) fn granite(load: &FamilyLoad<'_>) -> Result<Begin> {
    let settings = load.settings;
    let config: granite_hybrid::GraniteMoeHybridConfig = settings.config(&[
        settings.or("rope_theta", 10_000.0),
        ("layer_types", json!([])),
        ("rope_scaling", Value::Null),
        ("bos_token_id", Value::Null),
        ("eos_token_id", Value::Null),
        context(load),
    ])?;
    let config = config.into_config(false);
    let model = granite_hybrid::GraniteMoeHybrid::load(load.vb.clone(), &config)?;
    // Its tables are shared by all copies of it.
    let empty = granite_hybrid::GraniteMoeHybridCache::new(true, load.vb.dtype(), &config, load.device())?;
    Ok(beside(move || Ok(empty.clone()), move |ids, position, cache| model.forward(ids, position, cache)))
}

pub(super) fn chatglm_sizes(settings: &Settings) -> Result<Sizes> {
    settings.only("multi_query_attention", true)?;
    let fields = settings.fields();
    let heads = fields.required_size("num_attention_heads", limits::HEADS)?;
    let groups = fields.required_size("multi_query_group_num", 1..=heads)?;
    let shape = Shape {
        hidden: fields.required_size("hidden_size", limits::HIDDEN)?,
        layers: layers(settings, "num_layers")?,
        heads,
        cached: 2 * groups * fields.required_size("kv_channels", limits::HEAD_DIM)?,
        intermediate: fields.required_size("ffn_hidden_size", limits::INTERMEDIATE)?,
        positions: fields.required_size("seq_length", limits::POSITIONS)?,
        vocab: fields.required_size("padded_vocab_size", limits::VOCAB)?,
    };
    Ok(shape.sizes())
}

pub(super) fn chatglm(load: &FamilyLoad<'_>) -> Result<Begin> {
    let instead = [("seq_length", json!(load.sizes.positions)), ("eos_token_id", Value::Null)];
    let config: glm4::Config = load.settings.config(&instead)?;
    let model = glm4::Model::new(&config, load.vb.clone())?;
    Ok(cloned(model, |model, ids, _| model.forward(ids)))
}
