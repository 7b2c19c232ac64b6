//! Writes the tokenizer of a sentencepiece `.model` down as a GGUF file has it: the other way of `tokenizer_gguf`.

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

use super::{
    sentencepiece::Algorithm,
    sentencepiece_normalizer::{Charsmap, SPACE},
    tokenizer::{Encoder, Tokenizer},
    vocab::{GgufVocab, TokenType},
};

/// Of tokens that are looked for before anything merges, as llama.cpp's converter writes it. Nothing reads it.
const ADDED_SCORE: f32 = -1000.0;
/// Of pieces that no text becomes.
const UNUSED_SCORE: f32 = -10000.0;

impl Tokenizer {
    /// The tokenizer of a sentencepiece `.model` of BPE's or unigram's kind, and what a `tokenizer_config.json` adds to it, as a GGUF
    /// file has it: [`Tokenizer::from_gguf`] and llama.cpp make the same ids of it. An id without a token has no text.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the field which a GGUF file cannot say, or says and llama.cpp does not read.
    pub fn to_gguf(&self) -> Result<GgufVocab> {
        let bad = |field: &str, why: &str| Error::bad_file(&self.path, field, why);
        let Encoder::Sentencepiece { model, added } = &self.encoder else {
            return Err(bad(
                "tokenizer",
                "is no sentencepiece model; that and a tokenizer.json of BPE or unigram are converted",
            ));
        };
        let rules = model.normalizer();
        let is_unigram = model.algorithm() == Algorithm::Unigram;
        let is_known = is_unigram || model.algorithm() == Algorithm::Bpe;
        let unsaid = [
            (!is_known, "trainer_spec.model_type", "is neither 1 (unigram) nor 2 (BPE), which are converted"),
            (
                !is_unigram && !model.has_bytes(),
                "pieces",
                "are without some of the bytes that llama.cpp spells what is unknown with",
            ),
            (
                is_unigram && model.has_bytes(),
                "pieces",
                "have bytes to spell what is unknown with, and llama.cpp does not in unigram",
            ),
            (
                !is_unigram && rules.charsmap.is_some(),
                "normalizer_spec.precompiled_charsmap",
                "is there, and llama.cpp does not read it in BPE",
            ),
            (
                !is_unigram && rules.remove_extra_whitespaces,
                "normalizer_spec.remove_extra_whitespaces",
                "is true, and llama.cpp keeps all of them in BPE",
            ),
            (
                rules.remove_extra_whitespaces && !rules.add_dummy_prefix,
                "normalizer_spec.add_dummy_prefix",
                "is false beside remove_extra_whitespaces, and llama.cpp puts a space before every text then",
            ),
            (
                rules.treat_whitespace_as_suffix,
                "trainer_spec.treat_whitespace_as_suffix",
                "is true, and GGUF has spaces before words",
            ),
            (!rules.escape_whitespaces, "normalizer_spec.escape_whitespaces", "is false, and GGUF writes a space as ▁"),
        ];
        if let Some((_, field, why)) = unsaid.iter().find(|(is_unsaid, ..)| *is_unsaid) {
            return Err(bad(field, why));
        }
        let mut vocab = GgufVocab {
            path: self.path.clone(),
            model: if is_unigram { "t5" } else { "llama" }.to_owned(),
            pre: Some("default".to_owned()),
            bos: self.bos.map(|id| id.0),
            eos: self.eos.map(|id| id.0),
            unk: model.unk(),
            add_bos: Some(self.prefix.is_some()),
            add_eos: Some(self.suffix.is_some()),
            add_space_prefix: Some(rules.add_dummy_prefix),
            remove_extra_whitespaces: is_unigram.then_some(rules.remove_extra_whitespaces),
            precompiled_charsmap: rules.charsmap.as_ref().map(Charsmap::bytes).unwrap_or_default(),
            ..GgufVocab::default()
        };
        let pieces: Vec<_> = model.entries().collect();
        for id in 0..self.vocab_size() {
            let token = TokenId(id as u32);
            let text = String::from_utf8_lossy(self.token_bytes(token));
            let is_added = !text.is_empty() && added.id(&text) == Some(token.0);
            let (text, score, kind) = match pieces.get(id) {
                _ if self.is_special(token) => (text.into_owned(), ADDED_SCORE, TokenType::Control),
                _ if is_added => (text.into_owned(), ADDED_SCORE, TokenType::UserDefined),
                Some((_, _, TokenType::UserDefined)) if rules.add_dummy_prefix => {
                    let why = "is user-defined, and GGUF puts a space behind such a piece as before a text";
                    return Err(bad(&format!("pieces[{id}]"), why));
                }
                // It is looked for in the text as it came.
                Some((piece, score, TokenType::UserDefined)) => {
                    (piece.replace(SPACE, " "), *score, TokenType::UserDefined)
                }
                // llama.cpp takes such a piece in unigram where it is the best: so it never is.
                Some((piece, _, TokenType::Unused)) if is_unigram => {
                    ((*piece).to_owned(), UNUSED_SCORE, TokenType::Unused)
                }
                Some((piece, score, kind)) => ((*piece).to_owned(), *score, *kind),
                None => (String::new(), ADDED_SCORE, TokenType::Unused),
            };
            vocab.tokens.push(text);
            vocab.scores.push(score);
            vocab.token_types.push(kind);
        }
        Ok(vocab)
    }
}
