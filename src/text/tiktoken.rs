//! Tiktoken: byte-pair encoding over bytes, where a token's id is also its rank.
//!
//! A text is cut by a pattern; a piece that is a token is taken whole, else its bytes are merged, the pair whose token
//! has the least id first. The patterns and special tokens are no part of a `.tiktoken` file; they are known by the file's
//! name or the number of its ranks (`tiktoken_file`).

use std::{cmp::Reverse, collections::HashMap};

use super::{
    merge::{Symbol, merge},
    pattern::Pattern,
};

/// A vocabulary of byte strings.
pub(super) struct Tiktoken {
    ranks: HashMap<Vec<u8>, u32>,
    patterns: Vec<Pattern>,
    /// The patterns as they were written.
    expressions: Vec<String>,
    longest_bytes: usize,
}

impl Tiktoken {
    /// Takes the tokens with their ids.
    ///
    /// # Errors
    /// In words, where some byte has no token.
    pub(super) fn new(ranks: HashMap<Vec<u8>, u32>, patterns: &[&str]) -> Result<Self, String> {
        if let Some(byte) = (0..=255_u8).find(|byte| !ranks.contains_key(&[*byte][..])) {
            return Err(format!("has no token for the byte 0x{byte:02X}"));
        }
        Ok(Self {
            longest_bytes: ranks.keys().map(Vec::len).max().unwrap_or(0),
            patterns: patterns.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>()?,
            expressions: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
            ranks,
        })
    }

    /// The id of a token.
    pub(super) fn id(&self, token: &[u8]) -> Option<u32> {
        self.ranks.get(token).copied()
    }

    /// All tokens with their ranks, in no order.
    pub(super) fn ranks(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.ranks.iter().map(|(token, rank)| (token.as_slice(), *rank))
    }

    /// The patterns as they were written, in order.
    pub(super) fn expressions(&self) -> impl Iterator<Item = &str> {
        self.expressions.iter().map(String::as_str)
    }

    /// The two tokens that a token is merged from, where merges of lower rank come to two.
    pub(super) fn halves<'t>(&self, token: &'t [u8], rank: u32) -> Option<(&'t [u8], &'t [u8])> {
        let mut ends: Vec<usize> = (0..=token.len()).collect();
        while ends.len() > 3 {
            let merged = |k: usize| self.ranks.get(&token[ends[k]..ends[k + 2]]).copied().filter(|&r| r < rank);
            let best = (0..ends.len() - 2).filter_map(|k| Some((merged(k)?, k))).min()?;
            ends.remove(best.1 + 1);
        }
        let &[_, middle, _] = ends.as_slice() else { return None };
        Some(token.split_at(middle))
    }

    /// Appends the ids of a stretch of text that holds no added token.
    ///
    /// # Errors
    /// In words, where the pattern cannot cut the text.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), String> {
        self.encode_piece(text, &self.patterns, ids)
    }

    /// Cuts a piece by the first of the patterns and what comes of it by the others.
    fn encode_piece(&self, text: &str, patterns: &[Pattern], ids: &mut Vec<u32>) -> Result<(), String> {
        let Some((pattern, others)) = patterns.split_first() else {
            self.merge(text.as_bytes(), ids);
            return Ok(());
        };
        for (start, end, _) in pattern.pieces(text)? {
            self.encode_piece(&text[start..end], others, ids)?;
        }
        Ok(())
    }

    fn merge(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if piece.is_empty() {
            return;
        }
        if let Some(&id) = self.ranks.get(piece) {
            return ids.push(id);
        }
        let mut symbols: Vec<Symbol> = (0..piece.len()).map(|at| Symbol::new(at, 1, false)).collect();
        merge(&mut symbols, |start, _, end| {
            let token = if end - start > self.longest_bytes { None } else { self.ranks.get(&piece[start..end]) };
            token.map(|&rank| Reverse(rank))
        });
        ids.extend(symbols.iter().filter_map(|symbol| self.ranks.get(&piece[symbol.start..symbol.start + symbol.len])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_rank_merges_first_and_a_whole_token_needs_no_merges() {
        let mut ranks: HashMap<Vec<u8>, u32> = (0..=255).map(|byte| (vec![byte as u8], byte)).collect();
        for (token, rank) in [("bc", 256), ("ab", 257), ("abc", 258), ("xyz", 259)] {
            ranks.insert(token.into(), rank);
        }
        let model = Tiktoken::new(ranks.clone(), &[r"\S+", r"\d"]).unwrap();
        let encode = |text: &str| {
            let mut ids = Vec::new();
            model.encode(text, &mut ids).unwrap();
            ids
        };
        assert_eq!(encode("abc"), [258]);
        assert_eq!(encode("abcd"), [258, 100]);
        assert_eq!(encode("xyz xyza"), [259, 32, 120, 121, 122, 97]);
        assert_eq!(encode("ab1abé"), [257, 49, 257, 0xc3, 0xa9]);
        assert!(encode("").is_empty());
        ranks.remove(&[7][..]);
        assert!(Tiktoken::new(ranks, &[]).err().unwrap().contains("0x07"));
    }
}
