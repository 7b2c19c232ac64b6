//! Properties of scheduling, held over seeded random histories: clients come, read at their own pace, fork, go away;
//! the cache is too small, hashes collide, tokens come late and several at a time. After every call the books must
//! balance, and in the end every client must have what it would have got alone.
//!
//! The same suite must fail with any of the planted [faults](super::faults) in force.

mod ahead;
mod fairness;
mod latency;
mod leases;
mod pooling;
mod scenarios;
mod states;
mod windows;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::faults::{self, Fault};
use world::{Coverage, World};

/// Histories to go through: enough for every event to happen a hundred times, see below.
const HISTORIES: u64 = 1500;

/// Runs one history to its end.
fn history(seed: u64) -> Result<Coverage, String> {
    let mut world = World::new(seed);
    world.run().map_err(|what| format!("seed {seed}, {}: {what}", world.describe()))?;
    Ok(world.coverage)
}

#[test]
fn every_history_is_in_order_and_together_they_show_every_event() {
    let mut total = Coverage::default();
    for seed in 0..HISTORIES {
        match history(seed) {
            Ok(coverage) => total.add(&coverage),
            Err(what) => panic!("{what}"),
        }
    }
    println!("{total}");
    for (event, count) in total.counts() {
        assert!(count >= 100, "{event} happened only {count} times");
    }
}

/// Each row: a fault that must not pass.
const FAULTS: &[Fault] = &[
    Fault::RefcountForgotten,
    Fault::FreedTwice,
    Fault::HashWithoutParent,
    Fault::ParentNotCompared,
    Fault::TokensNotCompared,
    Fault::SaltIgnored,
    Fault::RegisteredBeforeComputed,
    Fault::CopyOnWriteSkipped,
    Fault::ContentNotForgotten,
    Fault::StaleSlot,
    Fault::BudgetOffByOne,
    Fault::DecodesTakeAll,
    Fault::StalledScheduled,
    Fault::PreemptedKeepsComputed,
    Fault::OutstandingIgnored,
    Fault::LookaheadForgotten,
    Fault::BlocksLeaked,
    Fault::WindowNotLeft,
    Fault::WindowLeftTooEarly,
    Fault::WindowNotChecked,
    Fault::StateForked,
    Fault::TablesUncounted,
    Fault::PreemptionUntold,
    Fault::RewoundStateKept,
    Fault::LeaseNotCompared,
    Fault::AheadWithoutRoom,
    Fault::AheadOfPreemption,
    Fault::GuardedAhead,
];

/// The first complaint of the suite, or none; a panic is a complaint.
fn complaint() -> Option<String> {
    let complains = |what: &dyn Fn() -> Result<(), String>| match catch_unwind(AssertUnwindSafe(what)) {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(what),
        Err(panic) => Some(format!("panic: {:?}", panic.downcast_ref::<String>())),
    };
    scenarios::ALL
        .iter()
        .find_map(|scenario| complains(&|| scenario()))
        .or_else(|| (0..HISTORIES).find_map(|seed| complains(&|| history(seed).map(drop))))
}

#[test]
fn every_planted_fault_is_noticed() {
    for &fault in FAULTS {
        let complaint = faults::with(Some(fault), complaint);
        println!("{fault:?}: {}", complaint.unwrap_or_else(|| panic!("{fault:?} passes unnoticed")));
    }
}
