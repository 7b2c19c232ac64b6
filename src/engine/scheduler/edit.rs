//! Changes to a sequence under way, and a look at what a prompt would find.

use std::sync::Arc;

use super::Scheduler;
use crate::{
    engine::{block_manager::Salt, executor::ParamsEdit, sequence::Sequence},
    ids::{SequenceId, TokenId},
    params::SamplingParams,
};

/// What changes about a sequence; what is none stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Most tokens to generate, those included that it has generated; a sequence beyond it ends with its next token.
    pub max_tokens: Option<u32>,
    /// As [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// Its place in line.
    pub priority: Option<i32>,
}

impl Edit {
    /// Changes a sequence that may have `limit` tokens at the most. One whose place changes is in no list.
    fn change(&self, sequence: &mut Sequence, limit: usize) {
        sequence.priority = self.priority.unwrap_or(sequence.priority);
        if let Some(max_tokens) = self.max_tokens {
            let asked = sequence.prompt.len().saturating_add(max_tokens as usize);
            sequence.max_len = asked.min(limit).max(sequence.tokens.len() + 1);
        }
        let params = SamplingParams::clone(&sequence.params);
        sequence.params = Arc::new(SamplingParams {
            max_tokens: self.max_tokens.or(params.max_tokens),
            temperature: self.temperature.unwrap_or(params.temperature),
            ..params
        });
    }
}

impl Scheduler {
    /// Changes a sequence, from its next token on; also one that waits for the first of its group. False if there is none of
    /// that id.
    pub fn edit(&mut self, id: SequenceId, edit: &Edit) -> bool {
        let limit = self.max_len;
        let Some(key) = self.sequences.key(id) else {
            let mut siblings = self.siblings.values_mut().flatten();
            let sibling = siblings.find(|sibling| sibling.id == id);
            return sibling.map(|sibling| edit.change(sibling, limit)).is_some();
        };
        if edit.priority.is_some() {
            self.leave_list(key);
        }
        edit.change(&mut self.sequences[key], limit);
        if edit.priority.is_some() {
            self.join_list(key);
        }
        let sequence = &self.sequences[key];
        if edit.temperature.is_some() && sequence.cached_tokens.is_some() {
            self.edits.push(ParamsEdit {
                id,
                params: sequence.params.clone(),
                prompt: sequence.prompt.clone(),
                output: sequence.tokens[sequence.prompt.len()..].to_vec(),
                dry_breakers: sequence.dry_breakers.clone(),
            });
        }
        true
    }

    /// Of the tokens of a prompt, how many the prefix cache has now.
    pub fn lookup(&mut self, salt: Option<Salt>, tokens: &[TokenId]) -> usize {
        self.blocks.lookup(salt, tokens)
    }
}
