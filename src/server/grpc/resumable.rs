//! Streams that outlive their connection: dropped ones go on, and are read on by whoever knows their id.
//!
//! A task a stream moves its events into a [`Ring`]. The ring, not the connection, decides how long it lasts: a stream that
//! nobody has read for the time to live is cancelled and forgotten, finished or not. Streams are bounded in number and
//! each ring in events and bytes, so all together are too.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;

use super::{stream::Telling, told::Told};
use crate::{
    config::StreamArgs,
    error::{Code, Error, Result},
    server::ring::{Attachment, Ring, RingLimits},
};

/// An idempotency key, and a hash of the request that it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) request: [u8; 32],
}

/// All streams that can be resumed. Cheap to clone. Whose they are will be a part of the key, once there are tenants.
#[derive(Clone)]
pub(super) struct Resumables {
    streams: Arc<Mutex<HashMap<String, Entry>>>,
    limits: StreamArgs,
}

struct Entry {
    ring: Arc<Ring<Told>>,
    key: Option<Key>,
}

/// An entry that is taken back unless its stream is admitted.
struct Reserved {
    all: Resumables,
    id: String,
    ring: Arc<Ring<Told>>,
    admitted: bool,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.admitted {
            self.all.streams().remove(&self.id);
            // Somebody with the same idempotency key may be waiting.
            let why = "the request that this one repeats was given up before it was admitted";
            self.ring.end(Err(Error::new(Code::Unavailable, why)));
        }
    }
}

/// A name that nobody can guess.
pub(super) fn draw_id() -> String {
    let draw = |k: u8| RandomState::new().hash_one(k);
    format!("{:016x}{:016x}", draw(0), draw(1))
}

impl Resumables {
    pub(super) fn new(limits: StreamArgs) -> Self {
        Self { streams: Arc::default(), limits }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream, or finds the one that its idempotency key stands for. `admit` is given the stream's id.
    ///
    /// # Errors
    /// Those of `admit`; `ResourceExhausted` where there are too many; `InvalidArgument` where the key stands for another
    /// request; `DataLoss` where it stands for a stream whose beginning is gone.
    pub(super) async fn open<F>(&self, key: Option<Key>, admit: impl FnOnce(String) -> F) -> Result<Attachment<Told>>
    where
        F: Future<Output = Result<Telling>>,
    {
        let mut reserved = match self.reserve(key)? {
            Ok(reserved) => reserved,
            Err(ring) => return ring.attach(0),
        };
        let telling = match admit(reserved.id.clone()).await {
            Ok(telling) => telling,
            Err(error) => {
                reserved.ring.end(Err(error.clone()));
                return Err(error);
            }
        };
        reserved.admitted = true;
        let attachment = reserved.ring.attach(0);
        let (all, id, ring) = (self.clone(), reserved.id.clone(), reserved.ring.clone());
        tokio::spawn(async move {
            pump(telling, &ring, &all.limits).await;
            all.streams().remove(&id);
        });
        attachment
    }

    /// A place for a new stream, or the ring of the one that the key stands for.
    fn reserve(&self, key: Option<Key>) -> Result<Result<Reserved, Arc<Ring<Told>>>> {
        let mut streams = self.streams();
        if let Some(key) = &key {
            let same_name = |entry: &&Entry| entry.key.as_ref().is_some_and(|other| other.name == key.name);
            if let Some(entry) = streams.values().find(same_name) {
                if entry.key.as_ref() != Some(key) {
                    let why = "stands for another request than this one";
                    return Err(Error::invalid("options.idempotency_key", why));
                }
                return Ok(Err(entry.ring.clone()));
            }
        }
        if streams.len() >= self.limits.max_resumable_streams {
            let idle = streams.iter().filter_map(|(id, entry)| Some((entry.ring.idle_since()?, id.clone())));
            let Some((_, id)) = idle.min() else {
                let why = format!("{} resumable streams are kept already", self.limits.max_resumable_streams);
                return Err(Error::new(Code::ResourceExhausted, why));
            };
            if let Some(entry) = streams.remove(&id) {
                entry.ring.forget();
            }
        }
        let limits = RingLimits { events: self.limits.resume_ring_events, bytes: self.limits.resume_ring_bytes };
        let (id, ring) = (draw_id(), Ring::new(limits));
        streams.insert(id.clone(), Entry { ring: ring.clone(), key });
        Ok(Ok(Reserved { all: self.clone(), id, ring, admitted: false }))
    }

    /// Reads a stream on.
    ///
    /// # Errors
    /// `NotFound` where there is none of that id; as [`Ring::attach`].
    pub(super) fn resume(&self, id: &str, after_seq: u64) -> Result<Attachment<Told>> {
        let ring = self.streams().get(id).map(|entry| entry.ring.clone());
        let ring = ring.ok_or_else(|| Error::new(Code::NotFound, "there is no such stream, or not any more"))?;
        ring.attach(after_seq)
    }
}

/// Moves a stream's events into its ring, and returns when nobody has read them for the time to live.
async fn pump(mut telling: Telling, ring: &Arc<Ring<Told>>, limits: &StreamArgs) {
    let abandoned = ring.abandoned(limits.resume_ttl);
    tokio::pin!(abandoned);
    loop {
        let next = async {
            ring.room().await;
            telling.next().await
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
    drop(telling);
    abandoned.await;
}
