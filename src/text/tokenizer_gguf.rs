//! Builds a tokenizer from a GGUF file's metadata.
//!
//! GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) instead of writing it down, so the patterns stand here. Each is
//! the one of the family's own `tokenizer.json`, which the name stands for.

use std::collections::HashSet;

use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

use super::{
    added_tokens::AddedTokens,
    sentencepiece::Sentencepiece,
    token_table::{MAX_VOCAB, TokenTable, byte_level_bytes, byte_of_token, sentencepiece_bytes},
    tokenizer::{Encoder, Tokenizer},
    tokenizer_file::CACHED_WORDS,
    vocab::{GgufVocab, TokenType},
};

/// How a family cuts text before byte-level BPE.
struct Family {
    /// Applied one after another, each to the pieces that the one before left; every match is a piece of its own.
    patterns: &'static [&'static str],
    /// A piece that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
    /// Begins with the begin token where the file does not say.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

const fn family(patterns: &'static [&'static str]) -> Family {
    Family { patterns, ignore_merges: false, add_bos: false }
}

const fn whole_words(patterns: &'static [&'static str]) -> Family {
    Family { patterns, ignore_merges: true, add_bos: true }
}

/// What `tokenizer.ggml.pre` stands for.
static FAMILIES: &[(&[&str], Family)] = &[
    (
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ],
        family(&[GPT2]),
    ),
    (
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        whole_words(&[LLAMA3]),
    ),
    (&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], family(&[LLAMA3])),
    (&["qwen2", "deepseek-r1-qwen", "kormo", "stablelm2", "hunyuan", "megrez"], family(&[QWEN2])),
    (&["qwen35"], family(&[QWEN35])),
    (&["tekken"], whole_words(&[TEKKEN])),
    (&["gpt-4o", "llama4", "kanana2"], family(&[GPT4O])),
    (&["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"], family(&[DIGIT, GPT2])),
    (&["deepseek-v3"], family(DEEPSEEK3)),
];

/// What GGUF calls a pre-tokenizer of these patterns.
#[must_use]
pub fn pre_tokenizer_name(patterns: &[&str], ignore_merges: bool) -> Option<&'static str> {
    let same = |family: &Family| family.patterns == patterns && family.ignore_merges == ignore_merges;
    FAMILIES.iter().find(|(_, family)| same(family)).and_then(|(names, _)| names.first().copied())
}

/// Checks the metadata and builds the tokenizer.
pub(super) fn load(mut vocab: GgufVocab) -> Result<Tokenizer> {
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
    let is_sentencepiece = vocab.model == "llama";
    for (field, id, default) in [
        ("bos_token_id", &mut vocab.bos, 1),
        ("eos_token_id", &mut vocab.eos, 2),
        ("unknown_token_id", &mut vocab.unk, 0),
    ] {
        // Writers spell "none" as -1. Sentencepiece files may leave out the ids that Llama 2 has.
        *id =
            id.filter(|&id| id != u32::MAX).or_else(|| (is_sentencepiece && default < size as u32).then_some(default));
        if let Some(id) = id.filter(|&id| id as usize >= size) {
            return Err(bad(field, format!("is {id}, but there are {size} tokens")));
        }
    }
    let special = |id: usize| matches!(vocab.token_types[id], TokenType::Control | TokenType::Unknown);
    let is_added = |id: usize| special(id) || vocab.token_types[id] == TokenType::UserDefined;
    let added = || (0..size).filter(|&id| is_added(id) && !vocab.tokens[id].is_empty());

    let (encoder, add_bos) = match vocab.model.as_str() {
        "llama" => {
            if vocab.scores.len() != size {
                return Err(bad("scores", format!("has {} entries for {size} tokens", vocab.scores.len())));
            }
            let added = AddedTokens::new(added().map(|id| (vocab.tokens[id].clone(), id as u32)));
            (Encoder::Sentencepiece { model: Sentencepiece::new(&vocab)?, added }, true)
        }
        "gpt2" => {
            let family = family_of(&vocab);
            let mut pipeline = tokenizers::Tokenizer::new(byte_level_bpe(&vocab, family)?);
            pipeline.with_pre_tokenizer(Some(pre_tokenizer(family).map_err(|error| bad("pre", error.to_string()))?));
            let added: Vec<_> =
                added().map(|id| AddedToken::from(vocab.tokens[id].clone(), special(id)).normalized(false)).collect();
            pipeline.add_tokens(added).map_err(|error| bad("tokens", error.to_string()))?;
            (Encoder::Pipeline(Box::new(pipeline)), family.add_bos)
        }
        other => {
            let why = format!(
                "is {other:?}; llama (sentencepiece) and gpt2 (byte-level BPE) are supported: put the model's tokenizer.json beside the file instead"
            );
            return Err(bad("model", why));
        }
    };
    let table = TokenTable::build(size, |id| {
        let token = &vocab.tokens[id];
        let bytes = match vocab.token_types[id] {
            _ if is_added(id) => token.as_bytes().to_vec(),
            _ if !is_sentencepiece => byte_level_bytes(token),
            TokenType::Byte => {
                vec![byte_of_token(token).ok_or_else(|| {
                    bad(
                        &format!("tokens[{id}]"),
                        format!("is {token:?}, of type 6 (byte), which must look like <0x0A>"),
                    )
                })?]
            }
            _ => sentencepiece_bytes(token),
        };
        Ok((bytes, special(id)))
    })?;
    let frame = |add: Option<bool>, default: bool, id: Option<u32>| id.map(TokenId).filter(|_| add.unwrap_or(default));
    Ok(Tokenizer {
        encoder,
        table,
        strip_leading_space: is_sentencepiece && vocab.add_space_prefix.unwrap_or(true),
        bos: vocab.bos.map(TokenId),
        eos: vocab.eos.map(TokenId),
        prefix: frame(vocab.add_bos, add_bos, vocab.bos),
        suffix: frame(vocab.add_eos, false, vocab.eos),
        path,
    })
}

/// The family that the file names; GPT-2's way, with a warning, for one we do not know.
fn family_of(vocab: &GgufVocab) -> &'static Family {
    let name = vocab.pre.as_deref().unwrap_or("default");
    let known = FAMILIES.iter().find(|(names, _)| names.contains(&name));
    &known
        .unwrap_or_else(|| {
            tracing::warn!(
                file = %vocab.path.display(),
                pre = name,
                "tokenizer.ggml.pre is not known: text is cut as GPT-2 does, ids may differ from those the model was trained on"
            );
            &FAMILIES[0]
        })
        .1
}

fn byte_level_bpe(vocab: &GgufVocab, family: &Family) -> Result<BPE> {
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
    BPE::builder()
        .vocab_and_merges(ids, merges)
        .cache_capacity(CACHED_WORDS)
        .ignore_merges(family.ignore_merges)
        .build()
        .map_err(|error| bad("tokenizer.ggml.merges".to_owned(), error.to_string()))
}

fn pre_tokenizer(family: &Family) -> tokenizers::Result<PreTokenizerWrapper> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in family.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    Ok(Sequence::new(steps).into())
}
