//! Live requests by their ids, so that `Abort` can end them.

use std::{
    collections::HashMap,
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::error::{Code, Error};

type Live = HashMap<String, (u64, oneshot::Sender<()>)>;

/// The live requests. Each entry belongs to a stream and leaves with it, so the engine's bound on streams bounds them.
#[derive(Clone, Default)]
pub(super) struct Aborts {
    live: Arc<Mutex<Entries>>,
}

#[derive(Default)]
struct Entries {
    live: Live,
    entered: u64,
}

/// One stream's entry.
struct Entry {
    live: Arc<Mutex<Entries>>,
    id: String,
    number: u64,
}

impl Aborts {
    /// Enters a request. The future resolves once the request is aborted, with the error that ends its stream; dropping
    /// it takes the entry out. Of two requests with one id the newer can be aborted.
    pub(super) fn enter(&self, id: &str) -> impl Future<Output = Error> + Send + 'static + use<> {
        let (abort, aborted) = oneshot::channel();
        let number = {
            let mut entries = locked(&self.live);
            entries.entered += 1;
            let number = entries.entered;
            entries.live.insert(id.to_owned(), (number, abort));
            number
        };
        let entry = Entry { live: self.live.clone(), id: id.to_owned(), number };
        async move {
            let _entry = entry;
            match aborted.await {
                Ok(()) => Error::new(Code::Cancelled, "the request was aborted"),
                Err(_a_newer_took_its_place) => pending().await,
            }
        }
    }

    /// Aborts a request; an id that is unknown, or no longer known, is none of anybody's trouble.
    pub(super) fn abort(&self, id: &str) {
        if let Some((_, abort)) = locked(&self.live).live.remove(id) {
            // An error means that the stream ends at this very moment.
            let _ended = abort.send(());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut entries = locked(&self.live);
        if entries.live.get(&self.id).is_some_and(|&(number, _)| number == self.number) {
            entries.live.remove(&self.id);
        }
    }
}

fn locked(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_abort_ends_the_request_of_that_id_and_entries_leave_with_their_streams() {
        let aborts = Aborts::default();
        let (one, other) = (aborts.enter("one"), aborts.enter("other"));
        aborts.abort("one");
        aborts.abort("unknown");
        assert_eq!(one.await.code, Code::Cancelled);
        assert_eq!(locked(&aborts.live).live.len(), 1);
        drop(other);
        assert!(locked(&aborts.live).live.is_empty());
    }

    #[tokio::test]
    async fn of_two_requests_with_one_id_the_newer_is_aborted_and_the_older_takes_nothing_along() {
        let aborts = Aborts::default();
        let (older, newer) = (aborts.enter("id"), aborts.enter("id"));
        drop(older);
        aborts.abort("id");
        assert_eq!(newer.await.code, Code::Cancelled);
    }
}
