//! Clients of every temper, and what each would get if it were alone.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use super::{EOS, VOCAB};
use crate::{
    engine::{
        fake::FakeExecutor,
        sequence::{Guard, Heard, LeaseHolder, Reader},
    },
    ids::TokenId,
    params::{FinishReason, SamplingParams},
};

/// A reader's channel, counted only.
pub(in crate::engine::properties) struct Outbox {
    capacity: usize,
    queued: AtomicUsize,
    pub(in crate::engine::properties) gone: AtomicBool,
}

impl Outbox {
    pub(in crate::engine::properties) fn new(capacity: usize) -> Self {
        Self { capacity, queued: AtomicUsize::new(0), gone: AtomicBool::new(false) }
    }

    pub(in crate::engine::properties) fn send(&self, n: usize) -> Result<(), String> {
        let queued = self.queued.fetch_add(n, Relaxed) + n;
        if queued <= self.capacity { Ok(()) } else { Err(format!("{queued} tokens for a reader of {}", self.capacity)) }
    }

    pub(in crate::engine::properties) fn take(&self, most: usize) {
        let queued = self.queued.load(Relaxed);
        self.queued.store(queued - queued.min(most), Relaxed);
    }
}

impl Reader for Outbox {
    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.queued.load(Relaxed))
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn cancelled(&self) -> bool {
        self.gone.load(Relaxed)
    }
}

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    Prompt,
    Slow,
    Never,
}

pub(super) struct Client {
    pub(super) outbox: Arc<Outbox>,
    pub(super) pace: Pace,
    /// What it would get alone.
    pub(super) alone: Alone,
    /// Tokens that its sequence holds back at most, and takes back once.
    pub(super) takes_back: usize,
    /// Whose turn it is.
    pub(super) conversation: Option<Arc<Conversation>>,
    /// Tokens that the conversation kept when the turn began.
    pub(super) kept: usize,
    pub(super) received: Vec<TokenId>,
    pub(super) started: bool,
    /// The prompt, and the position of the next of its tokens whose log-probability must come; its end if none must.
    pub(super) prompt: Vec<TokenId>,
    pub(super) next_prompt_logprob: usize,
}

/// Lets so many tokens be said and then takes them back, once.
pub(in crate::engine::properties) struct TakesBack {
    count: usize,
    heard: usize,
}

impl TakesBack {
    pub(in crate::engine::properties) fn new(count: usize) -> Self {
        Self { count, heard: 0 }
    }
}

impl Guard for TakesBack {
    fn hear(&mut self, _: TokenId) -> Heard {
        self.heard += 1;
        match self.heard {
            heard if heard < self.count => Heard::Hold(heard),
            heard if heard == self.count => Heard::TakeBack(heard),
            _ => Heard::Hold(0),
        }
    }

    fn most_held(&self) -> usize {
        self.count
    }
}

/// A conversation, as far as the scheduler knows one.
pub(super) struct Conversation {
    id: u64,
    pinned: bool,
    max_tokens: usize,
    released: AtomicBool,
    said: Mutex<Vec<TokenId>>,
    /// Tokens that it keeps between two turns.
    held: AtomicUsize,
    lost: AtomicU64,
}

impl Conversation {
    pub(super) fn new(id: u64, pinned: bool, max_tokens: usize) -> Self {
        let (said, released) = (Mutex::default(), AtomicBool::new(false));
        Self { id, pinned, max_tokens, released, said, held: AtomicUsize::new(0), lost: AtomicU64::new(0) }
    }

    /// What was said in it.
    pub(super) fn said(&self) -> Vec<TokenId> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn goes_on_from(&self, said: &[TokenId]) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said.to_vec();
    }

    /// Tokens that it keeps, as it was told.
    pub(super) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Times that it lost what it kept.
    pub(super) fn num_lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Nobody wants its blocks any more.
    pub(super) fn release(&self) {
        self.released.store(true, Relaxed);
    }
}

impl LeaseHolder for Conversation {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_pinned(&self) -> bool {
        self.pinned
    }

    fn is_released(&self) -> bool {
        self.released.load(Relaxed)
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn holds(&self, tokens: usize, _pinned: bool) {
        self.held.store(tokens, Relaxed);
    }

    fn warned(&self) {}

    fn lost(&self) {
        self.held.store(0, Relaxed);
        self.lost.fetch_add(1, Relaxed);
    }
}

/// What a request gets when there is nobody else, and how that ends.
pub(super) struct Alone {
    pub(super) said: Vec<TokenId>,
    pub(super) reason: FinishReason,
    /// Whether something else was said before.
    pub(super) has_taken_back: bool,
}

/// What a request gets when there is nobody else, by the rules as written in the contract; its first `takes_back` tokens are
/// taken back once they are said, if they are.
pub(super) fn alone(prompt: &[TokenId], params: &SamplingParams, takes_back: usize) -> Alone {
    let (mut said, mut banned) = (Vec::<TokenId>::new(), None);
    loop {
        let mut token = FakeExecutor::expected(VOCAB, &[prompt, &said[..]].concat(), 1)[0];
        if said.is_empty() && banned == Some(token) {
            token = TokenId((token.0 + 1) % VOCAB);
        }
        said.push(token);
        if said.len() == takes_back && banned.is_none() {
            banned = said.first().copied();
            said.clear();
            continue;
        }
        let may_stop = said.len() > params.min_tokens as usize;
        let reason = if may_stop && token == EOS && !params.ignore_eos {
            FinishReason::EndOfSequence(token)
        } else if may_stop && params.stop_token_ids.contains(&token) {
            FinishReason::StopToken(token)
        } else if said.len() == params.max_tokens.unwrap_or(0) as usize {
            FinishReason::Length
        } else {
            continue;
        };
        return Alone { said, reason, has_taken_back: banned.is_some() };
    }
}
