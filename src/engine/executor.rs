//! The seam between policy and arithmetic: a `StepPlan` goes down, a `StepOutput` comes back.
//!
//! `submit` and `collect` are two calls so that an executor may run one step while the next is
//! planned ([`Executor::runs_ahead`]), and an output may bring 0 to `max_tokens_per_step` tokens a sequence so that
//! speculative decoding needs no seam of its own. Two implementations exist: the real
//! [`Runner`](super::runner::Runner) and the [`FakeExecutor`](super::fake::FakeExecutor) of the tests.

use std::{
    ops::Range,
    sync::{Arc, Weak},
};

use crate::{
    error::{Error, Result},
    ids::{BlockId, SequenceId, Slot, TokenId},
    layers::lora::Adapter,
    params::{Pooling, PromptLogprobs, SamplingParams},
    sampling::grammar::Grammar,
};

pub use crate::params::{FinishReason, SampledToken, SampledTokens, TokenLogprobs};

/// Everything one step computes, flattened: the buffers are reused from step to step, so planning allocates nothing
/// once they have grown.
///
/// Invariants, which the scheduler keeps and executors may rely on: `token_ids` and `positions` have the same length, at
/// most `max_num_batched_tokens`, and `slot_mapping` as many entries a group; no slot appears twice in `slot_mapping`; the
/// rows' `query` ranges partition those arrays in order; a row's block tables cover `context_len + query.len()` tokens, plus
/// `max_tokens_per_step - 1` more for a row that samples. Of a group with a window they begin with [`BlockId::NULL`] as far
/// as no token of the row sees anything.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Counts the steps of this engine.
    pub step: u64,
    /// Sequences that run for the first time: the executor builds their sampling state.
    pub admitted: Vec<AdmittedSequence>,
    /// Sequences that will never run again: the executor forgets them. Applied before anything else.
    pub retired: Vec<SequenceId>,
    /// Sequences that lost their blocks: what is kept of them beside the blocks goes too, and each begins anew, with a row
    /// whose `context_len` is 0, unless it is retired as well. Applied after the retirements.
    pub preempted: Vec<SequenceId>,
    /// Sequences that take tokens back, applied in this order, after retirements and admissions.
    pub rewinds: Vec<Rewind>,
    /// Sequences whose parameters change, applied after the rewinds.
    pub edits: Vec<ParamsEdit>,
    /// Blocks to copy, all layers, in this order, before anything is written (copy-on-write).
    pub block_copies: Vec<BlockCopy>,
    /// One row a scheduled sequence.
    pub rows: Vec<PlannedRow>,
    /// Tokens to compute, `[num_scheduled_tokens]`.
    pub token_ids: Vec<TokenId>,
    /// Their positions in their sequences, `[num_scheduled_tokens]`.
    pub positions: Vec<u32>,
    /// Where their keys and values go in each group of the KV cache, `[num_scheduled_tokens, groups]`.
    pub slot_mapping: Vec<Slot>,
    /// The rows' block tables, one after another, each `[groups, blocks]`.
    pub block_tables: Vec<BlockId>,
}

/// A sequence's part of a step: a prefill chunk, or a decode of one token.
#[derive(Clone, Debug)]
pub struct PlannedRow {
    /// Whose tokens these are.
    pub id: SequenceId,
    /// Its tokens in `token_ids`, `positions` and `slot_mapping`.
    pub query: Range<usize>,
    /// Its blocks in `block_tables`, those of one group after those of another.
    pub blocks: Range<usize>,
    /// Tokens before the query whose keys and values stand in the blocks already.
    pub context_len: u32,
    /// Whether the last token of the query is the sequence's last known token, so that a next one is sampled; or, of a
    /// sequence that is pooled, so that its vector is complete.
    pub samples: bool,
    /// Tokens generated so far: the index of the next token, which with the seed decides the random number.
    pub num_output_tokens: u32,
    /// Positions of the prompt's tokens whose log-probabilities are asked for: each is predicted by the token before
    /// it, which is in the query. Mostly empty.
    pub prompt_targets: Range<u32>,
    /// Most tokens that may come of this row: its reader has room for them, and its limit of length allows them.
    pub max_new_tokens: usize,
    /// Set where the query is one token that was not known when the row was planned: what this row of the step submitted
    /// before, of the same sequence, chose. What `token_ids` has in its place means nothing.
    pub follows: Option<u32>,
}

/// What an executor must know of a sequence to sample for it.
#[derive(Clone, Debug)]
pub struct AdmittedSequence {
    /// Which.
    pub id: SequenceId,
    /// How it is sampled; `seed` is always set.
    pub params: Arc<SamplingParams>,
    /// Its prompt, for penalties.
    pub prompt: Arc<[TokenId]>,
    /// Its `dry_sequence_breakers`, tokenized.
    pub dry_breakers: Arc<[Vec<TokenId>]>,
    /// What its output must match.
    pub grammar: Option<Arc<Grammar>>,
    /// Set where its prompt's hidden states are wanted, and no token: nothing is sampled for it. Its rows begin at its
    /// first token wherever [`Pooling::Mean`] needs all of them; one with a `context_len` of 0 begins anew.
    pub pooling: Option<Pooling>,
    /// What stands beside the model's weights for it; the sequence keeps it, so that it goes with the sequence.
    pub adapter: Option<Weak<Adapter>>,
}

/// A sequence that goes back, and on differently.
#[derive(Clone, Debug)]
pub struct Rewind {
    /// Which.
    pub id: SequenceId,
    /// Index of the first output token that is taken back.
    pub index: u32,
    /// The tokens, in order; the first must not be chosen at this index again unless the sequence goes back further.
    pub removed: Vec<TokenId>,
}

/// A sequence that is sampled differently from its next token on.
#[derive(Clone, Debug)]
pub struct ParamsEdit {
    /// Which.
    pub id: SequenceId,
    /// All its parameters, as they are now; the seed is the same.
    pub params: Arc<SamplingParams>,
    /// Its prompt, and what it has generated, for whoever remembers.
    pub prompt: Arc<[TokenId]>,
    /// Likewise.
    pub output: Vec<TokenId>,
    /// Its `dry_sequence_breakers`, tokenized.
    pub dry_breakers: Arc<[Vec<TokenId>]>,
}

/// A block whose contents another one takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read from.
    pub source: BlockId,
    /// Written to.
    pub destination: BlockId,
}

/// What came of a submitted step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// Tokens of the sequences that sampled; a sequence may be left out and come with a later step.
    pub sequences: Vec<SequenceOutput>,
    /// Of sequences whose prompts are computed and which are pooled: the vector, as long as the model is wide. Their only
    /// output, and their end.
    pub pooled: Vec<(SequenceId, Vec<f32>)>,
    /// Log-probabilities of prompts, as the rows asked for.
    pub prompts: Vec<(SequenceId, PromptLogprobs)>,
    /// Sequences that had a row and whose own parameters left nothing to choose, whose grammar cannot be followed any
    /// further, or whose logits are no numbers: they end with this error, alone.
    pub failed: Vec<(SequenceId, Error)>,
}

/// New tokens of one sequence.
#[derive(Clone, Debug)]
pub struct SequenceOutput {
    /// Whose.
    pub id: SequenceId,
    /// In order; at most the row's `max_new_tokens`. None only where the sequence ends.
    pub tokens: SampledTokens,
    /// Of how many of them the keys and values have been written, fewer than `max_tokens_per_step` and never of the
    /// last. The others, which a grammar forced, are computed together by the sequence's next row.
    pub num_written: u32,
    /// Whether the text is complete: nothing that its grammar allows may follow.
    pub complete: bool,
}

/// Runs steps, in the order in which they are submitted: what a step writes, no step before it reads or overwrites. Lives on
/// the engine thread; may panic or hang without taking the process along.
pub trait Executor {
    /// Starts a step.
    ///
    /// # Errors
    /// An error ends all streams with `INTERNAL` and restarts the engine, as a panic does.
    fn submit(&mut self, plan: &StepPlan) -> Result<()>;

    /// Waits for the oldest step that was submitted and not collected.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    fn collect(&mut self) -> Result<StepOutput>;

    /// Most tokens a sequence can gain in a step by speculation; the scheduler reserves slots for them.
    fn max_tokens_per_step(&self) -> usize {
        1
    }

    /// Whether the next step may be planned and submitted before the newest one is collected, with rows that
    /// [follow](PlannedRow::follows) those of it. Asked after each submission: false for a step that chooses some of its tokens
    /// with what only the host knows (a grammar, what was said so far), and for an executor that computes on the cores which
    /// would plan. The tokens of a step that was followed come with its own output.
    fn runs_ahead(&self) -> bool {
        false
    }
}
