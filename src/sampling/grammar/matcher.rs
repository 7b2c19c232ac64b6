//! How far one sequence has come in its grammar.

use std::{collections::VecDeque, sync::Arc};

use llguidance::CancellationHandle;

use super::{Grammar, TokenMask};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

/// What may come next.
#[derive(Debug)]
pub enum Next {
    /// One of these tokens.
    Mask(TokenMask),
    /// The tokens that [`Matcher::take_forced`] gives.
    Forced,
    /// Nothing: the text is complete.
    Complete,
}

/// One sequence's place in its grammar.
pub struct Matcher {
    inner: llguidance::Matcher,
    /// Tokens that must come, already taken in by `inner`. Kept from step to step where not all could be sent at once,
    /// so that they do not depend on how many could.
    forced: VecDeque<TokenId>,
    /// Tokens that end the sequence, allowed where the text is complete.
    ends: Arc<[TokenId]>,
    /// Whether the text was complete at the last mask.
    may_end: bool,
    field: &'static str,
    vocab_size: usize,
}

impl Matcher {
    /// At the start of the text, with a lexer of its own. `eos` are the model's end-of-sequence tokens; like
    /// `stop_token_ids` they are allowed where the text is complete, unless `ignore_eos` is set.
    ///
    /// # Errors
    /// `Internal` where the grammar does not start, which its compilation tried.
    pub fn new(grammar: &Grammar, params: &SamplingParams, eos: &[TokenId]) -> Result<Self> {
        let eos = if params.ignore_eos { &[] } else { eos };
        let mut matcher = Self {
            inner: grammar.start().into_cancellable(),
            forced: VecDeque::new(),
            ends: eos.iter().chain(&params.stop_token_ids).copied().collect(),
            may_end: false,
            field: grammar.field(),
            vocab_size: grammar.vocab_size(),
        };
        matcher.force()?;
        Ok(matcher)
    }

    /// Ends a computation that is under way in another thread, and every later one.
    pub(super) fn cancellation(&self) -> Option<CancellationHandle> {
        self.inner.cancellation_handle()
    }

    /// What may come next. Costs a walk along the vocabulary where it is a mask.
    ///
    /// # Errors
    /// `InvalidArgument` where the grammar asks for more work than one step may cost, or leads nowhere.
    pub fn what_next(&mut self) -> Result<Next> {
        if !self.forced.is_empty() {
            return Ok(Next::Forced);
        }
        if self.complete() {
            return Ok(Next::Complete);
        }
        let set = self.inner.compute_mask().map_err(|error| self.failed(&error.to_string()))?;
        let mut mask = TokenMask::new(&set, self.vocab_size);
        self.may_end = set.is_allowed(self.vocab_size as u32);
        if self.may_end {
            if mask.is_empty() {
                return Ok(Next::Complete);
            }
            self.ends.iter().for_each(|&end| mask.allow(end));
        }
        Ok(Next::Mask(mask))
    }

    /// Takes in the token that was chosen, and finds out what it forces.
    ///
    /// # Errors
    /// `Internal` for a token that the mask did not allow.
    pub fn accept(&mut self, token: TokenId) -> Result<()> {
        if self.may_end && self.ends.contains(&token) {
            return Ok(()); // The sequence ends with it.
        }
        self.inner.consume_token(token.0).map_err(|error| self.failed(&error.to_string()))?;
        self.force()
    }

    fn force(&mut self) -> Result<()> {
        if self.complete() {
            return Ok(());
        }
        let forced = self.inner.compute_ff_tokens();
        if !forced.is_empty() {
            self.inner.consume_tokens(&forced).map_err(|error| self.failed(&error.to_string()))?;
            self.forced.extend(forced.into_iter().map(TokenId));
        }
        Ok(())
    }

    /// The first of the tokens that must come.
    #[must_use]
    pub fn first_forced(&self) -> Option<TokenId> {
        self.forced.front().copied()
    }

    /// Takes at most so many of the tokens that must come.
    pub fn take_forced(&mut self, at_most: usize) -> impl Iterator<Item = TokenId> + '_ {
        self.forced.drain(..at_most.min(self.forced.len()))
    }

    /// Whether the text, with all that is forced, is complete and nothing may follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.forced.is_empty() && self.complete()
    }

    fn complete(&self) -> bool {
        self.inner.is_stopped() && self.inner.stop_reason().is_ok()
    }

    fn failed(&self, why: &str) -> Error {
        use llguidance::api::StopReason;
        let why = super::compiler::readable(why);
        match self.inner.stop_reason() {
            StopReason::InternalError
                if !why.contains("limit") && !why.contains("complex") && !why.contains("fuel") =>
            {
                Error::invalid(self.field, format!("cannot be followed any further: {why}"))
            }
            _ => Error::invalid(self.field, format!("is too complex to follow: {why}")),
        }
    }
}
