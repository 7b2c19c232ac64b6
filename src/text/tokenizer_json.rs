//! Writes a tokenizer down as a `tokenizer.json`, for those who tokenize elsewhere: a router in front of this server.
//!
//! What was read from a GGUF, a sentencepiece or a tiktoken file comes out as what the `tokenizers` library does the
//! same with: byte-pair merges in their order, or pieces with their scores. Where sentencepiece merges by score and the
//! library by the rank of pairs, pairs are ranked by the score of what they make, as converters of such models do; texts
//! where one piece has several pairs of equal rank may come out otherwise than here.

use std::collections::HashMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{
    sentencepiece::{Algorithm, Sentencepiece},
    sentencepiece_normalizer::Normalizer,
    tiktoken::Tiktoken,
    token_table::char_of_byte,
    tokenizer::{Encoder, Tokenizer},
    tokenizer_split::{Cutter, Pipeline},
    vocab::TokenType,
};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
};

/// The parts of the file that depend on the kind of vocabulary.
struct Parts {
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Value,
}

impl Tokenizer {
    /// The tokenizer as the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// `Unimplemented` for sentencepiece vocabularies that cut at spaces or characters alone, which the format does not
    /// have.
    pub fn to_json(&self) -> Result<String> {
        let parts = match &self.encoder {
            Encoder::Pipeline(pipeline) => of_pipeline(pipeline).map_err(|error| Error::internal(error.to_string()))?,
            Encoder::Sentencepiece { model, .. } => of_sentencepiece(model)?,
            Encoder::Tiktoken { model, .. } => self.of_tiktoken(model),
        };
        let frame = self.frame();
        let post_processor = if frame.is_null() { parts.post_processor } else { frame };
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": parts.added_tokens,
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": post_processor,
            "decoder": parts.decoder,
            "model": parts.model,
        });
        Ok(file.to_string())
    }

    /// What puts the begin and end tokens around a text, where this is not done by the pipeline itself.
    fn frame(&self) -> Value {
        let token = |id: Option<TokenId>| id.and_then(|id| Some((id, self.id_to_token(id)?)));
        let (prefix, suffix) = (token(self.prefix), token(self.suffix));
        if prefix.is_none() && suffix.is_none() {
            return Value::Null;
        }
        let special = |token: &Option<(TokenId, String)>, type_id: u8| {
            token.iter().map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": type_id}})).collect::<Vec<_>>()
        };
        let framed = |name: &str, type_id: u8| {
            let sequence = json!({"Sequence": {"id": name, "type_id": type_id}});
            [special(&prefix, type_id), vec![sequence], special(&suffix, type_id)].concat()
        };
        let tokens = prefix
            .iter()
            .chain(&suffix)
            .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id.0], "tokens": [text]})));
        let pair = [framed("A", 0), framed("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": framed("A", 0),
            "pair": pair,
            "special_tokens": tokens.collect::<Map<_, _>>(),
        })
    }

    fn of_tiktoken(&self, model: &Tiktoken) -> Parts {
        let written = |bytes: &[u8]| bytes.iter().map(|&byte| char_of_byte(byte)).collect::<String>();
        let mut ranks: Vec<_> = model.ranks().collect();
        ranks.sort_unstable_by_key(|(_, rank)| *rank);
        let merges = ranks.iter().filter_map(|(bytes, rank)| model.halves(bytes, *rank));
        let merges: Vec<_> = merges.map(|(left, right)| json!([written(left), written(right)])).collect();
        let known = |id: u32| ranks.binary_search_by_key(&id, |(_, rank)| *rank).is_ok();
        let others =
            (0..self.vocab_size() as u32).filter(|&id| !known(id) && !self.token_bytes(TokenId(id)).is_empty());
        let added = others.map(|id| {
            let text = String::from_utf8_lossy(self.token_bytes(TokenId(id))).into_owned();
            added_token(id, &text, self.is_special(TokenId(id)))
        });
        let cuts = model.expressions().map(|expression| split(expression, "Isolated", false));
        Parts {
            added_tokens: added.collect(),
            normalizer: Value::Null,
            pre_tokenizer: sequence("pretokenizers", cuts.chain([byte_level()]).collect()),
            post_processor: Value::Null,
            decoder: byte_level(),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                "vocab": ranks.iter().map(|(bytes, rank)| (written(bytes), (*rank).into())).collect::<Map<_, _>>(),
                "merges": merges,
            }),
        }
    }
}

fn added_token(id: u32, text: &str, special: bool) -> Value {
    json!({
        "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// Spells bytes as byte-level BPE does, and cuts nothing.
fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

fn split(expression: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert})
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// One step as it is, several as a sequence.
fn sequence(steps_are_called: &str, mut steps: Vec<Value>) -> Value {
    match steps.len() {
        0 => Value::Null,
        1 => steps.swap_remove(0),
        _ => {
            let mut sequence = json!({"type": "Sequence"});
            sequence[steps_are_called] = steps.into();
            sequence
        }
    }
}

fn of_pipeline(pipeline: &Pipeline) -> serde_json::Result<Parts> {
    let part = |part: Option<serde_json::Result<Value>>| part.unwrap_or(Ok(Value::Null));
    let model = serde_json::to_value(pipeline.get_model())?;
    let pre_tokenizer = pipeline.get_pre_tokenizer().map(cutter).transpose()?.unwrap_or_default();
    let decoder = match pipeline.get_decoder() {
        Some(decoder) => serde_json::to_value(decoder)?,
        None if model["type"] == "WordPiece" => json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        None if model["byte_fallback"] == true => spaces_and_bytes(false),
        None => byte_level(),
    };
    let mut added: Vec<_> = pipeline.get_added_tokens_decoder().into_iter().collect();
    added.sort_unstable_by_key(|(id, _)| *id);
    let added = added.into_iter().map(|(id, token)| {
        let mut value = serde_json::to_value(token)?;
        value["id"] = id.into();
        Ok(value)
    });
    Ok(Parts {
        added_tokens: added.collect::<serde_json::Result<_>>()?,
        normalizer: part(pipeline.get_normalizer().map(serde_json::to_value))?,
        pre_tokenizer,
        post_processor: part(pipeline.get_post_processor().map(serde_json::to_value))?,
        decoder,
        model,
    })
}

/// A pre-tokenizer, without sequences inside sequences.
fn cutter(part: &Cutter) -> serde_json::Result<Value> {
    fn steps(part: &Cutter, out: &mut Vec<Value>) -> serde_json::Result<()> {
        match part {
            Cutter::Split { expression, behavior, invert, .. } => {
                let behavior = serde_json::to_value(behavior)?;
                out.push(split(expression, behavior.as_str().unwrap_or("Isolated"), *invert));
            }
            // The only step of the library that puts a space before a text and does nothing else.
            Cutter::PrefixSpace => {
                out.push(json!({"type": "Metaspace", "replacement": " ", "prepend_scheme": "always", "split": false}))
            }
            Cutter::Library(library) => out.push(serde_json::to_value(library)?),
            Cutter::Sequence(parts) => parts.iter().try_for_each(|part| steps(part, out))?,
        }
        Ok(())
    }
    let mut out = Vec::new();
    steps(part, &mut out)?;
    Ok(sequence("pretokenizers", out))
}

/// `▁` back to spaces and `<0x0A>` back to bytes; perhaps without the space before a text.
fn spaces_and_bytes(strip: bool) -> Value {
    let mut steps =
        vec![replace(json!({"String": "\u{2581}"}), " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if strip {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    sequence("decoders", steps)
}

fn of_sentencepiece(model: &Sentencepiece) -> Result<Parts> {
    let pieces: Vec<_> = model.entries().collect();
    let unk = model.unk().and_then(|id| pieces.get(id as usize)).map(|(piece, ..)| *piece);
    let file = match model.algorithm() {
        Algorithm::Bpe => json!({
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": model.has_bytes(), "ignore_merges": false,
            "vocab": pieces.iter().zip(0..).map(|((piece, ..), id)| ((*piece).to_owned(), Value::from(id))).collect::<Map<_, _>>(),
            "merges": merges_by_score(&pieces),
        }),
        Algorithm::Unigram => json!({
            "type": "Unigram", "unk_id": model.unk(), "byte_fallback": model.has_bytes(),
            "vocab": pieces.iter().map(|(piece, score, _)| json!([piece, score])).collect::<Vec<_>>(),
        }),
        Algorithm::Word | Algorithm::Char => {
            let why = "this vocabulary cuts at spaces or characters alone, which a tokenizer.json cannot say";
            return Err(Error::new(Code::Unimplemented, why));
        }
    };
    let kinds = [(TokenType::Control, true), (TokenType::Unknown, true), (TokenType::UserDefined, false)];
    let added = pieces.iter().zip(0..).filter_map(|((piece, _, kind), id)| {
        let (_, special) = kinds.iter().find(|(other, _)| other == kind)?;
        (!piece.is_empty()).then(|| added_token(id, piece, *special))
    });
    Ok(Parts {
        added_tokens: added.collect(),
        normalizer: normalizer(model.normalizer()),
        pre_tokenizer: Value::Null,
        post_processor: Value::Null,
        decoder: spaces_and_bytes(model.normalizer().add_dummy_prefix),
        model: file,
    })
}

/// All ways in which two pieces make a third, the best third first.
fn merges_by_score(pieces: &[(&str, f32, TokenType)]) -> Vec<Value> {
    let text = |kind: TokenType| matches!(kind, TokenType::Normal | TokenType::UserDefined | TokenType::Unused);
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().filter(|(_, (.., kind))| text(*kind)).map(|(id, (piece, ..))| (*piece, id)).collect();
    let mut merges = Vec::new();
    for (id, (piece, score, _)) in pieces.iter().enumerate().filter(|(_, (.., kind))| *kind == TokenType::Normal) {
        let mut own: Vec<_> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&piece[..at])?, *ids.get(&piece[at..])?)))
            .collect();
        own.sort_unstable();
        merges.extend(own.into_iter().map(|pair| (*score, id, pair)));
    }
    merges.sort_by(|(one, a, _), (other, b, _)| other.total_cmp(one).then(a.cmp(b)));
    merges.into_iter().map(|(_, _, (left, right))| json!([pieces[left].0, pieces[right].0])).collect()
}

fn normalizer(rules: &Normalizer) -> Value {
    let mut steps = Vec::new();
    if let Some(charsmap) = &rules.charsmap {
        let bytes = BASE64_STANDARD.encode(charsmap.bytes());
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": bytes}));
    }
    if rules.remove_extra_whitespaces {
        steps.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        steps.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    if rules.add_dummy_prefix {
        steps.push(json!({"type": "Prepend", "prepend": "\u{2581}"}));
    }
    if rules.escape_whitespaces {
        steps.push(replace(json!({"String": " "}), "\u{2581}"));
    }
    sequence("normalizers", steps)
}
