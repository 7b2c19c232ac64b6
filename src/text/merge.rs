//! Byte-pair encoding by its definition: of all neighbours that may become one, the best pair does, until none may.
//!
//! A priority queue over a linked list makes that `O(n log n)`: every merge proposes at most two new pairs, so fewer than
//! `3 n` pairs are ever looked at, whatever the text (tests count them).

use std::{cmp::Ordering, collections::BinaryHeap};

/// A stretch of the text that is one piece so far; a linked list, so that a merge is `O(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Where it begins, in bytes.
    pub(super) start: usize,
    /// Its bytes; 0 once it was merged into its left neighbour.
    pub(super) len: usize,
    /// It stays as it is.
    frozen: bool,
    previous: usize,
    next: usize,
}

impl Symbol {
    pub(super) fn new(start: usize, len: usize, frozen: bool) -> Self {
        Self { start, len, frozen, previous: NONE, next: NONE }
    }
}

/// No neighbour.
const NONE: usize = usize::MAX;

/// Two neighbours that could become one piece.
struct Bigram<R> {
    rank: R,
    left: usize,
    right: usize,
    /// Bytes of both when this was found: if it has changed, one of them was merged since.
    len: usize,
}

impl<R: Ord> Ord for Bigram<R> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then_with(|| other.left.cmp(&self.left))
    }
}

impl<R: Ord> PartialOrd for Bigram<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R: Ord> PartialEq for Bigram<R> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<R: Ord> Eq for Bigram<R> {}

/// Merges neighbours, the greatest rank first and the leftmost of equals, and returns how many pairs it looked at.
///
/// `symbols` are the pieces to begin with, in the order of the text and without gaps; what is left of them are the
/// result. `rank(start, middle, end)` is the rank of the piece of those bytes, made of two at `middle`; none where
/// they must not merge.
pub(super) fn merge<R: Ord>(
    symbols: &mut Vec<Symbol>,
    mut rank: impl FnMut(usize, usize, usize) -> Option<R>,
) -> usize {
    let count = symbols.len();
    for (n, symbol) in symbols.iter_mut().enumerate() {
        symbol.previous = n.checked_sub(1).unwrap_or(NONE);
        symbol.next = if n + 1 < count { n + 1 } else { NONE };
    }
    let mut queue = BinaryHeap::new();
    let mut looked_at = 0;
    let mut propose = |symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<Bigram<R>>| {
        let (l, r) = (symbols[left], symbols[right]);
        looked_at += 1;
        if l.frozen || r.frozen {
            return;
        }
        if let Some(rank) = rank(l.start, r.start, r.start + r.len) {
            queue.push(Bigram { rank, left, right, len: l.len + r.len });
        }
    };
    for right in 1..count {
        propose(symbols, right - 1, right, &mut queue);
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
            propose(symbols, left, r.next, &mut queue);
        }
        if l.previous != NONE {
            propose(symbols, l.previous, left, &mut queue);
        }
    }
    symbols.retain(|symbol| symbol.len > 0);
    looked_at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pairs_looked_at_grow_with_the_text_whatever_merges() {
        for n in [1, 1000, 200_000] {
            for longest in [1, 2, 7, 64, usize::MAX] {
                let mut symbols: Vec<Symbol> = (0..n).map(|at| Symbol::new(at, 1, false)).collect();
                // A text of one character whose runs of up to `longest` are pieces: every neighbour may merge.
                let looked_at = merge(&mut symbols, |start, _, end| (end - start <= longest).then_some(end - start));
                assert!(looked_at < 3 * n, "{looked_at} for {n} with {longest}");
                assert_eq!(symbols.iter().map(|s| s.len).sum::<usize>(), n);
            }
        }
    }

    #[test]
    fn what_is_frozen_stays() {
        let mut symbols: Vec<Symbol> = (0..4).map(|at| Symbol::new(at, 1, at == 1)).collect();
        merge(&mut symbols, |_, _, _| Some(0));
        assert_eq!(symbols.iter().map(|s| (s.start, s.len)).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 2)]);
    }
}
