//! A conversation as the model has seen it: the text and the ids of its last prompt and answer.
//!
//! A new prompt is rendered from all messages by the template. Where its text begins with what was rendered and generated
//! before, the ids are kept as they are, also where the tokenizer would have cut the generated text differently, and only
//! the rest is encoded: the keys and values in the cache are those of exactly these ids. Where the template writes the
//! past differently (reasoning left out, arguments formatted anew) the longest stretch that still is the same is kept.

use crate::{error::Result, ids::TokenId, text::Tokenizer};

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Bytes, because an answer may have been cut off within a character.
    text: Vec<u8>,
    ids: Vec<TokenId>,
    /// Bytes and ids at the end of each prompt and of each answer.
    marks: Vec<(usize, usize)>,
}

impl History {
    /// The ids of the last prompt and its answer.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.text.len() + size_of_val(self.ids.as_slice()) + size_of_val(self.marks.as_slice())
    }

    /// Places that [`truncate`](Self::truncate) can go back to.
    #[must_use]
    pub fn num_marks(&self) -> usize {
        self.marks.len()
    }

    /// The ids of a rendered prompt.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>> {
        for &(bytes, ids) in self.marks.iter().rev() {
            let rest = text.get(bytes..).filter(|_| text.as_bytes().starts_with(&self.text[..bytes]));
            if let (Some(rest), Some(&last)) = (rest, self.ids[..ids].last())
                && let Some(rest) = tokenizer.encode_rest(last, rest)?
            {
                return Ok(self.ids[..ids].iter().copied().chain(rest).collect());
            }
        }
        tokenizer.encode(text, false)
    }

    /// Goes on with a prompt and what was generated after it.
    pub fn push(&mut self, tokenizer: &Tokenizer, (text, ids): (&str, &[TokenId]), output: &[TokenId]) {
        let common = self.ids.iter().zip(ids).take_while(|(before, now)| before == now).count();
        let same_text = self.text.iter().zip(text.as_bytes()).take_while(|(before, now)| before == now).count();
        self.marks.retain(|&(bytes, ids)| bytes <= same_text && ids <= common);
        self.text = text.as_bytes().to_vec();
        self.ids = ids.to_vec();
        self.marks.push((self.text.len(), self.ids.len()));
        output.iter().for_each(|&id| self.text.extend_from_slice(tokenizer.token_bytes(id)));
        self.ids.extend_from_slice(output);
        self.marks.push((self.text.len(), self.ids.len()));
        // It stays as it is until the next turn, which may be long.
        self.text.shrink_to_fit();
        self.ids.shrink_to_fit();
    }

    /// Forgets what came after the first so many marks.
    pub fn truncate(&mut self, marks: usize) {
        self.marks.truncate(marks);
        let (bytes, ids) = self.marks.last().copied().unwrap_or_default();
        self.text.truncate(bytes);
        self.ids.truncate(ids);
        self.text.shrink_to_fit();
        self.ids.shrink_to_fit();
    }

    /// Tokens of the last prompt and answer that `prompt` does not begin with: they are computed anew, if they still
    /// are there at all.
    #[must_use]
    pub fn num_rewritten(&self, prompt: &[TokenId]) -> usize {
        self.ids.len() - self.ids.iter().zip(prompt).take_while(|(before, now)| before == now).count()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Letters, `ab` in one piece, and a mark that parts turns.
    fn tokenizer() -> Tokenizer {
        let json = serde_json::json!({
            "version": "1.0", "normalizer": null, "post_processor": null, "pre_tokenizer": null, "decoder": {"type": "Fuse"},
            "added_tokens": [{"id": 4, "content": "<|>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}],
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]},
        });
        Tokenizer::from_json_bytes(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap()
    }

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    fn after_one_turn(output: &[u32]) -> (Tokenizer, History) {
        let (tokenizer, mut history) = (tokenizer(), History::default());
        let prompt = history.encode(&tokenizer, "c<|>").unwrap();
        assert_eq!(prompt, ids(&[3, 4]));
        history.push(&tokenizer, ("c<|>", &prompt), &ids(output));
        (tokenizer, history)
    }

    #[test]
    fn generated_ids_are_kept_though_the_tokenizer_would_cut_their_text_differently() {
        // The model said "ab" in two pieces.
        let (tokenizer, history) = after_one_turn(&[0, 1, 4]);
        let next = history.encode(&tokenizer, "c<|>ab<|>ab<|>").unwrap();
        assert_eq!(next, ids(&[3, 4, 0, 1, 4, 2, 4]));
        assert_eq!(history.num_rewritten(&next), 0);
    }

    #[test]
    fn what_the_template_writes_differently_is_encoded_anew_and_counted() {
        let (tokenizer, history) = after_one_turn(&[0, 1, 4]);
        let next = history.encode(&tokenizer, "c<|>b<|>c").unwrap();
        assert_eq!(next, ids(&[3, 4, 1, 4, 3]));
        assert_eq!(history.num_rewritten(&next), 3);
    }

    #[test]
    fn going_back_forgets_what_came_after() {
        let (tokenizer, mut history) = after_one_turn(&[0, 4]);
        let marks = history.num_marks();
        let prompt = history.encode(&tokenizer, "c<|>a<|>b<|>").unwrap();
        history.push(&tokenizer, ("c<|>a<|>b<|>", &prompt), &ids(&[3, 4]));
        assert_eq!(history.ids(), ids(&[3, 4, 0, 4, 1, 4, 3, 4]));
        history.truncate(marks);
        assert_eq!(history.ids(), ids(&[3, 4, 0, 4]));
        history.truncate(0);
        assert_eq!((history.ids().len(), history.num_marks()), (0, 0));
    }
}
