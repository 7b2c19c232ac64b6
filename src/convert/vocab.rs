//! The tokenizer of a directory, as keys of a GGUF file. Byte-level BPE only: sentencepiece's scores are not in a
//! tokenizer.json.

use std::path::Path;

use serde_json::Value;

use super::directory::json;
use crate::{
    arch::config::ModelConfig,
    error::{Error, Result},
    text::{TOKENIZER_FILES, TokenType, pre_tokenizer_name},
    weights::{files::ModelDirectory, gguf::writer::NewValue},
};

/// Most bytes of a tokenizer.json.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Most bytes of a chat template or a tokenizer_config.json.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// Adds the keys; a directory without a tokenizer gives a file without one.
pub(super) fn add(files: &ModelDirectory, config: &ModelConfig, metadata: &mut Vec<(String, NewValue)>) -> Result<()> {
    let mut put = |key: &str, value: NewValue| metadata.push((format!("tokenizer.{key}"), value));
    let path = &files.path.join("tokenizer.json");
    if !path.is_file() {
        let other = TOKENIZER_FILES.iter().find(|name| files.path.join(name).is_file());
        if let Some(name) = other {
            let why = "is not converted; a tokenizer.json would be";
            return Err(Error::bad_file(files.path.join(name), "tokenizer", why));
        }
        put("ggml.model", NewValue::string("none"));
        return Ok(());
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

    let Settings { add_bos, bos, eos, template } = settings(files)?;
    // Where nothing says it, the frame that the tokenizer puts around a text does.
    let framed = bos
        .as_ref()
        .is_some_and(|bos| file["post_processor"].to_string().contains(&Value::from(bos.as_str()).to_string()));
    let id = |token: Option<String>| tokens.iter().position(|other| Some(other) == token.as_ref());
    put("ggml.model", NewValue::string("gpt2"));
    put("ggml.pre", NewValue::string(pre));
    put("ggml.add_bos_token", NewValue::bool(add_bos.unwrap_or(framed)));
    let bos = config.bos_token_id.map(|id| id.index()).or_else(|| id(bos));
    // What ends a turn counts before what ends a document, where the tokenizer says which that is.
    let eos = id(eos).or_else(|| config.eos_token_ids.first().map(|id| id.index()));
    for (key, id) in [("ggml.bos_token_id", bos), ("ggml.eos_token_id", eos)] {
        id.into_iter().for_each(|id| put(key, NewValue::u32(id as u32)));
    }
    put("ggml.tokens", NewValue::strings(&tokens));
    put("ggml.token_type", NewValue::i32s(&types));
    put("ggml.merges", NewValue::strings(&merges));
    template.into_iter().for_each(|template| put("chat_template", NewValue::string(&template)));
    Ok(())
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

/// What tokenizer_config.json says, as far as it does.
struct Settings {
    /// Whether texts begin with the begin token.
    add_bos: Option<bool>,
    bos: Option<String>,
    eos: Option<String>,
    template: Option<String>,
}

fn settings(files: &ModelDirectory) -> Result<Settings> {
    let config = match &files.tokenizer_config {
        Some(path) => json(path, MAX_TEXT_BYTES)?,
        None => Value::Null,
    };
    let token = |key: &str| config[key].as_str().or_else(|| config[key]["content"].as_str()).map(str::to_owned);
    let template = match &files.chat_template {
        Some(path) => {
            let bytes = crate::weights::file::read_small(path, MAX_TEXT_BYTES)?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        None => config["chat_template"].as_str().map(str::to_owned),
    };
    let add_bos = config["add_bos_token"].as_bool();
    Ok(Settings { add_bos, bos: token("bos_token"), eos: token("eos_token"), template })
}
