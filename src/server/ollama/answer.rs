//! Answers of Ollama's API: lines of JSON, the last of which counts tokens and nanoseconds.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Ollama;
use crate::{
    engine::{Event, Finished},
    params::FinishReason,
    server::http::{
        failure::{Failure, Shape},
        frames::{Frames, Teller},
    },
};

/// Where a line carries its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// `message.content`.
    Chat,
    /// `response`.
    Generate,
}

/// Writes the lines of one answer.
pub(super) struct Lines {
    words: Words,
    model: String,
    began: Instant,
    first_token: Option<Instant>,
}

impl Lines {
    pub(super) fn new(words: Words, model: String) -> Self {
        Self { words, model, began: Instant::now(), first_token: None }
    }

    fn line(&self, text: &str, done: bool) -> Value {
        let mut line = json!({"model": self.model, "created_at": Timestamp::now().to_string()});
        match self.words {
            Words::Chat => line["message"] = json!({"role": "assistant", "content": text}),
            Words::Generate => line["response"] = text.into(),
        }
        line["done"] = done.into();
        line
    }

    /// The last line, with all that is left to say.
    pub(super) fn last(&self, text: &str, finished: &Finished) -> Value {
        let mut line = self.line(text, true);
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
        let mut line = self.line("", true);
        line["done_reason"] = "load".into();
        line
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
                if !delta.text.is_empty() {
                    frames.json(&self.line(&delta.text, false));
                }
            }
            Event::Finished(finished) => frames.json(&self.last("", &finished)),
        }
    }

    fn end(&mut self, _frames: &mut Frames) {}

    fn fail(&mut self, failure: Failure, frames: &mut Frames) {
        frames.json(&Ollama::body(&failure));
    }
}
