//! Live requests by their tenants and ids, so that `Abort` can end them.

use std::{
    collections::HashMap,
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    error::{Code, Error},
    server::access::Owner,
};

/// Tenants may choose the same ids.
type Name = (Owner, String);
type Live = HashMap<Name, (u64, oneshot::Sender<()>)>;

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
    name: Name,
    number: u64,
}

impl Aborts {
    /// Enters a request. The future resolves once the request is aborted, with the error that ends its stream; dropping
    /// it takes the entry out. Of two requests with one id the newer can be aborted.
    pub(super) fn enter(&self, owner: &Owner, id: &str) -> impl Future<Output = Error> + Send + 'static + use<> {
        let (abort, aborted) = oneshot::channel();
        let name = (owner.clone(), id.to_owned());
        let number = {
            let mut entries = locked(&self.live);
            entries.entered += 1;
            let number = entries.entered;
            entries.live.insert(name.clone(), (number, abort));
            number
        };
        let entry = Entry { live: self.live.clone(), name, number };
        async move {
            let _entry = entry;
            match aborted.await {
                Ok(()) => Error::new(Code::Cancelled, "the request was aborted"),
                Err(_a_newer_took_its_place) => pending().await,
            }
        }
    }

    /// Aborts a request of this tenant; an id that is unknown, or no longer known, is none of anybody's trouble.
    pub(super) fn abort(&self, owner: &Owner, id: &str) {
        if let Some((_, abort)) = locked(&self.live).live.remove(&(owner.clone(), id.to_owned())) {
            // An error means that the stream ends at this very moment.
            let _ended = abort.send(());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut entries = locked(&self.live);
        if entries.live.get(&self.name).is_some_and(|&(number, _)| number == self.number) {
            entries.live.remove(&self.name);
        }
    }
}

fn locked(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_abort_ends_the_request_of_that_id_and_entries_leave_with_their_streams() {
        let aborts = Aborts::default();
        let (one, other) = (aborts.enter(&None, "one"), aborts.enter(&None, "other"));
        aborts.abort(&None, "one");
        aborts.abort(&None, "unknown");
        assert_eq!(one.await.code, Code::Cancelled);
        assert_eq!(locked(&aborts.live).live.len(), 1);
        drop(other);
        assert!(locked(&aborts.live).live.is_empty());
    }

    #[tokio::test]
    async fn of_two_requests_with_one_id_the_newer_is_aborted_and_the_older_takes_nothing_along() {
        let aborts = Aborts::default();
        let (older, newer) = (aborts.enter(&None, "id"), aborts.enter(&None, "id"));
        drop(older);
        aborts.abort(&None, "id");
        assert_eq!(newer.await.code, Code::Cancelled);
    }

    #[tokio::test]
    async fn nobody_aborts_what_another_tenant_calls_by_the_same_id() {
        let aborts = Aborts::default();
        let owner = |name: &str| Some(name.into());
        let (mine, theirs) = (aborts.enter(&owner("a"), "id"), aborts.enter(&owner("b"), "id"));
        aborts.abort(&owner("a"), "id");
        aborts.abort(&owner("c"), "id");
        assert_eq!(mine.await.code, Code::Cancelled);
        assert!(theirs.now_or_never().is_none());
    }
}
