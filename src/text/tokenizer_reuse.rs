//! Encodes a text that begins as an earlier one did, without encoding its beginning again.
//!
//! A conversation's prompt grows at its end, and its turns are parted by special tokens (`<|im_start|>`). Such a token is
//! found before anything else is cut, so what stands before it is encoded the same whatever follows. The ids before the
//! last one that both texts share can therefore be taken over; a test holds that they equal those of the whole text.

use crate::{error::Result, ids::TokenId};

use super::{
    added_tokens::Fragment,
    leading_space::LeadingSpace,
    tokenizer::{Encoder, Tokenizer},
};

impl Tokenizer {
    /// The ids of a text that came out of a chat template (no special tokens are added around it), and how many of them
    /// were taken from `previous`: an earlier text and its ids, as this method or
    /// [`encode(text, false)`](Self::encode) gave them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_after(&self, previous: (&str, &[TokenId]), text: &str) -> Result<(Vec<TokenId>, usize)> {
        let Some((at, reused)) = self.seam(previous, text) else { return Ok((self.encode(text, false)?, 0)) };
        // The rest begins with the special token itself, so it is not taken for the beginning of a text.
        let rest = self.encode(&text[at..], false)?;
        let mut ids = Vec::with_capacity(reused + rest.len());
        ids.extend_from_slice(&previous.1[..reused]);
        ids.extend(rest);
        Ok((ids, reused))
    }

    /// The ids of a text that goes on after a token of a prompt; none where it cannot be encoded apart from what comes
    /// before it, because the tokenizer would take it for the beginning of a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rest(&self, last: TokenId, rest: &str) -> Result<Option<Vec<TokenId>>> {
        if rest.is_empty() {
            return Ok(Some(Vec::new()));
        }
        // A special token parts what is before it from what comes after it, so the two can be encoded together.
        if self.is_special(last)
            && let Some(token) = self.id_to_token(last)
        {
            let mut ids = self.encode(&format!("{token}{rest}"), false)?;
            if ids.first() == Some(&last) {
                ids.remove(0);
                return Ok(Some(ids));
            }
        }
        let added = match &self.encoder {
            Encoder::Pipeline(_) => self.seams.as_ref(),
            Encoder::Sentencepiece { added, .. } | Encoder::Tiktoken { added, .. } => Some(added),
        };
        let first = added.and_then(|added| added.split(rest).into_iter().next());
        let begins_anew = matches!(first, Some(Fragment::Token(id)) if self.is_special(TokenId(id)));
        if begins_anew || self.leading_space() == LeadingSpace::KEPT {
            return self.encode(rest, false).map(Some);
        }
        Ok(None)
    }

    /// Where in both texts the last special token stands that they share, and how many ids come before it.
    fn seam(&self, (before, ids): (&str, &[TokenId]), text: &str) -> Option<(usize, usize)> {
        let added = match &self.encoder {
            Encoder::Pipeline(_) => self.seams.as_ref()?,
            Encoder::Sentencepiece { added, .. } | Encoder::Tiktoken { added, .. } => added,
        };
        let shared = before.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        // A token is the longest of those that begin at its place, so as much must be the same behind that.
        let last_start = shared.checked_sub(added.longest_bytes())?;
        let (mut at, mut found) = (0, None);
        let mut counts = std::collections::HashMap::<u32, usize>::new();
        for fragment in added.split(before) {
            match fragment {
                Fragment::Text(text) => at += text.len(),
                Fragment::Token(id) => {
                    let nth = counts.entry(id).or_default();
                    if at <= last_start && at > 0 && self.is_special(TokenId(id)) {
                        found = Some((at, id, *nth));
                    }
                    *nth += 1;
                    at += added.token_at(before, at)?.0;
                }
            }
        }
        let (at, id, nth) = found?;
        // The same number in text and ids, so the nth of one is the nth of the other.
        let mut places = ids.iter().enumerate().filter(|(_, token)| token.0 == id).map(|(n, _)| n);
        let reused = places.clone().nth(nth)?;
        (places.by_ref().count() == *counts.get(&id)?).then_some((at, reused))
    }
}
