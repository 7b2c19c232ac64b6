//! What a conversation and the scheduler share about the blocks kept between two turns.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;

use super::{Engine, sequence::LeaseHolder};

/// What a lease holds, as its conversation sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseState {
    /// Tokens whose keys and values are kept; 0 while a turn has them.
    pub tokens: usize,
    /// Whether they go only when nothing else helps: asked for, and within the limit.
    pub pinned: bool,
    /// They are the next to go.
    pub warned: bool,
    /// Times they have gone to others.
    pub losses: u64,
}

/// The part of a lease that the scheduler holds.
#[derive(Debug)]
pub struct LeaseControl {
    id: u64,
    pinned: bool,
    max_tokens: usize,
    released: AtomicBool,
    state: watch::Sender<LeaseState>,
}

/// A conversation's claim to its blocks; dropping it gives them back.
pub(super) struct Lease {
    pub control: Arc<LeaseControl>,
    engine: Engine,
}

impl Lease {
    /// A lease of at most `max_tokens`.
    pub(super) fn new(engine: Engine, id: u64, pinned: bool, max_tokens: usize) -> Self {
        let (state, released) = (watch::Sender::default(), AtomicBool::new(false));
        Self { control: Arc::new(LeaseControl { id, pinned, max_tokens, released, state }), engine }
    }

    /// What it holds, as it changes.
    pub(super) fn state(&self) -> watch::Receiver<LeaseState> {
        self.control.state.subscribe()
    }

    /// The same claim for another conversation.
    pub(super) fn sibling(&self, id: u64) -> Self {
        Self::new(self.engine.clone(), id, self.control.pinned, self.control.max_tokens)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.control.released.store(true, Ordering::Release);
        if let Some(life) = self.engine.inner.supervised.life() {
            life.bell.ring();
        }
    }
}

impl LeaseHolder for LeaseControl {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_pinned(&self) -> bool {
        self.pinned
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn holds(&self, tokens: usize, pinned: bool) {
        self.state.send_modify(|state| *state = LeaseState { tokens, pinned, warned: false, losses: state.losses });
    }

    fn warned(&self) {
        self.state.send_if_modified(|state| !std::mem::replace(&mut state.warned, true));
    }

    fn lost(&self) {
        self.state.send_modify(|state| *state = LeaseState { losses: state.losses + 1, ..LeaseState::default() });
    }
}
