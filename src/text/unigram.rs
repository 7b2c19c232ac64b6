//! The unigram model of sentencepiece: the sequence of pieces with the greatest sum of scores.
//!
//! Kudo, "Subword Regularization" (2018), section 3.2, by dynamic programming over the ends of pieces: at every character
//! the pieces that begin there are tried, so the work is the text's length times the longest piece's, at most.
//!
//! Sentencepiece adds scores in single precision, llama.cpp (and the `tokenizers` library) in double. That decides between ways
//! whose sums are equal but for rounding, as of the same pieces in another order.

use super::{trie::Trie, vocab::TokenType};

/// Longest piece that may be tried at every character of a text.
const MAX_PIECE_BYTES: usize = 4096;

/// What an unknown character costs below the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The pieces of a vocabulary with their scores.
pub(super) struct Unigram {
    pieces: Trie,
    /// By id; none for a piece that is never used.
    scores: Vec<Option<Score>>,
    unknown_score: f32,
    max_score: f32,
    single_precision: bool,
}

#[derive(Clone, Copy)]
enum Score {
    Given(f32),
    /// Always taken whole: better than any other way through the same characters.
    UserDefined,
}

/// The best way to an end.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: usize,
    id: Option<u32>,
}

impl Unigram {
    /// Takes the pieces, their scores and kinds, by id, and whether sums are rounded to single precision.
    ///
    /// # Errors
    /// In words, where a piece is longer than is ever sensible.
    pub(super) fn new(
        pieces: &[String],
        scores: &[f32],
        types: &[TokenType],
        single_precision: bool,
    ) -> Result<Self, String> {
        if let Some(id) = pieces.iter().position(|piece| piece.len() > MAX_PIECE_BYTES) {
            return Err(format!("has a piece (id {id}) of more than {MAX_PIECE_BYTES} bytes"));
        }
        let of_type = |kinds: &'static [TokenType]| (0..pieces.len()).filter(|&id| kinds.contains(&types[id]));
        let normal = || of_type(&[TokenType::Normal]).map(|id| scores[id]);
        let spelled = of_type(&[TokenType::Normal, TokenType::UserDefined, TokenType::Unused]);
        Ok(Self {
            pieces: Trie::new(spelled.map(|id| (pieces[id].as_bytes(), id as u32))),
            scores: types
                .iter()
                .zip(scores)
                .map(|(kind, &score)| match kind {
                    TokenType::Unused => None,
                    TokenType::UserDefined => Some(Score::UserDefined),
                    _ => Some(Score::Given(score)),
                })
                .collect(),
            unknown_score: normal().fold(f32::INFINITY, f32::min).min(f32::MAX) - UNKNOWN_PENALTY,
            // Sentencepiece begins with the smallest positive number, so that scores below zero never count here.
            max_score: normal().fold(f32::MIN_POSITIVE, f32::max),
            single_precision,
        })
    }

    /// The pieces of a text in order: begin, end and id; none for a character that no piece spells.
    pub(super) fn best_path(&self, text: &str) -> Vec<(usize, usize, Option<u32>)> {
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, c) in text.char_indices() {
            let so_far = best[start].map_or(0.0, |best| best.score);
            // Of equal sums the first to come is kept. In single precision many ways through the same pieces are equal, such as
            // `.`, `..` and `..`, `.`.
            let mut consider = |end: usize, candidate: f64, id: Option<u32>| {
                // A sum of two single numbers in double precision, rounded once more, is their sum in single precision.
                let candidate = if self.single_precision { f64::from(candidate as f32) } else { candidate };
                if best[end].is_none_or(|best| candidate > best.score) {
                    best[end] = Some(Best { score: candidate, start, id });
                }
            };
            let mut spells_one = false;
            for (len, id) in self.pieces.prefixes(&text.as_bytes()[start..]) {
                let score = match self.scores[id as usize] {
                    None => continue,
                    Some(Score::Given(score)) => f64::from(score) + so_far,
                    Some(Score::UserDefined) => f64::from(len as f32 * self.max_score) - 0.1 + so_far,
                };
                consider(start + len, score, Some(id));
                spells_one |= len == c.len_utf8();
            }
            if !spells_one {
                consider(start + c.len_utf8(), f64::from(self.unknown_score) + so_far, None);
            }
        }
        let mut path = Vec::new();
        let mut end = text.len();
        while let Some(Best { start, id, .. }) = best[end].filter(|best| best.start < end) {
            path.push((start, end, id));
            end = start;
        }
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    fn unigram(pieces: &[(String, f32)], single_precision: bool) -> Unigram {
        let texts: Vec<String> = pieces.iter().map(|(piece, _)| piece.clone()).collect();
        let scores: Vec<f32> = pieces.iter().map(|(_, score)| *score).collect();
        Unigram::new(&texts, &scores, &vec![TokenType::Normal; pieces.len()], single_precision).unwrap()
    }

    /// The best sum over all ways to cut a text.
    fn best_sum(pieces: &[(String, f32)], unknown: f32, text: &str) -> f32 {
        let Some(first) = text.chars().next() else { return 0.0 };
        let fits = pieces.iter().filter(|(piece, _)| text.starts_with(piece.as_str()));
        let mut sums: Vec<f32> =
            fits.map(|(piece, score)| score + best_sum(pieces, unknown, &text[piece.len()..])).collect();
        if !pieces.iter().any(|(piece, _)| *piece == first.to_string()) {
            sums.push(unknown + best_sum(pieces, unknown, &text[first.len_utf8()..]));
        }
        sums.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[test]
    fn no_other_way_has_a_greater_sum() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(5);
        for _ in 0..500 {
            let mut word = |longest: usize| -> String {
                (0..rng.random_range(1..=longest)).map(|_| ['a', 'b', 'é'][rng.random_range(0..3)]).collect()
            };
            let mut pieces: Vec<(String, f32)> = (0..8).map(|n| (word(4), -1.5 - n as f32)).collect();
            let text = word(9);
            pieces.sort_by(|a, b| a.0.cmp(&b.0));
            pieces.dedup_by(|a, b| a.0 == b.0);
            let model = unigram(&pieces, true);
            let path = model.best_path(&text);
            assert_eq!(path.iter().map(|(start, end, _)| &text[*start..*end]).collect::<String>(), text);
            let score = |id: Option<u32>| id.map_or(model.unknown_score, |id| pieces[id as usize].1);
            let sum: f32 = path.iter().map(|(_, _, id)| score(*id)).sum();
            assert_eq!(sum, best_sum(&pieces, model.unknown_score, &text), "{pieces:?} in {text}");
        }
    }

    #[test]
    fn sums_are_compared_as_single_precision_rounds_them() {
        // Scores of a trained model. In double precision the second way is a little better behind some of these, and
        // behind the last both are not equal in either.
        for (first, ids) in [(-4.7, [2, 0, 1]), (-7.9, [2, 0, 1]), (-9.2, [2, 0, 1]), (-10.4, [2, 1, 0])] {
            let pieces = [(".".into(), -5.813_271_5), ("..".into(), -8.840_194), ("x".into(), first)];
            let path = |single| -> Vec<u32> {
                unigram(&pieces, single).best_path("x...").iter().map(|(.., id)| id.unwrap()).collect()
            };
            assert_eq!(path(true), ids, "{first}");
            // Added from the left, the same numbers make another sum where an addition is inexact, and here none is larger.
            let sum = |ids: &[u32]| ids.iter().fold(0.0, |sum, &id| sum + f64::from(pieces[id as usize].1));
            let [one, other] = [[2, 0, 1], [2, 1, 0]].map(|ids| sum(&ids));
            assert_eq!(path(false), if other > one { [2, 1, 0] } else { [2, 0, 1] }, "{first}");
        }
    }

    #[test]
    fn a_piece_of_any_length_is_refused() {
        let error = Unigram::new(&["a".repeat(5000)], &[0.0], &[TokenType::Normal], true).err().unwrap();
        assert!(error.contains("4096 bytes"), "{error}");
    }
}
