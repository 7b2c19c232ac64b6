//! [`Detokenizer`]: ids to text while they come, never half a character.

use std::sync::Arc;

use crate::ids::TokenId;

use super::{Tokenizer, leading_space::LeadingSpace};

/// Turns a stream of tokens into a stream of text.
///
/// Each push gives all the text that is certain; an unfinished character waits (three bytes at most) for the rest of
/// it. All that was given, with [`finish`](Self::finish), is what decoding the whole at once gives: bytes that are not
/// UTF-8 become U+FFFD exactly as in [`String::from_utf8_lossy`].
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Special tokens that are not skipped.
    kept: Vec<TokenId>,
    /// The start of a character that has not ended.
    pending: Vec<u8>,
    /// What is still to be taken away of the text's first spaces.
    space: LeadingSpace,
}

impl Detokenizer {
    /// For tokens that go on after a prompt: a leading space is part of the text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, kept: Vec::new(), pending: Vec::new(), space: LeadingSpace::KEPT }
    }

    /// For tokens that begin a text (an empty prompt, or a detokenizing call): the space that sentencepiece puts before
    /// the first word is left out, as [`Tokenizer::decode`] does.
    #[must_use]
    pub fn at_start_of_text(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let space = tokenizer.leading_space();
        Self { space, ..Self::new(tokenizer, skip_special) }
    }

    /// The same, but these special tokens come out as text even where special tokens are skipped.
    #[must_use]
    pub fn keeping(self, kept: Vec<TokenId>) -> Self {
        Self { kept, ..self }
    }

    /// The text that this token makes certain; often one token's, sometimes none, sometimes that of several.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.skip_special && self.tokenizer.is_special(id) && !self.kept.contains(&id) {
            return String::new();
        }
        let bytes = self.space.take_from(id, self.tokenizer.token_bytes(id));
        self.pending.extend_from_slice(bytes);
        let keep = match self.pending.last() {
            Some(b' ') if self.tokenizer.strips_trailing_space() => 1,
            _ => unfinished_len(&self.pending),
        };
        let rest = self.pending.split_off(self.pending.len() - keep);
        lossy(std::mem::replace(&mut self.pending, rest))
    }

    /// The end: what is left of an unfinished character, as U+FFFD. The space behind the last word goes where the
    /// vocabulary ends its words with one.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        if self.tokenizer.strips_trailing_space() && rest == b" " { String::new() } else { lossy(rest) }
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// How many bytes at the end are the start of a character that could still become valid: 0 to 3.
fn unfinished_len(bytes: &[u8]) -> usize {
    // Only the last three bytes can hold such a start. It is one if UTF-8 ends early there instead of being wrong.
    let first = bytes.len().saturating_sub(3);
    let starts = (first..bytes.len()).filter(|&at| bytes[at] >= 0xc0);
    let unfinished =
        |at: usize| std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none());
    starts.map(|at| bytes.len() - at).find(|len| unfinished(bytes.len() - len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocab::{GgufVocab, TokenType};
    use rand::{RngExt, SeedableRng};

    /// A vocabulary of all single bytes, a few longer ones, and two special tokens.
    fn tokenizer() -> Arc<Tokenizer> {
        let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
        let mut add = |token: &str, kind| {
            vocab.tokens.push(token.to_owned());
            vocab.token_types.push(kind);
            vocab.scores.push(0.0);
        };
        add("<unk>", TokenType::Unknown);
        add("<s>", TokenType::Control);
        add("</s>", TokenType::Control);
        for byte in 0..=255 {
            add(&format!("<0x{byte:02X}>"), TokenType::Byte);
        }
        for token in ["\u{2581}", "\u{2581}\u{2581}a", "é", "漢字", "🦙"] {
            add(token, TokenType::Normal);
        }
        Arc::new(Tokenizer::from_gguf(vocab).unwrap())
    }

    fn byte(byte: u8) -> TokenId {
        TokenId(3 + u32::from(byte))
    }

    #[test]
    fn a_character_is_never_split() {
        let mut detokenizer = Detokenizer::new(tokenizer(), true);
        let texts: Vec<String> = "a🦙é".bytes().map(|b| detokenizer.push(byte(b))).collect();
        assert_eq!(texts, ["a", "", "", "", "🦙", "", "é"]);
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn an_unfinished_character_comes_out_at_the_end() {
        let mut detokenizer = Detokenizer::new(tokenizer(), true);
        assert_eq!(detokenizer.push(byte(0xe2)), "");
        assert_eq!(detokenizer.push(TokenId(2)), "", "a special token between changes nothing");
        assert_eq!(detokenizer.push(byte(0x82)), "");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn a_leading_space_goes_only_at_the_start_of_a_text() {
        let a = TokenId(3 + 256 + 1);
        assert_eq!(Detokenizer::new(tokenizer(), true).push(a), "  a");
        let mut start = Detokenizer::at_start_of_text(tokenizer(), true);
        assert_eq!([start.push(TokenId(1)), start.push(a), start.push(a)], ["", " a", "  a"]);
    }

    #[test]
    fn all_pushes_together_are_the_text_decoded_at_once() {
        let tokenizer = tokenizer();
        let mut rng = rand::rngs::SmallRng::seed_from_u64(7);
        for _ in 0..20_000 {
            // Bytes that begin and continue characters, mostly: that is where it could go wrong.
            let ids: Vec<TokenId> = (0..rng.random_range(0..12))
                .map(|_| match rng.random_range(0..4) {
                    0 => TokenId(rng.random_range(0..tokenizer.vocab_size() as u32 + 3)),
                    1 => byte(rng.random_range(0xc0..=0xff)),
                    _ => byte(rng.random_range(0x80..0xc0)),
                })
                .collect();
            for skip_special in [false, true] {
                let mut detokenizer = Detokenizer::at_start_of_text(tokenizer.clone(), skip_special);
                let mut text = String::new();
                for &id in &ids {
                    text += &detokenizer.push(id);
                    assert!(detokenizer.pending.len() <= 3);
                }
                text += &detokenizer.finish();
                assert_eq!(text, tokenizer.decode(&ids, skip_special), "{ids:?}");
            }
        }
    }
}
