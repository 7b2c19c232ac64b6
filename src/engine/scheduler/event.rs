//! What the scheduler tells the step loop: what happened to sequences, and numbers for metrics.

use crate::{
    engine::executor::SampledTokens,
    error::Error,
    ids::SequenceId,
    params::{FinishReason, PromptLogprobs, Usage},
};

/// What happened to a sequence. All of one sequence's events come in order; `Ended` is its last.
#[derive(Debug)]
pub enum Event {
    /// It runs for the first time.
    Started {
        /// Which.
        id: SequenceId,
        /// Tokens of its prompt that the prefix cache had.
        cached_tokens: u32,
    },
    /// Log-probabilities of its prompt: the reader has room for them, which is that of one token.
    Prompt {
        /// Whose.
        id: SequenceId,
        /// A stretch of the prompt, after the one before.
        prompt: PromptLogprobs,
    },
    /// New tokens: the reader has room for them.
    Tokens {
        /// Whose.
        id: SequenceId,
        /// In order, a stop token included.
        tokens: SampledTokens,
    },
    /// It is over; blocks and row are free.
    Ended {
        /// Which.
        id: SequenceId,
        /// How.
        end: End,
        /// What it cost.
        usage: Usage,
    },
}

/// How a sequence ended.
#[derive(Debug)]
pub enum End {
    /// As its parameters say.
    Finished(FinishReason),
    /// Its prompt is computed, and this is the vector that was asked for.
    Pooled(Vec<f32>),
    /// By policy; `ABORTED` for a reader that stalled too long.
    Failed(Error),
    /// Its reader had gone.
    Cancelled,
}

/// A look at the scheduler, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SchedulerStats {
    /// Sequences in line.
    pub waiting: usize,
    /// Tokens that those in line bring and that nobody has computed for them; what the prefix cache will have of them is
    /// not known before their turn.
    pub waiting_tokens: usize,
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences whose reader has no room.
    pub stalled: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// … of which sequences hold this many; free blocks with cached contents do not count.
    pub used_blocks: usize,
    /// Times a sequence lost its blocks, since the start.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache, since the start.
    pub prefix_cache_queries_tokens: u64,
    /// … of which it had this many.
    pub prefix_cache_hits_tokens: u64,
    /// Cached contents given up for new ones, since the start.
    pub evictions: u64,
    /// Blocks copied because they were shared and had to be written, since the start.
    pub block_copies: u64,
    /// Blocks that conversations keep between two turns; one that two of them share counts twice.
    pub leased_blocks: usize,
    /// Blocks whose content the prefix cache can find, whoever holds them.
    pub cached_blocks: usize,
}
