//! The response object, at each stage of its making.

use serde_json::{Value, json};

use super::request::Asked;
use crate::{
    engine::Finished,
    params::{FinishReason, SamplingParams, Usage},
    server::{
        http::{
            choices::Whole,
            parts::{Kind, Part, parts},
        },
        openai::answer::now,
    },
    text::ToolCall,
};

/// `status` of a response or an item that is not whole yet.
pub(super) const IN_PROGRESS: &str = "in_progress";
/// `status` of one that is.
pub(super) const COMPLETED: &str = "completed";

/// How an answer came to its end.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// By itself.
    Ended(Finished),
    /// By an error, in words that a client may read.
    Failed(String),
}

/// What the model has answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// An output item each.
    pub(super) parts: Vec<Part>,
    pub(super) reasoning_tokens: u32,
}

impl From<Whole> for Answer {
    fn from(whole: Whole) -> Self {
        Self { reasoning_tokens: whole.reasoning.count(), parts: parts(whole.pieces) }
    }
}

/// What is known of a response before it is whole.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) id: String,
    fields: Value,
}

impl Draft {
    pub(super) fn new(id: String, model: &str, asked: &Asked, params: &SamplingParams) -> Self {
        let mut fields = json!({
            "id": id,
            "object": "response",
            "created_at": now(),
            "model": model,
            "error": null,
            "incomplete_details": null,
            "output": [],
            "truncation": "disabled",
        });
        if let (Value::Object(fields), Value::Object(repeated)) = (&mut fields, asked.repeated(params)) {
            fields.extend(repeated);
        }
        Self { id, fields }
    }

    /// The response with this status and no output.
    pub(super) fn unfinished(&self, status: &str) -> Value {
        let mut response = self.fields.clone();
        response["status"] = status.into();
        response
    }

    /// The response at its end.
    pub(super) fn finished(&self, answer: &Answer, outcome: &Outcome) -> Value {
        let mut response = self.unfinished(self.status(outcome));
        match outcome {
            Outcome::Failed(message) => response["error"] = json!({"code": "server_error", "message": message}),
            Outcome::Ended(finished) => {
                let status = self.status(outcome);
                // There is always a message where there is nothing else.
                let nothing = [Part::Text(String::new())];
                let parts = if answer.parts.is_empty() { &nothing[..] } else { &answer.parts };
                let item = |(index, part)| {
                    let status = if index + 1 == parts.len() { status } else { COMPLETED };
                    self.item(index, part, status)
                };
                response["output"] = parts.iter().enumerate().map(item).collect();
                response["usage"] = usage(finished.usage, answer.reasoning_tokens);
                if status == "incomplete" {
                    response["incomplete_details"] = json!({"reason": "max_output_tokens"});
                } else {
                    response["completed_at"] = now().into();
                }
            }
        }
        response
    }

    /// `status` of a response that came to this end.
    pub(super) fn status(&self, outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Failed(_) => "failed",
            Outcome::Ended(finished) if finished.reason == FinishReason::Length => "incomplete",
            Outcome::Ended(_) => COMPLETED,
        }
    }

    /// The id of an output item.
    pub(super) fn item_id(&self, index: usize, kind: Kind) -> String {
        let prefix = match kind {
            Kind::Reasoning => "rs",
            Kind::Text => "msg",
            Kind::Call => "fc",
        };
        let id = self.id.strip_prefix("resp_").unwrap_or(&self.id);
        format!("{prefix}_{id}_out{index}")
    }

    /// An output item. One that is in progress has no content yet.
    pub(super) fn item(&self, index: usize, part: &Part, status: &str) -> Value {
        let content: Vec<_> = content(part).filter(|_| status != IN_PROGRESS).into_iter().collect();
        let mut item = match part {
            Part::Reasoning(_) => json!({"type": "reasoning", "summary": [], "content": content}),
            Part::Text(_) => json!({"type": "message", "role": "assistant", "content": content}),
            Part::Call(ToolCall { id, name, arguments }) => {
                json!({"type": "function_call", "call_id": id, "name": name, "arguments": arguments})
            }
        };
        item["id"] = self.item_id(index, part.kind()).into();
        item["status"] = status.into();
        item
    }
}

/// The content of an output item; calls have none.
pub(super) fn content(part: &Part) -> Option<Value> {
    match part {
        Part::Reasoning(text) => Some(json!({"type": "reasoning_text", "text": text})),
        Part::Text(text) => Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})),
        Part::Call(_) => None,
    }
}

fn usage(usage: Usage, reasoning_tokens: u32) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
