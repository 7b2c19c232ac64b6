//! Who runs in the next step, with how many tokens, in which blocks. Policy only; API sketch, bodies follow.

use std::time::Instant;

use smallvec::SmallVec;

use super::{
    executor::{SampledToken, StepOutput, StepPlan},
    sequence::Sequence,
};
use crate::{
    config::EngineConfig,
    error::{Error, Result},
    ids::SequenceId,
    params::{FinishReason, Usage},
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
    /// New tokens: the reader has room for them.
    Tokens {
        /// Whose.
        id: SequenceId,
        /// In order, a stop token included.
        tokens: SmallVec<[SampledToken; 1]>,
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
}

/// The policy of one engine.
pub struct Scheduler {}

impl Scheduler {
    /// An empty one over an empty cache. `max_tokens_per_step` is the executor's.
    pub fn new(_config: &EngineConfig, _max_tokens_per_step: usize) -> Self {
        unimplemented!()
    }
    /// Puts a request in line.
    ///
    /// # Errors
    /// `InvalidArgument` (names `prompt` or `max_tokens`) if it could never fit, `ResourceExhausted` if
    /// `max_num_seqs + max_waiting` sequences are here.
    pub fn add(&mut self, _sequence: Sequence) -> Result<()> {
        unimplemented!()
    }
    /// Puts `child` in line, sharing the computed blocks of `parent` as far as their tokens agree (copy-on-write).
    pub fn fork(&mut self, _parent: SequenceId, _child: Sequence) -> Result<()> {
        unimplemented!()
    }
    /// Forgets a sequence, whatever it does; no event follows. False if there is none.
    pub fn abort(&mut self, _id: SequenceId) -> bool {
        unimplemented!()
    }
    /// Ends the sequences whose readers have gone (`End::Cancelled`). Looks at all: call it when a reader said so.
    pub fn sweep_cancelled(&mut self, _events: &mut Vec<Event>) {
        unimplemented!()
    }
    /// Plans the next step (clears and fills `plan`). True: submit the plan, collect and [`apply`](Self::apply) its output later;
    /// false: there is nothing to run (collect what is in flight, or park). Stall timeouts come as events.
    pub fn schedule(&mut self, _now: Instant, _plan: &mut StepPlan, _events: &mut Vec<Event>) -> bool {
        unimplemented!()
    }
    /// Takes in the output of the oldest submitted step.
    ///
    /// # Errors
    /// `Internal` if the executor broke its contract.
    pub fn apply(&mut self, _output: StepOutput, _events: &mut Vec<Event>) -> Result<()> {
        unimplemented!()
    }
    /// Whether anything could be planned, or is in flight; false if all there are have stalled readers (or none are):
    /// park until a command, a reader's wake-up or [`next_deadline`](Self::next_deadline).
    pub fn has_work(&self) -> bool {
        unimplemented!()
    }
    /// When `schedule` must be called even if nothing else happens: the earliest stall timeout.
    pub fn next_deadline(&self) -> Option<Instant> {
        unimplemented!()
    }
    /// Sequences here, in whatever state.
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    /// Numbers for metrics; cheap enough for every step.
    pub fn stats(&self) -> SchedulerStats {
        unimplemented!()
    }
}
