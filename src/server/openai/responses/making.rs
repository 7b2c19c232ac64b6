//! Room for responses that are being made in the background. Nobody pushes them out, as newer ones do with those that are whole,
//! so whoever finds no room left is refused, before the engine hears of its request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{
    engine::{Full, Portions, rates::Stays},
    error::{Code, Error, Result},
    server::access::Owner,
};

/// See the [module](self); each tenant has its [share](Portions) of it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Making(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    bytes: Portions<Arc<str>>,
    /// Bytes that the least of them counts for.
    least: usize,
    stays: Stays,
}

/// Room of one of them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    making: Making,
    owner: Owner,
    bytes: usize,
    /// Since when it is being made; none before.
    since: Option<Instant>,
}

impl Making {
    /// Room for so many bytes, and for so many responses.
    pub(super) fn new(bytes: usize, responses: usize) -> Self {
        let (bytes, least, stays) = (Portions::new(bytes), bytes / responses.max(1), Stays::default());
        Self(Arc::new(Mutex::new(State { bytes, least, stays })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: valid between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one that holds so many bytes. One that is larger than all there is gets that.
    ///
    /// # Errors
    /// `ResourceExhausted` where there is not as much, or what there is is for other tenants; with a hint when to come back once
    /// anything was measured.
    pub(super) fn take(&self, owner: &Owner, bytes: usize) -> Result<Room> {
        let State { bytes: all, least, stays } = &mut *self.state();
        let bytes = bytes.max(*least).min(all.total());
        all.take(owner.as_ref(), bytes).map_err(|full| {
            let most = all.total();
            let (why, held) = match full {
                Full::Everybody => {
                    let held = all.used();
                    (format!("responses that are being made in the background hold {held} of {most} bytes"), held)
                }
                Full::Tenant(held) => {
                    let why = format!(
                        "this tenant's responses that are being made in the background hold {held} of {most} bytes, and what is \
                         left is for others"
                    );
                    (why, held)
                }
            };
            let why = format!("{why}; this one asks for {bytes}: cancel one, or try again later");
            Error { retry_after: stays.free_after(bytes, held), ..Error::new(Code::ResourceExhausted, why) }
        })?;
        Ok(Room { making: self.clone(), owner: owner.clone(), bytes, since: None })
    }
}

impl Room {
    /// From now on it is being made.
    pub(super) fn begin(&mut self) {
        self.since = Some(Instant::now());
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.making.state();
        state.bytes.give(self.owner.as_ref(), self.bytes);
        if let Some(since) = self.since {
            state.stays.record(since.elapsed(), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_is_told_how_often_some_becomes_free() {
        let making = Making::new(1000, 10);
        // Small ones count for a tenth each.
        let mut held: Vec<_> = std::iter::from_fn(|| making.take(&None, 1).ok()).collect();
        assert_eq!(held.len(), 10);
        let hint = || making.take(&None, 200).unwrap_err().retry_after;
        assert_eq!(hint(), None, "nothing was measured");
        held.iter_mut().for_each(Room::begin);
        tokio::time::advance(Duration::from_secs(20)).await;
        held.pop();
        for _ in 0..20 {
            // Refused by the engine: none of these was ever made.
            drop(making.take(&None, 100).unwrap());
        }
        held.push(making.take(&None, 100).unwrap());
        assert_eq!(hint(), Some(Duration::from_secs(4)));
        held.clear();
        drop(making.take(&None, 2000).unwrap());
        assert_eq!(making.state().bytes.used(), 0);
    }

    #[test]
    fn a_tenant_that_asks_for_all_room_leaves_some() {
        let making = Making::new(34, 34);
        let [a, b] = ["a", "b"].map(|name| Owner::Some(name.into()));
        let held: Vec<_> = std::iter::from_fn(|| making.take(&a, 1).ok()).collect();
        assert_eq!(held.len(), 32);
        let refused = making.take(&a, 1).unwrap_err();
        assert!(refused.code == Code::ResourceExhausted && refused.message.contains("for others"), "{refused}");
        assert!(making.take(&b, 2).is_ok());
    }
}
