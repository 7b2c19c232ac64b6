//! What all of OpenAI's answers have in common: the envelope, usage, reasons to end.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    engine::Finished,
    params::{FinishReason, Usage},
};

/// A `chat.completion`, `text_completion` or a chunk of either.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Envelope<'a, C> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: C,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Value>,
}

/// What the envelopes of one answer share.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Stamp {
    pub(super) fn new(prefix: &str, request_id: &str, model: &str) -> Self {
        Self { id: format!("{prefix}{request_id}"), created: now(), model: model.to_owned() }
    }

    /// `choices` are a list.
    pub(super) fn envelope<C>(&self, object: &'static str, choices: C, usage: Option<Value>) -> Envelope<'_, C> {
        Envelope { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The usage of some choices: each prompt counts once, however many answers it has.
pub(super) fn total(usages: &[Usage], answers_a_prompt: usize) -> Usage {
    let mut total = Usage::default();
    for (k, usage) in usages.iter().enumerate() {
        total.completion_tokens += usage.completion_tokens;
        if k % answers_a_prompt.max(1) == 0 {
            total.prompt_tokens += usage.prompt_tokens;
            total.cached_tokens += usage.cached_tokens;
        }
    }
    total
}

/// As OpenAI writes it; so many tokens went into reasoning, where any did.
pub(super) fn usage(usage: Usage, reasoning_tokens: u32) -> Value {
    let mut written = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    });
    if reasoning_tokens > 0 {
        written["completion_tokens_details"] = json!({"reasoning_tokens": reasoning_tokens});
    }
    written
}

/// `finish_reason` of an answer that has as many tokens as it may.
pub(super) const LENGTH: &str = "length";

/// `finish_reason`.
pub(super) fn finish_reason(finished: &Finished) -> &'static str {
    match finished.reason {
        _ if finished.tool_calls => "tool_calls",
        FinishReason::EndOfSequence(_) | FinishReason::StopToken(_) | FinishReason::StopString(_) => "stop",
        FinishReason::GrammarComplete => "stop",
        FinishReason::Length => LENGTH,
    }
}

/// vLLM's `stop_reason`: the string or the token id of the request that ended the answer.
pub(super) fn stop_reason(reason: &FinishReason) -> Option<Value> {
    match reason {
        FinishReason::StopToken(id) => Some(json!(id.0)),
        FinishReason::StopString(stop) => Some(json!(stop)),
        FinishReason::EndOfSequence(_) | FinishReason::GrammarComplete | FinishReason::Length => None,
    }
}
