//! The tokenizer of a directory, as keys of a GGUF file, and what goes with it: the tokens that begin and end a sequence,
//! chat templates, how to sample. Byte-level BPE only: sentencepiece's scores are not in a tokenizer.json.

use std::path::Path;

use serde_json::Value;

use super::directory::json;
use crate::{
    arch::{config::ModelConfig, generation_config::GenerationDefaults},
    error::{Error, Result},
    ids::TokenId,
    text::{TOKENIZER_FILES, TokenType, TokenizerConfig, pre_tokenizer_name},
    weights::{file::read_small, files::ModelDirectory, gguf::writer::NewValue},
};

/// Most bytes of a tokenizer.json.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Most bytes of a chat template or a generation_config.json.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// GGUF's keys for tokens that end a sequence: of a text, of a turn, of a message.
const END_KEYS: [&str; 3] = ["eos", "eot", "eom"];
/// The template that is taken where a request names none.
const DEFAULT_TEMPLATE: &str = "default";

/// Adds the keys of the tokenizer, of what ends a sequence, and of how to sample. A directory without a tokenizer gives
/// a file without one.
pub(super) fn add(files: &ModelDirectory, config: &ModelConfig, metadata: &mut Vec<(String, NewValue)>) -> Result<()> {
    let settings = files.tokenizer_config.as_deref().map(TokenizerConfig::from_file).transpose()?.unwrap_or_default();
    let defaults = match &files.generation_config {
        Some(path) => {
            let text = read_small(path, MAX_TEXT_BYTES)?;
            GenerationDefaults::from_json(path, &String::from_utf8_lossy(&text), config.vocab_size)?
        }
        None => GenerationDefaults::default(),
    };
    metadata.extend(sampling(&defaults));
    let tokens = tokenizer(files, config, &settings, metadata)?;
    let id = |token: &Option<String>| {
        let id = tokens.iter().position(|other| Some(other) == token.as_ref())?;
        u32::try_from(id).ok().map(TokenId)
    };
    // What ends a turn counts before what ends a document, where the tokenizer says which that is.
    let mut ends = Vec::from_iter(id(&settings.eos_token));
    for &end in config.eos_token_ids.iter().chain(&defaults.eos_token_ids) {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    // A model that was trained anew often keeps its old configuration: its tokenizer knows better.
    let begin = id(&settings.bos_token).or(config.bos_token_id).map(|id| ("bos", id));
    for (key, id) in begin.into_iter().chain(end_keys(&ends, &tokens, files)?) {
        metadata.push((format!("tokenizer.ggml.{key}_token_id"), NewValue::u32(id.0)));
    }
    for (key, value) in templates(files, &settings)? {
        metadata.push((format!("tokenizer.{key}"), value));
    }
    Ok(())
}

/// The tokens that end a sequence under their keys: the first as `eos`, one that is called the end of a message as
/// `eom`, and one more.
///
/// # Errors
/// `FailedPrecondition` where there are more than keys.
fn end_keys(ends: &[TokenId], tokens: &[String], files: &ModelDirectory) -> Result<Vec<(&'static str, TokenId)>> {
    if ends.len() > END_KEYS.len() {
        let path = files.generation_config.as_ref().unwrap_or(&files.config_json);
        let why = format!("there are {} with the tokenizer's, and GGUF has keys for {}", ends.len(), END_KEYS.len());
        return Err(Error::bad_file(path, "eos_token_id", why));
    }
    let mut keys = END_KEYS;
    let is_message = |id: &TokenId| tokens.get(id.index()).is_some_and(|token| token.contains("eom"));
    if ends.get(1).is_some_and(is_message) {
        keys.swap(1, 2);
    }
    Ok(keys.into_iter().zip(ends.iter().copied()).collect())
}

/// How to sample where a request does not say, as llama.cpp's converter writes it.
fn sampling(defaults: &GenerationDefaults) -> Vec<(String, NewValue)> {
    let top_k = defaults.top_k.map(|k| NewValue::i32(i32::try_from(k).unwrap_or(i32::MAX)));
    let values = [
        ("temp", defaults.temperature.map(NewValue::f32)),
        ("top_k", top_k),
        ("top_p", defaults.top_p.map(NewValue::f32)),
        ("min_p", defaults.min_p.map(NewValue::f32)),
        ("penalty_repeat", defaults.repetition_penalty.map(NewValue::f32)),
    ];
    values.into_iter().filter_map(|(key, value)| Some((format!("general.sampling.{key}"), value?))).collect()
}

/// The chat templates: the one called `default`, or the only one, and the others under their names.
///
/// # Errors
/// `FailedPrecondition` where two names are one in GGUF.
fn templates(files: &ModelDirectory, settings: &TokenizerConfig) -> Result<Vec<(String, NewValue)>> {
    let mut named = settings.chat_templates.clone();
    if let Some(path) = &files.chat_template {
        let source = String::from_utf8_lossy(&read_small(path, MAX_TEXT_BYTES)?).into_owned();
        named.retain(|(name, _)| name != DEFAULT_TEMPLATE);
        named.push((DEFAULT_TEMPLATE.to_owned(), source));
    }
    if let [(name, _)] = named.as_mut_slice() {
        DEFAULT_TEMPLATE.clone_into(name);
    }
    let mut keys = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (name, source) in &named {
        if name == DEFAULT_TEMPLATE {
            keys.push(("chat_template".to_owned(), NewValue::string(source)));
            continue;
        }
        // llama.cpp's converter writes anything but letters and digits so.
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        if names.contains(&name) {
            let why = format!("has two templates that are called {name:?} in GGUF");
            return Err(Error::bad_file(&settings.path, "chat_template", why));
        }
        keys.push((format!("chat_template.{name}"), NewValue::string(source)));
        names.push(name);
    }
    if !names.is_empty() {
        keys.push(("chat_templates".to_owned(), NewValue::strings(&names)));
    }
    Ok(keys)
}

/// Adds the keys of the tokenizer itself, and gives its tokens by id.
fn tokenizer(
    files: &ModelDirectory,
    config: &ModelConfig,
    settings: &TokenizerConfig,
    metadata: &mut Vec<(String, NewValue)>,
) -> Result<Vec<String>> {
    let mut put = |key: &str, value: NewValue| metadata.push((format!("tokenizer.ggml.{key}"), value));
    let path = &files.path.join("tokenizer.json");
    if !path.is_file() {
        let other = TOKENIZER_FILES.iter().find(|name| files.path.join(name).is_file());
        if let Some(name) = other {
            let why = "is not converted; a tokenizer.json would be";
            return Err(Error::bad_file(files.path.join(name), "tokenizer", why));
        }
        put("model", NewValue::string("none"));
        return Ok(Vec::new());
    }
    let file = json(path, MAX_TOKENIZER_BYTES)?;
    let wrong = |field: &str, why: String| Error::bad_file(path, field, why);
    let kind = file["model"]["type"].as_str().unwrap_or_default();
    let is_byte_level = |part: &Value| part.to_string().contains(r#""type":"ByteLevel""#);
    if kind != "BPE" || !is_byte_level(&file["pre_tokenizer"]) {
        return Err(wrong("model.type", format!("is {kind:?}; only byte-level BPE is converted")));
    }
    let (tokens, types) = tokens(&file, config.vocab_size, path)?;
    let merges = file["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merge = |merge: &Value| match merge {
        Value::String(both) => Some(both.clone()),
        Value::Array(two) => Some(format!("{} {}", two.first()?.as_str()?, two.get(1)?.as_str()?)),
        _ => None,
    };
    let merges = merges.iter().map(merge).collect::<Option<Vec<_>>>();
    let merges = merges.ok_or_else(|| wrong("model.merges", "holds something that is no merge".into()))?;
    let patterns = patterns(&file["pre_tokenizer"]);
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let pre = pre_tokenizer_name(&patterns, file["model"]["ignore_merges"] == true);
    let pre = pre.ok_or_else(|| wrong("pre_tokenizer", "is none that has a name in GGUF".into()))?;

    // Where nothing says it, the frame that the tokenizer puts around a text does.
    let frame = file["post_processor"].to_string();
    let framed = settings.bos_token.as_ref().is_some_and(|bos| frame.contains(&Value::from(bos.as_str()).to_string()));
    put("model", NewValue::string("gpt2"));
    put("pre", NewValue::string(pre));
    put("add_bos_token", NewValue::bool(settings.add_bos_token.unwrap_or(framed)));
    put("tokens", NewValue::strings(&tokens));
    put("token_type", NewValue::i32s(&types));
    put("merges", NewValue::strings(&merges));
    Ok(tokens)
}

/// Tokens and their types by id; ids without a token are filled up.
fn tokens(file: &Value, size: usize, path: &Path) -> Result<(Vec<String>, Vec<i32>)> {
    let mut tokens = (0..size).map(|id| format!("[PAD{id}]")).collect::<Vec<_>>();
    let mut types = vec![TokenType::Unused.number(); size];
    let mut set = |id: u64, token: &str, kind: TokenType| -> Result<()> {
        let id = usize::try_from(id).ok().filter(|&id| id < size).ok_or_else(|| {
            let why = format!("has id {id}, but the model has {size} tokens");
            Error::bad_file(path, format!("token {token:?}"), why)
        })?;
        token.clone_into(&mut tokens[id]);
        types[id] = kind.number();
        Ok(())
    };
    for (token, id) in file["model"]["vocab"].as_object().into_iter().flatten() {
        set(id.as_u64().unwrap_or(u64::MAX), token, TokenType::Normal)?;
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { TokenType::Control } else { TokenType::UserDefined };
        set(added["id"].as_u64().unwrap_or(u64::MAX), added["content"].as_str().unwrap_or_default(), kind)?;
    }
    Ok((tokens, types))
}

/// The patterns that text is cut by, in order; digits and ByteLevel's own stand for theirs.
fn patterns(step: &Value) -> Vec<String> {
    match step["type"].as_str() {
        Some("Sequence") => step["pretokenizers"].as_array().into_iter().flatten().flat_map(patterns).collect(),
        Some("Split") => step["pattern"]["Regex"].as_str().map(str::to_owned).into_iter().collect(),
        Some("Digits") if step["individual_digits"] == true => vec![r"\p{N}".to_owned()],
        Some("ByteLevel") if step["use_regex"] != false => {
            vec![r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".to_owned()]
        }
        _ => Vec::new(),
    }
}
