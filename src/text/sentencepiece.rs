//! Sentencepiece BPE: text to ids by merging neighbours, the best-scored piece first.
//!
//! The method is that of Kudo & Richardson, "SentencePiece" (2018), section 3.2, with the byte fallback of Llama: the
//! text is cut into characters; of all neighbouring pairs whose concatenation is a piece, the one with the highest
//! score is merged, the leftmost of equals, until none is left; what is still no piece becomes its bytes. A priority
//! queue makes that `O(n log n)`. The `tokenizers` crate merges by rank of pairs instead, which differs where one piece
//! has several pairs or scores tie, so it is not used here.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use crate::error::{Error, Result};

use super::{
    token_table::byte_of_token,
    vocab::{GgufVocab, TokenType},
};

/// A sentencepiece vocabulary.
pub(super) struct Sentencepiece {
    /// Text of a piece, `▁` for a space, to its id.
    ids: HashMap<String, u32>,
    /// By id.
    pieces: Vec<String>,
    /// By id.
    scores: Vec<f32>,
    /// By byte: the token that stands for it.
    bytes: Vec<u32>,
    /// No piece is longer, so no longer text need be looked up.
    longest_bytes: usize,
    /// Puts a space before each fragment.
    add_space_prefix: bool,
    /// No piece goes on with a space after another character, so no merge crosses the start of a word, and words can
    /// be encoded one by one: the same ids from a small queue.
    by_word: bool,
}

/// A stretch of the text that is one piece so far; a linked list, so that a merge is `O(1)`.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 once it was merged into its left neighbour.
    len: usize,
    previous: usize,
    next: usize,
}

/// How pieces write a space.
const SPACE: char = '\u{2581}';

/// No neighbour.
const NONE: usize = usize::MAX;

/// Two neighbours that could become one piece.
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when this was found: if it has changed, one of them was merged since.
    len: usize,
}

impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Bigram {}

impl Sentencepiece {
    /// Takes the vocabulary of a GGUF file; its lists have one entry a token (checked by the caller).
    ///
    /// # Errors
    /// `FailedPrecondition` where a byte can be spelled neither by a byte token nor by an unknown token.
    pub(super) fn new(vocab: &GgufVocab) -> Result<Self> {
        let mut ids = HashMap::with_capacity(vocab.tokens.len());
        let mut bytes = vec![vocab.unk; 256];
        for (id, token) in vocab.tokens.iter().enumerate() {
            let id = id as u32;
            ids.insert(token.clone(), id);
            let is_byte = vocab.token_types.get(id as usize) == Some(&TokenType::Byte);
            if let Some(byte) = byte_of_token(token).filter(|_| is_byte) {
                bytes[byte as usize] = Some(id);
            }
        }
        let unspellable = bytes.iter().position(Option::is_none);
        if let Some(byte) = unspellable {
            let why =
                format!("has no token <0x{byte:02X}> of type 6 (byte), and tokenizer.ggml.unknown_token_id is absent");
            return Err(Error::bad_file(&vocab.path, "tokenizer.ggml.tokens", why));
        }
        Ok(Self {
            ids,
            longest_bytes: vocab.tokens.iter().map(String::len).max().unwrap_or(0),
            pieces: vocab.tokens.clone(),
            scores: vocab.scores.clone(),
            bytes: bytes.into_iter().flatten().collect(),
            add_space_prefix: vocab.add_space_prefix.unwrap_or(true),
            by_word: vocab.tokens.iter().all(|token| word_end(token) == token.len()),
        })
    }

    /// The text of a piece.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(String::as_str)
    }

    /// The id of a piece.
    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Appends the ids of a stretch of text that holds no added token.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let prefix = if self.add_space_prefix { SPACE.to_string() } else { String::new() };
        self.encode_spelled(&(prefix + &text.replace(' ', &SPACE.to_string())), ids);
    }

    /// Adds the ids of a text that goes on from other text, so that no space comes before it.
    pub(super) fn encode_continuation(&self, text: &str, ids: &mut Vec<u32>) {
        self.encode_spelled(&text.replace(' ', &SPACE.to_string()), ids);
    }

    /// Of a text whose spaces are written as pieces write them.
    fn encode_spelled(&self, text: &str, ids: &mut Vec<u32>) {
        let mut rest = text;
        while !rest.is_empty() {
            let (word, after) = rest.split_at(if self.by_word { word_end(rest) } else { rest.len() });
            for symbol in self.merge(word) {
                let piece = &word[symbol.start..symbol.start + symbol.len];
                match self.ids.get(piece) {
                    Some(&id) => ids.push(id),
                    None => ids.extend(piece.bytes().map(|byte| self.bytes[byte as usize])),
                }
            }
            rest = after;
        }
    }

    /// The pieces of a text, after all merges.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(n, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: n.checked_sub(1).unwrap_or(NONE),
                next: n + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.propose(text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(Bigram { left, right, len, .. }) = queue.pop() {
            let (l, r) = (symbols[left], symbols[right]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            symbols[left] = Symbol { len, next: r.next, ..l };
            symbols[right].len = 0;
            if r.next != NONE {
                symbols[r.next].previous = left;
                self.propose(text, &symbols, left, r.next, &mut queue);
            }
            if l.previous != NONE {
                self.propose(text, &symbols, l.previous, left, &mut queue);
            }
        }
        symbols.retain(|symbol| symbol.len > 0);
        symbols
    }

    /// Queues two neighbours if together they are a piece.
    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<Bigram>) {
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        if len > self.longest_bytes {
            return;
        }
        if let Some(&id) = self.ids.get(&text[start..start + len]) {
            queue.push(Bigram { score: self.scores[id as usize], left, right, len });
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

    fn vocabulary(pieces: &[(&str, f32)], unk: Option<u32>) -> Sentencepiece {
        Sentencepiece::new(&GgufVocab {
            tokens: pieces.iter().map(|(piece, _)| (*piece).to_owned()).collect(),
            scores: pieces.iter().map(|(_, score)| *score).collect(),
            unk,
            add_space_prefix: Some(false),
            ..GgufVocab::default()
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
        let bytes = |part: &str| part.bytes().map(|b| model.bytes[b as usize]).collect::<Vec<_>>();
        parts.iter().flat_map(|part| model.ids.get(part).map_or_else(|| bytes(part), |&id| vec![id])).collect()
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_of_equals() {
        let model = vocabulary(&[("?", 0.), ("a", 0.), ("b", 0.), ("aa", -2.), ("ab", -1.), ("aab", -3.)], Some(0));
        assert_eq!(encode(&model, "aab"), [5]);
        assert_eq!(encode(&model, "aaa"), [3, 1]);
        assert_eq!(encode(&model, "aaxb"), [3, 0, 2]);
        assert!(encode(&model, "").is_empty());
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
            let model = vocabulary(&pieces, Some(0));
            by_word += usize::from(model.by_word);
            let text: String =
                (0..rng.random_range(0..40)).map(|_| ['a', 'b', 'c', 'é', ' '][rng.random_range(0..5)]).collect();
            assert_eq!(encode(&model, &text), encode_naively(&model, &text), "{text} with {pieces:?}");
        }
        assert!((1000..1900).contains(&by_word), "{by_word} of 2000 were encoded word by word");
    }

    #[test]
    fn a_vocabulary_that_cannot_spell_every_byte_is_refused() {
        let vocab = GgufVocab { tokens: vec!["a".into()], scores: vec![0.], ..GgufVocab::default() };
        let error = Sentencepiece::new(&vocab).err().unwrap();
        assert!(error.message.contains("tokenizer.ggml.tokens: has no token <0x00>"), "{error}");
    }
}
