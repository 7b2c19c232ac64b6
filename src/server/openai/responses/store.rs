//! Responses that are kept, in memory and under bounds: when there are too many, the oldest go first.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::task::AbortHandle;

use super::{
    answer::{Draft, Outcome},
    told,
};
use crate::{
    engine::Finished,
    error::Result,
    server::http::choices::Whole,
    text::{ChatMessage, Role},
};

/// Responses that are kept at once.
const MAX_RESPONSES: usize = 1024;
/// Bytes of text that they hold together; the newest is kept whatever it holds.
const MAX_BYTES: usize = 64 << 20;

/// A response, and what it takes to go on from it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) response: Value,
    /// The conversation, the answer included once there is one; without instructions, which are each request's own.
    turns: Vec<ChatMessage>,
    input: Vec<Value>,
    /// Ends the making of a response in the background.
    making: Option<AbortHandle>,
}

impl Record {
    pub(super) fn new(response: Value, turns: Vec<ChatMessage>, input: Vec<Value>) -> Self {
        Self { response, turns, input, making: None }
    }

    /// Bytes of text: each turn is held as one, the new ones as items too, the answer also in the response.
    fn bytes(&self) -> usize {
        2 * self.turns.iter().map(|turn| turn.content.len()).sum::<usize>()
    }

    fn answered(&mut self, response: Value, text: String) {
        self.response = response;
        self.turns.push(ChatMessage::new(Role::Assistant, text));
    }
}

impl Drop for Record {
    /// What nobody can ask for is not made.
    fn drop(&mut self) {
        if let Some(making) = &self.making {
            making.abort();
        }
    }
}

/// The store.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    records: HashMap<String, Record>,
    /// Oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Kept {
    fn insert(&mut self, id: String, record: Record) {
        self.remove(&id);
        self.bytes += record.bytes();
        self.order.push_back(id.clone());
        self.records.insert(id, record);
        self.bound();
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(record) = self.records.remove(id) else { return false };
        self.bytes = self.bytes.saturating_sub(record.bytes());
        self.order.retain(|kept| kept != id);
        true
    }

    fn bound(&mut self) {
        while self.records.len() > MAX_RESPONSES || (self.bytes > MAX_BYTES && self.records.len() > 1) {
            let Some(oldest) = self.order.front().cloned() else { return };
            self.remove(&oldest);
        }
    }

    /// A response that was being made is whole. One that was cancelled or removed stays as it is.
    fn made(&mut self, id: &str, response: Value, text: String) {
        let Some(record) = self.records.get_mut(id).filter(|record| record.making.is_some()) else { return };
        record.making = None;
        let before = record.bytes();
        record.answered(response, text);
        self.bytes = self.bytes + record.bytes() - before;
        self.bound();
    }
}

impl Store {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response that is whole, with its text.
    pub(super) fn keep(&self, id: &str, mut record: Record, response: Value, text: String) {
        record.answered(response, text);
        self.kept().insert(id.to_owned(), record);
    }

    /// Keeps a response that `making` is yet to make.
    pub(super) fn spawn(
        self: &Arc<Self>,
        id: String,
        mut record: Record,
        making: impl Future<Output = Result<(Whole, Finished)>> + Send + 'static,
        draft: Draft,
    ) {
        let store = self.clone();
        // The task cannot report before its record is there: it needs the lock for that.
        let mut kept = self.kept();
        let task = tokio::spawn(async move {
            let (text, outcome) = match making.await {
                Ok((whole, finished)) => (whole.text, Outcome::Ended(finished)),
                Err(error) => (String::new(), told(error)),
            };
            let response = draft.finished(&text, &outcome);
            store.kept().made(&draft.id, response, text);
        });
        record.making = Some(task.abort_handle());
        kept.insert(id, record);
    }

    /// The response, as far as it is made.
    pub(super) fn response(&self, id: &str) -> Option<Value> {
        self.kept().records.get(id).map(|record| record.response.clone())
    }

    /// The conversation up to and including the answer.
    pub(super) fn turns(&self, id: &str) -> Option<Vec<ChatMessage>> {
        self.kept().records.get(id).map(|record| record.turns.clone())
    }

    /// The items of the request.
    pub(super) fn input(&self, id: &str) -> Option<Vec<Value>> {
        self.kept().records.get(id).map(|record| record.input.clone())
    }

    /// Forgets a response; whether there was one.
    pub(super) fn remove(&self, id: &str) -> bool {
        self.kept().remove(id)
    }

    /// Ends the making of a response; one that is whole stays as it is.
    pub(super) fn cancel(&self, id: &str) -> Option<Value> {
        let mut kept = self.kept();
        let record = kept.records.get_mut(id)?;
        if let Some(making) = record.making.take() {
            making.abort();
            record.response["status"] = "cancelled".into();
        }
        Some(record.response.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> Record {
        Record::new(Value::Null, vec![ChatMessage::new(Role::User, "x".repeat(bytes))], Vec::new())
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let store = Store::default();
        for k in 0..MAX_RESPONSES + 3 {
            store.keep(&k.to_string(), record(1), Value::Null, String::new());
        }
        let kept = store.kept();
        assert_eq!((kept.records.len(), kept.order.len()), (MAX_RESPONSES, MAX_RESPONSES));
        assert!(!kept.records.contains_key("2") && kept.records.contains_key("3"));
    }

    #[test]
    fn the_oldest_go_when_they_hold_too_much_but_the_newest_stays() {
        let store = Store::default();
        for id in ["a", "b", "c"] {
            store.keep(id, record(MAX_BYTES / 5), Value::Null, String::new());
        }
        assert!(store.response("a").is_none() && store.response("b").is_some() && store.response("c").is_some());
        store.keep("d", record(MAX_BYTES), Value::Null, String::new());
        assert!(store.response("c").is_none() && store.response("d").is_some());
        assert!(store.remove("d"));
        assert_eq!((store.kept().bytes, store.kept().order.len()), (0, 0));
    }
}
