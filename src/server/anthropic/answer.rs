//! Answers of the Messages API: one message, or the events that build one.

use serde_json::{Value, json};

use super::error::Anthropic;
use crate::{
    engine::{Event, Finished},
    params::{FinishReason, Usage},
    server::http::{
        failure::{Failure, Shape},
        frames::{Frames, Teller},
        parts::{Change, Kind, Part, Parts, What},
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
    pub(super) fn message(&self, parts: &[Part], finished: Option<&Finished>, usage: Usage) -> Value {
        let content: Vec<_> = parts.iter().filter_map(block).collect();
        let (stop_reason, stop_sequence) = finished.map_or((None, None), stop);
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

/// A content block; none for a call that the answer was cut off within. What a model thought is not signed here: whoever sends
/// it back is believed.
fn block(part: &Part) -> Option<Value> {
    Some(match part {
        Part::Reasoning(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Call(call) => {
            json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments_object()?})
        }
    })
}

/// `stop_reason` and `stop_sequence`.
fn stop(finished: &Finished) -> (Option<&'static str>, Option<&str>) {
    match &finished.reason {
        _ if finished.tool_calls => (Some("tool_use"), None),
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

/// Tells a message as it comes: it starts, each of its blocks starts, grows and stops, it stops.
pub(super) struct MessageEvents {
    stamp: Stamp,
    parts: Parts,
}

impl MessageEvents {
    pub(super) fn new(stamp: Stamp) -> Self {
        Self { stamp, parts: Parts::default() }
    }

    fn event(frames: &mut Frames, kind: &'static str, mut fields: Value) {
        fields["type"] = kind.into();
        frames.event(kind, &fields);
    }

    fn change(frames: &mut Frames, Change { index, what }: Change) {
        let (kind, mut fields) = match what {
            What::Opened(part) => ("content_block_start", json!({"content_block": block(&part)})),
            What::Grew(kind, more) => {
                let delta = match kind {
                    Kind::Text => json!({"type": "text_delta", "text": more}),
                    Kind::Reasoning => json!({"type": "thinking_delta", "thinking": more}),
                    Kind::Call => json!({"type": "input_json_delta", "partial_json": more}),
                };
                ("content_block_delta", json!({"delta": delta}))
            }
            What::Closed(_) => ("content_block_stop", json!({})),
        };
        fields["index"] = index.into();
        Self::event(frames, kind, fields);
    }
}

impl Teller for MessageEvents {
    fn tell(&mut self, _choice: usize, event: Event, frames: &mut Frames) {
        match event {
            Event::Started(started) => {
                let usage = Usage { prompt_tokens: started.prompt_tokens, ..Usage::default() };
                Self::event(frames, "message_start", json!({"message": self.stamp.message(&[], None, usage)}));
            }
            Event::Prompt(_) => {}
            Event::Delta(delta) => {
                for change in delta.pieces.into_iter().flat_map(|piece| self.parts.take(piece)) {
                    Self::change(frames, change);
                }
            }
            Event::Finished(finished) => {
                self.parts.end().into_iter().for_each(|last| Self::change(frames, last));
                let (stop_reason, stop_sequence) = stop(&finished);
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
