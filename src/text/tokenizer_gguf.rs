//! Builds a tokenizer from a GGUF file's metadata.
//!
//! `llama` and `t5` are sentencepiece's BPE and unigram, `gpt2` is byte-level BPE cut as its family does (`families`),
//! `gemma4` is BPE over plain text, `bert` is WordPiece.

use std::collections::{HashMap, HashSet};

use tokenizers::{
    AddedToken,
    models::bpe::{BPE, Vocab},
    normalizers::replace::Replace,
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

use super::{
    added_tokens::AddedTokens,
    families::{self, Family},
    leading_space::LeadingSpace,
    sentencepiece::{Algorithm, Definition, Sentencepiece},
    sentencepiece_normalizer::{Charsmap, Normalizer},
    tiktoken::Tiktoken,
    token_table::{MAX_VOCAB, TokenTable, byte_level_bytes, byte_of_token, sentencepiece_bytes},
    tokenizer::{Encoder, Tokenizer},
    tokenizer_file::CACHED_WORDS,
    tokenizer_split::{Cutter, Pipeline},
    tokenizer_wordpiece,
    vocab::{GgufVocab, TokenType},
};

/// One of the kinds of `tokenizer.ggml.model`.
struct Kind {
    name: &'static str,
    /// Ids of begin, end, unknown and separator token where the file leaves them out.
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    sep: Option<u32>,
    /// What frames a text where the file does not say.
    add_bos: bool,
    add_eos: bool,
    add_sep: bool,
    spelling: Spelling,
}

/// How tokens write what they stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    ByteLevel,
    Sentencepiece,
    /// A word begins with `▁`; anything else but `[CLS]` and the like goes on with one.
    WordPiece,
}

/// The defaults are those of the specification's reference implementation.
static KINDS: &[Kind] = &[
    Kind {
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_bos: true,
        spelling: Spelling::Sentencepiece,
        ..kind("llama")
    },
    Kind { eos: Some(1), unk: Some(2), add_eos: true, spelling: Spelling::Sentencepiece, ..kind("t5") },
    kind("gpt2"),
    Kind { spelling: Spelling::Sentencepiece, ..kind("gemma4") },
    Kind {
        bos: Some(101),
        unk: Some(100),
        sep: Some(102),
        add_bos: true,
        add_sep: true,
        spelling: Spelling::WordPiece,
        ..kind("bert")
    },
];

const fn kind(name: &'static str) -> Kind {
    Kind {
        name,
        bos: None,
        eos: None,
        unk: None,
        sep: None,
        add_bos: false,
        add_eos: false,
        add_sep: false,
        spelling: Spelling::ByteLevel,
    }
}

/// Checks the metadata and builds the tokenizer.
pub(super) fn load(mut vocab: GgufVocab) -> Result<Tokenizer> {
    let path = vocab.path.clone();
    let bad = |field: &str, why: String| Error::bad_file(&path, format!("tokenizer.ggml.{field}"), why);
    let Some(kind) = KINDS.iter().find(|kind| kind.name == vocab.model) else {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let why = format!(
            "is {:?}; {} are supported: put the model's tokenizer.json beside the file instead",
            vocab.model,
            names.join(", ")
        );
        return Err(bad("model", why));
    };
    check_lists(&mut vocab, kind)?;
    let family = family_of(&vocab);
    let encoder = match kind.name {
        "llama" | "t5" => sentencepiece(&mut vocab, kind)?,
        "bert" => wordpiece(&mut vocab)?,
        "gpt2" if vocab.merges.is_empty() && vocab.pre.as_deref() == Some("kimi-k2") => by_rank(&vocab, family)?,
        _ => byte_pairs(&vocab, kind, family)?,
    };
    let table = table(&vocab, if family.plain_text { Spelling::Sentencepiece } else { kind.spelling })?;
    let frame = |add: Option<bool>, default: bool, id: Option<u32>| id.map(TokenId).filter(|_| add.unwrap_or(default));
    let is_sentencepiece = matches!(kind.name, "llama" | "t5");
    let end = frame(vocab.add_eos, kind.add_eos, vocab.eos);
    let max_text_bytes = match &encoder {
        Encoder::Pipeline(pipeline) if pipeline.get_pre_tokenizer().is_some_and(Cutter::backtracks) => {
            super::pattern::MAX_BACKTRACKING_TEXT_BYTES
        }
        _ => super::MAX_TEXT_BYTES,
    };
    Ok(Tokenizer {
        leading_space: LeadingSpace::one_if(
            kind.name == "bert" || is_sentencepiece && vocab.add_space_prefix.unwrap_or(true),
        ),
        bos: vocab.bos.map(TokenId),
        eos: vocab.eos.map(TokenId),
        prefix: frame(vocab.add_bos, kind.add_bos || kind.name == "gpt2" && family.add_bos, vocab.bos),
        suffix: end.or(frame(vocab.add_sep, kind.add_sep || kind.name == "gpt2" && family.add_sep, vocab.sep)),
        seams: Some(AddedTokens::new(added(&vocab).map(|(id, token)| (token.clone(), id as u32)))),
        max_text_bytes,
        ..Tokenizer::new(&path, encoder, table)
    })
}

/// Makes all lists as long as the vocabulary and all ids lie in it.
fn check_lists(vocab: &mut GgufVocab, kind: &Kind) -> Result<()> {
    let path = vocab.path.clone();
    let bad = |field: &str, why: String| Error::bad_file(&path, format!("tokenizer.ggml.{field}"), why);
    let size = vocab.tokens.len();
    if size == 0 || size > MAX_VOCAB {
        return Err(bad("tokens", format!("has {size} entries, must have 1 to {MAX_VOCAB}")));
    }
    if vocab.token_types.is_empty() {
        vocab.token_types = vec![TokenType::Normal; size];
    }
    if vocab.token_types.len() != size {
        return Err(bad("token_type", format!("has {} entries for {size} tokens", vocab.token_types.len())));
    }
    for (field, id, default) in [
        ("bos_token_id", &mut vocab.bos, kind.bos),
        ("eos_token_id", &mut vocab.eos, kind.eos),
        ("unknown_token_id", &mut vocab.unk, kind.unk),
        ("seperator_token_id", &mut vocab.sep, kind.sep),
    ] {
        // Writers spell "none" as -1. Files may leave out the ids that the first model of their kind has.
        *id = id.filter(|&id| id != u32::MAX).or(default.filter(|&id| (id as usize) < size));
        if let Some(id) = id.filter(|&id| id as usize >= size) {
            return Err(bad(field, format!("is {id}, but there are {size} tokens")));
        }
    }
    Ok(())
}

fn is_special(vocab: &GgufVocab, id: usize) -> bool {
    matches!(vocab.token_types[id], TokenType::Control | TokenType::Unknown)
}

/// Tokens that are always whole: id and text.
fn added(vocab: &GgufVocab) -> impl Iterator<Item = (usize, &String)> {
    let whole = |id: &usize| is_special(vocab, *id) || vocab.token_types[*id] == TokenType::UserDefined;
    (0..vocab.tokens.len()).filter(whole).map(|id| (id, &vocab.tokens[id])).filter(|(_, token)| !token.is_empty())
}

fn sentencepiece(vocab: &mut GgufVocab, kind: &Kind) -> Result<Encoder> {
    let path = vocab.path.clone();
    let bad = |field: &str, why: String| Error::bad_file(&path, format!("tokenizer.ggml.{field}"), why);
    if vocab.scores.len() != vocab.tokens.len() {
        return Err(bad("scores", format!("has {} entries for {} tokens", vocab.scores.len(), vocab.tokens.len())));
    }
    let charsmap = std::mem::take(&mut vocab.precompiled_charsmap);
    let added = AddedTokens::new(added(vocab).map(|(id, token)| (token.clone(), id as u32)));
    let model = Sentencepiece::new(Definition {
        algorithm: if kind.name == "t5" { Algorithm::Unigram } else { Algorithm::Bpe },
        pieces: vocab.tokens.clone(),
        scores: std::mem::take(&mut vocab.scores),
        types: vocab.token_types.clone(),
        unk: vocab.unk,
        match_user_defined: false,
        single_precision: false,
        normalizer: Normalizer {
            charsmap: Charsmap::new(&charsmap).map_err(|why| bad("precompiled_charsmap", why))?,
            add_dummy_prefix: vocab.add_space_prefix.unwrap_or(true),
            remove_extra_whitespaces: vocab.remove_extra_whitespaces.unwrap_or(false),
            treat_whitespace_as_suffix: false,
            escape_whitespaces: true,
        },
    });
    let model = Box::new(model.map_err(|why| bad("tokens", why))?);
    Ok(Encoder::Sentencepiece { model, added })
}

/// BERT's tokens, back in BERT's own spelling.
fn wordpiece(vocab: &mut GgufVocab) -> Result<Encoder> {
    let bad = |why: String| Error::bad_file(&vocab.path, "tokenizer.ggml.tokens", why);
    let unk = vocab.unk.ok_or_else(|| bad("has no unknown token".to_owned()))? as usize;
    let written = |(id, token): (usize, &String)| match token.strip_prefix('\u{2581}') {
        Some(word) => word.to_owned(),
        None if is_special(vocab, id) || token.starts_with('[') && token.ends_with(']') => token.clone(),
        None => format!("{}{token}", tokenizer_wordpiece::CONTINUING),
    };
    let tokens: Vec<String> = vocab.tokens.iter().enumerate().map(written).collect();
    let mut pipeline =
        tokenizer_wordpiece::pipeline(&tokens, |id| tokens[id].starts_with('['), &tokens[unk]).map_err(bad)?;
    add_tokens(&mut pipeline, vocab)?;
    Ok(Encoder::Pipeline(Box::new(pipeline)))
}

/// Byte-level BPE without merges: a token's id is its rank.
fn by_rank(vocab: &GgufVocab, family: &Family) -> Result<Encoder> {
    let normal = |id: &usize| vocab.token_types[*id] == TokenType::Normal;
    let ranks: HashMap<Vec<u8>, u32> =
        (0..vocab.tokens.len()).filter(normal).map(|id| (byte_level_bytes(&vocab.tokens[id]), id as u32)).collect();
    let bad = |why: String| Error::bad_file(&vocab.path, "tokenizer.ggml.tokens", why);
    Ok(Encoder::Tiktoken {
        model: Box::new(Tiktoken::new(ranks, family.patterns).map_err(bad)?),
        added: AddedTokens::new(added(vocab).map(|(id, token)| (token.clone(), id as u32))),
    })
}

fn byte_pairs(vocab: &GgufVocab, kind: &Kind, family: &Family) -> Result<Encoder> {
    let bad = |field: &str, why: String| Error::bad_file(&vocab.path, format!("tokenizer.ggml.{field}"), why);
    let plain_text = family.plain_text || kind.name == "gemma4";
    let mut pipeline = Pipeline::new(bpe(vocab, family, plain_text)?.into());
    let cut_at = |patterns| match plain_text {
        false => Cutter::byte_level(ByteLevel::new(false, true, false), patterns),
        true => Cutter::patterns(patterns),
    };
    if plain_text {
        let spaces = Replace::new(" ", "\u{2581}").map_err(|error| bad("pre", error.to_string()))?;
        pipeline.with_normalizer(Some(spaces)).map_err(|error| bad("pre", error.to_string()))?;
    }
    pipeline.with_pre_tokenizer(Some(cut_at(family.patterns).map_err(|why| bad("pre", why))?));
    add_tokens(&mut pipeline, vocab)?;
    Ok(Encoder::Pipeline(Box::new(pipeline)))
}

fn add_tokens(pipeline: &mut Pipeline, vocab: &GgufVocab) -> Result<()> {
    let tokens: Vec<_> = added(vocab)
        .map(|(id, token)| AddedToken::from(token.clone(), is_special(vocab, id)).normalized(false))
        .collect();
    let failed = |error: tokenizers::Error| Error::bad_file(&vocab.path, "tokenizer.ggml.tokens", error.to_string());
    pipeline.add_tokens(tokens).map(|_| ()).map_err(failed)
}

/// The bytes of every token.
fn table(vocab: &GgufVocab, spelling: Spelling) -> Result<TokenTable> {
    TokenTable::build(vocab.tokens.len(), |id| {
        let token = &vocab.tokens[id];
        let special = is_special(vocab, id);
        let bytes = match (vocab.token_types[id], spelling) {
            (TokenType::UserDefined, _) => token.as_bytes().to_vec(),
            _ if special => token.as_bytes().to_vec(),
            (_, Spelling::ByteLevel) => byte_level_bytes(token),
            (_, Spelling::WordPiece) => {
                let written = match token.strip_prefix('\u{2581}') {
                    Some(word) => word.to_owned(),
                    None => format!("{}{token}", tokenizer_wordpiece::CONTINUING),
                };
                tokenizer_wordpiece::bytes(&written, tokenizer_wordpiece::CONTINUING, true)
            }
            (TokenType::Byte, Spelling::Sentencepiece) => vec![byte_of_token(token).ok_or_else(|| {
                let why = format!("is {token:?}, of type 6 (byte), which must look like <0x0A>");
                Error::bad_file(&vocab.path, format!("tokenizer.ggml.tokens[{id}]"), why)
            })?],
            (_, Spelling::Sentencepiece) => sentencepiece_bytes(token),
        };
        Ok((bytes, special))
    })
}

/// The family that the file names; GPT-2's way, with a warning, for one we do not know.
fn family_of(vocab: &GgufVocab) -> &'static Family {
    let name = match vocab.model.as_str() {
        "gemma4" => "gemma4",
        _ => vocab.pre.as_deref().unwrap_or("default"),
    };
    families::family(name).unwrap_or_else(|| {
        if vocab.model == "gpt2" {
            tracing::warn!(
                file = %vocab.path.display(),
                pre = name,
                "tokenizer.ggml.pre is not known: text is cut as GPT-2 does, ids may differ from those the model was trained on"
            );
        }
        families::gpt2_family()
    })
}

/// The model, with every merge checked first.
fn bpe(vocab: &GgufVocab, family: &Family, plain_text: bool) -> Result<BPE> {
    let tokens: HashSet<&str> = vocab.tokens.iter().map(String::as_str).collect();
    let bad = |field: String, why: String| Error::bad_file(&vocab.path, field, why);
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for (n, merge) in vocab.merges.iter().enumerate() {
        let field = || format!("tokenizer.ggml.merges[{n}]");
        let Some((left, right)) = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty())
        else {
            return Err(bad(field(), format!("is {merge:?}, must be two tokens with a space between")));
        };
        for token in [left, right, &format!("{left}{right}")] {
            if !tokens.contains(token) {
                return Err(bad(field(), format!("is {merge:?}, but tokenizer.ggml.tokens has no {token:?}")));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let ids: Vocab = vocab.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
    let mut builder = BPE::builder()
        .vocab_and_merges(ids, merges)
        .cache_capacity(CACHED_WORDS)
        .ignore_merges(family.ignore_merges)
        .byte_fallback(plain_text)
        .fuse_unk(plain_text);
    if let Some(unk) = vocab.unk.filter(|_| plain_text) {
        builder = builder.unk_token(vocab.tokens[unk as usize].clone());
    }
    builder.build().map_err(|error| bad("tokenizer.ggml.merges".to_owned(), error.to_string()))
}
