//! The events of a response that streams: the response, its items one after another, what grows in each.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    answer::{Answer, COMPLETED, Draft, IN_PROGRESS, Outcome, content},
    store::{Name, Record, Store},
};
use crate::{
    engine::{Event, Finished},
    server::http::{
        failure::Failure,
        frames::{Frames, Teller},
        parts::{Change, Kind, Part, Parts, ReasoningTokens, What},
    },
};

/// Tells the events, and keeps the response at its end.
pub(super) struct ResponseEvents {
    draft: Draft,
    /// The item that grows.
    parts: Parts,
    /// Those that have ended.
    whole: Vec<Part>,
    reasoning: ReasoningTokens,
    sequence_number: u64,
    keeping: Keeping,
}

/// What becomes of the response at its end.
pub(super) enum Keeping {
    Nothing,
    /// It is kept if it comes to one of its own.
    Whole(Arc<Store>, Box<Record>),
    /// It is kept already, and is made.
    Made(Arc<Store>, Name),
}

impl ResponseEvents {
    pub(super) fn new(draft: Draft, keeping: Keeping) -> Self {
        let (parts, whole, reasoning) = (Parts::default(), Vec::new(), ReasoningTokens::default());
        Self { draft, parts, whole, reasoning, sequence_number: 0, keeping }
    }

    fn event(&mut self, frames: &mut Frames, kind: &'static str, mut fields: Value) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence_number.into();
        self.sequence_number += 1;
        frames.event(kind, &fields);
    }

    /// An event about what is in an item.
    fn item_event(&mut self, frames: &mut Frames, (index, kind): (usize, Kind), name: &'static str, mut fields: Value) {
        fields["item_id"] = self.draft.item_id(index, kind).into();
        fields["output_index"] = index.into();
        if kind != Kind::Call {
            fields["content_index"] = 0.into();
        }
        self.event(frames, name, fields);
    }

    fn begin(&mut self, frames: &mut Frames) {
        let response = self.draft.unfinished(IN_PROGRESS);
        self.event(frames, "response.created", json!({"response": response}));
        self.event(frames, "response.in_progress", json!({"response": response}));
    }

    /// Tells a change; an item that ends with it gets this status.
    fn change(&mut self, frames: &mut Frames, Change { index, what }: Change, status: &str) {
        match what {
            What::Opened(part) => {
                let item = self.draft.item(index, &part, IN_PROGRESS);
                let added = json!({"output_index": index, "item": item});
                self.event(frames, "response.output_item.added", added);
                if let Some(content) = content(&part) {
                    let fields = json!({"part": content});
                    self.item_event(frames, (index, part.kind()), "response.content_part.added", fields);
                }
            }
            What::Grew(kind, more) => {
                let (name, fields) = match kind {
                    Kind::Text => ("response.output_text.delta", json!({"delta": more, "logprobs": []})),
                    Kind::Reasoning => ("response.reasoning_text.delta", json!({"delta": more})),
                    Kind::Call => ("response.function_call_arguments.delta", json!({"delta": more})),
                };
                self.item_event(frames, (index, kind), name, fields);
            }
            What::Closed(part) => {
                let (name, fields) = match &part {
                    Part::Text(text) => ("response.output_text.done", json!({"text": text, "logprobs": []})),
                    Part::Reasoning(text) => ("response.reasoning_text.done", json!({"text": text})),
                    Part::Call(call) => {
                        let fields = json!({"name": call.name, "arguments": call.arguments});
                        ("response.function_call_arguments.done", fields)
                    }
                };
                self.item_event(frames, (index, part.kind()), name, fields);
                if let Some(content) = content(&part) {
                    let fields = json!({"part": content});
                    self.item_event(frames, (index, part.kind()), "response.content_part.done", fields);
                }
                let item = self.draft.item(index, &part, status);
                self.event(frames, "response.output_item.done", json!({"output_index": index, "item": item}));
                self.whole.push(part);
            }
        }
    }

    fn finish(&mut self, finished: Finished, frames: &mut Frames) {
        let outcome = Outcome::Ended(finished);
        let status = self.draft.status(&outcome);
        match self.parts.end() {
            Some(last) => self.change(frames, last, status),
            // An answer without a word is a message all the same.
            None if self.whole.is_empty() => {
                let nothing = || Part::Text(String::new());
                self.change(frames, Change { index: 0, what: What::Opened(nothing()) }, status);
                self.change(frames, Change { index: 0, what: What::Closed(nothing()) }, status);
            }
            None => {}
        }
        let parts = std::mem::take(&mut self.whole);
        let answer = Answer { parts, reasoning_tokens: self.reasoning.count() };
        let response = self.draft.finished(&answer, &outcome);
        let kind = if status == COMPLETED { "response.completed" } else { "response.incomplete" };
        self.event(frames, kind, json!({"response": response}));
        match std::mem::replace(&mut self.keeping, Keeping::Nothing) {
            Keeping::Nothing => {}
            Keeping::Whole(store, record) => store.keep(&self.draft.id, *record, response, &answer),
            Keeping::Made(store, name) => store.made(&name, response, &answer),
        }
    }
}

impl Teller for ResponseEvents {
    fn tell(&mut self, _choice: usize, event: Event, frames: &mut Frames) {
        match event {
            Event::Started(_) => self.begin(frames),
            Event::Prompt(_) => {}
            Event::Delta(delta) => {
                self.reasoning.take(delta.tokens.len(), &delta.pieces);
                for piece in delta.pieces {
                    for change in self.parts.take(piece) {
                        self.change(frames, change, COMPLETED);
                    }
                }
            }
            Event::Finished(finished) => self.finish(finished, frames),
        }
    }

    fn end(&mut self, _frames: &mut Frames) {}

    fn fail(&mut self, failure: Failure, frames: &mut Frames) {
        let response = self.draft.finished(&Answer::default(), &Outcome::Failed(failure.message));
        self.event(frames, "response.failed", json!({"response": response}));
        if let Keeping::Made(store, name) = &self.keeping {
            store.made(name, response, &Answer::default());
        }
    }
}
