//! Which tenant has which share of the engine, as whoever knows the tenants has set it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Weights by the names of tenants. One that is not named has the weight 1, and so has the one without a name.
#[derive(Debug, Default)]
pub struct Shares(RwLock<HashMap<Arc<str>, u32>>);

impl Shares {
    /// Largest weight: beyond it shares are no longer kept exactly.
    pub const MAX_WEIGHT: u32 = 1 << 16;

    /// Sets all weights, in place of those before; each is taken to be from 1 to [`MAX_WEIGHT`](Self::MAX_WEIGHT). Requests
    /// that are here keep theirs until the next one of their tenant comes.
    pub fn set(&self, weights: impl IntoIterator<Item = (Arc<str>, u32)>) {
        let weights = weights.into_iter().map(|(name, weight)| (name, weight.clamp(1, Self::MAX_WEIGHT))).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = weights;
    }

    /// A tenant's weight.
    #[must_use]
    pub fn weight(&self, tenant: Option<&str>) -> u32 {
        let weights = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tenant.and_then(|name| weights.get(name).copied()).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_named_has_a_share_of_one() {
        let shares = Shares::default();
        shares.set([("a".into(), 3), ("none".into(), 0), ("all".into(), u32::MAX)]);
        let weights = [Some("a"), Some("b"), None, Some("none"), Some("all")].map(|name| shares.weight(name));
        assert_eq!(weights, [3, 1, 1, 1, Shares::MAX_WEIGHT]);
        shares.set([]);
        assert_eq!(shares.weight(Some("a")), 1);
    }
}
