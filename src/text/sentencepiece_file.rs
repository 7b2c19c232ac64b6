//! Reads a sentencepiece `.model`: a protobuf message with pieces, how they were trained, and how a text is normalized.
//!
//! Field numbers and defaults are those of `sentencepiece_model.proto`; what is not needed here is left out.

use std::path::Path;

use prost::Message;

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

use super::{
    added_tokens::AddedTokens,
    leading_space::LeadingSpace,
    sentencepiece::{Algorithm, Definition, Sentencepiece},
    sentencepiece_normalizer::{Charsmap, Normalizer},
    token_table::{MAX_VOCAB, TokenTable, byte_of_token, sentencepiece_bytes},
    tokenizer::{Encoder, Tokenizer},
    tokenizer_config::TokenizerConfig,
    vocab::TokenType,
};

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
    #[prost(message, optional, tag = "5")]
    denormalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(string, optional, tag = "44")]
    unk_surface: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// What an unknown token reads as where the file does not say.
const UNK_SURFACE: &str = " \u{2047} ";

/// Builds the tokenizer. Control pieces written out in a text become their ids, as do the tokens that the
/// `tokenizer_config.json` adds.
pub(super) fn load(path: &Path, bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Tokenizer> {
    let bad = |field: &str, why: String| Error::bad_file(path, field, why);
    let file = ModelProto::decode(bytes).map_err(|error| bad("file", format!("is no sentencepiece model: {error}")))?;
    if file.pieces.is_empty() || file.pieces.len() > MAX_VOCAB {
        return Err(bad("pieces", format!("has {} entries, must have 1 to {MAX_VOCAB}", file.pieces.len())));
    }
    if file.denormalizer_spec.is_some_and(|spec| spec.precompiled_charsmap.is_some_and(|map| !map.is_empty())) {
        return Err(bad("denormalizer_spec", "is not supported".to_owned()));
    }
    let trainer = file.trainer_spec.unwrap_or_default();
    let algorithm = match trainer.model_type.unwrap_or(1) {
        1 => Algorithm::Unigram,
        2 => Algorithm::Bpe,
        3 => Algorithm::Word,
        4 => Algorithm::Char,
        other => return Err(bad("trainer_spec.model_type", format!("is {other}, must be 1 to 4"))),
    };
    let mut definition =
        Definition { algorithm, match_user_defined: true, single_precision: true, ..Definition::default() };
    for piece in file.pieces {
        definition.pieces.push(piece.piece.unwrap_or_default());
        definition.scores.push(piece.score.unwrap_or(0.0));
        definition.types.push(TokenType::from_number(i64::from(piece.kind.unwrap_or(1))));
    }
    let normalizer = file.normalizer_spec.unwrap_or_default();
    let charsmap = normalizer.precompiled_charsmap.unwrap_or_default();
    definition.normalizer = Normalizer {
        charsmap: Charsmap::new(&charsmap).map_err(|why| bad("normalizer_spec.precompiled_charsmap", why))?,
        add_dummy_prefix: normalizer.add_dummy_prefix.unwrap_or(true),
        remove_extra_whitespaces: normalizer.remove_extra_whitespaces.unwrap_or(true),
        escape_whitespaces: normalizer.escape_whitespaces.unwrap_or(true),
        treat_whitespace_as_suffix: trainer.treat_whitespace_as_suffix.unwrap_or(false),
    };
    definition.unk = definition.types.iter().position(|kind| *kind == TokenType::Unknown).map(|id| id as u32);
    let control = |id: Option<i32>, default: i32| {
        let id = u32::try_from(id.unwrap_or(default)).ok()?;
        (definition.types.get(id as usize) == Some(&TokenType::Control)).then_some(TokenId(id))
    };
    let (bos, eos) = (control(trainer.bos_id, 1), control(trainer.eos_id, 2));
    let unk_surface = trainer.unk_surface.unwrap_or_else(|| UNK_SURFACE.to_owned());

    let mut added: Vec<(u32, String, bool)> = (0..)
        .zip(definition.pieces.iter().zip(&definition.types))
        .filter(|(_, (piece, kind))| **kind == TokenType::Control && !piece.is_empty())
        .map(|(id, (piece, _))| (id, piece.clone(), true))
        .collect();
    // The unknown token is listed there too, but a text never means it.
    let unk = definition.unk;
    added.extend(config.into_iter().flat_map(|c| c.added_tokens.clone()).filter(|(id, _, _)| Some(*id) != unk));
    let table = table(path, &definition, &added, &unk_surface)?;
    let normalizer = &definition.normalizer;
    // A space behind the last word stays, as sentencepiece's own decoder has it.
    let strips = normalizer.add_dummy_prefix || normalizer.remove_extra_whitespaces;
    let leading_space = if strips && !normalizer.treat_whitespace_as_suffix {
        LeadingSpace::of_sentencepiece(normalizer.remove_extra_whitespaces, unk.map(TokenId))
    } else {
        LeadingSpace::KEPT
    };
    // Models with a begin token want it; those without (T5) want an end.
    let add_bos = config.and_then(|c| c.add_bos_token).unwrap_or(true);
    let add_eos = config.and_then(|c| c.add_eos_token).unwrap_or(bos.is_none());
    let model = Sentencepiece::new(definition).map_err(|why| bad("pieces", why))?;
    let encoder = Encoder::Sentencepiece {
        model: Box::new(model),
        added: AddedTokens::new(added.iter().map(|(id, text, _)| (text.clone(), *id))),
    };
    Ok(Tokenizer {
        leading_space,
        bos,
        eos,
        prefix: bos.filter(|_| add_bos),
        suffix: eos.filter(|_| add_eos),
        ..Tokenizer::new(path, encoder, table)
    })
}

/// The bytes of every piece and added token.
fn table(path: &Path, definition: &Definition, added: &[(u32, String, bool)], unk_surface: &str) -> Result<TokenTable> {
    let size = added.iter().map(|(id, _, _)| *id as usize + 1).max().unwrap_or(0).max(definition.pieces.len());
    if size > MAX_VOCAB {
        return Err(Error::bad_file(path, "added_tokens_decoder", format!("has id {}, too large", size - 1)));
    }
    let by_id: std::collections::HashMap<u32, (&str, bool)> =
        added.iter().map(|(id, text, special)| (*id, (text.as_str(), *special))).collect();
    TokenTable::build(size, |id| {
        if let Some((text, special)) = by_id.get(&(id as u32)) {
            return Ok((text.as_bytes().to_vec(), *special));
        }
        let Some(piece) = definition.pieces.get(id) else { return Ok((Vec::new(), false)) };
        let bytes = match definition.types[id] {
            TokenType::Unknown => unk_surface.as_bytes().to_vec(),
            TokenType::Byte => {
                let why = || Error::bad_file(path, format!("pieces[{id}]"), format!("is {piece:?}, not a byte"));
                vec![byte_of_token(piece).ok_or_else(why)?]
            }
            _ => sentencepiece_bytes(piece),
        };
        Ok((bytes, false))
    })
}
