//! The events of a response that streams: the response, its one item, the item's one part, the part's text.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    answer::{Draft, Outcome, part},
    store::{Record, Store},
};
use crate::{
    engine::{Event, Finished},
    server::http::{
        failure::Failure,
        frames::{Frames, Teller},
    },
};

/// Tells the events, and keeps the response at its end.
pub(super) struct ResponseEvents {
    draft: Draft,
    text: String,
    sequence_number: u64,
    keeping: Option<(Arc<Store>, Record)>,
}

impl ResponseEvents {
    /// With where the response is to be kept, if it is.
    pub(super) fn new(draft: Draft, keeping: Option<(Arc<Store>, Record)>) -> Self {
        Self { draft, text: String::new(), sequence_number: 0, keeping }
    }

    fn event(&mut self, frames: &mut Frames, kind: &'static str, mut fields: Value) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence_number.into();
        self.sequence_number += 1;
        frames.event(kind, &fields);
    }

    /// An event about the part.
    fn part_event(&mut self, frames: &mut Frames, kind: &'static str, mut fields: Value) {
        fields["item_id"] = self.draft.item_id.clone().into();
        fields["output_index"] = 0.into();
        fields["content_index"] = 0.into();
        self.event(frames, kind, fields);
    }

    fn begin(&mut self, frames: &mut Frames) {
        let response = self.draft.unfinished("in_progress");
        self.event(frames, "response.created", json!({"response": response}));
        self.event(frames, "response.in_progress", json!({"response": response}));
        let item = self.draft.item("in_progress", None);
        self.event(frames, "response.output_item.added", json!({"output_index": 0, "item": item}));
        self.part_event(frames, "response.content_part.added", json!({"part": part("")}));
    }

    fn finish(&mut self, finished: Finished, frames: &mut Frames) {
        let (text, outcome) = (std::mem::take(&mut self.text), Outcome::Ended(finished));
        let status = self.draft.status(&outcome);
        self.part_event(frames, "response.output_text.done", json!({"text": text, "logprobs": []}));
        self.part_event(frames, "response.content_part.done", json!({"part": part(&text)}));
        let item = self.draft.item(status, Some(&text));
        self.event(frames, "response.output_item.done", json!({"output_index": 0, "item": item}));
        let response = self.draft.finished(&text, &outcome);
        let kind = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.event(frames, kind, json!({"response": response}));
        if let Some((store, record)) = self.keeping.take() {
            store.keep(&self.draft.id, record, response, text);
        }
    }
}

impl Teller for ResponseEvents {
    fn tell(&mut self, _choice: usize, event: Event, frames: &mut Frames) {
        match event {
            Event::Started(_) => self.begin(frames),
            Event::Prompt(_) => {}
            Event::Delta(delta) if delta.text.is_empty() => {}
            Event::Delta(delta) => {
                self.text.push_str(&delta.text);
                let fields = json!({"delta": delta.text, "logprobs": []});
                self.part_event(frames, "response.output_text.delta", fields);
            }
            Event::Finished(finished) => self.finish(finished, frames),
        }
    }

    fn end(&mut self, _frames: &mut Frames) {}

    fn fail(&mut self, failure: Failure, frames: &mut Frames) {
        let response = self.draft.finished("", &Outcome::Failed(failure.message));
        self.event(frames, "response.failed", json!({"response": response}));
    }
}
