//! `bad_words`: hears what a sequence says, and takes it back where it says what it must not.
//!
//! The engine thread keeps tokens back while their text could begin a banned string, so no reader ever sees a part of
//! one; a string that is complete sends the sequence back to before the token in which it began.

use std::sync::Arc;

use super::sequence::{Guard, Heard};
use crate::{ids::TokenId, text::Detokenizer};

/// The guard of one sequence.
pub(super) struct BadWords {
    words: Arc<[String]>,
    /// Has heard everything.
    detokenizer: Detokenizer,
    /// The newest tokens, as far as they are held back.
    held: Vec<Held>,
}

/// A token that may have to be taken back.
struct Held {
    /// The detokenizer before this token.
    before: Detokenizer,
    /// The text that it made certain.
    text: String,
}

impl BadWords {
    /// A guard that knows these strings; the detokenizer must be like the reader's own.
    pub(super) fn new(words: Arc<[String]>, detokenizer: Detokenizer) -> Self {
        Self { words, detokenizer, held: Vec::new() }
    }

    /// Where in `text` the first banned string begins that it contains.
    fn found(&self, text: &str) -> Option<usize> {
        self.words.iter().filter_map(|word| text.find(word.as_str())).min()
    }

    /// Bytes at the end of `text` that could begin a banned string.
    fn doubtful(&self, text: &str) -> usize {
        let begins = |word: &String| {
            let longest = text.len().min(word.len() - 1);
            (1..=longest).rev().find(|&n| text.as_bytes().ends_with(&word.as_bytes()[..n])).unwrap_or(0)
        };
        self.words.iter().map(begins).max().unwrap_or(0)
    }

    /// The held token whose text goes past the byte `at` of the held text.
    fn token_at(&self, at: usize) -> usize {
        let mut end = 0;
        let past = |held: &Held| {
            end += held.text.len();
            end > at
        };
        self.held.iter().position(past).unwrap_or(self.held.len())
    }
}

impl Guard for BadWords {
    fn hear(&mut self, token: TokenId) -> Heard {
        let before = self.detokenizer.clone();
        let text = self.detokenizer.push(token);
        self.held.push(Held { before, text });
        let text: String = self.held.iter().map(|held| held.text.as_str()).collect();
        if let Some(at) = self.found(&text) {
            let first = self.token_at(at);
            let taken_back = self.held.len() - first;
            if let Some(held) = self.held.drain(first..).next() {
                self.detokenizer = held.before;
            }
            return Heard::TakeBack(taken_back);
        }
        let first = self.token_at(text.len() - self.doubtful(&text));
        self.held.drain(..first);
        Heard::Hold(self.held.len())
    }

    fn most_held(&self) -> usize {
        self.words.iter().map(String::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{GgufVocab, TokenType, Tokenizer};

    const PIECES: [&str; 9] = ["<unk>", "a", "b", "ab", "cab", " ", "<0xC3>", "<0xA9>", "é"];

    fn guard(words: &[&str]) -> BadWords {
        let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
        for piece in PIECES {
            vocab.tokens.push(piece.to_owned());
            vocab.token_types.push(if piece.starts_with("<0") { TokenType::Byte } else { TokenType::Normal });
            vocab.scores.push(0.0);
        }
        let tokenizer = Arc::new(Tokenizer::from_gguf(vocab).unwrap());
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        BadWords::new(words.into(), Detokenizer::new(tokenizer, true))
    }

    fn hear(guard: &mut BadWords, pieces: &[&str]) -> Vec<Heard> {
        let id = |piece: &&str| TokenId(PIECES.iter().position(|known| known == piece).unwrap() as u32);
        pieces.iter().map(|piece| guard.hear(id(piece))).collect()
    }

    #[test]
    fn what_may_begin_a_banned_string_is_held_and_what_completes_it_goes_back() {
        use Heard::{Hold, TakeBack};
        let mut guard = guard(&["abab"]);
        assert_eq!(hear(&mut guard, &["cab", "a", "a"]), [Hold(1), Hold(2), Hold(1)]);
        assert_eq!(hear(&mut guard, &["b", "b"]), [Hold(2), Hold(0)]);
        // The string began inside the first of these three tokens, which goes too.
        assert_eq!(hear(&mut guard, &["cab", "a", "b"]), [Hold(1), Hold(2), TakeBack(3)]);
        assert_eq!(hear(&mut guard, &["ab", "b"]), [Hold(1), Hold(0)], "as if they had not been said");
    }

    #[test]
    fn of_two_strings_that_overlap_the_other_stays_held() {
        let mut guard = guard(&["ba ", "abb"]);
        assert_eq!(hear(&mut guard, &["a", "b", "b"]), [Heard::Hold(1), Heard::Hold(2), Heard::TakeBack(3)]);
        assert_eq!(hear(&mut guard, &["b", "ab"]), [Heard::Hold(1), Heard::Hold(1)]);
        assert_eq!(hear(&mut guard, &["b"]), [Heard::TakeBack(2)]);
        assert_eq!(hear(&mut guard, &["a"]), [Heard::Hold(1)], "as if they had not been said");
    }

    #[test]
    fn a_character_in_pieces_is_heard_when_it_is_whole() {
        let mut guard = guard(&["é"]);
        assert_eq!(hear(&mut guard, &["<0xC3>", "<0xA9>"]), [Heard::Hold(0), Heard::TakeBack(1)]);
        assert_eq!(hear(&mut guard, &["é"]), [Heard::TakeBack(1)]);
    }
}
