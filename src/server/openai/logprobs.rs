//! Log-probabilities in OpenAI's two forms: a list of tokens (chat), and parallel lists (completions).

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    ids::TokenId,
    params::{SampledToken, TokenLogprobs},
    text::Tokenizer,
};

/// What stands for a token that cannot be: JSON has no infinities.
const LEAST: f32 = -9999.0;

/// How tokens are written.
#[derive(Clone)]
pub(super) struct TokenNames {
    /// Absent: as `token_id:7`, because the model has no tokenizer or the client asked for it.
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
}

/// One entry of the chat form.
#[derive(Debug, Serialize)]
struct Entry {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Entry>>,
}

impl TokenNames {
    pub(super) fn new(tokenizer: Option<Arc<Tokenizer>>, as_token_ids: Option<bool>) -> Self {
        Self { tokenizer: tokenizer.filter(|_| as_token_ids != Some(true)) }
    }

    fn name(&self, id: TokenId) -> String {
        match &self.tokenizer {
            Some(tokenizer) => String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned(),
            None => format!("token_id:{id}"),
        }
    }

    fn entry(&self, id: TokenId, logprob: f32, top_logprobs: Option<Vec<Entry>>) -> Entry {
        let bytes = self.tokenizer.as_ref().map(|tokenizer| tokenizer.token_bytes(id).to_vec());
        Entry { token: self.name(id), logprob: logprob.max(LEAST), bytes, top_logprobs }
    }

    fn chat_entry(&self, id: TokenId, logprobs: &TokenLogprobs) -> Entry {
        let top = logprobs.top.iter().map(|&(id, logprob)| self.entry(id, logprob, None)).collect();
        self.entry(id, logprobs.chosen, Some(top))
    }

    /// The chat form; nothing where no token has log-probabilities.
    pub(super) fn chat(&self, tokens: &[SampledToken]) -> Option<Value> {
        let entries: Vec<_> = with_logprobs(tokens).map(|(id, logprobs)| self.chat_entry(id, logprobs)).collect();
        (!entries.is_empty()).then(|| json!({"content": entries, "refusal": null}))
    }

    /// The form of completions; nothing where no token has log-probabilities. `first` is the first token of a prompt that is
    /// repeated, which nothing predicts. `offset` counts the characters of tokens written so far, over all chunks.
    pub(super) fn completion(
        &self,
        first: Option<TokenId>,
        tokens: &[SampledToken],
        offset: &mut usize,
    ) -> Option<Value> {
        let (mut names, mut chosen, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut place = |name: &str| {
            offsets.push(*offset);
            *offset += name.chars().count();
        };
        if let Some(first) = first {
            let name = self.name(first);
            place(&name);
            names.push(name);
            chosen.push(None);
            tops.push(None);
        }
        for (id, logprobs) in with_logprobs(tokens) {
            let name = self.name(id);
            let mut top: Map<String, Value> = Map::new();
            for &(id, logprob) in &logprobs.top {
                // Tokens that look the same: the more likely one counts.
                top.entry(self.name(id)).or_insert_with(|| logprob.max(LEAST).into());
            }
            // The chosen one is always among them.
            top.entry(name.clone()).or_insert_with(|| logprobs.chosen.max(LEAST).into());
            place(&name);
            names.push(name);
            chosen.push(Some(logprobs.chosen.max(LEAST)));
            tops.push(Some(top));
        }
        (!names.is_empty())
            .then(|| json!({"tokens": names, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets}))
    }
}

fn with_logprobs(tokens: &[SampledToken]) -> impl Iterator<Item = (TokenId, &TokenLogprobs)> {
    tokens.iter().filter_map(|token| Some((token.id, token.logprobs.as_deref()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, chosen: f32, top: &[(u32, f32)]) -> SampledToken {
        let top = top.iter().map(|&(id, logprob)| (TokenId(id), logprob)).collect();
        SampledToken { id: TokenId(id), logprobs: Some(Box::new(TokenLogprobs { chosen, top })) }
    }

    #[test]
    fn what_cannot_be_is_still_a_number() {
        let names = TokenNames { tokenizer: None };
        let tokens = [token(7, f32::NEG_INFINITY, &[(1, -0.5)])];
        let chat = names.chat(&tokens).unwrap();
        assert_eq!(chat["content"][0]["logprob"], -9999.0);
        assert_eq!(chat["content"][0]["top_logprobs"][0]["token"], "token_id:1");
        let completion = names.completion(None, &tokens, &mut 0).unwrap();
        assert_eq!(completion["top_logprobs"][0], json!({"token_id:1": -0.5, "token_id:7": -9999.0}));
    }

    #[test]
    fn offsets_go_on_from_chunk_to_chunk() {
        let names = TokenNames { tokenizer: None };
        let mut offset = 3;
        names.completion(None, &[token(7, -1.0, &[])], &mut offset).unwrap();
        let second = names.completion(None, &[token(8, -1.0, &[])], &mut offset).unwrap();
        assert_eq!(second["text_offset"], json!([3 + "token_id:7".len()]));
        assert!(names.completion(None, &[], &mut offset).is_none());
    }

    #[test]
    fn the_first_token_of_a_prompt_has_a_name_and_no_number() {
        let names = TokenNames { tokenizer: None };
        let told = names.completion(Some(TokenId(5)), &[token(7, -1.0, &[])], &mut 0).unwrap();
        assert_eq!(told["tokens"], json!(["token_id:5", "token_id:7"]));
        assert_eq!((&told["token_logprobs"], &told["top_logprobs"][0]), (&json!([null, -1.0]), &json!(null)));
        assert_eq!(told["text_offset"], json!([0, "token_id:5".len()]));
    }
}
