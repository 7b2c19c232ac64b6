//! Reads a `.tiktoken` file: a line for each token, its bytes in base64 and its rank.

use std::{collections::HashMap, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

use super::{
    added_tokens::AddedTokens,
    families::{CL100K, GPT2, GPT4O, KIMI_K2, LLAMA3, QWEN2},
    tiktoken::Tiktoken,
    token_table::{MAX_VOCAB, TokenTable},
    tokenizer::{Encoder, Tokenizer},
    tokenizer_config::TokenizerConfig,
};

/// What a `.tiktoken` file does not say of itself.
struct Scheme {
    /// Names of the file, less its ending, that mean this scheme.
    names: &'static [&'static str],
    /// Ranks in the files that are in use.
    ranks: &'static [usize],
    pattern: &'static str,
    /// Special tokens where no `tokenizer_config.json` lists any.
    special: &'static [(u32, &'static str)],
    /// `<|reserved_special_token_N|>` up to this id.
    reserved_below: u32,
    bos: Option<&'static str>,
    eos: Option<&'static str>,
}

/// The schemes, by the encodings that OpenAI and the models' makers publish.
static SCHEMES: &[Scheme] = &[
    Scheme {
        names: &["gpt2", "r50k_base", "p50k_base"],
        ranks: &[50_256, 50_280],
        pattern: GPT2,
        special: &[(50_256, "<|endoftext|>")],
        reserved_below: 0,
        bos: None,
        eos: Some("<|endoftext|>"),
    },
    Scheme {
        names: &["cl100k_base"],
        ranks: &[100_256],
        pattern: CL100K,
        special: &[
            (100_257, "<|endoftext|>"),
            (100_258, "<|fim_prefix|>"),
            (100_259, "<|fim_middle|>"),
            (100_260, "<|fim_suffix|>"),
            (100_276, "<|endofprompt|>"),
        ],
        reserved_below: 0,
        bos: None,
        eos: Some("<|endoftext|>"),
    },
    Scheme {
        names: &["o200k_base"],
        ranks: &[199_998],
        pattern: GPT4O,
        special: &[(199_999, "<|endoftext|>"), (200_018, "<|endofprompt|>")],
        reserved_below: 0,
        bos: None,
        eos: Some("<|endoftext|>"),
    },
    Scheme {
        names: &["llama3"],
        ranks: &[128_000],
        pattern: LLAMA3,
        special: &[
            (128_000, "<|begin_of_text|>"),
            (128_001, "<|end_of_text|>"),
            (128_004, "<|finetune_right_pad_id|>"),
            (128_006, "<|start_header_id|>"),
            (128_007, "<|end_header_id|>"),
            (128_008, "<|eom_id|>"),
            (128_009, "<|eot_id|>"),
            (128_010, "<|python_tag|>"),
        ],
        reserved_below: 128_256,
        bos: Some("<|begin_of_text|>"),
        eos: Some("<|end_of_text|>"),
    },
    Scheme {
        names: &["qwen"],
        ranks: &[151_643],
        pattern: QWEN2,
        special: &[(151_643, "<|endoftext|>"), (151_644, "<|im_start|>"), (151_645, "<|im_end|>")],
        reserved_below: 0,
        bos: None,
        eos: Some("<|endoftext|>"),
    },
    Scheme {
        names: &["kimi"],
        ranks: &[163_584],
        pattern: KIMI_K2,
        special: &[(163_584, "[BOS]"), (163_585, "[EOS]"), (163_586, "<|im_end|>")],
        reserved_below: 0,
        bos: Some("[BOS]"),
        eos: Some("[EOS]"),
    },
];

/// Whether a file looks like one of these: its first line is base64, a space and a number.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    parse_line(line).is_some()
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let (token, rank) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    Some((BASE64_STANDARD.decode(token).ok()?, rank.parse().ok()?))
}

/// Builds the tokenizer. The `tokenizer_config.json` beside it may give the special tokens and, as `pat_str`, the pattern.
pub(super) fn load(path: &Path, bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Tokenizer> {
    let bad = |field: String, why: String| Error::bad_file(path, field, why);
    let mut ranks = HashMap::new();
    let mut tokens: HashMap<u32, Vec<u8>> = HashMap::new();
    for (n, line) in bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let field = || format!("line {}", n + 1);
        let (token, rank) =
            parse_line(line).ok_or_else(|| bad(field(), "must be base64, a space and a rank".to_owned()))?;
        if rank as usize >= MAX_VOCAB || token.is_empty() {
            return Err(bad(field(), format!("needs a token and a rank below {MAX_VOCAB}, has rank {rank}")));
        }
        let twice = tokens.insert(rank, token.clone()).is_some() | ranks.insert(token, rank).is_some();
        if twice {
            return Err(bad(field(), format!("gives a token or the rank {rank} a second time")));
        }
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let scheme = SCHEMES
        .iter()
        .find(|scheme| scheme.names.contains(&stem.as_str()))
        .or_else(|| SCHEMES.iter().find(|scheme| scheme.ranks.contains(&ranks.len())));
    let pattern = config.and_then(|c| c.pat_str.as_deref()).or(scheme.map(|scheme| scheme.pattern));
    let Some(pattern) = pattern else {
        let why = format!(
            "has {} ranks, which is no known encoding: name the file after one (cl100k_base.tiktoken), or give the pattern as pat_str in tokenizer_config.json",
            ranks.len()
        );
        return Err(bad("ranks".to_owned(), why));
    };
    let listed = config.map(|c| c.added_tokens.clone()).filter(|list| !list.is_empty());
    let added = listed.unwrap_or_else(|| scheme.map(special_tokens).unwrap_or_default());
    // A token both ranked and special counts as special; beyond that, ids must not meet.
    let id = |name: Option<&str>| {
        added.iter().find(|(_, text, _)| Some(text.as_str()) == name).map(|(id, _, _)| TokenId(*id))
    };
    let (bos, eos) = (id(scheme.and_then(|s| s.bos)), id(scheme.and_then(|s| s.eos)));
    let size = tokens.keys().chain(added.iter().map(|(id, _, _)| id)).max().map_or(0, |&id| id as usize + 1);
    if size > MAX_VOCAB {
        return Err(bad("added_tokens_decoder".to_owned(), format!("has id {}, too large", size - 1)));
    }
    let special: HashMap<u32, (&str, bool)> = added.iter().map(|(id, text, s)| (*id, (text.as_str(), *s))).collect();
    let table = TokenTable::build(size, |id| {
        let id = id as u32;
        Ok(match special.get(&id) {
            Some((text, special)) => (text.as_bytes().to_vec(), *special),
            None => (tokens.get(&id).cloned().unwrap_or_default(), false),
        })
    })?;
    let add_bos = config.and_then(|c| c.add_bos_token).unwrap_or(scheme.is_some_and(|s| s.names == ["llama3"]));
    let add_eos = config.and_then(|c| c.add_eos_token).unwrap_or(false);
    let encoder = Encoder::Tiktoken {
        model: Box::new(Tiktoken::new(ranks, &[pattern]).map_err(|why| bad("ranks".to_owned(), why))?),
        added: AddedTokens::new(added.iter().map(|(id, text, _)| (text.clone(), *id))),
    };
    Ok(Tokenizer {
        bos,
        eos,
        prefix: bos.filter(|_| add_bos),
        suffix: eos.filter(|_| add_eos),
        ..Tokenizer::new(path, encoder, table)
    })
}

/// A scheme's own special tokens: id, text, special.
fn special_tokens(scheme: &Scheme) -> Vec<(u32, String, bool)> {
    let mut tokens: Vec<_> = scheme.special.iter().map(|(id, text)| (*id, (*text).to_owned(), true)).collect();
    let first = scheme.special.first().map_or(0, |(id, _)| *id);
    let unnamed = (first..scheme.reserved_below).filter(|id| scheme.special.iter().all(|(named, _)| named != id));
    tokens.extend(unnamed.enumerate().map(|(n, id)| (id, format!("<|reserved_special_token_{n}|>"), true)));
    tokens
}
