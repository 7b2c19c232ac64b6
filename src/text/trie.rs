//! [`Trie`]: byte strings with a number each, and which of them a text begins with.

/// A prefix tree in three flat arrays: the children of a node lie side by side, ordered by their byte.
#[derive(Default)]
pub(super) struct Trie {
    /// The byte that leads to a node.
    labels: Vec<u8>,
    /// Where a node's children begin; they end where the next node's begin.
    children: Vec<u32>,
    /// The number of the string that ends at a node, or [`NONE`].
    values: Vec<u32>,
}

/// No string ends here.
const NONE: u32 = u32::MAX;

impl Trie {
    /// A trie of these strings; of equal ones the last counts. Empty ones are left out.
    pub(super) fn new<'t>(strings: impl IntoIterator<Item = (&'t [u8], u32)>) -> Self {
        let mut strings: Vec<(&[u8], u32)> = strings.into_iter().filter(|(text, _)| !text.is_empty()).collect();
        // Stable, so that of equal strings the last stays last.
        strings.sort_by(|a, b| a.0.cmp(b.0));
        let mut trie = Self { labels: vec![0], children: Vec::new(), values: vec![NONE] };
        // Breadth first: the nodes of one depth, each as the range of strings that pass through it.
        let mut level = vec![(0, strings.len())];
        let mut depth = 0;
        while !level.is_empty() {
            let mut next = Vec::new();
            for (first, end) in level {
                trie.children.push(trie.labels.len() as u32);
                let mut at = first;
                while at < end {
                    let Some(&label) = strings[at].0.get(depth) else {
                        at += 1;
                        continue;
                    };
                    let same = strings[at..end].iter().take_while(|(text, _)| text.get(depth) == Some(&label)).count();
                    let ends = strings[at..at + same].iter().filter(|(text, _)| text.len() == depth + 1);
                    trie.labels.push(label);
                    trie.values.push(ends.last().map_or(NONE, |(_, value)| *value));
                    next.push((at, at + same));
                    at += same;
                }
            }
            level = next;
            depth += 1;
        }
        trie.children.push(trie.labels.len() as u32);
        trie
    }

    /// The strings that `text` begins with, the shortest first: their lengths in bytes and their numbers.
    pub(super) fn prefixes<'t>(&self, text: &'t [u8]) -> impl Iterator<Item = (usize, u32)> + use<'t, '_> {
        let mut node = 0;
        let mut at = 0;
        std::iter::from_fn(move || {
            while let Some(&byte) = text.get(at) {
                node = self.child(node, byte)?;
                at += 1;
                if self.values[node] != NONE {
                    return Some((at, self.values[node]));
                }
            }
            None
        })
    }

    /// The longest of them.
    pub(super) fn longest_prefix(&self, text: &[u8]) -> Option<(usize, u32)> {
        self.prefixes(text).last()
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let (first, end) = (*self.children.get(node)? as usize, *self.children.get(node + 1)? as usize);
        let found = self.labels[first..end].binary_search(&byte).ok()?;
        Some(first + found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn the_prefixes_are_those_that_a_search_of_all_strings_finds() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(4);
        for _ in 0..2000 {
            let mut word = |longest: usize| -> Vec<u8> {
                (0..rng.random_range(0..=longest)).map(|_| [0, b'a', b'b', 255][rng.random_range(0..4)]).collect()
            };
            let words: Vec<Vec<u8>> = (0..8).map(|_| word(4)).collect();
            let text = word(7);
            let trie = Trie::new(words.iter().zip(0..).map(|(word, n)| (word.as_slice(), n)));
            let mut expected: Vec<(usize, u32)> = Vec::new();
            for (word, n) in words.iter().zip(0..).filter(|(word, _)| !word.is_empty() && text.starts_with(word)) {
                expected.retain(|(len, _)| *len != word.len());
                expected.push((word.len(), n));
            }
            expected.sort_unstable();
            assert_eq!(trie.prefixes(&text).collect::<Vec<_>>(), expected, "{words:?} in {text:?}");
            assert_eq!(trie.longest_prefix(&text), expected.last().copied());
        }
        assert_eq!(Trie::default().longest_prefix(b"a"), None);
    }
}
