//! The tokenizer of a directory, as keys of a GGUF file, and what goes with it: the tokens that begin and end a sequence,
//! chat templates, how to sample.

mod byte_level;
mod sentencepiece;
mod unigram;

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::directory::json;
use crate::{
    arch::{config::ModelConfig, generation_config::GenerationDefaults},
    error::{Error, Result},
    ids::TokenId,
    text::{GgufVocab, TokenType, Tokenizer, TokenizerConfig},
    weights::{file::read_small, files::ModelDirectory, gguf::writer::NewValue},
};

const TOKENIZER_JSON: &str = "tokenizer.json";
/// Most bytes of it.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Most bytes of a chat template or a generation_config.json.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// GGUF's keys for tokens that end a sequence: of a text, of a turn, of a message.
const END_KEYS: [&str; 3] = ["eos", "eot", "eom"];
/// The template that is taken where a request names none.
const DEFAULT_TEMPLATE: &str = "default";
/// Of ids without a token, as llama.cpp's converter writes it.
const PAD_SCORE: f32 = -10000.0;

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
    let vocab = tokenizer(files, config, &settings)?;
    let mut put = |key: &str, value: NewValue| metadata.push((format!("tokenizer.ggml.{key}"), value));
    match &vocab {
        Some(vocab) => keys(vocab).into_iter().for_each(|(key, value)| put(key, value)),
        None => put("model", NewValue::string("none")),
    }
    let vocab = vocab.unwrap_or_default();
    let tokens = &vocab.tokens;
    let id = |token: &Option<String>| {
        let id = tokens.iter().position(|other| Some(other) == token.as_ref())?;
        u32::try_from(id).ok().map(TokenId)
    };
    // What ends a turn counts before what ends a document, where the tokenizer says which that is.
    let mut ends = Vec::from_iter(id(&settings.eos_token).or(vocab.eos.map(TokenId)));
    for &end in config.eos_token_ids.iter().chain(&defaults.eos_token_ids) {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    // A model that was trained anew often keeps its old configuration: its tokenizer knows better.
    let begin = id(&settings.bos_token).or(vocab.bos.map(TokenId)).or(config.bos_token_id);
    let others = [("bos", begin), ("padding", id(&settings.pad_token))];
    let others = others.into_iter().filter_map(|(key, id)| Some((key, id?)));
    for (key, id) in others.chain(end_keys(&ends, tokens, files)?) {
        put(&format!("{key}_token_id"), NewValue::u32(id.0));
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

/// The tokenizer: that of the file that a server reads from the directory too, so that both give the same ids. A
/// tokenizer.json goes before a sentencepiece model beside it: it has the tokens that were added since, and merges in the
/// order of the scores.
fn tokenizer(files: &ModelDirectory, config: &ModelConfig, settings: &TokenizerConfig) -> Result<Option<GgufVocab>> {
    let path = files.path.join(TOKENIZER_JSON);
    let vocab = match path.is_file() {
        true => Some(of_json(path, config, settings)?),
        false => Tokenizer::from_directory(&files.path)?.map(|tokenizer| tokenizer.to_gguf()).transpose()?,
    };
    vocab.map(|vocab| filled_up(vocab, config.vocab_size)).transpose()
}

/// With a token that nothing becomes at every id without one.
fn filled_up(mut vocab: GgufVocab, size: usize) -> Result<GgufVocab> {
    if let Some(token) = vocab.tokens.get(size) {
        let why = format!("has id {size}, but the model has {size} tokens");
        return Err(Error::bad_file(&vocab.path, format!("token {token:?}"), why));
    }
    vocab.tokens.resize(size, String::new());
    vocab.token_types.resize(size, TokenType::Unused);
    if !vocab.scores.is_empty() {
        vocab.scores.resize(size, PAD_SCORE);
    }
    for (id, token) in vocab.tokens.iter_mut().enumerate().filter(|(_, token)| token.is_empty()) {
        *token = format!("[PAD{id}]");
        vocab.token_types[id] = TokenType::Unused;
    }
    Ok(vocab)
}

fn of_json(path: PathBuf, config: &ModelConfig, settings: &TokenizerConfig) -> Result<GgufVocab> {
    let file = json(&path, MAX_TOKENIZER_BYTES)?;
    let (tokens, token_types) = tokens(&file, config.vocab_size, &path)?;
    let mut added = file["added_tokens"].as_array().into_iter().flatten();
    let looks_beside = |token: &&Value| ["lstrip", "rstrip", "single_word"].iter().any(|field| token[*field] == true);
    if let Some(token) = added.find(looks_beside) {
        tracing::warn!(
            file = %path.display(),
            token = token["content"].as_str(),
            "added_tokens take what stands beside them (lstrip, rstrip, single_word), which GGUF cannot say"
        );
    }
    // Where nothing says it, the frame that the tokenizer puts around a text does.
    let frame = file["post_processor"].to_string();
    let framed = |token: &Option<String>| {
        token.as_ref().is_some_and(|token| frame.contains(&Value::from(token.as_str()).to_string()))
    };
    let mut vocab = GgufVocab {
        path,
        tokens,
        token_types,
        add_bos: Some(settings.add_bos_token.unwrap_or(framed(&settings.bos_token))),
        add_eos: settings.add_eos_token,
        ..GgufVocab::default()
    };
    let merges = file["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merges = merges.iter().map(merge).collect::<Option<Vec<_>>>();
    let wrong = |field: &str, why: String| Error::bad_file(&vocab.path, field, why);
    let merges = merges.ok_or_else(|| wrong("model.merges", "holds something that is no merge".into()))?;
    let kind = file["model"]["type"].as_str().unwrap_or_default();
    let is_byte_level = file["pre_tokenizer"].to_string().contains(r#""type":"ByteLevel""#);
    match (kind, is_byte_level) {
        ("BPE", true) => byte_level::fill(&mut vocab, &file, &merges)?,
        ("BPE", false) if file["model"]["byte_fallback"] == true => sentencepiece::fill(&mut vocab, &file, &merges)?,
        ("BPE", false) => {
            let why = "is not true; byte-level BPE, and sentencepiece's with all bytes are converted";
            return Err(wrong("model.byte_fallback", why.into()));
        }
        ("Unigram", _) => {
            // Without a word GGUF puts an end behind a text, as T5 does.
            vocab.add_eos = Some(settings.add_eos_token.unwrap_or(framed(&settings.eos_token)));
            unigram::fill(&mut vocab, &file)?;
        }
        _ => {
            let why = format!("is {kind:?}; BPE (byte-level or sentencepiece's) and Unigram are converted");
            return Err(wrong("model.type", why));
        }
    }
    Ok(vocab)
}

fn merge(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(both) => both.split_once(' '),
        Value::Array(two) => Some((two.first()?.as_str()?, two.get(1)?.as_str()?)),
        _ => None,
    }
}

/// Tokens and their types by id; an id without a token has no text.
fn tokens(file: &Value, size: usize, path: &Path) -> Result<(Vec<String>, Vec<TokenType>)> {
    let mut tokens = vec![String::new(); size];
    let mut types = vec![TokenType::Unused; size];
    let mut set = |id: u64, token: &str, kind: TokenType| -> Result<()> {
        let id = usize::try_from(id).ok().filter(|&id| id < size).ok_or_else(|| {
            let why = format!("has id {id}, but the model has {size} tokens");
            Error::bad_file(path, format!("token {token:?}"), why)
        })?;
        token.clone_into(&mut tokens[id]);
        types[id] = kind;
        Ok(())
    };
    // A list in unigram, with scores, and a map in BPE.
    for (id, entry) in (0..).zip(file["model"]["vocab"].as_array().into_iter().flatten()) {
        set(id, entry[0].as_str().unwrap_or_default(), TokenType::Normal)?;
    }
    for (token, id) in file["model"]["vocab"].as_object().into_iter().flatten() {
        set(id.as_u64().unwrap_or(u64::MAX), token, TokenType::Normal)?;
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { TokenType::Control } else { TokenType::UserDefined };
        set(added["id"].as_u64().unwrap_or(u64::MAX), added["content"].as_str().unwrap_or_default(), kind)?;
    }
    Ok((tokens, types))
}

/// A tokenizer under GGUF's keys, but for the tokens that begin and end a sequence.
fn keys(vocab: &GgufVocab) -> Vec<(&'static str, NewValue)> {
    let types: Vec<i32> = vocab.token_types.iter().map(|kind| kind.number()).collect();
    let list = |list: &[String]| (!list.is_empty()).then(|| NewValue::strings(list));
    let keys = [
        ("model", Some(NewValue::string(&vocab.model))),
        ("pre", vocab.pre.as_deref().map(NewValue::string)),
        ("add_bos_token", vocab.add_bos.map(NewValue::bool)),
        ("add_eos_token", vocab.add_eos.map(NewValue::bool)),
        ("add_space_prefix", vocab.add_space_prefix.map(NewValue::bool)),
        ("remove_extra_whitespaces", vocab.remove_extra_whitespaces.map(NewValue::bool)),
        (
            "precompiled_charsmap",
            Some(&vocab.precompiled_charsmap).filter(|map| !map.is_empty()).map(|map| NewValue::u8s(map)),
        ),
        ("unknown_token_id", vocab.unk.map(NewValue::u32)),
        ("tokens", Some(NewValue::strings(&vocab.tokens))),
        ("scores", (!vocab.scores.is_empty()).then(|| NewValue::f32s(&vocab.scores))),
        ("token_type", Some(NewValue::i32s(&types))),
        ("merges", list(&vocab.merges)),
    ];
    keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}
