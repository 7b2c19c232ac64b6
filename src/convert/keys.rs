//! The metadata of a model: its sizes and numbers under GGUF's keys, and what positions take beside keys.

use std::{borrow::Cow, path::Path};

use serde_json::Value;

use super::{
    DraftTensor, delta_net, experts,
    family::{Family, Windows},
    latent,
};
use crate::{
    arch::{Architecture, cohere2::LOGIT_SCALE, config::ModelConfig},
    kernels::linear::format::{RawTensor, WeightFormat},
    layers::rope::{LongRope, RopeConfig, RopeScaling, Yarn},
    weights::gguf::writer::{NewTensor, NewValue},
};

/// How rotary positions are shared out to time, height and width where a config.json of Qwen3.5 does not say.
const MROPE_SECTIONS: [i32; 4] = [11, 11, 10, 0];

/// A model's keys. `json` is its config.json.
pub(super) fn keys(
    path: &Path,
    family: &Family,
    row: &Architecture,
    config: &ModelConfig,
    json: &Value,
) -> Vec<(String, NewValue)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let sizes = [
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("rope.dimension_count", config.rope.rotary_dim),
        ("vocab_size", config.vocab_size),
    ];
    // Sizes are within limits far below 2^32.
    let mut keys: Vec<_> = sizes.into_iter().map(|(key, size)| (key, NewValue::u32(size as u32))).collect();
    let eps = if family.has_layer_norms { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    keys.push((eps, NewValue::f32(config.norm_eps as f32)));
    match &config.latent {
        Some(latent) => keys.extend(latent::keys(latent, config)),
        None => keys.extend([
            ("attention.head_count_kv", NewValue::u32(config.num_key_value_heads as u32)),
            ("attention.key_length", NewValue::u32(config.head_dim as u32)),
            ("attention.value_length", NewValue::u32(config.head_dim as u32)),
        ]),
    }
    keys.extend(multipliers(family, config));
    keys.extend(windows(family, row, config));
    keys.extend(rope(config));
    if family.name.starts_with("qwen35") {
        keys.push(("rope.dimension_sections", NewValue::i32s(&mrope_sections(json))));
    }
    // Llama's files have one width for all.
    let width = (family.name != "llama").then_some(config.intermediate_size);
    keys.extend(config.moe.iter().flat_map(|moe| experts::keys(moe, width)));
    keys.extend(config.linear_attention.iter().flat_map(delta_net::keys));
    keys.extend(config.parallel_residual.map(|parallel| ("use_parallel_residual", NewValue::bool(parallel))));
    let general = [("architecture", NewValue::string(family.name)), ("name", NewValue::string(&name))];
    let general = general.map(|(key, value)| (format!("general.{key}"), value));
    general.into_iter().chain(keys.into_iter().map(|(key, value)| (format!("{}.{key}", family.name), value))).collect()
}

fn multipliers(family: &Family, config: &ModelConfig) -> Vec<(&'static str, NewValue)> {
    let m = &config.multipliers;
    // llama.cpp takes the scale of logits from the file alone.
    let logits = match family.name {
        "granite" => Some(m.logits_divisor.unwrap_or(1.0)),
        "cohere2" => Some(m.logits.unwrap_or(LOGIT_SCALE)),
        _ => None,
    };
    let numbers = [
        ("embedding_scale", m.embedding),
        ("residual_scale", m.residual),
        ("attention.scale", m.attention),
        ("logit_scale", logits),
        ("attn_logit_softcapping", m.attention_softcap),
        ("final_logit_softcapping", m.logit_softcap),
    ];
    numbers.into_iter().filter_map(|(key, number)| Some((key, NewValue::f32(number? as f32)))).collect()
}

/// How far layers see. A list says it even where it is what its readers take for granted.
fn windows(family: &Family, row: &Architecture, config: &ModelConfig) -> Vec<(&'static str, NewValue)> {
    let size = |size: usize| ("attention.sliding_window", NewValue::u32(size as u32));
    let slides = (0..config.num_hidden_layers).map(|layer| row.window(config, layer).is_some()).collect::<Vec<_>>();
    match family.windows {
        Windows::InAll if slides.contains(&true) => config.sliding_window.size.map(size).into_iter().collect(),
        Windows::ListedIn(layers) if layers != config.num_hidden_layers => Vec::new(),
        Windows::Listed | Windows::ListedIn(_) => vec![
            size(config.sliding_window.size.unwrap_or(config.max_position_embeddings)),
            ("attention.sliding_window_pattern", NewValue::bools(&slides)),
        ],
        Windows::Unknown | Windows::InAll => Vec::new(),
    }
}

fn rope(config: &ModelConfig) -> Vec<(&'static str, NewValue)> {
    let mut keys = vec![("rope.freq_base", NewValue::f32(config.rope.theta as f32))];
    if config.architecture.starts_with("Gemma3") {
        let local = config.local_rope.as_ref().unwrap_or(&config.rope);
        keys.push(("rope.freq_base_swa", NewValue::f32(local.theta as f32)));
    }
    let kind = |name: &str| ("rope.scaling.type", NewValue::string(name));
    let number = |key: &'static str, number: f64| (key, NewValue::f32(number as f32));
    let original = |length: usize| ("rope.scaling.original_context_length", NewValue::u32(length as u32));
    match &config.rope.scaling {
        RopeScaling::Linear { factor } => keys.extend([kind("linear"), number("rope.scaling.factor", *factor)]),
        RopeScaling::Yarn(yarn) => {
            keys.extend([
                kind("yarn"),
                number("rope.scaling.factor", yarn.factor),
                original(yarn.original_max_position_embeddings),
                number("rope.scaling.yarn_beta_fast", yarn.beta_fast),
                number("rope.scaling.yarn_beta_slow", yarn.beta_slow),
            ]);
            // What is written is multiplied with what the factor gives, but where scores are.
            let usual = match config.multipliers.mscale_all_dim.filter(|_| config.latent.is_some()) {
                Some(_) => 1.0,
                None => Yarn::attention_factor(yarn.factor, 1.0),
            };
            if yarn.attention_factor != usual {
                keys.push(number("rope.scaling.attn_factor", yarn.attention_factor / usual));
            }
        }
        RopeScaling::LongRope(long) => keys.extend([
            original(long.original_max_position_embeddings),
            number("rope.scaling.attn_factor", long.attention_factor),
        ]),
        RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::Dynamic { .. } | RopeScaling::Divisors(_) => {}
    }
    keys
}

/// The part of a config.json that is of text.
fn text_config(json: &Value) -> &Value {
    json.get("text_config").unwrap_or(json)
}

fn rope_object(json: &Value) -> Option<&Value> {
    let text = text_config(json);
    text.get("rope_parameters").or_else(|| text.get("rope_scaling"))
}

/// `mrope_section`, in the older and the newer spelling of where it stands.
fn mrope_sections(json: &Value) -> [i32; 4] {
    let Some(list) = rope_object(json).and_then(|rope| rope.get("mrope_section")).and_then(Value::as_array) else {
        return MROPE_SECTIONS;
    };
    let mut sections = [0; 4];
    let numbers = list.iter().filter_map(Value::as_i64).filter_map(|number| i32::try_from(number).ok());
    sections.iter_mut().zip(numbers).for_each(|(section, number)| *section = number);
    sections
}

/// Frequencies that GGUF has as tensors of what each is divided by: Llama 3's stretched ones, and both lists of LongRoPE.
pub(super) fn rope_divisors<'a>(rope: &RopeConfig) -> Vec<DraftTensor<'a>> {
    match &rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let plain = RopeConfig { scaling: RopeScaling::Default, ..rope.clone() }.inv_freq();
            let divisors = plain.iter().zip(rope.inv_freq()).map(|(plain, stretched)| plain / stretched).collect();
            vec![vector("rope_freqs.weight", divisors)]
        }
        RopeScaling::LongRope(LongRope { short, long, .. }) => {
            vec![vector("rope_factors_short.weight", short.clone()), vector("rope_factors_long.weight", long.clone())]
        }
        _ => Vec::new(),
    }
}

fn vector<'a>(name: &str, numbers: Vec<f32>) -> DraftTensor<'a> {
    let (shape, format) = (vec![numbers.len()], WeightFormat::F32.into());
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let new = NewTensor { name: name.into(), shape: shape.clone(), format };
    let make = move || Ok(RawTensor { format, shape: shape.clone(), bytes: Cow::Owned(bytes.clone()) });
    DraftTensor { new, make: Box::new(make), scales: None }
}
