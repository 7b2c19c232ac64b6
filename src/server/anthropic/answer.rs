//! Answers of the Messages API: one message, or the events that build one.

use serde_json::{Value, json};

use super::error::Anthropic;
use crate::{
    engine::Event,
    params::{FinishReason, Usage},
    server::http::{
        failure::{Failure, Shape},
        frames::{Frames, Teller},
    },
};

/// What names an answer.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    pub(super) id: String,
    pub(super) model: String,
}

impl Stamp {
    /// The message; before its end there is no reason.
    pub(super) fn message(&self, text: &str, reason: Option<&FinishReason>, usage: Usage) -> Value {
        let content = if reason.is_some() { vec![json!({"type": "text", "text": text})] } else { Vec::new() };
        let (stop_reason, stop_sequence) = reason.map_or((None, None), stop);
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": tokens(usage),
        })
    }
}

/// `stop_reason` and `stop_sequence`.
fn stop(reason: &FinishReason) -> (Option<&'static str>, Option<&str>) {
    match reason {
        FinishReason::EndOfSequence(_) | FinishReason::StopToken(_) => (Some("end_turn"), None),
        FinishReason::GrammarComplete => (Some("end_turn"), None),
        FinishReason::StopString(stop) => (Some("stop_sequence"), Some(stop)),
        FinishReason::Length => (Some("max_tokens"), None),
    }
}

/// Cached tokens are not counted as input here. Nothing is charged for writing to the cache, so nothing is said of it.
fn tokens(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    })
}

/// Tells a message as it comes: it starts, its one block starts, grows and stops, it stops.
pub(super) struct MessageEvents {
    stamp: Stamp,
}

impl MessageEvents {
    pub(super) fn new(stamp: Stamp) -> Self {
        Self { stamp }
    }

    fn event(frames: &mut Frames, kind: &'static str, mut fields: Value) {
        fields["type"] = kind.into();
        frames.event(kind, &fields);
    }
}

impl Teller for MessageEvents {
    fn tell(&mut self, _choice: usize, event: Event, frames: &mut Frames) {
        match event {
            Event::Started(started) => {
                let usage = Usage { prompt_tokens: started.prompt_tokens, ..Usage::default() };
                Self::event(frames, "message_start", json!({"message": self.stamp.message("", None, usage)}));
                let block = json!({"type": "text", "text": ""});
                Self::event(frames, "content_block_start", json!({"index": 0, "content_block": block}));
            }
            Event::Prompt(_) => {}
            Event::Delta(delta) if delta.text.is_empty() => {}
            Event::Delta(delta) => {
                let delta = json!({"type": "text_delta", "text": delta.text});
                Self::event(frames, "content_block_delta", json!({"index": 0, "delta": delta}));
            }
            Event::Finished(finished) => {
                Self::event(frames, "content_block_stop", json!({"index": 0}));
                let (stop_reason, stop_sequence) = stop(&finished.reason);
                let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
                Self::event(frames, "message_delta", json!({"delta": delta, "usage": tokens(finished.usage)}));
                Self::event(frames, "message_stop", json!({}));
            }
        }
    }

    fn end(&mut self, _frames: &mut Frames) {}

    fn fail(&mut self, failure: Failure, frames: &mut Frames) {
        frames.event("error", &Anthropic::body(&failure));
    }
}
