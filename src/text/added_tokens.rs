//! Finds the tokens that are always whole (`<|im_end|>`, `</s>`) in a text, for vocabularies that we encode ourselves.

use std::collections::HashMap;

/// The added tokens of a vocabulary, ready to be looked for.
#[derive(Default)]
pub(super) struct AddedTokens {
    /// By first byte, longest first: a text rarely has a candidate at all, and where it has, the longest wins.
    by_first_byte: HashMap<u8, Vec<(String, u32)>>,
}

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

impl AddedTokens {
    pub(super) fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut by_first_byte: HashMap<u8, Vec<(String, u32)>> = HashMap::new();
        for (text, id) in tokens {
            if let Some(&first) = text.as_bytes().first() {
                by_first_byte.entry(first).or_default().push((text, id));
            }
        }
        for candidates in by_first_byte.values_mut() {
            candidates.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.1.cmp(&b.1)));
        }
        Self { by_first_byte }
    }

    /// Cuts a text at its added tokens, the leftmost first, the longest of those that begin together.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let (mut start, mut at) = (0, 0);
        while let Some(&byte) = text.as_bytes().get(at) {
            // A token begins with a whole character, so a match can only lie at a character's start.
            let candidates = self.by_first_byte.get(&byte).map_or(&[][..], Vec::as_slice);
            match candidates.iter().find(|(token, _)| text.as_bytes()[at..].starts_with(token.as_bytes())) {
                Some((token, id)) => {
                    if start < at {
                        fragments.push(Fragment::Text(&text[start..at]));
                    }
                    fragments.push(Fragment::Token(*id));
                    at += token.len();
                    start = at;
                }
                None => at += 1,
            }
        }
        if start < text.len() {
            fragments.push(Fragment::Text(&text[start..]));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_token_wins_and_of_those_the_longest() {
        let added = AddedTokens::new([("<s>".into(), 1), ("<s>x".into(), 2), ("é".into(), 3), (String::new(), 4)]);
        let split = added.split("a<s><s>xé€");
        assert_eq!(
            split,
            [Fragment::Text("a"), Fragment::Token(1), Fragment::Token(2), Fragment::Token(3), Fragment::Text("€")]
        );
        assert_eq!(added.split(""), []);
        assert_eq!(AddedTokens::default().split("<s>"), [Fragment::Text("<s>")]);
    }
}
