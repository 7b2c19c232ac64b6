//! Finds the tokens that are always whole (`<|im_end|>`, `</s>`) in a text, for vocabularies that we encode ourselves.

use super::trie::Trie;

/// The added tokens of a vocabulary, ready to be looked for.
#[derive(Default)]
pub(super) struct AddedTokens {
    tokens: Trie,
    longest_bytes: usize,
}

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

impl AddedTokens {
    /// Of equal texts the first id counts.
    pub(super) fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut tokens: Vec<(String, u32)> = tokens.into_iter().collect();
        tokens.reverse();
        Self {
            longest_bytes: tokens.iter().map(|(text, _)| text.len()).max().unwrap_or(0),
            tokens: Trie::new(tokens.iter().map(|(text, id)| (text.as_bytes(), *id))),
        }
    }

    /// The id of a token.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.tokens.longest_prefix(token.as_bytes()).filter(|(len, _)| *len == token.len()).map(|(_, id)| id)
    }

    /// The longest token that stands at a place of a text: its bytes and its id.
    pub(super) fn token_at(&self, text: &str, at: usize) -> Option<(usize, u32)> {
        self.tokens.longest_prefix(text.as_bytes().get(at..)?)
    }

    /// The ids of a text, where `encode` appends those of what lies between the tokens.
    ///
    /// # Errors
    /// Those of `encode`.
    pub(super) fn encode(
        &self,
        text: &str,
        mut encode: impl FnMut(&str, &mut Vec<u32>) -> Result<(), String>,
    ) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        for fragment in self.split(text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => encode(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The longest token's bytes.
    pub(super) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    /// Cuts a text at its added tokens, the leftmost first, the longest of those that begin together.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            // A token begins with a whole character, so a match can only lie at a character's start.
            match self.token_at(text, at) {
                Some((len, id)) => {
                    if start < at {
                        fragments.push(Fragment::Text(&text[start..at]));
                    }
                    fragments.push(Fragment::Token(id));
                    at += len;
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
