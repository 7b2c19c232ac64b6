//! Rows whose output must match a grammar: their masks are computed beside the forward pass, and what the grammar forces
//! is added without one.

use std::{collections::HashMap, sync::Arc};

use smallvec::smallvec;

use crate::{
    engine::executor::{AdmittedSequence, PlannedRow, SampledToken, SampledTokens},
    error::{Error, Result},
    ids::{SequenceId, TokenId},
    params::SamplingParams,
    sampling::{
        Sampler,
        grammar::{MaskWorkers, Matcher, Next, PendingMask, TokenMask},
    },
};

use super::Sampled;

/// All of a runner's sequences that have a grammar.
#[derive(Default)]
pub(super) struct Constraints {
    /// Started with the first of them.
    workers: Option<MaskWorkers>,
    waiting: HashMap<SequenceId, Waiting>,
}

/// A sequence between two of its rows.
struct Waiting {
    mask: PendingMask,
    /// No token comes without a forward pass.
    each: bool,
}

/// A sequence's place in its grammar and what may come next, while its row is sampled.
pub(super) struct Constrained {
    matcher: Box<Matcher>,
    next: Next,
    /// No token comes without a forward pass.
    each: bool,
}

/// Whether each token must be sampled, forced or not: its probability is wanted, or the samplers have a say in it.
fn samples_each(params: &SamplingParams) -> bool {
    params.logprobs.is_some()
        || params.mirostat != 0
        || params.min_tokens > 0
        || !params.allowed_token_ids.is_empty()
        || !params.banned_token_ids.is_empty()
}

impl Constraints {
    /// Begins the first mask of a sequence that has a grammar.
    ///
    /// # Errors
    /// `Internal` where no threads can be started.
    pub(super) fn admit(&mut self, sequence: &AdmittedSequence, eos: &[TokenId]) -> Result<()> {
        let Some(grammar) = &sequence.grammar else { return Ok(()) };
        let workers = match &mut self.workers {
            Some(workers) => workers,
            none => none.insert(MaskWorkers::new()?),
        };
        let params: Arc<SamplingParams> = sequence.params.clone();
        let each = samples_each(&params);
        let mask = workers.start(grammar.clone(), params, eos.into());
        self.waiting.insert(sequence.id, Waiting { mask, each });
        Ok(())
    }

    /// Whether a sequence has a grammar.
    pub(super) fn holds(&self, id: SequenceId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Forgets a sequence, and gives up what is computed for it.
    pub(super) fn remove(&mut self, id: SequenceId) {
        self.waiting.remove(&id);
    }

    /// What may come next for a sequence; `None` where it has no grammar. Waits only where the forward pass was faster
    /// than the mask.
    pub(super) fn wait_for(&mut self, id: SequenceId) -> Option<Result<Constrained>> {
        let Waiting { mask, each } = self.waiting.remove(&id)?;
        let answer = mask.wait().and_then(|(matcher, next)| Ok(Constrained { matcher, next: next?, each }));
        Some(answer)
    }

    /// Begins a sequence's next mask.
    pub(super) fn go_on(&mut self, id: SequenceId, constrained: Option<Result<Constrained>>) {
        if let (Some(Ok(Constrained { matcher, each, .. })), Some(workers)) = (constrained, &self.workers) {
            self.waiting.insert(id, Waiting { mask: workers.next(matcher), each });
        }
    }
}

impl Constrained {
    /// Chooses a row's next token from its logits, `[vocab_size]`, and takes the tokens that follow from it.
    ///
    /// # Errors
    /// `Internal` where the logits are no logits; `Aborted` and `InvalidArgument` where it is the request's own doing.
    pub(super) fn sample(&mut self, row: &PlannedRow, logits: &mut [f32], sampler: &mut Sampler) -> Result<Sampled> {
        let mut tokens = SampledTokens::new();
        let index = row.num_output_tokens;
        match &self.next {
            Next::Complete => {}
            Next::Mask(mask) => {
                let token = sampler.sample_masked(logits, index, Some(mask))?;
                self.matcher.accept(token.id)?;
                tokens.push(token);
            }
            Next::Forced if self.each => {
                let forced = self.matcher.first_forced().ok_or_else(|| Error::internal("nothing is forced"))?;
                let token = sampler.sample_masked(logits, index, Some(&TokenMask::only(forced, logits.len())))?;
                self.matcher.take_forced(1).for_each(drop);
                tokens = smallvec![token];
            }
            Next::Forced => {}
        }
        if !self.each {
            for id in self.matcher.take_forced(row.max_new_tokens.saturating_sub(tokens.len())) {
                sampler.observe_forced(id);
                tokens.push(SampledToken { id, logprobs: None });
            }
        }
        let complete = matches!(self.next, Next::Complete) || self.matcher.is_complete();
        Ok((tokens, complete))
    }
}
