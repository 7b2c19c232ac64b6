//! `tokenizer_config.json`: what Hugging Face keeps beside a tokenizer: special tokens by name, chat templates.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::error::{Error, Result};

use super::tokenizer::read_bounded;

/// Most bytes of the file; templates are its largest part.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What we read of a `tokenizer_config.json`.
#[derive(Clone, Debug, Default)]
pub struct TokenizerConfig {
    /// The file, for messages.
    pub path: PathBuf,
    /// `bos_token`.
    pub bos_token: Option<String>,
    /// `eos_token`.
    pub eos_token: Option<String>,
    /// `pad_token`.
    pub pad_token: Option<String>,
    /// `add_bos_token`: whether a text begins with it.
    pub add_bos_token: Option<bool>,
    /// `add_eos_token`: whether a text ends with it.
    pub add_eos_token: Option<bool>,
    /// `added_tokens_decoder`: id, text, and whether it means something instead of spelling something. Directories of
    /// before that field have them in an `added_tokens.json`.
    pub added_tokens: Vec<(u32, String, bool)>,
    /// `pat_str`: how a tiktoken vocabulary cuts a text.
    pub pat_str: Option<String>,
    /// `chat_template`: name and source of each; a single one is called `default`.
    pub chat_templates: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct File {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, AddedToken>,
    pat_str: Option<String>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// Reads the file, and the `added_tokens.json` beside an older one.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file where it cannot be read or is not what Hugging Face writes.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut config = Self::from_json_bytes(path, &read_bounded(path, MAX_FILE_BYTES)?)?;
        let older = path.with_file_name("added_tokens.json");
        if config.added_tokens.is_empty() && older.is_file() {
            let json = read_bounded(&older, MAX_FILE_BYTES)?;
            let ids: BTreeMap<String, u32> =
                serde_json::from_slice(&json).map_err(|error| Error::bad_file(&older, "file", error))?;
            let named = [&config.bos_token, &config.eos_token, &config.pad_token].map(Clone::clone);
            let is_special = |token: &String| named.iter().flatten().any(|other| other == token);
            let added = ids.into_iter().map(|(token, id)| {
                let special = is_special(&token);
                (id, token, special)
            });
            config.added_tokens = added.collect();
        }
        Ok(config)
    }

    /// Takes the text of the file. `path` is for messages only.
    ///
    /// # Errors
    /// As [`TokenizerConfig::from_file`].
    pub fn from_json_bytes(path: &Path, json: &[u8]) -> Result<Self> {
        let file: File = serde_json::from_slice(json).map_err(|error| Error::bad_file(path, "file", error))?;
        let text = |token| match token {
            Token::Text(text) | Token::Added { content: text } => text,
        };
        Ok(Self {
            path: path.to_owned(),
            bos_token: file.bos_token.map(text),
            eos_token: file.eos_token.map(text),
            pad_token: file.pad_token.map(text),
            add_bos_token: file.add_bos_token,
            add_eos_token: file.add_eos_token,
            added_tokens: file.added_tokens_decoder.into_iter().map(|(id, t)| (id, t.content, t.special)).collect(),
            pat_str: file.pat_str,
            chat_templates: match file.chat_template {
                None => Vec::new(),
                Some(Templates::One(template)) => vec![("default".to_owned(), template)],
                Some(Templates::Named(list)) => list.into_iter().map(|t| (t.name, t.template)).collect(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<TokenizerConfig> {
        TokenizerConfig::from_json_bytes(Path::new("tokenizer_config.json"), json.as_bytes())
    }

    #[test]
    fn tokens_and_templates_are_read_in_both_spellings() {
        let config =
            read(r#"{"bos_token": null, "eos_token": {"content": "</s>", "lstrip": false}, "chat_template": "x"}"#)
                .unwrap();
        assert_eq!((config.bos_token, config.eos_token.as_deref()), (None, Some("</s>")));
        assert_eq!(config.chat_templates, [("default".to_owned(), "x".to_owned())]);
        let config = read(r#"{"bos_token": "<s>", "chat_template": [{"name": "tool_use", "template": "y"}]}"#).unwrap();
        assert_eq!(config.bos_token.as_deref(), Some("<s>"));
        assert_eq!(config.chat_templates, [("tool_use".to_owned(), "y".to_owned())]);
    }

    #[test]
    fn a_broken_file_is_named() {
        let error = read(r#"{"bos_token": 3}"#).unwrap_err();
        assert!(error.message.starts_with("tokenizer_config.json: file:"), "{error}");
    }
}
