//! The response object, at each stage of its making.

use serde_json::{Value, json};

use super::request::Asked;
use crate::{
    engine::Finished,
    params::{FinishReason, SamplingParams, Usage},
    server::openai::answer::now,
};

/// How an answer came to its end.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// By itself.
    Ended(Finished),
    /// By an error, in words that a client may read.
    Failed(String),
}

/// What is known of a response before it is whole.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) id: String,
    /// Of its only output item.
    pub(super) item_id: String,
    fields: Value,
}

impl Draft {
    pub(super) fn new(id: String, model: &str, asked: &Asked, params: &SamplingParams) -> Self {
        let item_id = id.replacen("resp_", "msg_", 1);
        let mut fields = json!({
            "id": id,
            "object": "response",
            "created_at": now(),
            "model": model,
            "error": null,
            "incomplete_details": null,
            "output": [],
            "parallel_tool_calls": true,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
        });
        if let (Value::Object(fields), Value::Object(repeated)) = (&mut fields, asked.repeated(params)) {
            fields.extend(repeated);
        }
        Self { id, item_id, fields }
    }

    /// The response with this status and no output.
    pub(super) fn unfinished(&self, status: &str) -> Value {
        let mut response = self.fields.clone();
        response["status"] = status.into();
        response
    }

    /// The response at its end.
    pub(super) fn finished(&self, text: &str, outcome: &Outcome) -> Value {
        let mut response = self.unfinished(self.status(outcome));
        match outcome {
            Outcome::Failed(message) => response["error"] = json!({"code": "server_error", "message": message}),
            Outcome::Ended(finished) => {
                let status = self.status(outcome);
                response["output"] = json!([self.item(status, Some(text))]);
                response["usage"] = usage(finished.usage);
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
            Outcome::Ended(_) => "completed",
        }
    }

    /// The output item; without a text it has no content yet.
    pub(super) fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<_> = text.into_iter().map(part).collect();
        json!({"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content})
    }
}

/// The output item's only part.
pub(super) fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
