//! Responses that are made whether or not anybody waits: as a whole, or as events that are kept for whoever reads them.
//!
//! Events go through a [`Ring`], as those of gRPC's resumable streams do: while somebody reads, they wait for the reader;
//! while nobody does, they are made all the same, and the oldest make room. Some time after the last one nobody can come back
//! to them; the response is kept for longer.

use std::sync::Arc;

use axum::{body::Bytes, response::Response};
use form_urlencoded::parse;
use futures::{Stream, StreamExt};
use serde_json::json;
use tokio::time::sleep;

use super::{
    answer::{Answer, Draft, Outcome},
    events::{Keeping, ResponseEvents},
    store::{Record, Store},
    told,
};
use crate::{
    config::StreamArgs,
    error::{Error, Result},
    server::{
        held::HoldsNoPlace,
        http::{
            choices::Choices,
            failure::{Failure, Shape},
            frames::{Telling, each, sse},
        },
        openai::error::OpenAi,
        ring::{Attachment, Ring, RingLimits},
    },
};

/// Has a response made that was admitted.
pub(super) fn make(store: Arc<Store>, record: Record, choices: Choices, draft: Draft) {
    let (id, name, kept) = (draft.id.clone(), record.name(&draft.id), store.clone());
    store.spawn(&id, record, async move {
        let (answer, outcome) = match choices.one().await {
            Ok((whole, finished)) => (Answer::from(whole), Outcome::Ended(finished)),
            Err(error) => (Answer::default(), told(error)),
        };
        let response = draft.finished(&answer, &outcome);
        kept.made(&name, response, &answer);
    });
}

/// The same of one whose events are kept as well; the answer is their first reader's.
///
/// # Errors
/// None: a new ring has all its events.
pub(super) fn tell(
    store: Arc<Store>,
    record: Record,
    choices: Choices,
    draft: Draft,
    limits: &StreamArgs,
) -> Result<Response> {
    let (id, name, ttl) = (draft.id.clone(), record.name(&draft.id), limits.resume_ttl);
    let ring = Ring::new(RingLimits { events: limits.resume_ring_events, bytes: limits.resume_ring_bytes });
    let reader = ring.attach(0)?;
    let record = record.told(ring.clone(), limits.resume_ring_bytes);
    let pieces = Telling::new(choices, ResponseEvents::new(draft, Keeping::Made(store.clone(), name.clone())));
    let kept = store.clone();
    store.spawn(&id, record, async move {
        fill(&ring, pieces).await;
        // Who went long ago may come back now.
        sleep(ttl).await;
        ring.abandoned(ttl).await;
        kept.forget_events(&name, &ring);
    });
    Ok(events(reader, 0))
}

/// Moves what is told into a ring, each event when there is room for it, and lets go of who told it.
async fn fill(ring: &Ring<Bytes>, mut pieces: impl Stream<Item = Bytes> + Unpin) {
    loop {
        // Who does not read holds up the model, and not what it has said.
        ring.room(0).await;
        let Some(piece) = pieces.next().await else { break };
        for event in each(&piece) {
            ring.room(event.len()).await;
            ring.push(event.len(), event);
        }
    }
    ring.end(Ok(()));
}

/// The answer to who reads events from behind the one with this number, counted from 1.
pub(super) fn events(reader: Attachment<Bytes>, after: u64) -> Response {
    let has_ended = reader.has_ended();
    // Numbers on the wire count from 0.
    let mut sequence_number = after;
    let mut answer = sse(Box::pin(reader.events().map(move |event| match event {
        Ok((number, event)) => {
            sequence_number = number;
            event
        }
        Err(error) => lost(error, sequence_number),
    })));
    if has_ended {
        answer.extensions_mut().insert(HoldsNoPlace);
    }
    answer
}

/// What a reader is told that hears no more.
fn lost(error: Error, sequence_number: u64) -> Bytes {
    let failure = Failure::from(error);
    let code = OpenAi::body(&failure)["error"]["code"].take();
    let error = json!({
        "type": "error", "code": code, "message": failure.message, "param": null, "sequence_number": sequence_number,
    });
    format!("event: error\ndata: {error}\n\n").into()
}

/// From behind which event, counted from 1, a query asks for events; none where it asks for the response.
///
/// # Errors
/// `InvalidArgument` by the parameter that is wrong.
pub(super) fn wanted(query: &str) -> Result<Option<u64>> {
    let value = |name: &str| parse(query.as_bytes()).find_map(|(own, value)| (own == name).then_some(value));
    let stream = match value("stream").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Error::invalid("stream", "must be true or false")),
    };
    let after = value("starting_after").map(|number| number.parse::<u64>());
    match after.transpose() {
        Err(_) => Err(Error::invalid("starting_after", "must be the sequence_number of an event")),
        Ok(Some(_)) if !stream => Err(Error::invalid("starting_after", "is for stream=true")),
        // Numbers on the wire count from 0.
        Ok(after) => Ok(stream.then(|| after.map_or(0, |number| number.saturating_add(1)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece with events of so many bytes each.
    fn piece(events: &[usize]) -> Bytes {
        let event = |&bytes: &usize| format!("data: {}\n\n", "x".repeat(bytes));
        events.iter().map(event).collect::<String>().into()
    }

    fn ring(bytes: usize) -> Arc<Ring<Bytes>> {
        Ring::new(RingLimits { events: 100, bytes })
    }

    #[tokio::test]
    async fn a_reader_that_reads_gets_all_events_however_large_the_last_ones_are() {
        // A request that is repeated twice, a word, and what says the same once more at the end, all of it in one piece.
        let pieces = [piece(&[4000, 4000]), piece(&[10]), piece(&[10, 10, 2000, 2000, 2000, 6000])];
        let all = pieces.concat();
        let ring = ring(256);
        let reader = ring.attach(0).unwrap().events().map(|event| event.unwrap().1);
        let ((), read) = tokio::join!(fill(&ring, futures::stream::iter(pieces)), reader.collect::<Vec<_>>());
        assert_eq!((read.len(), read.concat()), (9, all));
    }

    #[tokio::test]
    async fn what_is_kept_of_events_is_what_they_are_and_nobody_who_told_them() {
        let teller = Arc::new(());
        let told = teller.clone();
        let large = piece(&[10, 100_000]);
        let whole = large.clone();
        let pieces = futures::stream::iter([large]).inspect(move |_| drop(told.clone()));
        let ring = ring(256 << 10);
        fill(&ring, pieces).await;
        assert_eq!(Arc::strong_count(&teller), 1);
        assert!(whole.is_unique(), "the piece is gone");
        assert_eq!(ring.attach(0).unwrap().events().count().await, 2);
    }

    #[tokio::test]
    async fn who_reads_a_stream_that_has_ended_holds_no_place() {
        let ring = ring(100);
        let holds_none = || events(ring.attach(0).unwrap(), 0).extensions().get::<HoldsNoPlace>().is_some();
        assert!(!holds_none());
        ring.end(Ok(()));
        assert!(holds_none());
    }

    #[test]
    fn a_query_says_from_where_events_are_read_on() {
        for (query, after) in [
            ("", None),
            ("include=x&stream=false", None),
            ("stream=true", Some(0)),
            ("starting_after=0&stream=true", Some(1)),
            ("stream=true&starting_after=41&include_obfuscation=false", Some(42)),
            ("%73tream=tru%65&starting_after=%34", Some(5)),
        ] {
            assert_eq!(wanted(query).unwrap(), after, "{query}");
        }
        for (query, field) in [
            ("stream=yes", "stream"),
            ("stream", "stream"),
            ("stream=&starting_after=3", "stream"),
            ("stream=true&starting_after", "starting_after"),
            ("starting_after=3", "starting_after"),
            ("stream=true&starting_after=-1", "starting_after"),
            ("stream=true&starting_after=", "starting_after"),
        ] {
            assert_eq!(wanted(query).unwrap_err().violations[0].field, field, "{query}");
        }
    }
}
