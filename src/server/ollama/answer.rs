//! Answers of Ollama's API: lines of JSON, the last of which counts tokens and nanoseconds.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Ollama;
use crate::{
    engine::{Event, Finished},
    params::FinishReason,
    server::http::{
        choices::Whole,
        failure::{Failure, Shape},
        frames::{Frames, Teller},
        parts::{Change, Kind, Part, Parts, What, parts},
    },
    text::ToolCall,
};

/// Where a line carries what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// `message.content`, `message.thinking`, `message.tool_calls`.
    Chat,
    /// `response`, `thinking`.
    Generate,
}

/// What a line says.
#[derive(Debug, Default)]
pub(super) struct Said {
    text: String,
    thinking: String,
    /// Calls come whole.
    calls: Vec<Value>,
}

impl Said {
    /// All of an answer.
    pub(super) fn of(whole: Whole) -> Self {
        let mut said = Self::default();
        if whole.pieces.is_empty() {
            said.text = whole.text;
        }
        for part in parts(whole.pieces) {
            match part {
                Part::Text(text) => said.text.push_str(&text),
                Part::Reasoning(text) => said.thinking.push_str(&text),
                Part::Call(call) => said.call(said.calls.len(), &call),
            }
        }
        said
    }

    /// Adds a call, unless the answer was cut off within it.
    fn call(&mut self, index: usize, call: &ToolCall) {
        if let Some(arguments) = call.arguments_object() {
            let function = json!({"index": index, "name": call.name, "arguments": arguments});
            self.calls.push(json!({"id": call.id, "function": function}));
        }
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty()
    }
}

/// Writes the lines of one answer.
pub(super) struct Lines {
    words: Words,
    model: String,
    began: Instant,
    first_token: Option<Instant>,
    parts: Parts,
    /// Calls that were told.
    calls: usize,
}

impl Lines {
    pub(super) fn new(words: Words, model: String) -> Self {
        Self { words, model, began: Instant::now(), first_token: None, parts: Parts::default(), calls: 0 }
    }

    fn line(&self, said: &Said, done: bool) -> Value {
        let mut line = json!({"model": self.model, "created_at": Timestamp::now().to_string()});
        let beside = match self.words {
            Words::Chat => {
                line["message"] = json!({"role": "assistant", "content": said.text});
                &mut line["message"]
            }
            Words::Generate => {
                line["response"] = said.text.as_str().into();
                &mut line
            }
        };
        if !said.thinking.is_empty() {
            beside["thinking"] = said.thinking.as_str().into();
        }
        if !said.calls.is_empty() {
            beside["tool_calls"] = said.calls.clone().into();
        }
        line["done"] = done.into();
        line
    }

    /// The last line, with all that is left to say.
    pub(super) fn last(&self, said: &Said, finished: &Finished) -> Value {
        let mut line = self.line(said, true);
        line["done_reason"] = match finished.reason {
            FinishReason::Length => "length".into(),
            _ => "stop".into(),
        };
        let total = self.began.elapsed();
        // An answer that was not streamed came at once: all of its time is the answer's.
        let prompt = self.first_token.map_or(Duration::ZERO, |first| first.duration_since(self.began));
        line["total_duration"] = nanos(total);
        line["load_duration"] = 0.into();
        line["prompt_eval_count"] = finished.usage.prompt_tokens.into();
        line["prompt_eval_duration"] = nanos(prompt);
        line["eval_count"] = finished.usage.completion_tokens.into();
        line["eval_duration"] = nanos(total.saturating_sub(prompt));
        line
    }

    /// The answer to a call that asks for the model to be loaded.
    pub(super) fn loaded(&mut self) -> Value {
        let mut line = self.line(&Said::default(), true);
        line["done_reason"] = "load".into();
        line
    }

    /// A line of what is new, if anything is.
    fn tell_new(&mut self, changes: impl IntoIterator<Item = Change>, text: String, frames: &mut Frames) {
        let mut said = Said { text, ..Said::default() };
        for change in changes {
            match change.what {
                What::Grew(Kind::Text, more) => said.text.push_str(&more),
                What::Grew(Kind::Reasoning, more) => said.thinking.push_str(&more),
                What::Closed(Part::Call(call)) => said.call(self.calls + said.calls.len(), &call),
                What::Opened(_) | What::Grew(Kind::Call, _) | What::Closed(_) => {}
            }
        }
        self.calls += said.calls.len();
        if !said.is_empty() {
            frames.json(&self.line(&said, false));
        }
    }
}

/// As Ollama writes a time.
pub(super) fn nanos(duration: Duration) -> Value {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).into()
}

impl Teller for Lines {
    fn tell(&mut self, _choice: usize, event: Event, frames: &mut Frames) {
        match event {
            Event::Started(_) | Event::Prompt(_) => {}
            Event::Delta(delta) => {
                self.first_token.get_or_insert_with(Instant::now);
                // What is no chat comes as text alone.
                let text = if delta.pieces.is_empty() { delta.text } else { String::new() };
                let changes: Vec<_> = delta.pieces.into_iter().flat_map(|piece| self.parts.take(piece)).collect();
                self.tell_new(changes, text, frames);
            }
            Event::Finished(finished) => {
                let last = self.parts.end();
                self.tell_new(last, String::new(), frames);
                frames.json(&self.last(&Said::default(), &finished));
            }
        }
    }

    fn end(&mut self, _frames: &mut Frames) {}

    fn fail(&mut self, failure: Failure, frames: &mut Frames) {
        frames.json(&Ollama::body(&failure));
    }
}
