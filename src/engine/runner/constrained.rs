//! Rows whose output must match a grammar: their masks are computed beside the forward pass, and what the grammar forces
//! is added without one.

use std::{collections::HashMap, sync::Arc};

use smallvec::{SmallVec, smallvec};

use crate::{
    engine::executor::{AdmittedSequence, FinishReason, PlannedRow, SampledToken},
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    params::SamplingParams,
    sampling::{
        Sampler,
        grammar::{MaskWorkers, Matcher, Next, PendingMask, TokenMask},
    },
};

/// New tokens of a row, and the end of its sequence where nothing may follow them.
type Sampled = (SmallVec<[SampledToken; 1]>, Option<Result<FinishReason>>);

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
    logprobs: bool,
}

/// A sequence's place in its grammar and what may come next, while its row is sampled.
pub(super) struct Constrained {
    matcher: Box<Matcher>,
    next: Next,
    /// Every token is wanted with its probability, so that none comes without a forward pass.
    logprobs: bool,
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
        let logprobs = params.logprobs.is_some();
        let mask = workers.start(grammar.clone(), params, eos.into());
        self.waiting.insert(sequence.id, Waiting { mask, logprobs });
        Ok(())
    }

    /// Forgets a sequence, and gives up what is computed for it.
    pub(super) fn remove(&mut self, id: SequenceId) {
        self.waiting.remove(&id);
    }

    /// What may come next for a sequence; `None` where it has no grammar. Waits only where the forward pass was faster
    /// than the mask.
    pub(super) fn wait_for(&mut self, id: SequenceId) -> Option<Result<Constrained>> {
        let Waiting { mask, logprobs } = self.waiting.remove(&id)?;
        let answer = mask.wait().and_then(|(matcher, next)| Ok(Constrained { matcher, next: next?, logprobs }));
        Some(answer)
    }

    /// Begins a sequence's next mask.
    pub(super) fn go_on(&mut self, id: SequenceId, constrained: Option<Result<Constrained>>) {
        if let (Some(Ok(Constrained { matcher, logprobs, .. })), Some(workers)) = (constrained, &self.workers) {
            self.waiting.insert(id, Waiting { mask: workers.next(matcher), logprobs });
        }
    }
}

impl Constrained {
    /// Chooses a row's next token from its logits, `[vocab_size]`, and takes the tokens that follow from it.
    ///
    /// # Errors
    /// `Internal` where the logits are no logits. What is wrong with the request ends its sequence alone.
    pub(super) fn sample(&mut self, row: &PlannedRow, logits: &mut [f32], sampler: &mut Sampler) -> Result<Sampled> {
        match self.advance(row, logits, sampler) {
            Ok(sampled) => Ok(sampled),
            Err(error) if error.code == Code::InvalidArgument => Ok((SmallVec::new(), Some(Err(error)))),
            Err(error) => Err(error),
        }
    }

    fn advance(&mut self, row: &PlannedRow, logits: &mut [f32], sampler: &mut Sampler) -> Result<Sampled> {
        let mut tokens: SmallVec<[SampledToken; 1]> = SmallVec::new();
        let index = row.num_output_tokens;
        match &self.next {
            Next::Complete => {}
            Next::Mask(mask) => {
                let token = sampler.sample_masked(logits, index, Some(mask))?;
                self.matcher.accept(token.id)?;
                tokens.push(token);
            }
            Next::Forced if self.logprobs => {
                let forced = self.matcher.first_forced().ok_or_else(|| Error::internal("nothing is forced"))?;
                let token = sampler.sample_masked(logits, index, Some(&TokenMask::only(forced, logits.len())))?;
                self.matcher.take_forced(1).for_each(drop);
                tokens = smallvec![token];
            }
            Next::Forced => {}
        }
        if !self.logprobs {
            for id in self.matcher.take_forced(row.max_new_tokens.saturating_sub(tokens.len())) {
                sampler.observe(id);
                tokens.push(SampledToken { id, logprobs: None });
            }
        }
        let complete = matches!(self.next, Next::Complete) || self.matcher.is_complete();
        Ok((tokens, complete.then_some(Ok(FinishReason::GrammarComplete))))
    }
}
