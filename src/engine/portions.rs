//! Something of which there is so much, and how much of it one of those who share it may hold.
//!
//! What is free is kept for those who have little: a tenant may hold sixteen times as much as is left, so one that asks for
//! all there is gets sixteen of seventeen, and whoever comes then finds some. As it becomes free, those who hold least get it
//! first, until all who ask for more hold equally much. (Dynamic thresholds, as switches share their memory by:
//! A. K. Choudhury and E. L. Hahne, IEEE/ACM Transactions on Networking 6 (2), 1998.) Who has no name is everybody: then there
//! are no others to keep anything for. Places in line, sessions, what those hold, and resumable streams go by this one rule.

use std::{collections::HashMap, hash::Hash};

/// How many times what is free a tenant may hold.
const TIMES_FREE: usize = 16;

/// See the [module](self). `K` is what tenants are known by.
#[derive(Debug)]
pub(crate) struct Portions<K> {
    total: usize,
    used: usize,
    /// By tenants that have any.
    held: HashMap<K, usize>,
}

/// Why there is nothing to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Too little is free.
    Everybody,
    /// What is free is for others: the tenant holds so much.
    Tenant(usize),
}

impl<K: Clone + Eq + Hash> Portions<K> {
    /// So much, and all of it free.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, used: 0, held: HashMap::new() }
    }

    /// How much there is, free or not.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// What is held.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// What is not.
    pub(crate) fn free(&self) -> usize {
        self.total.saturating_sub(self.used)
    }

    /// Takes so much, or nothing.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(crate) fn take(&mut self, tenant: Option<&K>, number: usize) -> Result<(), Full> {
        let free = self.free();
        if number > free {
            return Err(Full::Everybody);
        }
        if let Some(tenant) = tenant.filter(|_| number > 0) {
            let held = self.held.get(tenant).copied().unwrap_or_default();
            if held.saturating_add(number) > TIMES_FREE.saturating_mul(free) {
                return Err(Full::Tenant(held));
            }
        }
        self.overdraw(tenant, number);
        Ok(())
    }

    /// Takes so much whether or not there is as much: what is there already must be counted.
    pub(crate) fn overdraw(&mut self, tenant: Option<&K>, number: usize) {
        self.used = self.used.saturating_add(number);
        if let Some(tenant) = tenant.filter(|_| number > 0) {
            *self.held.entry(tenant.clone()).or_default() += number;
        }
    }

    /// Gives so much back.
    pub(crate) fn give(&mut self, tenant: Option<&K>, number: usize) {
        self.used = self.used.saturating_sub(number);
        if let Some(tenant) = tenant
            && let Some(held) = self.held.get_mut(tenant)
        {
            *held = held.saturating_sub(number);
            if *held == 0 {
                self.held.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn who_holds_nothing_is_refused_only_where_nothing_is_free() {
        for seed in 0..50 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (total, tenants) = (rng.random_range(1..200), rng.random_range(1..8));
            let mut portions = Portions::new(total);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for _ in 0..2000 {
                let sum = |who: Option<usize>| {
                    let own = taken.iter().filter(|(owner, _)| who.is_none_or(|who| *owner == who));
                    own.map(|(_, number)| number).sum::<usize>()
                };
                assert_eq!((portions.used(), portions.free()), (sum(None), total - sum(None)));
                if !taken.is_empty() && rng.random_bool(0.4) {
                    let (who, number) = taken.swap_remove(rng.random_range(0..taken.len()));
                    portions.give(Some(&who), number);
                    continue;
                }
                let (who, number) = (rng.random_range(0..tenants), rng.random_range(1..5));
                let (free, own) = (portions.free(), sum(Some(who)));
                match portions.take(Some(&who), number) {
                    Ok(()) => {
                        assert!(number <= free && own + number <= TIMES_FREE * free, "seed {seed}");
                        taken.push((who, number));
                    }
                    Err(Full::Everybody) => assert!(number > free, "seed {seed}"),
                    Err(Full::Tenant(held)) => {
                        assert!(held == own && own > 0 && own + number > TIMES_FREE * free, "seed {seed}");
                    }
                }
            }
            for (who, number) in taken {
                portions.give(Some(&who), number);
            }
            assert!(portions.used() == 0 && portions.held.is_empty(), "who has gone is not remembered");
        }
    }

    #[test]
    fn what_is_there_already_goes_beyond_and_is_paid_back_first() {
        let mut portions = Portions::new(10);
        portions.overdraw(Some(&"a"), 12);
        assert_eq!((portions.free(), portions.take(None, 1)), (0, Err(Full::Everybody)));
        portions.give(Some(&"a"), 3);
        assert_eq!((portions.used(), portions.take(Some(&"b"), 1)), (9, Ok(())));
    }
}
