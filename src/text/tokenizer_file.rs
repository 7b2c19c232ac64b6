//! Reads a `tokenizer.json` and builds the `tokenizers` pipeline from its parts, after checking each.
//!
//! The file is not handed to the crate whole: its BPE builder indexes out of bounds on merges that do not fit, its
//! added tokens get other ids than the file gives them, and it obeys padding of any size. The parts are built one by
//! one instead, so that an error names the field.

use std::{collections::HashMap, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    models::{bpe, bpe::BPE, unigram::Unigram, wordlevel::WordLevel, wordpiece::WordPiece},
};

use crate::error::{Error, Result};

use super::{
    added_tokens::AddedTokens,
    leading_space::LeadingSpace,
    pattern::MAX_BACKTRACKING_TEXT_BYTES,
    token_table::{MAX_VOCAB, TokenTable, byte_level_bytes, byte_of_token, sentencepiece_bytes},
    tokenizer::{Encoder, MAX_TEXT_BYTES, Tokenizer, guarded},
    tokenizer_split::{Cutter, Pipeline},
    tokenizer_wordpiece,
};

/// Most bytes a `tokenizer.json` may have; the largest in use have a quarter of it.
pub(super) const MAX_FILE_BYTES: u64 = 128 << 20;

/// Words that each thread keeps the BPE result of. The crate's own default, ten thousand for ever on every thread that
/// ever encoded, is more than many blocking threads should hold.
pub(super) const CACHED_WORDS: usize = 2048;

/// Longest word that WordPiece may try all ways to cut; BERT says 100.
const MAX_WORD_CHARS: usize = 1000;

/// Longest string in the pipeline's parts (patterns, replacements), except for a precompiled character map.
const MAX_PART_STRING_BYTES: usize = 16 << 10;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// The model of any kind; each uses what it needs. Early files leave `type` out.
#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    vocab: Vocabulary,
    #[serde(default)]
    merges: Option<Vec<Merge>>,
    unk_token: Option<String>,
    unk_id: Option<usize>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<usize>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// `{token: id}`, or `[[token, score]]` where the index is the id. Read directly, since serde's own choice between
/// two forms would copy a vocabulary several times over.
enum Vocabulary {
    Ids(HashMap<String, u32>),
    Scores(Vec<(String, f64)>),
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Vocabulary;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from token to id, or a list of [token, score]")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vocabulary, A::Error> {
                HashMap::deserialize(MapAccessDeserializer::new(map)).map(Vocabulary::Ids)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                let mut scores = Vec::new();
                while let Some(entry) = list.next_element()? {
                    scores.push(entry);
                }
                Ok(Vocabulary::Scores(scores))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `"left right"`, or `["left", "right"]` in newer files.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens with one space between, or a list of two tokens")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(Merge(left.to_owned(), right.to_owned())),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                match (list.next_element()?, list.next_element()?, list.next_element::<String>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(serde::de::Error::invalid_length(0, &self)),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Builds the tokenizer.
pub(super) fn load(path: &Path, json: &[u8]) -> Result<Tokenizer> {
    let bad = |field: &str, why: String| Error::bad_file(path, field, why);
    if json.len() as u64 > MAX_FILE_BYTES {
        return Err(bad("file", format!("has {} bytes, at most {MAX_FILE_BYTES} are allowed", json.len())));
    }
    let mut file: File = serde_json::from_slice(json).map_err(|error| bad(&field_at_fault(json), error.to_string()))?;
    let spelling = Spelling::of(path, file.decoder.as_ref(), file.pre_tokenizer.as_ref())?;
    check_parts(path, &file)?;

    let size = check_ids(path, &mut file)?;
    let mut pipeline = Pipeline::new(build_model(path, file.model)?);
    pipeline
        .with_normalizer(part::<NormalizerWrapper>(path, "normalizer", file.normalizer)?)
        .map_err(|error| bad("normalizer", error.to_string()))?;
    let cutter = file.pre_tokenizer.as_ref().map(Cutter::from_json).transpose();
    let cutter = cutter.map_err(|why| bad("pre_tokenizer", why))?;
    let backtracks = cutter.as_ref().is_some_and(Cutter::backtracks);
    pipeline.with_pre_tokenizer(cutter);
    pipeline.with_post_processor(part::<PostProcessorWrapper>(path, "post_processor", file.post_processor)?);
    pipeline.with_decoder(part::<DecoderWrapper>(path, "decoder", file.decoder)?);
    let added = file.added_tokens.iter().map(|token| AddedToken {
        content: token.content.clone(),
        single_word: token.single_word,
        lstrip: token.lstrip,
        rstrip: token.rstrip,
        normalized: token.normalized.unwrap_or(!token.special),
        special: token.special,
    });
    pipeline.add_tokens(added).map_err(|error| bad("added_tokens", error.to_string()))?;

    let mut by_id: HashMap<usize, &Added> = HashMap::new();
    for (n, token) in file.added_tokens.iter().enumerate() {
        // The crate numbers tokens that its model lacks one after another; a file that means other ids does not fit.
        let id = pipeline.token_to_id(&token.content);
        if id != Some(token.id) {
            let got = id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            return Err(bad(
                &format!("added_tokens[{n}].id"),
                format!("is {}, but the model gives {:?} id {got}", token.id, token.content),
            ));
        }
        by_id.insert(token.id as usize, token);
    }
    let table = TokenTable::build(size, |id| {
        Ok(match by_id.get(&id) {
            Some(added) => (spelling.added_bytes(&added.content, added.special), added.special),
            None => (pipeline.id_to_token(id as u32).map(|token| spelling.bytes(&token)).unwrap_or_default(), false),
        })
    })?;
    let tokenizer = Tokenizer {
        leading_space: LeadingSpace::one_if(spelling.strips_leading_space()),
        seams: seams(&file.added_tokens),
        strip_trailing_space: matches!(spelling, Spelling::Suffix(_)),
        max_text_bytes: if backtracks { MAX_BACKTRACKING_TEXT_BYTES } else { MAX_TEXT_BYTES },
        ..Tokenizer::new(path, Encoder::Pipeline(Box::new(pipeline)), table)
    };
    // Runs every part once: a post-processor that names ids outside the vocabulary, a pattern that cannot run.
    tokenizer
        .encode("Hello world, 12 times:\n\tcafé 漢字 🦙", true)
        .map_err(|error| bad("file", format!("cannot encode a plain sentence: {error}")))?;
    Ok(tokenizer)
}

/// The tokens that are looked for in the text as it came; none where one of them depends on its neighbours.
fn seams(added: &[Added]) -> Option<AddedTokens> {
    let first: Vec<&Added> = added.iter().filter(|token| !token.normalized.unwrap_or(!token.special)).collect();
    let alone = first.iter().all(|token| !token.single_word);
    alone.then(|| AddedTokens::new(first.into_iter().map(|token| (token.content.clone(), token.id))))
}

/// Which field of a file that serde refused is to blame; for the message only.
fn field_at_fault(json: &[u8]) -> String {
    fn reads<'v, T: Deserialize<'v>>(value: &'v Value) -> bool {
        T::deserialize(value).is_ok()
    }
    fn first_bad<'v, T: Deserialize<'v>>(value: &'v Value, field: &str) -> Option<String> {
        match value.as_array() {
            Some(list) => list.iter().position(|entry| !reads::<T>(entry)).map(|n| format!("{field}[{n}]")),
            None => (!value.is_null()).then(|| field.to_owned()),
        }
    }
    let Ok(file) = serde_json::from_slice::<Value>(json) else { return "file".to_owned() };
    let model = &file["model"];
    first_bad::<Added>(&file["added_tokens"], "added_tokens")
        .or_else(|| (!model.is_object()).then(|| "model".to_owned()))
        .or_else(|| first_bad::<Merge>(&model["merges"], "model.merges"))
        .or_else(|| (!reads::<Vocabulary>(&model["vocab"])).then(|| "model.vocab".to_owned()))
        .unwrap_or_else(|| "model".to_owned())
}

/// Checks the ids of vocabulary and added tokens, and moves added tokens that the model lacks into it, which is how
/// they keep the ids of the file. Returns one more than the largest id.
fn check_ids(path: &Path, file: &mut File) -> Result<usize> {
    let mut size = 0;
    let mut within = |field: String, id: usize| {
        if id >= MAX_VOCAB {
            return Err(Error::bad_file(path, field, format!("has id {id}, ids must be below {MAX_VOCAB}")));
        }
        size = size.max(id + 1);
        Ok(())
    };
    match &mut file.model.vocab {
        Vocabulary::Scores(scores) => {
            within("model.vocab".to_owned(), scores.len().saturating_sub(1))?;
            for (n, token) in file.added_tokens.iter().enumerate() {
                within(format!("added_tokens[{n}]"), token.id as usize)?;
            }
        }
        Vocabulary::Ids(ids) => {
            let mut tokens = HashMap::with_capacity(ids.len());
            for (token, &id) in ids.iter() {
                within(format!("model.vocab[{token:?}]"), id as usize)?;
                tokens.insert(id, token.clone());
            }
            for (n, token) in file.added_tokens.iter().enumerate() {
                within(format!("added_tokens[{n}]"), token.id as usize)?;
                if ids.contains_key(&token.content) {
                    continue;
                }
                if let Some(other) = tokens.insert(token.id, token.content.clone()) {
                    let why = format!("is {}, which is already {other:?}", token.id);
                    return Err(Error::bad_file(path, format!("added_tokens[{n}].id"), why));
                }
                ids.insert(token.content.clone(), token.id);
            }
        }
    }
    if let Some(n) = file.added_tokens.iter().position(|token| token.content.is_empty()) {
        return Err(Error::bad_file(path, format!("added_tokens[{n}].content"), "is empty"));
    }
    if size == 0 { Err(Error::bad_file(path, "model.vocab", "is empty")) } else { Ok(size) }
}

/// Builds the model, with every merge and name checked first.
fn build_model(path: &Path, model: Model) -> Result<ModelWrapper> {
    let bad = |field: &str, why: String| Error::bad_file(path, field, why);
    let inferred = match (&model.vocab, &model.merges) {
        (Vocabulary::Scores(_), _) => "Unigram",
        (Vocabulary::Ids(_), Some(_)) => "BPE",
        (Vocabulary::Ids(_), None) if model.max_input_chars_per_word.is_some() => "WordPiece",
        (Vocabulary::Ids(_), None) => "WordLevel",
    };
    let kind = model.r#type.as_deref().unwrap_or(inferred);
    if kind != inferred {
        let why = format!(
            "is {kind:?}; BPE (with a map and merges), WordPiece (with a map and max_input_chars_per_word), WordLevel (with a map) and Unigram (with a list) are supported, and this file has the parts of {inferred}"
        );
        return Err(bad("model.type", why));
    }
    let failed = |error: tokenizers::Error| bad("model", error.to_string());
    Ok(match model.vocab {
        Vocabulary::Scores(scores) => {
            if let Some(n) = scores.iter().position(|(token, score)| token.is_empty() || !score.is_finite()) {
                return Err(bad(&format!("model.vocab[{n}]"), "needs a token and a finite score".to_owned()));
            }
            Unigram::from(scores, model.unk_id, model.byte_fallback).map_err(failed)?.into()
        }
        Vocabulary::Ids(vocab) => match model.merges {
            None if kind == "WordPiece" => {
                let longest = model.max_input_chars_per_word.unwrap_or(0);
                if longest > MAX_WORD_CHARS {
                    let why = format!("is {longest}, at most {MAX_WORD_CHARS} are allowed");
                    return Err(bad("model.max_input_chars_per_word", why));
                }
                let prefix = model.continuing_subword_prefix;
                WordPiece::builder()
                    .vocab(vocab.into_iter().collect::<bpe::Vocab>())
                    .unk_token(model.unk_token.unwrap_or_else(|| "[UNK]".to_owned()))
                    .continuing_subword_prefix(prefix.unwrap_or_else(|| tokenizer_wordpiece::CONTINUING.to_owned()))
                    .max_input_chars_per_word(longest)
                    .build()
                    .map_err(failed)?
                    .into()
            }
            None => {
                let unk = model.unk_token.unwrap_or_else(|| "<unk>".to_owned());
                WordLevel::builder().vocab(vocab.into_iter().collect()).unk_token(unk).build().map_err(failed)?.into()
            }
            Some(merges) => {
                let prefix = model.continuing_subword_prefix.unwrap_or_default();
                for (n, merge) in merges.iter().enumerate() {
                    check_merge(&vocab, &prefix, merge).map_err(|why| bad(&format!("model.merges[{n}]"), why))?;
                }
                let mut builder = BPE::builder()
                    .vocab_and_merges(
                        vocab.into_iter().collect::<bpe::Vocab>(),
                        merges.into_iter().map(|Merge(left, right)| (left, right)).collect(),
                    )
                    .cache_capacity(CACHED_WORDS)
                    .fuse_unk(model.fuse_unk)
                    .byte_fallback(model.byte_fallback)
                    .ignore_merges(model.ignore_merges);
                if let Some(unk) = model.unk_token {
                    builder = builder.unk_token(unk);
                }
                if !prefix.is_empty() {
                    builder = builder.continuing_subword_prefix(prefix);
                }
                if let Some(suffix) = model.end_of_word_suffix.filter(|suffix| !suffix.is_empty()) {
                    builder = builder.end_of_word_suffix(suffix);
                }
                builder.build().map_err(failed)?.into()
            }
        },
    })
}

/// What the crate takes on trust: both halves and the whole are tokens.
fn check_merge(vocab: &HashMap<String, u32>, prefix: &str, Merge(left, right): &Merge) -> Result<(), String> {
    for half in [left, right] {
        if !vocab.contains_key(half) {
            return Err(format!("names {half:?}, which model.vocab does not have"));
        }
    }
    let Some(tail) = right.strip_prefix(prefix) else {
        return Err(format!("has {right:?} on its right, which lacks the continuing_subword_prefix {prefix:?}"));
    };
    let whole = format!("{left}{tail}");
    if vocab.contains_key(&whole) { Ok(()) } else { Err(format!("makes {whole:?}, which model.vocab does not have")) }
}

/// One part of the pipeline.
fn part<T: serde::de::DeserializeOwned>(path: &Path, field: &str, value: Option<Value>) -> Result<Option<T>> {
    let read = |value| serde_json::from_value(value).map_err(|error| Error::bad_file(path, field, error));
    guarded(path, field, || value.map(read).transpose())
}

/// What the crate takes on trust: that a template for one text uses that text and special tokens that it has.
fn check_template(template: &Value) -> Result<(), String> {
    for piece in template["single"].as_array().into_iter().flatten() {
        let (token, sequence) = (&piece["SpecialToken"]["id"], &piece["Sequence"]["id"]);
        if let Some(token) = token.as_str().filter(|&token| template["special_tokens"].get(token).is_none()) {
            return Err(format!("its single template names {token:?}, which its special_tokens do not have"));
        }
        if sequence.as_str().is_some_and(|sequence| sequence != "A") {
            return Err(format!("its single template names sequence {sequence}, but there is only \"A\""));
        }
    }
    Ok(())
}

/// Refuses in the pipeline's parts what would make the crate panic or work without bound.
fn check_parts(path: &Path, file: &File) -> Result<()> {
    fn check(value: &Value, key: &str) -> Result<(), String> {
        match value {
            Value::String(text) if key != "precompiled_charsmap" && text.len() > MAX_PART_STRING_BYTES => {
                Err(format!("{key} has {} bytes, at most {MAX_PART_STRING_BYTES} are allowed", text.len()))
            }
            Value::Array(list) => list.iter().try_for_each(|entry| check(entry, key)),
            Value::Object(map) => {
                match map.get("type").and_then(Value::as_str) {
                    Some("FixedLength") if map.get("length") == Some(&0.into()) => {
                        return Err("FixedLength cannot have length 0".to_owned());
                    }
                    Some("TemplateProcessing") => check_template(value)?,
                    _ => {}
                }
                map.iter().try_for_each(|(key, entry)| check(entry, key))
            }
            _ => Ok(()),
        }
    }
    let parts = [
        ("normalizer", &file.normalizer),
        ("pre_tokenizer", &file.pre_tokenizer),
        ("post_processor", &file.post_processor),
        ("decoder", &file.decoder),
    ];
    for (field, part) in parts {
        if let Some(part) = part {
            check(part, field).map_err(|why| Error::bad_file(path, field, why))?;
        }
    }
    Ok(())
}

/// How the vocabulary writes the bytes of a text, read from the file's decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spelling {
    /// One printable character a byte.
    ByteLevel,
    /// `▁` for a space; `<0x0A>` for a byte where there is byte fallback.
    Sentencepiece { byte_fallback: bool, strip_leading_space: bool },
    /// Plain words with spaces between: no decoder at all.
    Words,
    /// Words with spaces between; what goes on with one begins with this.
    WordPiece { prefix: String, cleanup: bool },
    /// What ends a word ends with this.
    Suffix(String),
}

impl Spelling {
    fn of(path: &Path, decoder: Option<&Value>, pre_tokenizer: Option<&Value>) -> Result<Self> {
        let Some(decoder) = decoder else {
            let byte_level =
                pre_tokenizer.is_some_and(|part| steps(part, "pretokenizers").any(|s| kind(s) == "ByteLevel"));
            return Ok(if byte_level { Self::ByteLevel } else { Self::Words });
        };
        let (mut byte_fallback, mut strip_leading_space) = (false, false);
        for step in steps(decoder, "decoders") {
            match kind(step) {
                "ByteLevel" => return Ok(Self::ByteLevel),
                "WordPiece" => {
                    let prefix = step["prefix"].as_str().unwrap_or(tokenizer_wordpiece::CONTINUING).to_owned();
                    return Ok(Self::WordPiece { prefix, cleanup: step["cleanup"].as_bool().unwrap_or(true) });
                }
                "BPEDecoder" => return Ok(Self::Suffix(step["suffix"].as_str().unwrap_or("</w>").to_owned())),
                "ByteFallback" => byte_fallback = true,
                "Metaspace" => {
                    let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                    strip_leading_space |= !never;
                }
                "Replace" if step["pattern"]["String"] == "\u{2581}" && step["content"] == " " => {}
                "Strip" if step["content"] == " " => strip_leading_space |= step["start"].as_u64().unwrap_or(0) > 0,
                "Fuse" => {}
                other => {
                    let why = format!(
                        "has a step {other:?}; ByteLevel, Metaspace, ByteFallback, Fuse, Strip of spaces, Replace of ▁, WordPiece and BPEDecoder are supported"
                    );
                    return Err(Error::bad_file(path, "decoder", why));
                }
            }
        }
        Ok(Self::Sentencepiece { byte_fallback, strip_leading_space })
    }

    fn strips_leading_space(&self) -> bool {
        match self {
            Self::ByteLevel | Self::Suffix(_) => false,
            Self::Sentencepiece { strip_leading_space, .. } => *strip_leading_space,
            Self::Words | Self::WordPiece { .. } => true,
        }
    }

    /// The bytes of a token of the model.
    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => byte_level_bytes(token),
            Self::Sentencepiece { byte_fallback, .. } => match byte_of_token(token).filter(|_| *byte_fallback) {
                Some(byte) => vec![byte],
                None => sentencepiece_bytes(token),
            },
            Self::Words => format!(" {token}").into_bytes(),
            Self::WordPiece { prefix, cleanup } => tokenizer_wordpiece::bytes(token, prefix, *cleanup),
            Self::Suffix(suffix) if suffix.is_empty() => token.as_bytes().to_vec(),
            Self::Suffix(suffix) => token.replace(suffix, " ").into_bytes(),
        }
    }

    /// The bytes of an added token, which the file writes as it stands in a text.
    fn added_bytes(&self, token: &str, special: bool) -> Vec<u8> {
        match self {
            Self::Sentencepiece { .. } if !special => self.bytes(token),
            Self::Words | Self::WordPiece { .. } | Self::Suffix(_) => self.bytes(token),
            _ => token.as_bytes().to_vec(),
        }
    }
}

/// The steps of a part: those of a `Sequence`, or the part itself.
fn steps<'v>(part: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> {
    let many = part[list].as_array().map_or(&[][..], Vec::as_slice);
    let one = (kind(part) != "Sequence").then_some(part);
    many.iter().chain(one)
}

fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or_default()
}
