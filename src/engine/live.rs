//! Places among the live requests, of which each tenant has its [share](super::portions), and where nobody has a name, each
//! network.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::portions::{Full, Portions};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Live {
    state: Mutex<State>,
    all_free: Notify,
}

#[derive(Debug)]
struct State {
    places: Portions<Holder>,
    /// When somebody last went away because none was free.
    wanted: Option<Instant>,
}

/// Whose share places are of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Tenant(Arc<str>),
    /// Of somebody without a name, by the first address of its network.
    Network(IpAddr),
}

impl Holder {
    /// Who asks; none is everybody.
    pub(super) fn of(tenant: Option<&Arc<str>>, network: Option<IpAddr>) -> Option<Self> {
        tenant.cloned().map(Self::Tenant).or(network.map(Self::Network))
    }
}

/// Places of one request; free again when they are dropped.
#[derive(Debug)]
pub(super) struct LivePlaces {
    live: Arc<Live>,
    holder: Option<Holder>,
    number: usize,
}

impl Live {
    /// So many places.
    pub(super) fn new(total: usize) -> Arc<Self> {
        let state = State { places: Portions::new(total), wanted: None };
        Arc::new(Self { state: Mutex::new(state), all_free: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: valid between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so many places at once, or none.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub(super) fn take(self: &Arc<Self>, holder: Option<&Holder>, number: usize) -> Result<LivePlaces, Full> {
        self.state().places.take(holder, number)?;
        Ok(LivePlaces { live: self.clone(), holder: holder.cloned(), number })
    }

    /// Somebody goes away who found too few places free. It counts where none is: beside one that asks for many, others find
    /// their place.
    pub(super) fn want(&self) {
        let mut state = self.state();
        if state.places.free() == 0 {
            state.wanted = Some(Instant::now());
        }
    }

    /// Whether somebody went away in that time because no place was free, and none is still.
    pub(super) fn is_wanted(&self, within: Duration) -> bool {
        let state = self.state();
        state.places.free() == 0 && state.wanted.is_some_and(|at| at.elapsed() <= within)
    }

    /// Places that are held.
    pub(super) fn num_held(&self) -> usize {
        self.state().places.used()
    }

    /// Returns when none is.
    pub(super) async fn all_free(&self) {
        loop {
            let freed = self.all_free.notified();
            tokio::pin!(freed);
            // From here on no change goes unnoticed.
            freed.as_mut().enable();
            if self.num_held() == 0 {
                return;
            }
            freed.await;
        }
    }
}

impl LivePlaces {
    /// One of them, for a sequence of its own; none where there is none left.
    pub(super) fn split(&mut self) -> Option<Self> {
        self.number = self.number.checked_sub(1)?;
        Some(Self { live: self.live.clone(), holder: self.holder.clone(), number: 1 })
    }
}

impl Drop for LivePlaces {
    fn drop(&mut self) {
        let places = &mut self.live.state().places;
        places.give(self.holder.as_ref(), self.number);
        if places.used() == 0 {
            self.live.all_free.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Tenants and networks.
    fn holders(n: usize) -> Vec<Holder> {
        let holder = |k: usize| match k % 2 {
            0 => Holder::Tenant(format!("tenant {k}").into()),
            _ => Holder::Network([10, 0, 0, k as u8].into()),
        };
        (0..n).map(holder).collect()
    }

    /// Takes one after another for as long as it gets any.
    fn take_all(live: &Arc<Live>, holder: Option<&Holder>) -> Vec<LivePlaces> {
        std::iter::from_fn(|| live.take(holder, 1).ok()).collect()
    }

    #[test]
    fn a_tenant_that_asks_for_all_there_are_leaves_some() {
        let (live, holders) = (Live::new(64 + 1024), holders(2));
        let held = take_all(&live, Some(&holders[0]));
        assert_eq!(held.len(), 1024);
        assert_eq!(live.take(Some(&holders[0]), 1).unwrap_err(), Full::Tenant(1024));
        assert!(live.take(Some(&holders[1]), 8).is_ok());
        let few = Live::new(8);
        assert_eq!(take_all(&few, Some(&holders[0])).len(), 8, "of few places, all");
    }

    #[test]
    fn where_nobody_has_a_name_everybody_gets_all_there_are() {
        let live = Live::new(1000);
        let held = take_all(&live, None);
        assert_eq!(held.len(), 1000);
        assert_eq!(live.take(None, 1).unwrap_err(), Full::Everybody);
    }

    #[test]
    fn tenants_that_always_ask_for_more_come_to_hold_equally_many() {
        let mut rng = SmallRng::seed_from_u64(1);
        for n in [2, 4, 7] {
            let (live, holders) = (Live::new(1088), holders(n));
            let mut held: Vec<_> = holders.iter().map(|holder| take_all(&live, Some(holder))).collect();
            assert!(held[0].len() > 10 * held[1].len(), "the first to come has most");
            for _ in 0..10_000 {
                // Of all requests that are here any one ends; then all ask again, in any order.
                let mut owners = held.iter().enumerate().flat_map(|(who, own)| own.iter().map(move |_| who));
                let whose = owners.nth(rng.random_range(0..live.num_held())).unwrap();
                held[whose].pop();
                let first = rng.random_range(0..n);
                for who in (first..n).chain(0..first) {
                    held[who].extend(take_all(&live, Some(&holders[who])));
                }
            }
            let lengths: Vec<_> = held.iter().map(Vec::len).collect();
            let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
            assert!(most - least <= 64, "{lengths:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_wanted_while_who_found_none_would_find_none_still() {
        let (live, second) = (Live::new(3), Duration::from_secs(1));
        let [_two, one] = [2, 1].map(|number| live.take(None, number).unwrap());
        assert!(!live.is_wanted(second), "all are taken, and nobody asks");
        live.want();
        assert!(live.is_wanted(second));
        drop(one);
        assert!(!live.is_wanted(second), "it would find one");
        let _one = live.take(None, 1).unwrap();
        tokio::time::advance(second).await;
        assert!(live.is_wanted(second));
        tokio::time::advance(second).await;
        assert!(!live.is_wanted(second), "it may not come back");
    }

    #[test]
    fn who_asks_for_more_than_are_free_makes_no_crowd_of_those_who_find_a_place() {
        let (live, second) = (Live::new(64), Duration::from_secs(1));
        let _some = live.take(None, 4).unwrap();
        assert_eq!(live.take(None, 64).unwrap_err(), Full::Everybody);
        live.want();
        assert!(!live.is_wanted(second), "sixty are free");
        let _others = live.take(None, 60).unwrap();
        assert!(!live.is_wanted(second), "nobody has asked since");
    }

    #[test]
    fn who_waits_for_all_places_hears_of_the_last() {
        let live = Live::new(3);
        assert!(live.all_free().now_or_never().is_some());
        let mut places = live.take(None, 2).unwrap();
        let one = places.split().unwrap();
        let waits = live.all_free();
        tokio::pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(places);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(one);
        assert!(waits.now_or_never().is_some());
    }
}
