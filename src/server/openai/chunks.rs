//! The stream of an answer, chunk by chunk, for completions and chat alike.

use serde::Serialize;
use serde_json::Value;

use super::{
    answer::{Stamp, total, usage},
    error::OpenAi,
    fields::StreamOptions,
};
use crate::{
    engine::{Delta, Event, Finished},
    params::{PromptLogprobs, Usage},
    server::http::{
        failure::{Failure, Shape},
        frames::{Frames, Teller},
        parts::ReasoningTokens,
    },
};

/// Ends a stream, after an error too.
const DONE: &str = "[DONE]";

/// How one API writes what happens to a choice.
pub(super) trait ChunkWriter: Send + Unpin + 'static {
    /// An entry of `choices`.
    type Choice: Serialize;
    /// `object` of a chunk.
    const OBJECT: &'static str;

    /// What a choice has cost, as it is told.
    fn usage(&self, usage: Usage) -> Usage {
        usage
    }
    /// Before anything is said.
    fn started(&mut self, index: usize) -> Option<Self::Choice>;
    /// Log-probabilities of a stretch of the prompt; nothing where this API has no place for them.
    fn prompt(&mut self, _index: usize, _prompt: &PromptLogprobs) -> Option<Self::Choice> {
        None
    }
    /// Something new; nothing where there is nothing to say yet.
    fn delta(&mut self, index: usize, delta: Delta) -> Option<Self::Choice>;
    /// The end of a choice.
    fn finished(&mut self, index: usize, finished: &Finished) -> Self::Choice;
}

/// Writes the chunks of a call.
pub(super) struct Chunks<W> {
    stamp: Stamp,
    writer: W,
    options: StreamOptions,
    answers_a_prompt: usize,
    usages: Vec<Usage>,
    reasoning: Vec<ReasoningTokens>,
}

impl<W: ChunkWriter> Chunks<W> {
    /// For `choices` choices, `answers_a_prompt` for each prompt.
    pub(super) fn new(
        stamp: Stamp,
        writer: W,
        options: StreamOptions,
        choices: usize,
        answers_a_prompt: usize,
    ) -> Self {
        let reasoning = (0..choices).map(|_| ReasoningTokens::default()).collect();
        Self { stamp, writer, options, answers_a_prompt, usages: vec![Usage::default(); choices], reasoning }
    }

    /// The usage of a choice so far, where every chunk carries it.
    fn continuous(&self, choice: usize) -> Option<Value> {
        let asked = self.options.continuous_usage_stats == Some(true);
        let reasoning = self.reasoning.get(choice).map_or(0, ReasoningTokens::count);
        asked.then(|| usage(self.usages.get(choice).copied().unwrap_or_default(), reasoning))
    }
}

impl<W: ChunkWriter> Teller for Chunks<W> {
    fn tell(&mut self, choice: usize, event: Event, frames: &mut Frames) {
        let now = match &event {
            Event::Started(started) => Some(Usage { prompt_tokens: started.prompt_tokens, ..Usage::default() }),
            Event::Delta(delta) => Some(delta.usage),
            Event::Finished(finished) => Some(finished.usage),
            Event::Prompt(_) => None,
        };
        if let (Some(usage), Some(now)) = (self.usages.get_mut(choice), now) {
            *usage = self.writer.usage(now);
        }
        if let (Event::Delta(delta), Some(reasoning)) = (&event, self.reasoning.get_mut(choice)) {
            reasoning.take(delta.tokens.len(), &delta.pieces);
        }
        let written = match event {
            Event::Started(_) => self.writer.started(choice),
            Event::Delta(delta) => self.writer.delta(choice, delta),
            Event::Finished(finished) => Some(self.writer.finished(choice, &finished)),
            Event::Prompt(prompt) => self.writer.prompt(choice, &prompt),
        };
        if let Some(written) = written {
            frames.json(&self.stamp.envelope(W::OBJECT, [written], self.continuous(choice)));
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.options.include_usage == Some(true) {
            let reasoning = self.reasoning.iter().map(ReasoningTokens::count).sum();
            let total = usage(total(&self.usages, self.answers_a_prompt), reasoning);
            frames.json(&self.stamp.envelope::<[W::Choice; 0]>(W::OBJECT, [], Some(total)));
        }
        frames.word(DONE);
    }

    fn fail(&mut self, failure: Failure, frames: &mut Frames) {
        frames.json(&OpenAi::body(&failure));
        frames.word(DONE);
    }
}
