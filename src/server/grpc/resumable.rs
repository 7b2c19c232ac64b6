//! Streams that outlive their connection: dropped ones go on, and are read on by whoever of the same tenant knows their id.
//!
//! A task a stream moves its events into a [`Ring`]. The ring, not the connection, decides how long it lasts: a stream that
//! nobody has read for the time to live is cancelled and forgotten, finished or not. Streams are bounded in number and
//! each ring in events and bytes, so all together are too.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{Stream, StreamExt};

use super::{room::Places, told::Told};
use crate::{
    config::StreamArgs,
    error::{Code, Error, Result},
    server::{
        access::Owner,
        ring::{Attachment, Ring, RingLimits},
    },
};

/// An idempotency key, and a hash of the request that it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) request: [u8; 32],
}

/// All streams that can be resumed. Cheap to clone. Nobody finds what belongs to another tenant, by id or by key.
#[derive(Clone)]
pub(super) struct Resumables {
    streams: Arc<Mutex<Places<Entry>>>,
    limits: StreamArgs,
}

struct Entry {
    ring: Arc<Ring<Told>>,
    key: Option<Key>,
}

/// An entry, which is over with this: taken back where its stream is not admitted, else when the task that reads it ends.
pub(super) struct Reserved {
    all: Resumables,
    id: String,
    ring: Arc<Ring<Told>>,
    /// The reader that asked first. It is attached before its stream is admitted, so that a retry takes over from it and
    /// not the other way round.
    reader: Option<Attachment<Told>>,
    admitted: bool,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut streams = self.all.streams();
        let end = if self.admitted {
            streams.remove(&self.id);
            Error::internal("the task that reads this stream panicked")
        } else {
            streams.withdraw(&self.id);
            // Somebody with the same idempotency key may be waiting.
            let why = "the request that this one repeats was given up before it was admitted";
            Error::new(Code::Unavailable, why)
        };
        drop(streams);
        // The first end is the one that counts.
        self.ring.end(Err(end));
    }
}

/// Where a request finds its stream.
pub(super) enum Place {
    New(Reserved),
    Known(Arc<Ring<Told>>),
}

impl Resumables {
    pub(super) fn new(limits: StreamArgs) -> Self {
        let streams = Places::new("resumable streams", limits.max_resumable_streams);
        Self { streams: Arc::new(Mutex::new(streams)), limits }
    }

    fn streams(&self) -> MutexGuard<'_, Places<Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new stream, or the one that its idempotency key stands for; one that has failed it stands for no longer.
    ///
    /// # Errors
    /// `ResourceExhausted` where there are too many; `InvalidArgument` where the key stands for another request.
    pub(super) fn reserve(&self, owner: Owner, key: Option<Key>) -> Result<Place> {
        let mut streams = self.streams();
        if let Some(key) = &key {
            let same_name = |entry: &&mut Entry| entry.key.as_ref().is_some_and(|other| other.name == key.name);
            match streams.of(&owner).find(same_name) {
                // A retry is there to get what the first attempt did not; by its id the stream can still be read.
                Some(entry) if entry.ring.has_failed() => entry.key = None,
                Some(entry) if entry.key.as_ref() == Some(key) => return Ok(Place::Known(entry.ring.clone())),
                Some(_) => {
                    let why = "stands for another request than this one";
                    return Err(Error::invalid("options.idempotency_key", why));
                }
                None => {}
            }
        }
        let limits = RingLimits { events: self.limits.resume_ring_events, bytes: self.limits.resume_ring_bytes };
        let ring = Ring::new(limits);
        let reader = Some(ring.attach(0)?);
        let (entry, ttl) = (Entry { ring: ring.clone(), key }, self.limits.resume_ttl);
        let (id, gone) = streams.enter(&owner, entry, |entry| entry.ring.idle_since(ttl))?;
        if let Some(gone) = gone {
            gone.ring.forget();
        }
        Ok(Place::New(Reserved { all: self.clone(), id, ring, reader, admitted: false }))
    }

    /// Reads a stream on.
    ///
    /// # Errors
    /// `NotFound` where this tenant has none of that id; as [`Ring::attach`].
    pub(super) fn resume(&self, owner: &Owner, id: &str, after_seq: u64) -> Result<Attachment<Told>> {
        let ring = self.streams().get(owner, id).map(|entry| entry.ring.clone());
        let ring = ring.ok_or_else(|| Error::new(Code::NotFound, "there is no such stream, or not any more"))?;
        ring.attach(after_seq)
    }
}

impl Place {
    /// Opens the stream, or reads the one that is there. `admit` is given the id of a new one.
    ///
    /// # Errors
    /// Those of `admit`; `DataLoss` where the beginning of the one that is there is gone.
    pub(super) async fn open<F, S>(self, admit: impl FnOnce(String) -> F) -> Result<Attachment<Told>>
    where
        F: Future<Output = Result<S>>,
        S: Stream<Item = Result<Told>> + Send + Unpin + 'static,
    {
        let mut reserved = match self {
            Self::New(reserved) => reserved,
            Self::Known(ring) => return ring.attach(0),
        };
        let events = match admit(reserved.id.clone()).await {
            Ok(events) => events,
            Err(error) => {
                reserved.ring.end(Err(error.clone()));
                return Err(error);
            }
        };
        let reader = reserved.reader.take().ok_or_else(|| Error::internal("a stream reserved without a reader"))?;
        reserved.admitted = true;
        tokio::spawn(async move {
            pump(events, &reserved.ring, &reserved.all.limits).await;
            drop(reserved);
        });
        Ok(reader)
    }
}

/// Moves a stream's events into its ring, and returns when nobody has read them for the time to live.
async fn pump<S>(mut events: S, ring: &Arc<Ring<Told>>, limits: &StreamArgs)
where
    S: Stream<Item = Result<Told>> + Unpin,
{
    let abandoned = ring.abandoned(limits.resume_ttl);
    tokio::pin!(abandoned);
    loop {
        let next = async {
            ring.room(0).await;
            let event = events.next().await;
            if let Some(Ok(told)) = &event {
                ring.room(told.bytes()).await;
            }
            event
        };
        let event = tokio::select! {
            event = next => event,
            () = &mut abandoned => return ring.end(Err(Error::new(Code::Cancelled, "nobody has read this stream on"))),
        };
        match event {
            Some(Ok(told)) => ring.push(told.bytes(), told),
            Some(Err(error)) => {
                ring.end(Err(error));
                break;
            }
            None => {
                ring.end(Ok(()));
                break;
            }
        }
    }
    drop(events);
    abandoned.await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt, stream};
    use tokio::sync::oneshot;

    use super::*;
    use crate::proto::candlewick::v1 as wire;

    impl Resumables {
        async fn open<F, S>(
            &self,
            owner: Owner,
            key: Option<Key>,
            admit: impl FnOnce(String) -> F,
        ) -> Result<Attachment<Told>>
        where
            F: Future<Output = Result<S>>,
            S: Stream<Item = Result<Told>> + Send + Unpin + 'static,
        {
            self.reserve(owner, key)?.open(admit).await
        }
    }

    fn all() -> Resumables {
        Resumables::new(StreamArgs::default())
    }

    fn key() -> Option<Key> {
        Some(Key { name: "once".into(), request: [7; 32] })
    }

    /// A stream of so many events, and its end.
    fn said(n: u32, end: Option<Error>) -> impl Stream<Item = Result<Told>> + Send + Unpin + 'static {
        let delta = |index| Ok(Told::Delta(wire::Delta { index, ..wire::Delta::default() }));
        stream::iter((0..n).map(delta).chain(end.map(Err)).collect::<Vec<_>>())
    }

    /// How many events come, and what ends them.
    async fn heard(attachment: Attachment<Told>) -> (usize, Option<Code>) {
        let events: Vec<_> = attachment.events().collect().await;
        let failed = events.last().and_then(|event| event.as_ref().err().map(|error| error.code));
        (events.len() - usize::from(failed.is_some()), failed)
    }

    #[tokio::test]
    async fn a_retry_that_comes_before_the_first_attempt_is_admitted_takes_over() {
        let all = all();
        let (admit, admitted) = oneshot::channel::<()>();
        let mut first = Box::pin(all.open(None, key(), |_| async {
            admitted.await.unwrap();
            Ok(said(3, None))
        }));
        assert!((&mut first).now_or_never().is_none());
        let never = |_| async { Err::<stream::Empty<_>, _>(Error::internal("a retry is not admitted itself")) };
        let retry = all.open(None, key(), never).await.unwrap();
        admit.send(()).unwrap();
        let first = first.await.unwrap();
        assert_eq!(heard(retry).await, (3, None));
        assert_eq!(heard(first).await, (0, Some(Code::Aborted)));
    }

    #[tokio::test]
    async fn a_stream_whose_task_panics_ends_with_an_error_and_gives_its_place_back() {
        let all = all();
        let mut id = String::new();
        let broken = said(2, None).chain(stream::poll_fn(|_| panic!("a drill")));
        let opened = all.open(None, key(), |drawn| {
            id = drawn;
            async { Ok(broken) }
        });
        assert_eq!(heard(opened.await.unwrap()).await, (2, Some(Code::Internal)));
        assert_eq!(all.resume(&None, &id, 0).err().unwrap().code, Code::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_by_the_engine_says_nothing_of_how_long_places_are_held() {
        let limits = StreamArgs { max_resumable_streams: 1, ..StreamArgs::default() };
        let all = Resumables::new(limits);
        let held = all.open(None, None, |_| async { Ok(stream::pending::<Result<Told>>()) }).await.unwrap();
        tokio::time::advance(Duration::from_secs(7)).await;
        drop(held);
        // Its task gives it up.
        tokio::time::sleep(2 * limits.resume_ttl).await;
        for _ in 0..20 {
            let refused = all.open(None, None, |_| async { Err::<stream::Empty<_>, _>(Error::internal("no")) });
            assert_eq!(refused.await.err().unwrap().code, Code::Internal);
        }
        let _held = all.open(None, None, |_| async { Ok(stream::pending::<Result<Told>>()) }).await.unwrap();
        let hint = all.reserve(None, None).err().unwrap().retry_after.unwrap();
        assert!(hint >= Duration::from_secs(7), "{hint:?}");
    }

    /// A stream of a tenant that has ended, its reader, and its id.
    async fn ended(all: &Resumables, owner: &str) -> Result<(Attachment<Told>, String)> {
        let mut id = String::new();
        let opened = all.open(Some(owner.into()), None, |drawn| {
            id = drawn;
            async { Ok(said(1, None)) }
        });
        let attachment = opened.await?;
        // So that its task has seen its end.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok((attachment, id))
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_have_ended_make_room_though_a_reader_holds_on_to_them() {
        let limits = StreamArgs { max_resumable_streams: 2, ..StreamArgs::default() };
        let all = Resumables::new(limits);
        let (stuck, first) = ended(&all, "a").await.unwrap();
        let (_held, second) = ended(&all, "a").await.unwrap();
        assert_eq!(ended(&all, "a").await.err().unwrap().code, Code::ResourceExhausted, "both may still be read");
        tokio::time::advance(limits.resume_ttl).await;
        ended(&all, "b").await.unwrap();
        let kept = |id: &str| all.resume(&Some("a".into()), id, 0).is_ok();
        assert!(!kept(&first) && kept(&second), "the oldest goes");
        assert_eq!(heard(stuck).await, (0, Some(Code::DataLoss)), "and whoever holds it holds nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_with_many_streams_makes_room_among_its_own() {
        let all = Resumables::new(StreamArgs { max_resumable_streams: 3, ..StreamArgs::default() });
        let (_, of_b) = ended(&all, "b").await.unwrap();
        let (first, of_a) = ended(&all, "a").await.unwrap();
        let (second, _) = ended(&all, "a").await.unwrap();
        // Those of a are read, the one of b is not.
        assert_eq!(ended(&all, "a").await.err().unwrap().code, Code::ResourceExhausted);
        drop(first);
        tokio::time::advance(Duration::from_millis(1)).await;
        drop(second);
        ended(&all, "b").await.unwrap();
        let kept = |owner: &str, id: &str| all.resume(&Some(owner.into()), id, 0).is_ok();
        assert!(kept("b", &of_b) && !kept("a", &of_a), "who has the most makes room");
    }

    #[tokio::test]
    async fn a_key_does_not_stand_for_a_stream_that_has_failed() {
        let all = all();
        let mut id = String::new();
        let failed = all.open(None, key(), |drawn| {
            id = drawn;
            async { Ok(said(2, Some(Error::internal("the engine failed")))) }
        });
        let failed = failed.await.unwrap();
        assert_eq!(heard(failed).await, (2, Some(Code::Internal)));
        let again = all.open(None, key(), |_| async { Ok(said(5, None)) }).await.unwrap();
        assert_eq!(heard(again).await, (5, None));
        assert_eq!(
            heard(all.resume(&None, &id, 0).unwrap()).await,
            (2, Some(Code::Internal)),
            "by its id it is still there"
        );
        let retry = all.open(None, key(), |_| async { Ok(said(0, None)) }).await.unwrap();
        assert_eq!(heard(retry).await, (5, None), "one that went well is repeated");
    }
}
