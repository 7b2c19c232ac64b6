//! Sentencepiece's BPE out of a tokenizer.json, which has merges where GGUF has scores.
//!
//! Sentencepiece joins the neighbours whose piece has the best score, the leftmost of equals, until no two make a piece.
//! Who writes such a vocabulary as a tokenizer.json lists every pair of pieces that makes a third by the score of the
//! third, and the `tokenizers` library joins the neighbours of the first merge in that list. So pieces in the order in
//! which merges first make them are pieces in the order of their scores, and any numbers that fall in this order do the
//! same. What that takes is checked: all pairs are there, and those of one piece stand together. (Of two pairs of one piece
//! that share characters of a text, the library joins the one that is listed first, and sentencepiece the left one: that
//! is the only difference, and the one between every such tokenizer.json and its model.) Only pieces that are made need a
//! score; what no merge makes, as single characters, has one below all of them.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    text::{GgufVocab, TokenType},
};

/// How pieces write a space.
pub(super) const SPACE: &str = "\u{2581}";

/// Says how a vocabulary merges.
pub(super) fn fill(vocab: &mut GgufVocab, file: &Value, merges: &[(&str, &str)]) -> Result<()> {
    let path = vocab.path.clone();
    let bad = |field: &str, why: String| Error::bad_file(&path, field, why);
    let model = &file["model"];
    for field in ["ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !matches!(&model[field], Value::Null | Value::Bool(false)) && model[field] != "" {
            return Err(bad(&format!("model.{field}"), format!("is {}, which GGUF cannot say", model[field])));
        }
    }
    vocab.model = "llama".to_owned();
    vocab.pre = Some("default".to_owned());
    vocab.add_space_prefix = Some(space_prefix(vocab, file)?);
    for (token, kind) in vocab.tokens.iter().zip(&mut vocab.token_types) {
        // No text has it but by way of merges: the runs of spaces that are added tokens in Gemma's files.
        if *kind == TokenType::UserDefined && token.contains(SPACE) {
            *kind = TokenType::Normal;
        }
    }
    let unk = vocab.tokens.iter().position(|token| model["unk_token"] == token.as_str());
    if let Some(id) = unk {
        vocab.token_types[id] = TokenType::Unknown;
        vocab.unk = Some(id as u32);
    }
    let ids: HashMap<&str, usize> = normal(vocab).map(|(id, token)| (token, id)).collect();
    let bytes = bytes(&ids).map_err(|missing| {
        bad("model.vocab", format!("has no {missing}, which llama.cpp spells what is unknown with"))
    })?;
    let added = file["added_tokens"].as_array().into_iter().flatten();
    let added: HashSet<&str> = added.filter_map(|token| token["content"].as_str()).collect();
    vocab.scores = scores(vocab, &ids, &added, merges)?;
    for (id, byte) in bytes {
        vocab.tokens[id] = byte;
        vocab.token_types[id] = TokenType::Byte;
    }
    Ok(())
}

/// Tokens that text may become by merging, by their ids.
fn normal(vocab: &GgufVocab) -> impl Iterator<Item = (usize, &str)> {
    let tokens = vocab.tokens.iter().zip(&vocab.token_types).enumerate();
    tokens.filter(|(_, (_, kind))| **kind == TokenType::Normal).map(|(id, (token, _))| (id, token.as_str()))
}

/// The ids of all bytes and how GGUF writes them; or the first that is missing.
fn bytes(ids: &HashMap<&str, usize>) -> Result<Vec<(usize, String)>, String> {
    let token = |byte: u8| {
        let written = format!("<0x{byte:02X}>");
        // Gemma's files have the tab itself in the place of its byte. The one or the other, a text with a tab has this id.
        let itself = || byte.is_ascii().then(|| ids.get(char::from(byte).to_string().as_str())).flatten();
        match ids.get(written.as_str()).or_else(itself) {
            Some(&id) => Ok((id, written)),
            None => Err(written),
        }
    };
    (0..=u8::MAX).map(token).collect()
}

/// A score for each token that puts pieces in the order in which merges make them.
///
/// # Errors
/// `FailedPrecondition` where merging by such scores is not merging by this list.
fn scores(
    vocab: &GgufVocab,
    ids: &HashMap<&str, usize>,
    added: &HashSet<&str>,
    merges: &[(&str, &str)],
) -> Result<Vec<f32>> {
    let bad = |field: &str, why: String| Error::bad_file(&vocab.path, field, why);
    let mut ranks = vec![None; vocab.tokens.len()];
    let (mut made, mut last) = (0, None);
    for (n, (left, right)) in merges.iter().enumerate() {
        let piece = format!("{left}{right}");
        // Other tokens are looked for in a text before anything merges.
        let Some(&id) = ids.get(piece.as_str()).filter(|id| last != Some(**id)) else { continue };
        if ranks[id].is_none() {
            ranks[id] = Some(made);
            made += 1;
        } else if !added.contains(piece.as_str()) {
            // Runs of spaces, all as good as each other, are listed by their left halves, the longest first.
            let why = format!("make {piece:?} again, after other pieces, and GGUF has one score for each piece");
            return Err(bad(&format!("model.merges[{n}]"), why));
        }
        last = Some(id);
    }
    let listed: HashSet<&(&str, &str)> = merges.iter().collect();
    for (_, piece) in normal(vocab) {
        let mut pairs = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let unlisted = pairs.find(|pair| {
            let (left, right) = pair;
            ids.contains_key(left) && ids.contains_key(right) && !listed.contains(pair)
        });
        if let Some((left, right)) = unlisted {
            let why = format!(
                "do not have {left:?} with {right:?}, and in GGUF whatever makes a piece, here {piece:?}, merges: only merges of a sentencepiece model are converted"
            );
            return Err(bad("model.merges", why));
        }
    }
    // Ranks are below 2^24, which singles have all of.
    Ok(ranks.into_iter().map(|rank| -(rank.unwrap_or(made) as f32)).collect())
}

/// Whether a space is put before a text.
///
/// # Errors
/// `FailedPrecondition` where a text becomes another than in GGUF.
fn space_prefix(vocab: &GgufVocab, file: &Value) -> Result<bool> {
    let unsaid = |field: &str, step: &Value| {
        let why = format!(
            "is {step}; spaces written as ▁, with one before a text or without, are converted of BPE that is not byte-level"
        );
        Error::bad_file(&vocab.path, field, why)
    };
    let (mut puts, mut writes) = (false, false);
    for step in steps(&file["normalizer"], "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == SPACE => puts = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => writes = true,
            _ => return Err(unsaid("normalizer", step)),
        }
    }
    for step in steps(&file["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            // Nothing is left to cut at.
            Some("Split") if writes && step["pattern"]["String"] == " " => {}
            Some("Metaspace") if step["replacement"] == SPACE && step["split"] == false => {
                writes = true;
                if step["prepend_scheme"] != "never" && step["add_prefix_space"] != false {
                    puts = true;
                    tracing::warn!(
                        file = %vocab.path.display(),
                        scheme = step["prepend_scheme"].as_str(),
                        "pre_tokenizer puts a space before a text that has none; with GGUF every text gets one, behind special tokens too"
                    );
                }
            }
            _ => return Err(unsaid("pre_tokenizer", step)),
        }
    }
    if writes { Ok(puts) } else { Err(unsaid("normalizer", &file["normalizer"])) }
}

/// The steps of a part: those of a `Sequence`, or the part itself.
pub(super) fn steps<'v>(part: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> {
    let many = part[list].as_array().map_or(&[][..], Vec::as_slice);
    let one = (!part.is_null() && part["type"] != "Sequence").then_some(part);
    many.iter().chain(one)
}
