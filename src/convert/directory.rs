//! A directory as the hub lays it out, as a GGUF file: the architectures whose keys and tensors GGUF has under other
//! names only, or turned, as llama.cpp's converter writes them.

use std::path::Path;

use serde_json::Value;

use super::{
    Draft, experts, family,
    family::Family,
    gpt_oss, keys,
    turn::{Stored, Turn},
    unsaid, vocab,
};
use crate::{
    arch::{self, config::ModelConfig, outline::Outline},
    error::{Error, Result},
    weights::{TensorSource, file::read_small, files::ModelDirectory, names, safetensors::SafetensorsSource, shown},
};

/// Most bytes of a config.json.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Beginnings of tensors of models that see pictures or guess further tokens, which no text model has.
const OTHERS: [&str; 5] =
    ["model.visual.", "model.vision_tower.", "model.multi_modal_projector.", "mtp.", "model.mtp."];
/// Ends of tensors that are computed, or masks: older files have them.
const COMPUTED: [&str; 5] =
    ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"];
/// Where the text model of one that sees pictures stands, and where it stands by itself.
const BESIDE_VISION: (&str, &str) = ("model.language_model.", "model.");
/// Small matrices that decide, which llama.cpp takes in float32.
const EXACT: [&str; 2] = ["ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight"];

impl<'a> Draft<'a> {
    /// A model in a directory, its weights in `source`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field: an architecture, a tensor or a tokenizer that cannot be
    /// written.
    pub fn from_directory(files: &ModelDirectory, source: &'a SafetensorsSource) -> Result<Self> {
        let path = &files.config_json;
        let text = read_small(path, MAX_CONFIG_BYTES)?;
        let text = String::from_utf8_lossy(&text);
        let config = ModelConfig::from_hf_json(path, &text)?;
        let family = Family::of(&config.architecture).ok_or_else(|| family::unknown(path, &config.architecture))?;
        let row = arch::find(path, &config.architecture)?;
        unsaid::check(path, family, row, &config)?;
        let json = json(path, MAX_CONFIG_BYTES)?;
        let mut metadata = keys::keys(&files.path, family, row, &config, &json);
        vocab::add(files, &config, &mut metadata)?;
        let stored = Stored::new(source);
        let outline = row.outline(&config);
        let embedding = in_text_model(&format!("{}.{}.weight", outline.base, outline.embedding));
        let head = format!("{}.weight", outline.head);
        let names = named(source, &outline);
        let has_embedding = names.iter().any(|(name, _)| *name == embedding);
        let mut tensors = Vec::new();
        for (mut name, stored_name) in names {
            let is_computed = COMPUTED.iter().any(|end| name.ends_with(end));
            if is_computed || OTHERS.iter().any(|other| name.starts_with(other)) {
                continue;
            }
            // What predicts tokens further ahead stands behind the last layer (DeepSeek V3).
            let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
            if layer.is_some_and(|layer| layer >= config.num_hidden_layers) {
                continue;
            }
            if config.tie_word_embeddings && name == head {
                if has_embedding {
                    continue;
                }
                name.clone_from(&embedding);
            }
            // Nothing is left out in silence: what is not read would be missing from the model.
            if let Some(why) = source.refusal(&stored_name) {
                return Err(Error::bad_file(source.path(), format!("tensor {}", shown(&stored_name)), why));
            }
            for turn in turns(&stored, (&stored_name, &name), family, &config)? {
                tensors.push(turn.draft(&stored)?);
            }
        }
        tensors.extend(keys::rope_divisors(&config.rope));
        Ok(Self { metadata, tensors, layers: config.num_hidden_layers })
    }
}

/// All weights, by their names in a model of text alone and as they are stored.
fn named(source: &SafetensorsSource, outline: &Outline) -> Vec<(String, String)> {
    let stored = source.weights();
    let base = format!("{}.", outline.base);
    // Some files leave that away.
    let is_bare = !stored.iter().any(|name| name.starts_with(&base));
    let named = |name: String| {
        let adds = is_bare && !name.starts_with(&format!("{}.", outline.head));
        (in_text_model(&if adds { format!("{base}{name}") } else { name.clone() }), name)
    };
    stored.into_iter().map(named).collect()
}

/// A tensor's name in a model of text alone.
fn in_text_model(name: &str) -> String {
    let (beside, alone) = BESIDE_VISION;
    name.strip_prefix(beside).map_or_else(|| name.to_owned(), |rest| format!("{alone}{rest}"))
}

/// What becomes of a tensor. `name` is as in a model of text alone, `stored` as in the directory.
fn turns(
    tensors: &Stored<'_>,
    (stored, name): (&str, &str),
    family: &Family,
    config: &ModelConfig,
) -> Result<Vec<Turn>> {
    if let Some(moe) = &config.moe {
        let turns = match family.name {
            gpt_oss::NAME => gpt_oss::turns(tensors, (stored, name))?,
            family => experts::turns(tensors, (stored, name), family, moe)?,
        };
        if let Some(turns) = turns {
            return Ok(turns);
        }
    }
    let wrong = |why: &str| Error::bad_file(tensors.source.path(), format!("tensor {}", shown(stored)), why);
    let gguf_name = names::to_gguf(family.name, name).ok_or_else(|| wrong("has no name in GGUF"))?;
    let exact = EXACT.iter().any(|end| gguf_name.ends_with(end));
    let turn = Turn { exact, ..Turn::named(gguf_name, stored, &tensors.header(stored)?.shape) };
    family.turns(turn, name, config).map_err(|why| wrong(&why))
}

/// A small file of JSON.
pub(super) fn json(path: &Path, limit_bytes: u64) -> Result<Value> {
    serde_json::from_slice(&read_small(path, limit_bytes)?).map_err(|error| Error::bad_file(path, "json", error))
}
