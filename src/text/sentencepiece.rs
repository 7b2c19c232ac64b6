//! Sentencepiece: text to ids, by merging neighbours (BPE) or by the likeliest path (unigram).
//!
//! The method is that of Kudo & Richardson, "SentencePiece" (2018), with the byte fallback of Llama. The `tokenizers`
//! crate merges by rank of pairs instead, which differs where one piece has several pairs or scores tie, and it replaces
//! characters by grapheme, so it is used only for files that are its own.

use std::collections::HashMap;

use super::{
    merge::{Symbol, merge},
    sentencepiece_normalizer::{Normalizer, SPACE},
    token_table::byte_of_token,
    trie::Trie,
    unigram::Unigram,
    vocab::TokenType,
};

/// How a vocabulary cuts a text (`TrainerSpec.ModelType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// The likeliest sequence of pieces.
    Unigram,
    /// The best pair of neighbours becomes one, until none may.
    #[default]
    Bpe,
    /// At spaces only.
    Word,
    /// Between all characters.
    Char,
}

/// A vocabulary as plain data; lists are by token id and equally long.
#[derive(Default)]
pub(super) struct Definition {
    pub(super) algorithm: Algorithm,
    pub(super) pieces: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) types: Vec<TokenType>,
    pub(super) unk: Option<u32>,
    /// Pieces that are always whole, besides those that are looked for outside of this model.
    pub(super) match_user_defined: bool,
    /// Unigram's sums are rounded to single precision, as in the library itself.
    pub(super) single_precision: bool,
    pub(super) normalizer: Normalizer,
}

/// A sentencepiece vocabulary, ready to encode.
pub(super) struct Sentencepiece {
    algorithm: Algorithm,
    /// Text of a piece, `▁` for a space, to its id: those that text can become.
    ids: HashMap<String, u32>,
    /// The others: control, unknown and byte pieces.
    reserved: HashMap<String, u32>,
    pieces: Vec<String>,
    scores: Vec<f32>,
    types: Vec<TokenType>,
    /// By byte: the token that stands for it; empty without byte fallback.
    bytes: Vec<u32>,
    unk: Option<u32>,
    kept: Trie,
    normalizer: Normalizer,
    unigram: Option<Unigram>,
    /// No piece is longer, so no longer text need be looked up.
    longest_bytes: usize,
    /// No piece goes on with a space after another character, so no merge crosses the start of a word, and words can
    /// be encoded one by one: the same ids from a small queue.
    by_word: bool,
}

/// A piece with this score merges in the order of its number.
#[derive(PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Sentencepiece {
    /// Takes a vocabulary.
    ///
    /// # Errors
    /// In words, where a text could not be spelled or would take too long.
    pub(super) fn new(definition: Definition) -> Result<Self, String> {
        let Definition { algorithm, pieces, scores, types, unk, match_user_defined, single_precision, normalizer } =
            definition;
        let (mut ids, mut reserved) = (HashMap::with_capacity(pieces.len()), HashMap::new());
        let mut bytes = vec![None; 256];
        for (id, (piece, kind)) in (0..).zip(pieces.iter().zip(&types)) {
            match kind {
                TokenType::Normal | TokenType::UserDefined | TokenType::Unused => ids.insert(piece.clone(), id),
                _ => reserved.insert(piece.clone(), id),
            };
            if let Some(byte) = byte_of_token(piece).filter(|_| *kind == TokenType::Byte) {
                bytes[byte as usize] = Some(id);
            }
        }
        let bytes: Vec<u32> = match bytes.iter().position(Option::is_none) {
            Some(byte) if unk.is_none() => {
                return Err(format!("has no token <0x{byte:02X}> of type 6 (byte), and no unknown token"));
            }
            // Half a set of bytes is none.
            Some(_) => Vec::new(),
            None => bytes.into_iter().flatten().collect(),
        };
        let is_kept = |id: &usize| match_user_defined && types[*id] == TokenType::UserDefined;
        let unigram = (algorithm == Algorithm::Unigram)
            .then(|| Unigram::new(&pieces, &scores, &types, single_precision))
            .transpose()?;
        Ok(Self {
            kept: Trie::new((0..pieces.len()).filter(is_kept).map(|id| (pieces[id].as_bytes(), id as u32))),
            longest_bytes: pieces.iter().map(String::len).max().unwrap_or(0),
            by_word: algorithm == Algorithm::Bpe && pieces.iter().all(|piece| word_end(piece) == piece.len()),
            algorithm,
            ids,
            reserved,
            pieces,
            scores,
            types,
            bytes,
            unk,
            normalizer,
            unigram,
        })
    }

    /// The text of a piece.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(String::as_str)
    }

    /// The id of a piece.
    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.reserved.get(piece).or_else(|| self.ids.get(piece)).copied()
    }

    /// All pieces by their ids: text, score and kind.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, f32, TokenType)> {
        self.pieces
            .iter()
            .zip(&self.scores)
            .zip(&self.types)
            .map(|((piece, score), kind)| (piece.as_str(), *score, *kind))
    }

    /// How it cuts.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The id of what it cannot spell.
    pub(super) fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Whether it spells what it has no piece for byte by byte.
    pub(super) fn has_bytes(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// What happens to a text first.
    pub(super) fn normalizer(&self) -> &Normalizer {
        &self.normalizer
    }

    /// Appends the ids of a stretch of text that holds no added token.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        self.encode_spelled(&self.normalizer.normalize(text, &self.kept), ids);
    }

    /// Appends the ids of a text that goes on from other text, so that no space comes before it, and as it stands.
    pub(super) fn encode_continuation(&self, text: &str, ids: &mut Vec<u32>) {
        match self.normalizer.escape_whitespaces {
            true => self.encode_spelled(&text.replace(' ', &SPACE.to_string()), ids),
            false => self.encode_spelled(text, ids),
        }
    }

    /// Of a text in normal form.
    fn encode_spelled(&self, text: &str, ids: &mut Vec<u32>) {
        // Neighbouring unknown pieces are one unknown token.
        let mut after_unknown = false;
        let mut spell = |piece: &str, id: Option<u32>| {
            let id = id.filter(|&id| Some(id) != self.unk);
            match (id, self.unk) {
                (Some(id), _) => ids.push(id),
                (None, Some(unk)) if self.bytes.is_empty() => ids.extend((!after_unknown).then_some(unk)),
                (None, _) => ids.extend(piece.bytes().filter_map(|byte| self.bytes.get(byte as usize))),
            }
            after_unknown = id.is_none();
        };
        match &self.unigram {
            Some(unigram) => {
                for (start, end, id) in unigram.best_path(text) {
                    spell(&text[start..end], id);
                }
            }
            None => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (word, after) = rest.split_at(self.first_word(rest));
                    self.merge(word, &mut |piece| spell(piece, self.ids.get(piece).copied()));
                    rest = after;
                }
            }
        }
    }

    /// How much of a text is encoded at once.
    fn first_word(&self, text: &str) -> usize {
        match self.algorithm {
            Algorithm::Word if self.normalizer.treat_whitespace_as_suffix => {
                text.find(SPACE).map_or(text.len(), |at| at + SPACE.len_utf8())
            }
            Algorithm::Word => text.char_indices().skip(1).find(|(_, c)| *c == SPACE).map_or(text.len(), |(at, _)| at),
            Algorithm::Bpe if self.by_word => word_end(text),
            _ => text.len(),
        }
    }

    /// Gives the pieces of a word to `take`, after all merges.
    fn merge(&self, text: &str, take: &mut dyn FnMut(&str)) {
        if self.algorithm == Algorithm::Word {
            return take(text);
        }
        let mut symbols = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let kept = self.kept.longest_prefix(&text.as_bytes()[at..]);
            let len = kept.map_or(c.len_utf8(), |(len, _)| len);
            symbols.push(Symbol::new(at, len, kept.is_some()));
            at += len;
        }
        // Of an unused piece, the two that it was made of: they take its place in the end.
        let mut halves: HashMap<(usize, usize), usize> = HashMap::new();
        if self.algorithm == Algorithm::Bpe {
            merge(&mut symbols, |start, middle, end| {
                let piece = if end - start > self.longest_bytes { None } else { self.ids.get(&text[start..end]) };
                let id = *piece? as usize;
                if self.types[id] == TokenType::Unused {
                    halves.insert((start, end), middle);
                }
                Some(Score(self.scores[id]))
            });
        }
        for symbol in symbols {
            let mut stack = vec![(symbol.start, symbol.start + symbol.len)];
            while let Some((start, end)) = stack.pop() {
                match halves.get(&(start, end)) {
                    Some(&middle) => stack.extend([(middle, end), (start, middle)]),
                    None => take(&text[start..end]),
                }
            }
        }
    }
}

/// Where the first word of a text ends: before the first `▁` that follows another character.
fn word_end(text: &str) -> usize {
    let first = text.len() - text.trim_start_matches(SPACE).len();
    text[first..].find(SPACE).map_or(text.len(), |at| first + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(pieces: &[(&str, f32)], algorithm: Algorithm) -> Sentencepiece {
        let mut types = vec![TokenType::Normal; pieces.len()];
        types[0] = TokenType::Unknown;
        Sentencepiece::new(Definition {
            algorithm,
            pieces: pieces.iter().map(|(piece, _)| (*piece).to_owned()).collect(),
            scores: pieces.iter().map(|(_, score)| *score).collect(),
            types,
            unk: Some(0),
            normalizer: Normalizer { escape_whitespaces: true, ..Normalizer::default() },
            ..Definition::default()
        })
        .unwrap()
    }

    fn encode(model: &Sentencepiece, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        model.encode(text, &mut ids);
        ids
    }

    /// The same by definition: find the best pair, merge it, start over.
    fn encode_naively(model: &Sentencepiece, text: &str) -> Vec<u32> {
        let mut parts: Vec<String> = text.replace(' ', "\u{2581}").chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for k in 1..parts.len() {
                if let Some(&id) = model.ids.get(&format!("{}{}", parts[k - 1], parts[k])) {
                    let score = model.scores[id as usize];
                    if best.is_none_or(|(s, _)| score > s) {
                        best = Some((score, k));
                    }
                }
            }
            let Some((_, k)) = best else { break };
            let right = parts.remove(k);
            parts[k - 1].push_str(&right);
        }
        let mut ids: Vec<u32> = parts.iter().map(|part| model.ids.get(part).copied().unwrap_or(0)).collect();
        ids.dedup_by(|a, b| (*a, *b) == (0, 0));
        ids
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_of_equals() {
        let pieces = [("?", 0.), ("a", 0.), ("b", 0.), ("aa", -2.), ("ab", -1.), ("aab", -3.)];
        let model = vocabulary(&pieces, Algorithm::Bpe);
        assert_eq!(encode(&model, "aab"), [5]);
        assert_eq!(encode(&model, "aaa"), [3, 1]);
        assert_eq!(encode(&model, "aaxéb?"), [3, 0, 2, 0]);
        assert!(encode(&model, "").is_empty());
    }

    #[test]
    fn words_and_characters_are_looked_up_whole() {
        let pieces = [("?", 0.), ("a", 0.), ("\u{2581}a", 0.), ("aa", 0.), ("\u{2581}", 0.)];
        assert_eq!(encode(&vocabulary(&pieces, Algorithm::Word), "aa a b c"), [3, 2, 0]);
        assert_eq!(encode(&vocabulary(&pieces, Algorithm::Char), "aa b"), [1, 1, 4, 0]);
    }

    #[test]
    fn an_unused_piece_falls_apart_into_what_made_it() {
        let mut model = vocabulary(&[("?", 0.), ("a", 0.), ("b", 0.), ("ab", -1.), ("aab", -2.)], Algorithm::Bpe);
        model.types[3] = TokenType::Unused;
        assert_eq!(encode(&model, "ab"), [1, 2]);
        assert_eq!(encode(&model, "aab"), [4]);
        model.types[4] = TokenType::Unused;
        assert_eq!(encode(&model, "aab"), [1, 1, 2]);
    }

    #[test]
    fn the_queue_merges_as_the_definition_does() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
        let mut by_word = 0;
        for n in 0..2000 {
            let mut pieces: Vec<(String, f32)> = ["?", "a", "b", "c"].map(|p| (p.to_owned(), 0.)).to_vec();
            // Every other vocabulary has spaces inside its pieces too.
            let letters = 3 + n % 2;
            for _ in 0..rng.random_range(0..20) {
                let word: String =
                    (0..rng.random_range(1..6)).map(|_| ['a', 'b', 'c', SPACE][rng.random_range(0..letters)]).collect();
                pieces.push((
                    ["", "\u{2581}"][rng.random_range(0..2)].to_owned() + &word,
                    rng.random_range(-4..0) as f32,
                ));
            }
            let pieces: Vec<(&str, f32)> = pieces.iter().map(|(p, s)| (p.as_str(), *s)).collect();
            let model = vocabulary(&pieces, Algorithm::Bpe);
            by_word += usize::from(model.by_word);
            let text: String =
                (0..rng.random_range(0..40)).map(|_| ['a', 'b', 'c', 'é', ' '][rng.random_range(0..5)]).collect();
            assert_eq!(encode(&model, &text), encode_naively(&model, &text), "{text} with {pieces:?}");
        }
        assert!((1000..1900).contains(&by_word), "{by_word} of 2000 were encoded word by word");
    }

    #[test]
    fn a_vocabulary_that_cannot_spell_every_byte_is_refused() {
        let definition = Definition {
            pieces: vec!["a".into()],
            scores: vec![0.],
            types: vec![TokenType::Normal],
            ..Definition::default()
        };
        let error = Sentencepiece::new(definition).err().unwrap();
        assert!(error.contains("has no token <0x00>"), "{error}");
    }
}
