//! Tokens a second, all together and by tenant, as every face that tells loads tells them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::engine::Loads;

/// The least time over which a rate is taken; who asks sooner gets the last one.
const WINDOW: Duration = Duration::from_secs(1);

type Tenant = Option<Arc<str>>;

/// Tokens a second, between two looks at the counters.
pub(crate) struct Throughput {
    last: Mutex<Look>,
}

struct Look {
    at: Instant,
    tokens: u64,
    rates: Rates,
    /// Of those tenants that were here.
    tenants: HashMap<Tenant, u64>,
}

/// Tokens generated a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) all: f64,
    /// Of those tenants that are here and were when rates were last taken.
    pub(crate) tenants: HashMap<Tenant, f64>,
}

impl Throughput {
    /// From now on, when so many tokens were generated already: the counters go on where a model comes back.
    pub(crate) fn since(at: Instant, tokens: u64) -> Self {
        Self { last: Mutex::new(Look { at, tokens, rates: Rates::default(), tenants: HashMap::new() }) }
    }

    /// The rates now that the engine's counters stand as in `loads`.
    pub(crate) fn at(&self, now: Instant, loads: &Loads) -> Rates {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(last.at);
        if elapsed >= WINDOW {
            let rate = |before: u64, tokens: u64| tokens.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            let counted = loads.tenants.iter().filter_map(|load| Some((load.tenant.clone(), load.generated_tokens?)));
            let tenants: HashMap<Tenant, u64> = counted.collect();
            let of =
                |(tenant, &tokens): (&Tenant, &u64)| Some((tenant.clone(), rate(*last.tenants.get(tenant)?, tokens)));
            let rates = Rates {
                all: rate(last.tokens, loads.generated_tokens),
                tenants: tenants.iter().filter_map(of).collect(),
            };
            *last = Look { at: now, tokens: loads.generated_tokens, rates, tenants };
        }
        last.rates.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TenantLoad;

    fn loads(tokens: u64, tenants: &[(&str, u64)]) -> Loads {
        let load = |&(name, tokens): &(&str, u64)| TenantLoad {
            tenant: Some(name.into()),
            generated_tokens: Some(tokens),
            ..TenantLoad::default()
        };
        Loads { generated_tokens: tokens, tenants: tenants.iter().map(load).collect(), ..Loads::default() }
    }

    #[test]
    fn a_rate_is_taken_over_a_second_or_more() {
        let began = Instant::now();
        let throughput = Throughput::since(began, 0);
        let at =
            |seconds: f64, tokens| throughput.at(began + Duration::from_secs_f64(seconds), &loads(tokens, &[])).all;
        assert_eq!(at(0.5, 1000), 0.0, "too soon to tell");
        assert_eq!(at(2.0, 1000), 500.0);
        assert_eq!(at(2.5, 5000), 500.0, "the last one");
        assert_eq!(at(4.0, 1000), 0.0);
        let goes_on = Throughput::since(began, 1000);
        assert_eq!(goes_on.at(began + Duration::from_secs(2), &loads(1010, &[])).all, 5.0);
    }

    #[test]
    fn tenants_have_rates_while_they_are_here() {
        let began = Instant::now();
        let throughput = Throughput::since(began, 0);
        let at = |seconds, loads: Loads| throughput.at(began + Duration::from_secs(seconds), &loads).tenants;
        assert_eq!(at(1, loads(9, &[("a", 5)])), HashMap::new(), "nothing to compare with");
        assert_eq!(at(3, loads(9, &[("a", 25), ("b", 7)])), HashMap::from([(Some("a".into()), 10.0)]));
        assert_eq!(at(4, loads(9, &[("b", 10)])), HashMap::from([(Some("b".into()), 3.0)]));
    }
}
