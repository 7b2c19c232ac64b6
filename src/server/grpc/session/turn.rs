//! A turn under way, and what is told at its end.

use super::super::{chat_convert, convert, stream::Telling, told::Told};
use crate::{
    engine::TurnStart, error::Result, ids::TokenId, params::Usage, proto::candlewick::v1 as wire, text::ChatMessage,
};

/// What a turn has brought so far.
pub(super) struct Running {
    /// The client's event that began it: its id, and its name.
    pub(super) asked: (Option<u64>, &'static str),
    pub(super) telling: Telling,
    pub(super) start: TurnStart,
    /// Tokens of the conversation before the turn.
    known_tokens: usize,
    message: wire::Message,
    output: Vec<TokenId>,
    prompt_tokens: u32,
    finished: Option<wire::Finished>,
}

impl Running {
    pub(super) fn new(
        asked: (Option<u64>, &'static str),
        telling: Telling,
        start: TurnStart,
        known_tokens: usize,
    ) -> Self {
        let message = wire::Message { role: wire::Role::Assistant.into(), ..wire::Message::default() };
        let (output, finished) = (Vec::new(), None);
        Self { asked, telling, start, known_tokens, message, output, prompt_tokens: 0, finished }
    }

    /// Counts the conversation's turns from 0.
    pub(super) fn index(&self) -> u32 {
        u32::try_from(self.start.index).unwrap_or(u32::MAX)
    }

    /// Hears an event; what is told of it, if it is told before the end.
    pub(super) fn hear(&mut self, told: Told) -> Option<wire::session_response::Event> {
        use wire::session_response::Event;
        match told {
            Told::Started(started) => {
                self.prompt_tokens = started.prompt_tokens;
                let turn_index = self.index();
                let event = wire::TurnStarted { turn_index, started: Some(*started) };
                Some(Event::TurnStarted(Box::new(event)))
            }
            Told::Progress(progress) => Some(Event::Progress(progress)),
            // Not offered in sessions; the stream would hold what nobody asked for.
            Told::PromptLogprobs(_) => None,
            Told::Delta(delta) => {
                self.add(&delta);
                Some(Event::Delta(delta))
            }
            Told::Finished(finished) => {
                self.finished = Some(*finished);
                None
            }
        }
    }

    fn add(&mut self, delta: &wire::Delta) {
        self.output.extend(delta.token_ids.iter().copied().map(TokenId));
        self.message.content.push_str(&delta.text);
        if !delta.reasoning.is_empty() {
            self.message.reasoning.get_or_insert_default().push_str(&delta.reasoning);
        }
        for part in &delta.tool_calls {
            if let (Some(id), Some(name)) = (&part.id, &part.name) {
                let (id, name, arguments) = (id.clone(), name.clone(), String::new());
                self.message.tool_calls.push(wire::ToolCall { id, name, arguments });
            }
            if let Some(call) = self.message.tool_calls.get_mut(part.index as usize) {
                call.arguments.push_str(&part.arguments);
            }
        }
    }

    /// What the turn came to, for the conversation and for the client. `usage` is the engine's where it did not end by
    /// itself.
    ///
    /// # Errors
    /// `Internal`: what the model said is no message.
    pub(super) fn done(
        mut self,
        usage: Usage,
        timings: wire::Timings,
    ) -> Result<(ChatMessage, Vec<TokenId>, wire::TurnDone)> {
        let cancelled = self.finished.is_none();
        // It is kept for as long as the session.
        self.message.content.shrink_to_fit();
        let undone = self.output.is_empty();
        let finished = self.finished.unwrap_or_default();
        let usage = finished.usage.unwrap_or_else(|| convert::usage(usage));
        let known = u32::try_from(self.known_tokens).unwrap_or(u32::MAX).min(self.prompt_tokens);
        let done = wire::TurnDone {
            turn_index: u32::try_from(self.start.index).unwrap_or(u32::MAX),
            finish: finished.finish,
            computed_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            recomputed_tokens: known.saturating_sub(usage.cached_tokens),
            usage: Some(usage),
            timings: Some(finished.timings.unwrap_or(timings)),
            receipt: finished.receipt,
            message: Some(self.message.clone()),
            cancelled: cancelled.then_some(true),
            // Of a turn that is undone they are known again.
            forgotten_turns: if undone { 0 } else { u32::try_from(self.start.forgotten_turns).unwrap_or(u32::MAX) },
            undone: undone.then_some(true),
        };
        Ok((chat_convert::turn(0, self.message)?, self.output, done))
    }
}

/// What a turn came to that was cancelled before it was admitted.
pub(super) fn never_begun(turn_index: u32) -> wire::TurnDone {
    wire::TurnDone {
        turn_index,
        usage: Some(wire::Usage::default()),
        timings: Some(wire::Timings::default()),
        message: Some(wire::Message { role: wire::Role::Assistant.into(), ..wire::Message::default() }),
        cancelled: Some(true),
        undone: Some(true),
        ..wire::TurnDone::default()
    }
}
