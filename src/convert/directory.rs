//! A directory as the hub lays it out, as a GGUF file: the architectures whose keys and tensors GGUF has under other
//! names only, as llama.cpp's converter writes them.

use std::{borrow::Cow, path::Path};

use serde_json::Value;

use super::{Draft, DraftTensor, vocab};
use crate::{
    arch::config::ModelConfig,
    error::{Error, Result},
    kernels::{
        activation::Activation,
        linear::format::{RawTensor, WeightFormat},
    },
    layers::rope::{RopeConfig, RopeScaling},
    weights::{
        TensorSource,
        file::read_small,
        files::ModelDirectory,
        gguf::writer::{NewTensor, NewValue},
        names,
        safetensors::SafetensorsSource,
        shown,
    },
};

/// Most bytes of a config.json.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Classes that can be written, GGUF's names of them, and whether query and key rows are interleaved there.
const CLASSES: [(&str, &str, bool); 4] = [
    ("LlamaForCausalLM", "llama", true),
    ("MistralForCausalLM", "llama", true),
    ("Qwen2ForCausalLM", "qwen2", false),
    ("Qwen3ForCausalLM", "qwen3", false),
];

impl<'a> Draft<'a> {
    /// A model in a directory, its weights in `source`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field: an architecture, a tensor or a tokenizer that cannot be
    /// written.
    pub fn from_directory(files: &ModelDirectory, source: &'a SafetensorsSource) -> Result<Self> {
        let text = read_small(&files.config_json, MAX_CONFIG_BYTES)?;
        let text = String::from_utf8_lossy(&text);
        let config = ModelConfig::from_hf_json(&files.config_json, &text)?;
        let row = CLASSES.iter().find(|row| row.0 == config.architecture).ok_or_else(|| {
            let known = CLASSES.map(|row| row.0).join(", ");
            let why = format!("is {}; converted are {known}", config.architecture);
            Error::bad_file(&files.config_json, "architectures", why)
        })?;
        let &(_, architecture, interleaves) = row;
        check_kept_by_gguf(&files.config_json, &config)?;
        let mut metadata = keys(&files.path, architecture, &config);
        vocab::add(files, &config, &mut metadata)?;
        let mut tensors = Vec::new();
        for name in source.weights() {
            let is_tied_head = config.tie_word_embeddings && name == "lm_head.weight";
            if is_tied_head && source.contains("model.embed_tokens.weight") || name.ends_with("rotary_emb.inv_freq") {
                continue;
            }
            // Nothing is left out in silence: what is not read would be missing from the model.
            if let Some(why) = source.refusal(&name) {
                return Err(Error::bad_file(source.path(), format!("tensor {}", shown(&name)), why));
            }
            tensors.push(tensor(source, name, &config, interleaves)?);
        }
        tensors.extend(rope_divisors(&config.rope));
        Ok(Self { metadata, tensors, layers: config.num_hidden_layers })
    }
}

/// Refuses what the keys that are written cannot say, so that nothing is lost in silence.
fn check_kept_by_gguf(path: &Path, config: &ModelConfig) -> Result<()> {
    let slides_by_default = config.architecture == "MistralForCausalLM";
    let slides = |layer| config.sliding_window.of_layer(layer, slides_by_default).is_some();
    if (0..config.num_hidden_layers).any(slides) {
        return Err(Error::bad_file(path, "sliding_window", "is not converted"));
    }
    if config.activation != Activation::Silu {
        return Err(Error::bad_file(
            path,
            "hidden_act",
            "is not silu, which is all that GGUF knows of this architecture",
        ));
    }
    if !matches!(config.rope.scaling, RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. }) {
        return Err(Error::bad_file(path, "rope_scaling", "is of a kind that is not converted"));
    }
    Ok(())
}

fn keys(path: &Path, architecture: &str, config: &ModelConfig) -> Vec<(String, NewValue)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut keys = vec![
        ("general.architecture".to_owned(), NewValue::string(architecture)),
        ("general.name".to_owned(), NewValue::string(&name)),
    ];
    let numbers = [
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.rope.rotary_dim),
        ("vocab_size", config.vocab_size),
    ];
    // Sizes are within limits far below 2^32.
    keys.extend(numbers.map(|(key, number)| (format!("{architecture}.{key}"), NewValue::u32(number as u32))));
    let floats =
        [("attention.layer_norm_rms_epsilon", config.norm_eps as f32), ("rope.freq_base", config.rope.theta as f32)];
    keys.extend(floats.map(|(key, number)| (format!("{architecture}.{key}"), NewValue::f32(number))));
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        keys.push((format!("{architecture}.rope.scaling.type"), NewValue::string("linear")));
        keys.push((format!("{architecture}.rope.scaling.factor"), NewValue::f32(factor as f32)));
    }
    keys
}

fn tensor<'a>(
    source: &'a SafetensorsSource,
    name: String,
    config: &ModelConfig,
    interleaves: bool,
) -> Result<DraftTensor<'a>> {
    let wrong = |why: &str| Error::bad_file(source.path(), format!("tensor {name}"), why);
    let gguf_name = names::to_gguf(&config.architecture, &name).ok_or_else(|| wrong("has no name in GGUF"))?;
    let raw = source.get(&name).ok_or_else(|| wrong("cannot be read"))?;
    let is_vector = raw.shape.len() < 2;
    // llama.cpp takes vectors in float32 only.
    let format = if is_vector { WeightFormat::F32.into() } else { raw.format };
    let new = NewTensor { name: gguf_name, shape: raw.shape, format };
    let projections =
        [(".self_attn.q_proj.", config.num_attention_heads), (".self_attn.k_proj.", config.num_key_value_heads)];
    let heads = projections.into_iter().find(|(projection, _)| interleaves && name.contains(projection));
    let heads = heads.map(|(_, heads)| heads);
    if let Some(heads) = heads.filter(|heads| new.shape.first().is_none_or(|rows| rows % (2 * heads) != 0)) {
        return Err(wrong(&format!("has shape {:?}, which does not divide into {heads} heads", new.shape)));
    }
    let make = move || {
        let missing = || Error::bad_file(source.path(), format!("tensor {name}"), "cannot be read");
        let mut raw = source.get(&name).ok_or_else(missing)?;
        if let (Some(heads), Some(&rows)) = (heads, raw.shape.first()) {
            raw.bytes = Cow::Owned(interleave_halves(&raw.bytes, rows, heads));
        }
        if is_vector && raw.format != WeightFormat::F32 {
            let bytes = raw.to_f32().iter().flat_map(|number| number.to_le_bytes()).collect();
            raw = RawTensor { format: WeightFormat::F32.into(), shape: raw.shape, bytes };
        }
        Ok(raw)
    };
    Ok(DraftTensor { new, make: Box::new(make), scales: None })
}

/// Moves row `j * half + i` of each head to row `2i + j`: rotary pairs become neighbours.
fn interleave_halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row_bytes, half) = (bytes.len() / rows.max(1), rows / (2 * heads).max(1));
    let mut interleaved = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact((2 * half * row_bytes).max(1)) {
        for i in 0..half {
            for j in 0..2 {
                interleaved.extend_from_slice(&head[(j * half + i) * row_bytes..][..row_bytes]);
            }
        }
    }
    interleaved
}

/// Llama 3's stretched frequencies, which GGUF has as a tensor of what each is divided by.
fn rope_divisors<'a>(rope: &RopeConfig) -> Option<DraftTensor<'a>> {
    let RopeScaling::Llama3 { .. } = rope.scaling else { return None };
    let plain = RopeConfig { scaling: RopeScaling::Default, ..rope.clone() }.inv_freq();
    let divisors: Vec<f32> = plain.iter().zip(rope.inv_freq()).map(|(plain, stretched)| plain / stretched).collect();
    let (shape, format) = (vec![divisors.len()], WeightFormat::F32.into());
    let bytes: Vec<u8> = divisors.iter().flat_map(|number| number.to_le_bytes()).collect();
    let new = NewTensor { name: "rope_freqs.weight".into(), shape: shape.clone(), format };
    let make = move || Ok(RawTensor { format, shape: shape.clone(), bytes: Cow::Owned(bytes.clone()) });
    Some(DraftTensor { new, make: Box::new(make), scales: None })
}

/// A small file of JSON.
pub(super) fn json(path: &Path, limit_bytes: u64) -> Result<Value> {
    serde_json::from_slice(&read_small(path, limit_bytes)?).map_err(|error| Error::bad_file(path, "json", error))
}
