//! The set of tokens that may come next, and taking all others out of the logits.

use toktrie::SimpleVob;

use crate::ids::TokenId;

const WORD: usize = u32::BITS as usize;

/// Tokens that may come next, a bit each.
#[derive(Clone, Debug)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// The bits of `set` for tokens below `size`.
    pub(super) fn new(set: &SimpleVob, size: usize) -> Self {
        let mut words = set.as_slice().to_vec();
        words.resize(size.div_ceil(WORD), 0);
        if let (Some(last), used @ 1..) = (words.last_mut(), size % WORD) {
            *last &= (1 << used) - 1;
        }
        Self { words }
    }

    /// One token.
    #[must_use]
    pub fn only(token: TokenId, size: usize) -> Self {
        let mut mask = Self { words: vec![0; size.div_ceil(WORD)] };
        mask.allow(token);
        mask
    }

    pub(super) fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token.index() / WORD) {
            *word |= 1 << (token.index() % WORD);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether the token may come.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token.index() / WORD).is_some_and(|word| word >> (token.index() % WORD) & 1 == 1)
    }

    /// Sets the logits of all other tokens to `-inf`; `[vocab_size]`.
    pub fn apply(&self, logits: &mut [f32]) {
        let mut words = self.words.iter();
        for logits in logits.chunks_mut(WORD) {
            match words.next().copied().unwrap_or(0) {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_logits_are_left() {
        for size in [1, 31, 32, 33, 64, 100] {
            let mut set = SimpleVob::alloc(size + 1);
            let allowed = |id: usize| id.is_multiple_of(3) || (32..64).contains(&id);
            (0..size).filter(|&id| allowed(id)).for_each(|id| set.allow_token(id as u32));
            set.allow_token(size as u32); // Beyond the model's tokens.
            let mask = TokenMask::new(&set, size);
            let mut logits = vec![1.0f32; size];
            mask.apply(&mut logits);
            for (id, &logit) in logits.iter().enumerate() {
                assert_eq!(logit, if allowed(id) { 1.0 } else { f32::NEG_INFINITY }, "token {id} of {size}");
                assert_eq!(mask.allows(TokenId(id as u32)), allowed(id));
            }
            assert!(!mask.allows(TokenId(size as u32)));
        }
    }

    #[test]
    fn a_mask_of_one_token_allows_it_alone() {
        let mask = TokenMask::only(TokenId(40), 70);
        assert_eq!((0..80).filter(|&id| mask.allows(TokenId(id))).collect::<Vec<_>>(), [40]);
        assert!(!mask.is_empty() && TokenMask::new(&SimpleVob::alloc(70), 70).is_empty());
    }
}
