//! Clients of every temper, and what each would get if it were alone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use super::{EOS, VOCAB};
use crate::{
    engine::{fake::FakeExecutor, sequence::Reader},
    ids::TokenId,
    params::{FinishReason, SamplingParams},
};

/// A reader's channel, counted only.
pub(in crate::engine::properties) struct Outbox {
    capacity: usize,
    queued: AtomicUsize,
    pub(super) gone: AtomicBool,
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
    /// What it would get alone, and how that would end.
    pub(super) alone: (Vec<TokenId>, FinishReason),
    pub(super) received: Vec<TokenId>,
    pub(super) started: bool,
    /// The prompt, and the position of the next of its tokens whose log-probability must come; its end if none must.
    pub(super) prompt: Vec<TokenId>,
    pub(super) next_prompt_logprob: usize,
}

/// What a request gets when there is nobody else, by the rules as written in the contract.
pub(super) fn alone(prompt: &[TokenId], params: &SamplingParams) -> (Vec<TokenId>, FinishReason) {
    let mut tokens = FakeExecutor::expected(VOCAB, prompt, params.max_tokens.unwrap_or(0) as usize);
    for (i, &token) in tokens.iter().enumerate().skip(params.min_tokens as usize) {
        let reason = if token == EOS && !params.ignore_eos {
            FinishReason::EndOfSequence(token)
        } else if params.stop_token_ids.contains(&token) {
            FinishReason::StopToken(token)
        } else {
            continue;
        };
        tokens.truncate(i + 1);
        return (tokens, reason);
    }
    (tokens, FinishReason::Length)
}
