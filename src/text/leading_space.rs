//! The spaces that encoding puts before a text, and decoding takes away again.

use crate::ids::TokenId;

/// What is still to be taken away of a text's first spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeadingSpace {
    goes: Goes,
    /// A token whose spaces are its own: what sentencepiece writes for an unknown one.
    unknown: Option<TokenId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    Nothing,
    /// A space of the first token that spells anything.
    Once,
    /// A space of each token, until one has spelled something else.
    OfEachToken,
}

impl LeadingSpace {
    /// Every space is the text's own.
    pub(super) const KEPT: Self = Self { goes: Goes::Nothing, unknown: None };

    /// One space goes.
    pub(super) const ONE: Self = Self { goes: Goes::Once, unknown: None };

    /// As sentencepiece decodes: one space goes, or one of each token where it removes extra white space.
    pub(super) fn of_sentencepiece(removes_extra: bool, unknown: Option<TokenId>) -> Self {
        Self { goes: if removes_extra { Goes::OfEachToken } else { Goes::Once }, unknown }
    }

    /// One space where it was put.
    pub(super) fn one_if(was_put: bool) -> Self {
        if was_put { Self::ONE } else { Self::KEPT }
    }

    /// What the next token's bytes come to.
    pub(super) fn take_from<'a>(&mut self, id: TokenId, bytes: &'a [u8]) -> &'a [u8] {
        if bytes.is_empty() || self.goes == Goes::Nothing {
            return bytes;
        }
        let rest = if self.unknown == Some(id) { bytes } else { bytes.strip_prefix(b" ").unwrap_or(bytes) };
        if self.goes == Goes::Once || !rest.is_empty() {
            self.goes = Goes::Nothing;
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(mut space: LeadingSpace, tokens: &[(u32, &str)]) -> String {
        let rest = tokens.iter().flat_map(|&(id, text)| space.take_from(TokenId(id), text.as_bytes()).to_vec());
        String::from_utf8(rest.collect()).unwrap()
    }

    #[test]
    fn as_many_spaces_go_as_encoding_put() {
        let spaced = [(1, ""), (2, " "), (2, " "), (3, " a"), (3, " a")];
        assert_eq!(decoded(LeadingSpace::KEPT, &spaced), "   a a");
        assert_eq!(decoded(LeadingSpace::ONE, &spaced), "  a a");
        assert_eq!(decoded(LeadingSpace::of_sentencepiece(true, None), &spaced), "a a");
    }

    #[test]
    fn an_unknown_token_keeps_its_own_spaces() {
        let unknown = LeadingSpace::of_sentencepiece(true, Some(TokenId(0)));
        assert_eq!(decoded(unknown, &[(0, " ? "), (3, " a")]), " ?  a");
        assert_eq!(decoded(unknown, &[(3, " a"), (0, " ? ")]), "a ? ");
    }
}
