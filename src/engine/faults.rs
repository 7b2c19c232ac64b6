//! Faults that tests can plant in the bookkeeping, to show that the properties would notice them. Outside of tests
//! the switch is a constant `false`, and nothing of this is compiled in.

/// One mistake somebody could make in the scheduler or the block manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A cached block that is taken over does not count its new holder.
    RefcountForgotten,
    /// A block that nobody holds any more enters the free list twice.
    FreedTwice,
    /// A block's hash covers its own tokens only.
    HashWithoutParent,
    /// Two contents with the same hash are taken for the same without a look at what came before them.
    ParentNotCompared,
    /// Two contents with the same hash are taken for the same without a look at their tokens.
    TokensNotCompared,
    /// Tenants share blocks.
    SaltIgnored,
    /// A block can be found before anything has been computed into it.
    RegisteredBeforeComputed,
    /// A block is written although others hold it.
    CopyOnWriteSkipped,
    /// A block keeps its entry in the cache while other tokens are written into it.
    ContentNotForgotten,
    /// The first token of a block goes to the last block.
    StaleSlot,
    /// A step takes one token too many.
    BudgetOffByOne,
    /// Decodes leave nothing to the first in order when it prefills.
    DecodesTakeAll,
    /// A sequence samples though its reader has no room.
    StalledScheduled,
    /// A preempted sequence believes that its tokens are still in the cache.
    PreemptedKeepsComputed,
    /// A preempted sequence runs again before the tokens it sampled in its earlier life are back.
    OutstandingIgnored,
    /// Slots for lookahead tokens are not reserved.
    LookaheadForgotten,
    /// An ended sequence keeps its blocks.
    BlocksLeaked,
    /// A fork takes its parent's blocks though not all that it needs stands in them.
    StateForked,
    /// A sequence takes its first blocks though as many as may hold some do.
    TablesUncounted,
    /// The executor is not told of a preemption.
    PreemptionUntold,
    /// A sequence that takes tokens back goes on from a state that has seen them.
    RewoundStateKept,
    /// A turn takes all that its conversation kept, whatever it says itself.
    LeaseNotCompared,
    /// A mean is taken over what the prefix cache did not have.
    MeanOfUncached,
    /// Blocks before a window are kept.
    WindowNotLeft,
    /// The first block of a window is given back.
    WindowLeftTooEarly,
    /// A sequence goes on where its window was given back, or is not cached.
    WindowNotChecked,
    /// A row is planned ahead though its reader has no room for what comes of it after the token under way.
    AheadWithoutRoom,
    /// What a row ahead computes counts though its sequence has lost its blocks.
    AheadOfPreemption,
    /// A sequence that may take a token back goes ahead of it.
    GuardedAhead,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Whether this fault is in force on this thread.
#[cfg(test)]
pub(super) fn planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Never.
#[cfg(not(test))]
#[inline(always)]
pub(super) const fn planted(_: Fault) -> bool {
    false
}

/// Runs `body` with a fault in force on this thread, also if it panics.
#[cfg(test)]
pub(super) fn with<T>(fault: Option<Fault>, body: impl FnOnce() -> T) -> T {
    struct Reset(Option<Fault>);
    impl Drop for Reset {
        fn drop(&mut self) {
            PLANTED.set(self.0);
        }
    }
    let _reset = Reset(PLANTED.replace(fault));
    body()
}
