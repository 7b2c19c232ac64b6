//! Responses that are kept, in memory and under bounds: when there are too many, the oldest that are whole go first, of the
//! tenant that holds the most. Those that are being made stay, and have [room](super::making) of their own. Nobody finds what
//! belongs to another.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::body::Bytes;
use futures::FutureExt;
use serde_json::{Value, json};
use tokio::task::{self, AbortHandle};

use super::{
    answer::Answer,
    making::{Making, Room},
};
use crate::{
    error::{Code, Error, Result},
    server::{
        access::Owner,
        http::parts::turn,
        ring::{Attachment, Ring},
    },
    text::{ChatMessage, ToolCall, json_bytes},
};

/// Responses that are kept at once.
const MAX_RESPONSES: usize = 1024;
/// Bytes that they hold together; the newest is kept whatever it holds.
const MAX_BYTES: usize = 64 << 20;
/// Of those, how many may be held by responses, and what they may hold, that are still being made: half, so that one that is
/// whole stays for as long as its client takes to come for it.
const MAX_MAKING: (usize, usize) = (MAX_RESPONSES / 2, MAX_BYTES / 2);

/// Whose a response is, and its id: clients may choose those.
pub(super) type Name = (Owner, String);

/// A response, and what it takes to go on from it.
#[derive(Debug)]
pub(super) struct Record {
    owner: Owner,
    /// Shared with who reads it, so that nothing is copied while others wait for the store.
    pub(super) response: Arc<Value>,
    /// The conversation, the answer included once there is one; without instructions, which are each request's own.
    turns: Arc<Vec<ChatMessage>>,
    input: Arc<Vec<Value>>,
    /// What all of it holds.
    bytes: usize,
    /// While it is being made in the background, its room.
    making: Option<Room>,
    /// What makes it, and after that keeps its events for some time.
    task: Option<AbortHandle>,
    events: Events,
}

/// The events of a response, for those who read it as it is made, or come back to it.
#[derive(Debug)]
enum Events {
    /// Nobody asked for them when it was made.
    Never,
    /// Each as it goes out, numbered from 1; and the bytes that are reckoned for them.
    Kept(Arc<Ring<Bytes>>, usize),
    Gone,
}

impl Record {
    pub(super) fn new(owner: Owner, response: Value, turns: Vec<ChatMessage>, input: Vec<Value>) -> Self {
        let items = input.iter().map(json_bytes).sum::<usize>();
        let bytes = json_bytes(&response) + items + turns.iter().map(turn_bytes).sum::<usize>();
        let (response, turns, input) = (response.into(), turns.into(), input.into());
        Self { owner, response, turns, input, bytes, making: None, task: None, events: Events::Never }
    }

    /// What it is kept under.
    pub(super) fn name(&self, id: &str) -> Name {
        name(&self.owner, id)
    }

    /// The same of one whose events are told through a ring of so many bytes.
    pub(super) fn told(self, ring: Arc<Ring<Bytes>>, bytes: usize) -> Self {
        let mut told = self;
        told.bytes += bytes;
        told.events = Events::Kept(ring, bytes);
        told
    }

    /// Keeps its events no longer, those of this ring if one is named; who reads them reads on. Gives the ring.
    fn forget_events(&mut self, of: Option<&Arc<Ring<Bytes>>>) -> Option<Arc<Ring<Bytes>>> {
        let Events::Kept(ring, bytes) = &self.events else { return None };
        if of.is_some_and(|of| !Arc::ptr_eq(ring, of)) {
            return None;
        }
        let ring = ring.clone();
        self.bytes = self.bytes.saturating_sub(*bytes);
        self.events = Events::Gone;
        Some(ring)
    }

    /// Whether the task that asks is its own, and not that of one that had its name before.
    fn is_of_this_task(&self) -> bool {
        self.task.as_ref().is_some_and(|task| Some(task.id()) == task::try_id())
    }

    fn answered(&mut self, response: Value, answer: &Answer) {
        let turn = turn(&answer.parts);
        self.bytes = self.bytes.saturating_sub(json_bytes(&self.response)) + json_bytes(&response) + turn_bytes(&turn);
        self.response = response.into();
        Arc::make_mut(&mut self.turns).push(turn);
    }
}

fn turn_bytes(turn: &ChatMessage) -> usize {
    let call = |call: &ToolCall| size_of::<ToolCall>() + call.id.len() + call.name.len() + call.arguments.len();
    let others = [&turn.reasoning, &turn.tool_call_id, &turn.name].into_iter().flatten().map(String::len);
    let calls = turn.tool_calls.iter().map(call);
    size_of::<ChatMessage>() + turn.content.len() + others.chain(calls).sum::<usize>()
}

impl Drop for Record {
    /// What nobody can ask for is not made, and not told.
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if let Some(ring) = self.forget_events(None) {
            ring.end(Err(Error::new(Code::NotFound, "the response is no longer kept")));
            ring.forget();
        }
    }
}

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    kept: Mutex<Kept>,
    making: Making,
}

impl Default for Store {
    fn default() -> Self {
        let (responses, bytes) = MAX_MAKING;
        Self { kept: Mutex::default(), making: Making::new(bytes, responses) }
    }
}

#[derive(Debug, Default)]
struct Kept {
    records: HashMap<Name, Record>,
    /// Oldest first.
    order: VecDeque<Name>,
    bytes: usize,
}

impl Kept {
    fn insert(&mut self, id: &str, record: Record) {
        let name = (record.owner.clone(), id.to_owned());
        self.remove(&name);
        self.bytes += record.bytes;
        self.order.push_back(name.clone());
        self.records.insert(name, record);
        self.bound();
    }

    fn remove(&mut self, name: &Name) -> bool {
        let Some(record) = self.records.remove(name) else { return false };
        self.bytes = self.bytes.saturating_sub(record.bytes);
        self.order.retain(|kept| kept != name);
        true
    }

    fn bound(&mut self) {
        while self.records.len() > MAX_RESPONSES || (self.bytes > MAX_BYTES && self.records.len() > 1) {
            let size = |record: &Record| if self.records.len() > MAX_RESPONSES { 1 } else { record.bytes };
            let mut held: HashMap<&Owner, usize> = HashMap::new();
            self.records.values().for_each(|record| *held.entry(&record.owner).or_default() += size(record));
            // The newest is somebody's answer of this moment.
            let older = self.order.iter().take(self.order.len().saturating_sub(1));
            let is_whole = |name: &&Name| self.records.get(*name).is_some_and(|record| record.making.is_none());
            let size_of_all = |(owner, _): &&Name| Reverse(held.get(owner).copied().unwrap_or_default());
            // Of several with the most, the first: the oldest.
            let Some(goes) = older.filter(is_whole).min_by_key(size_of_all).cloned() else { return };
            self.remove(&goes);
        }
    }

    /// Changes a record; what it holds then counts.
    fn change<R>(&mut self, name: &Name, change: impl FnOnce(&mut Record) -> R) -> Option<R> {
        let record = self.records.get_mut(name)?;
        let before = record.bytes;
        let changed = change(record);
        self.bytes = (self.bytes + record.bytes).saturating_sub(before);
        Some(changed)
    }
}

impl Store {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response that is whole.
    pub(super) fn keep(&self, id: &str, mut record: Record, response: Value, answer: &Answer) {
        record.answered(response, answer);
        self.kept().insert(id, record);
    }

    /// Finds room for a response that is to be made in the background, with so many bytes for its events.
    ///
    /// # Errors
    /// `ResourceExhausted` where those that are being made leave none.
    pub(super) fn admit(&self, mut record: Record, events: usize) -> Result<Record> {
        record.making = Some(self.making.take(&record.owner, record.bytes + events)?);
        Ok(record)
    }

    /// Keeps a response that was [admitted](Self::admit), which `making` is yet to make, and says so when it has
    /// ([`made`](Self::made)). Forgetting the response ends it, made or not.
    pub(super) fn spawn(
        self: &Arc<Self>,
        id: &str,
        mut record: Record,
        making: impl Future<Output = ()> + Send + 'static,
    ) {
        if let Some(room) = &mut record.making {
            room.begin();
        }
        let (store, name) = (self.clone(), record.name(id));
        let making = async move {
            if AssertUnwindSafe(making).catch_unwind().await.is_err() {
                store.broke(&name);
            }
        };
        // The task cannot report before its record is there: it needs the lock for that.
        let mut kept = self.kept();
        record.task = Some(tokio::spawn(making).abort_handle());
        kept.insert(id, record);
    }

    /// What this task was to make it never will.
    fn broke(&self, name: &Name) {
        let why = "the task that made this response panicked";
        let ring = self.kept().change(name, |record| {
            if !record.is_of_this_task() {
                return None;
            }
            if record.making.take().is_some() {
                let response = Arc::make_mut(&mut record.response);
                response["status"] = "failed".into();
                response["error"] = json!({"code": "server_error", "message": why});
            }
            record.forget_events(None)
        });
        if let Some(ring) = ring.flatten() {
            ring.end(Err(Error::internal(why)));
        }
    }

    /// The response that this task makes is whole. One that was cancelled, or of which another has the name, stays as it is.
    pub(super) fn made(&self, name: &Name, response: Value, answer: &Answer) {
        let mut kept = self.kept();
        kept.change(name, |record| {
            if record.is_of_this_task() && record.making.take().is_some() {
                record.answered(response, answer);
            }
        });
        kept.bound();
    }

    /// Keeps the events of this ring no longer.
    pub(super) fn forget_events(&self, name: &Name, ring: &Arc<Ring<Bytes>>) {
        self.kept().change(name, |record| record.forget_events(Some(ring)));
    }

    /// Reads the events of a response behind the one with this number, counted from 1; none where no such response is kept.
    ///
    /// # Errors
    /// `InvalidArgument` (`stream`, `starting_after`) where it was not made to be read so, or has not come so far; `DataLoss`
    /// where what comes next is no longer kept.
    pub(super) fn read(&self, owner: &Owner, id: &str, after: u64) -> Option<Result<Attachment<Bytes>>> {
        let kept = self.kept();
        let lost = || {
            let why = "the events that come next are no longer kept: ask for the response without stream";
            Error::new(Code::DataLoss, why)
        };
        Some(match &kept.records.get(&name(owner, id))?.events {
            Events::Never => {
                let why = "is for responses that were made with background and stream";
                Err(Error::invalid("stream", why))
            }
            Events::Gone => Err(lost()),
            Events::Kept(ring, _) => ring.attach(after).map_err(|error| match error.code {
                Code::DataLoss => lost(),
                _ => Error::invalid("starting_after", "is the number of an event that has not come yet"),
            }),
        })
    }

    /// The response, as far as it is made.
    pub(super) fn response(&self, owner: &Owner, id: &str) -> Option<Arc<Value>> {
        self.kept().records.get(&name(owner, id)).map(|record| record.response.clone())
    }

    /// The conversation up to and including the answer.
    pub(super) fn turns(&self, owner: &Owner, id: &str) -> Option<Arc<Vec<ChatMessage>>> {
        self.kept().records.get(&name(owner, id)).map(|record| record.turns.clone())
    }

    /// The items of the request.
    pub(super) fn input(&self, owner: &Owner, id: &str) -> Option<Arc<Vec<Value>>> {
        self.kept().records.get(&name(owner, id)).map(|record| record.input.clone())
    }

    /// Forgets a response; whether there was one.
    pub(super) fn remove(&self, owner: &Owner, id: &str) -> bool {
        self.kept().remove(&name(owner, id))
    }

    /// Ends the making of a response; one that is whole stays as it is.
    pub(super) fn cancel(&self, owner: &Owner, id: &str) -> Option<Arc<Value>> {
        self.kept().change(&name(owner, id), |record| {
            if record.making.take().is_some() {
                if let Some(task) = &record.task {
                    task.abort();
                }
                Arc::make_mut(&mut record.response)["status"] = "cancelled".into();
                // Who reads them has what was said, and hears no more.
                if let Some(ring) = record.forget_events(None) {
                    ring.end(Ok(()));
                }
            }
            record.response.clone()
        })
    }
}

fn name(owner: &Owner, id: &str) -> Name {
    (owner.clone(), id.to_owned())
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::{
        server::{http::parts::Part, ring::RingLimits},
        text::Role,
    };

    fn record(bytes: usize) -> Record {
        record_of(None, bytes)
    }

    fn record_of(owner: Owner, bytes: usize) -> Record {
        let text = "x".repeat(bytes);
        Record::new(owner, Value::Null, vec![ChatMessage::new(Role::User, text.clone())], vec![text.into()])
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let store = Store::default();
        for k in 0..MAX_RESPONSES + 3 {
            store.keep(&k.to_string(), record(1), Value::Null, &Answer::default());
        }
        let kept = store.kept();
        assert_eq!((kept.records.len(), kept.order.len()), (MAX_RESPONSES, MAX_RESPONSES));
        let has = |id: &str| kept.records.contains_key(&name(&None, id));
        assert!(!has("2") && has("3"));
    }

    #[test]
    fn the_oldest_go_when_they_hold_too_much_but_the_newest_stays() {
        let store = Store::default();
        for id in ["a", "b", "c"] {
            store.keep(id, record(MAX_BYTES / 5), Value::Null, &Answer::default());
        }
        let has = |id: &str| store.response(&None, id).is_some();
        assert!(!has("a") && has("b") && has("c"));
        store.keep("d", record(MAX_BYTES), Value::Null, &Answer::default());
        assert!(!has("c") && has("d"));
        assert!(store.remove(&None, "d"));
        let kept = store.kept();
        assert_eq!((kept.bytes, kept.order.len()), (0, 0));
    }

    #[test]
    fn whatever_a_response_holds_counts() {
        let store = Store::default();
        // Neither is the text of a turn: what the response repeats of its request, and many items of next to nothing.
        let repeated = || Record::new(None, "x".repeat(MAX_BYTES / 5 * 2).into(), Vec::new(), Vec::new());
        let nulls = vec![Value::Null; MAX_BYTES / 5 * 2 / size_of::<Value>()];
        let items = || Record::new(None, Value::Null, Vec::new(), nulls.clone());
        for (name, record) in [("a", repeated()), ("b", items()), ("c", repeated()), ("d", items())] {
            store.kept().insert(name, record);
        }
        let has = |id: &str| store.response(&None, id).is_some();
        assert!(!has("a") && !has("b") && has("c") && has("d"));
        assert!(store.kept().bytes <= MAX_BYTES);
        for id in ["c", "d"] {
            store.remove(&None, id);
        }
        assert_eq!(store.kept().bytes, 0);
    }

    #[test]
    fn what_a_model_thought_and_called_counts_too() {
        let long = || "x".repeat(MAX_BYTES / 5);
        let call = ToolCall { id: String::new(), name: String::new(), arguments: long() };
        let answer = Answer { parts: vec![Part::Reasoning(long()), Part::Call(call)], reasoning_tokens: 0 };
        let store = Store::default();
        for id in ["a", "b", "c"] {
            store.keep(id, record(0), Value::Null, &answer);
        }
        let has = |id: &str| store.response(&None, id).is_some();
        assert!(!has("a") && has("b") && has("c"));
        assert_eq!(store.turns(&None, "c").unwrap().last().unwrap().tool_calls.len(), 1);
    }

    #[test]
    fn a_tenant_that_keeps_much_pushes_out_its_own() {
        let store = Store::default();
        let (a, b): (Owner, Owner) = (Some("a".into()), Some("b".into()));
        store.keep("x", record_of(b.clone(), 1), Value::Null, &Answer::default());
        for k in 0..2 * MAX_RESPONSES {
            store.keep(&k.to_string(), record_of(a.clone(), 1), Value::Null, &Answer::default());
        }
        assert!(store.response(&b, "x").is_some() && store.response(&a, "x").is_none());
        assert_eq!(store.kept().records.len(), MAX_RESPONSES);
    }

    /// One in the making that holds so many bytes.
    fn in_the_making(store: &Store, owner: Owner, bytes: usize) -> Result<Record> {
        store.admit(Record::new(owner, json!({"status": "in_progress"}), Vec::new(), Vec::new()), bytes)
    }

    #[tokio::test]
    async fn those_in_the_making_push_out_what_is_whole_and_never_each_other() {
        let store = Arc::new(Store::default());
        // An eighth with what else it holds.
        let bytes = MAX_MAKING.1 / 8 - (4 << 10);
        let whole = |id: &str| store.keep(id, record_of(None, bytes / 2), Value::Null, &Answer::default());
        ["whole 1", "whole 2"].into_iter().for_each(whole);
        let mut made = 0;
        let refused = loop {
            // Their events take the room, as those of streams do.
            match in_the_making(&store, None, bytes) {
                Err(refused) => break refused,
                Ok(record) => {
                    let ring = Ring::new(RingLimits { events: 4, bytes });
                    store.spawn(&made.to_string(), record.told(ring, bytes), std::future::pending());
                    made += 1;
                }
            }
        };
        assert_eq!((made, refused.code), (8, Code::ResourceExhausted));
        (3..20).for_each(|k| whole(&format!("whole {k}")));
        let has = |id: &str| store.response(&None, id).is_some();
        assert!((0..made).all(|id| has(&id.to_string())), "they stay");
        assert!(!has("whole 1") && !has("whole 2") && has("whole 18") && has("whole 19"));
        assert!(store.kept().bytes <= MAX_BYTES);
        store.remove(&None, "0");
        drop(in_the_making(&store, None, bytes).unwrap());
        store.cancel(&None, "1");
        assert!(in_the_making(&store, None, 2 * bytes).is_ok(), "two have left room");
    }

    #[tokio::test]
    async fn a_response_that_is_forgotten_ends_its_task_though_it_is_whole() {
        let store = Arc::new(Store::default());
        let remove: fn(&Arc<Store>) = |store| assert!(store.remove(&None, "x"));
        let replace: fn(&Arc<Store>) = |store| store.keep("x", record(1), Value::Null, &Answer::default());
        let evict: fn(&Arc<Store>) = |store| {
            for k in 0..MAX_RESPONSES {
                store.keep(&k.to_string(), record(1), Value::Null, &Answer::default());
            }
        };
        for forget in [remove, replace, evict] {
            let holds = Arc::new(());
            let (held, kept) = (holds.clone(), store.clone());
            store.spawn("x", in_the_making(&store, None, 1).unwrap(), async move {
                kept.made(&name(&None, "x"), json!({"status": "completed"}), &Answer::default());
                // As it does for those who come back for its events.
                std::future::pending::<()>().await;
                drop(held);
            });
            while store.response(&None, "x").unwrap()["status"] != "completed" {
                task::yield_now().await;
            }
            assert_eq!(Arc::strong_count(&holds), 2);
            forget(&store);
            task::yield_now().await;
            assert_eq!(Arc::strong_count(&holds), 1);
        }
    }

    #[tokio::test]
    async fn a_response_whose_task_panics_has_failed_and_its_reader_hears_of_it() {
        let store = Arc::new(Store::default());
        let ring = Ring::new(RingLimits { events: 4, bytes: 1000 });
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        let record = in_the_making(&store, None, MAX_MAKING.1).unwrap().told(ring.clone(), 1000);
        assert!(in_the_making(&store, None, 1).is_err());
        store.spawn("x", record, async { panic!("a drill") });
        assert_eq!(reader.next().await.unwrap().unwrap_err().code, Code::Internal);
        assert_eq!(store.response(&None, "x").unwrap()["status"], "failed");
        assert!(in_the_making(&store, None, MAX_MAKING.1).is_ok(), "its room is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn events_count_while_they_are_kept_and_go_with_their_response() {
        let store = Arc::new(Store::default());
        let ring = || Ring::new(RingLimits { events: 4, bytes: 1000 });
        let plain = record(1).bytes;
        let keep = |id: &str, ring: &Arc<Ring<Bytes>>| {
            ring.push(1, Bytes::from_static(b"x"));
            store.spawn(id, record(1).told(ring.clone(), 1000), std::future::pending());
        };
        let (first, second, other) = (ring(), ring(), ring());
        keep("a", &first);
        keep("b", &second);
        assert_eq!(store.kept().bytes, 2 * (plain + 1000));
        let heard = |id: &str| store.read(&None, id, 0).unwrap().unwrap().events();
        let (of_first, of_second) = (heard("a"), heard("b"));
        store.forget_events(&name(&None, "a"), &other);
        assert!(store.read(&None, "a", 1).unwrap().is_ok(), "that was the ring of one before it");
        store.forget_events(&name(&None, "a"), &first);
        assert_eq!(store.kept().bytes, 2 * plain + 1000);
        assert_eq!(store.read(&None, "a", 1).unwrap().err().unwrap().code, Code::DataLoss);
        first.end(Ok(()));
        store.remove(&None, "b");
        assert!(store.read(&None, "b", 0).is_none() && store.kept().bytes == plain);
        let code = |event: Result<(u64, Bytes)>| event.map(|(number, _)| number).map_err(|error| error.code);
        let (of_first, of_second): (Vec<_>, Vec<_>) =
            tokio::join!(of_first.map(code).collect(), of_second.map(code).collect());
        assert_eq!((of_first, of_second), (vec![Err(Code::Aborted)], vec![Err(Code::DataLoss)]));
    }
}
