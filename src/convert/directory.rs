//! A directory as the hub lays it out, as a GGUF file: the architectures whose keys and tensors GGUF has under other
//! names only, as llama.cpp's converter writes them.

use std::{borrow::Cow, path::Path, sync::Arc};

use serde_json::Value;

use super::{
    Draft, DraftTensor, delta_net, experts,
    turn::{Stored, Turn},
    vocab,
};
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

/// Classes that can be written, and GGUF's names of them.
const CLASSES: [(&str, &str); 11] = [
    ("LlamaForCausalLM", LLAMA),
    ("MistralForCausalLM", LLAMA),
    ("MixtralForCausalLM", LLAMA),
    ("Qwen2ForCausalLM", "qwen2"),
    ("Qwen3ForCausalLM", "qwen3"),
    ("Qwen3MoeForCausalLM", "qwen3moe"),
    ("Qwen3NextForCausalLM", "qwen3next"),
    ("Qwen3_5ForCausalLM", "qwen35"),
    ("Qwen3_5ForConditionalGeneration", "qwen35"),
    ("Qwen3_5MoeForCausalLM", "qwen35moe"),
    ("Qwen3_5MoeForConditionalGeneration", "qwen35moe"),
];
/// The one whose rows of queries and keys are interleaved.
const LLAMA: &str = "llama";
/// Beginnings of tensors of models that see pictures or guess further tokens, which no text model has.
const OTHERS: [&str; 3] = ["model.visual.", "mtp.", "model.mtp."];
/// Where the text model of one that sees pictures stands, and where it stands by itself.
const BESIDE_VISION: (&str, &str) = ("model.language_model.", "model.");
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Small matrices that decide, which llama.cpp takes in float32.
const EXACT: [&str; 2] = ["ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight"];
/// How rotary positions are shared out to time, height and width where a config.json of Qwen3.5 does not say.
const MROPE_SECTIONS: [i32; 4] = [11, 11, 10, 0];

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
        let &(_, architecture) = row;
        check_kept_by_gguf(&files.config_json, &config)?;
        let mut metadata = keys(&files.path, architecture, &config);
        if architecture.starts_with("qwen35") {
            let sections = NewValue::i32s(&mrope_sections(&text));
            metadata.push((format!("{architecture}.rope.dimension_sections"), sections));
        }
        vocab::add(files, &config, &mut metadata)?;
        let stored = Stored::new(source);
        let names: Vec<(String, String)> =
            source.weights().into_iter().map(|name| (in_text_model(&name), name)).collect();
        let has_embedding = names.iter().any(|(name, _)| name == EMBEDDING);
        let mut tensors = Vec::new();
        for (mut name, stored_name) in names {
            if OTHERS.iter().any(|other| name.starts_with(other)) || name.ends_with("rotary_emb.inv_freq") {
                continue;
            }
            if config.tie_word_embeddings && name == "lm_head.weight" {
                if has_embedding {
                    continue;
                }
                EMBEDDING.clone_into(&mut name);
            }
            // Nothing is left out in silence: what is not read would be missing from the model.
            if let Some(why) = source.refusal(&stored_name) {
                return Err(Error::bad_file(source.path(), format!("tensor {}", shown(&stored_name)), why));
            }
            for turn in turns(&stored, (&stored_name, &name), architecture, &config)? {
                tensors.push(turn.draft(&stored)?);
            }
        }
        tensors.extend(rope_divisors(&config.rope));
        Ok(Self { metadata, tensors, layers: config.num_hidden_layers })
    }
}

/// A tensor's name in a model of text alone.
fn in_text_model(name: &str) -> String {
    let (beside, alone) = BESIDE_VISION;
    name.strip_prefix(beside).map_or_else(|| name.to_owned(), |rest| format!("{alone}{rest}"))
}

/// `mrope_section`, in the older and the newer spelling of where it stands.
fn mrope_sections(config: &str) -> [i32; 4] {
    let config: Value = serde_json::from_str(config).unwrap_or_default();
    let text = config.get("text_config").unwrap_or(&config);
    let rope = text.get("rope_parameters").or_else(|| text.get("rope_scaling"));
    let Some(list) = rope.and_then(|rope| rope.get("mrope_section")).and_then(Value::as_array) else {
        return MROPE_SECTIONS;
    };
    let mut sections = [0; 4];
    let numbers = list.iter().filter_map(Value::as_i64).filter_map(|number| i32::try_from(number).ok());
    sections.iter_mut().zip(numbers).for_each(|(section, number)| *section = number);
    sections
}

/// What becomes of a tensor. `name` is as in a model of text alone, `stored` as in the directory.
fn turns(
    tensors: &Stored<'_>,
    (stored, name): (&str, &str),
    architecture: &str,
    config: &ModelConfig,
) -> Result<Vec<Turn>> {
    if let Some(moe) = &config.moe
        && let Some(turns) = experts::turns(tensors, (stored, name), architecture, moe)?
    {
        return Ok(turns);
    }
    let wrong = |why: &str| Error::bad_file(tensors.source.path(), format!("tensor {}", shown(stored)), why);
    let gguf_name = names::to_gguf(architecture, name).ok_or_else(|| wrong("has no name in GGUF"))?;
    let header = tensors.header(stored)?;
    let exact = EXACT.iter().any(|end| gguf_name.ends_with(end));
    let mut turn = Turn { exact, ..Turn::named(gguf_name, stored, &header.shape) };
    let projections =
        [(".self_attn.q_proj.", config.num_attention_heads), (".self_attn.k_proj.", config.num_key_value_heads)];
    let heads = projections.into_iter().find(|(projection, _)| architecture == LLAMA && name.contains(projection));
    if let (Some((_, heads)), Some(&rows)) = (heads, header.shape.first()) {
        if !rows.is_multiple_of(2 * heads) {
            return Err(wrong(&format!("has shape {:?}, which does not divide into {heads} heads", header.shape)));
        }
        turn.rows = Some(interleaved(rows, heads));
    }
    Ok(delta_net::turns(turn, name, architecture, config))
}

/// Which rows stand where once rotary pairs are neighbours: row `j * half + i` of each head at `2i + j`.
fn interleaved(rows: usize, heads: usize) -> Arc<[usize]> {
    let half = rows / (2 * heads);
    (0..rows).map(|row| row / (2 * half) * 2 * half + row % 2 * half + row % (2 * half) / 2).collect()
}

/// Refuses what the keys that are written cannot say, so that nothing is lost in silence.
fn check_kept_by_gguf(path: &Path, config: &ModelConfig) -> Result<()> {
    let slides_by_default = config.architecture == "MistralForCausalLM";
    let slides = |layer| config.sliding_window.of_layer(layer, slides_by_default).is_some();
    if (0..config.num_hidden_layers).any(slides) {
        return Err(Error::bad_file(path, "sliding_window", "is not converted"));
    }
    if config.moe.as_ref().is_some_and(|moe| moe.renormalize == Some(false)) {
        return Err(Error::bad_file(path, "norm_topk_prob", "is false, which GGUF cannot say of this architecture"));
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
    let of_experts = config.moe.as_ref().map(experts::keys).unwrap_or_default();
    let of_states = config.linear_attention.as_ref().map(delta_net::keys).unwrap_or_default();
    keys.extend(of_experts.into_iter().chain(of_states).map(|(key, value)| (format!("{architecture}.{key}"), value)));
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        keys.push((format!("{architecture}.rope.scaling.type"), NewValue::string("linear")));
        keys.push((format!("{architecture}.rope.scaling.factor"), NewValue::f32(factor as f32)));
    }
    keys
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
