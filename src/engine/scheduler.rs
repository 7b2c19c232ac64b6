//! Who runs in the next step, with how many tokens, in which blocks. Policy only: blocks are counted in
//! [`block_manager`](super::block_manager), a sequence's state is in [`sequence`](super::sequence).
//!
//! All sequences of a tenant stand in one [`Order`](super::sequence::Order), and tenants take turns by what they were
//! served ([`tenants`]): both together are a sequence's [`Place`]. A step is planned in three passes:
//!
//! 1. *Reserve* ([`reserve`]): by place, each running sequence gets the blocks that its next tokens need. Where none are
//!    free, they are taken from the stalled, then from those who come last, and only from those who come later. A sequence
//!    whose reader has no room leaves the batch ([`stall`]).
//! 2. *Admit* ([`admit`]): by place, the waiting get a row and blocks for all their known tokens, while there is budget
//!    left; where there is none, who comes earlier gets the row of who comes last.
//! 3. *Pack* ([`packing`]): decodes first, then the prefills by place share what is left of the budget, as far as the
//!    decodes can wait for them ([`prefill_budget`]).
//!
//! So the first of one tenant always gains a token: it can have everybody's blocks, a row, and a token of the budget. Blocks
//! of another tenant are taken where that one is ahead by as much as its prompt and half of its answer, which are to be
//! computed again; and where otherwise nobody could run, by place alone.

mod admit;
mod ahead;
mod apply;
#[cfg(test)]
mod audit;
mod edit;
mod event;
mod group;
mod lease;
mod lists;
mod packing;
mod prefill_budget;
mod reserve;
mod stall;
mod tenants;

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    block_manager::{BlockEvent, BlockHasher, BlockManager, BlockTable, blake3_128},
    executor::{ParamsEdit, Rewind, StepPlan},
    sequence::{Key, Order, Sequence, Sequences},
};
use crate::{config::EngineConfig, error::Result, ids::SequenceId};

use lease::Leases;
use prefill_budget::{Mix, PrefillBudget};
use tenants::{Place, Tenants};

pub use edit::Edit;
pub use event::{End, Event, SchedulerStats};

/// A row of a step in flight: what the cache will hold once the step is collected.
#[derive(Clone, Copy)]
struct Computed {
    key: Key,
    id: SequenceId,
    /// The sequence's preemptions then: if there have been more, the blocks are others'.
    num_preemptions: u32,
    num_tokens: usize,
}

/// A step that was submitted and not applied.
struct InFlight {
    rows: Vec<Computed>,
    mix: Mix,
    /// Whether rows of the next step may follow rows of this one.
    may_be_followed: bool,
}

/// The policy of one engine.
pub struct Scheduler {
    max_num_batched_tokens: usize,
    max_num_seqs: usize,
    max_sequences: usize,
    /// Prompt and output tokens a sequence, as the context and the cache allow.
    max_len: usize,
    max_tokens_per_step: usize,
    stall_timeout: Duration,
    /// As [`EngineConfig::prefixes_are_shared`].
    prefixes_are_shared: bool,

    blocks: BlockManager,
    leases: Leases,
    sequences: Sequences,
    /// Every sequence is in one of these, as its status says. Those who wait are in line with their tenant.
    tenants: Tenants,
    /// By place.
    running: Vec<(Place, Key)>,
    stalled: Vec<Key>,
    /// Sequences that begin with the same prompt as the one they wait for: they share its blocks once it has computed
    /// them.
    siblings: HashMap<SequenceId, Vec<Sequence>>,

    /// Oldest first, and buffers to use again.
    in_flight: VecDeque<InFlight>,
    spare: Vec<Vec<Computed>>,
    /// Sequences whose tokens are on their way.
    num_outstanding: usize,
    /// Ended sequences that the executor has not been told of.
    retired: Vec<SequenceId>,
    /// Sequences that have lost their blocks, which the executor has not been told of.
    preempted: Vec<SequenceId>,
    /// Tokens taken back that the executor has not been told of.
    rewinds: Vec<Rewind>,
    /// Parameters that have changed, and that the executor has not been told of.
    edits: Vec<ParamsEdit>,
    /// The first in line, if there were too few blocks for it and nobody's blocks have changed hands since: then there
    /// still are, and looking its prompt up again every step would be a waste. With the step in which that was.
    refused: Option<(Order, u64)>,
    /// Whether there were several tenants in the step before.
    was_shared: bool,
    /// Whether blocks are taken by place alone: nobody could run otherwise.
    takes_all: bool,
    prefill_budget: PrefillBudget,
    step: u64,
    preemptions: u64,
}

impl Scheduler {
    /// An empty one over an empty cache. `max_tokens_per_step` is the executor's.
    #[must_use]
    pub fn new(config: &EngineConfig, max_tokens_per_step: usize) -> Self {
        Self::with_hasher(config, max_tokens_per_step, blake3_128)
    }

    /// The same with another hash for the prefix cache; a bad one costs hits, never correctness.
    #[must_use]
    pub fn with_hasher(config: &EngineConfig, max_tokens_per_step: usize, hasher: BlockHasher) -> Self {
        let max_tokens_per_step = max_tokens_per_step.max(1);
        let max_num_batched_tokens = config.max_num_batched_tokens.max(1);
        // Slots for tokens that a step may bring and that nobody knows yet.
        let num_lookahead = max_tokens_per_step - 1;
        let step_tokens = max_num_batched_tokens.saturating_add(num_lookahead);
        let longest = config.kv_groups.longest(config.num_blocks, config.block_size, step_tokens);
        let caches = config.enable_prefix_caching && config.prefixes_are_shared;
        let most_tables = if config.prefixes_are_shared { usize::MAX } else { config.max_num_seqs.max(1) };
        Self {
            max_num_batched_tokens,
            max_num_seqs: config.max_num_seqs.max(1),
            max_sequences: config.max_num_seqs + config.max_waiting,
            max_len: config.max_model_len.min(longest.saturating_sub(num_lookahead)),
            max_tokens_per_step,
            stall_timeout: config.stall_timeout,
            prefixes_are_shared: config.prefixes_are_shared,
            blocks: BlockManager::new(config.num_blocks, config.block_size, caches, hasher)
                .with_groups(config.kv_groups, step_tokens)
                .with_most_tables(most_tables)
                .with_events(config.enable_kv_cache_events),
            leases: Leases::new(config.max_leased_blocks(), config.max_pinned_blocks()),
            sequences: Sequences::default(),
            tenants: Tenants::default(),
            running: Vec::with_capacity(config.max_num_seqs),
            stalled: Vec::new(),
            siblings: HashMap::new(),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            num_outstanding: 0,
            retired: Vec::new(),
            preempted: Vec::new(),
            rewinds: Vec::new(),
            edits: Vec::new(),
            refused: None,
            was_shared: false,
            takes_all: false,
            prefill_budget: PrefillBudget::new(config.itl_target, config.block_size),
            step: 0,
            preemptions: 0,
        }
    }

    /// Puts a request in line.
    ///
    /// # Errors
    /// `InvalidArgument` (names `prompt` or `max_tokens`) if it could never fit, `ResourceExhausted` if
    /// `max_num_seqs + max_waiting` sequences are here, `Internal` if the id is taken or the reader too small.
    pub fn add(&mut self, mut sequence: Sequence) -> Result<()> {
        sequence.table = BlockTable::new(sequence.salt.clone());
        self.check(&mut sequence)?;
        self.enter(sequence);
        Ok(())
    }

    /// Forgets a sequence, whatever it does; no event follows. False if there is none.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        let Some(key) = self.sequences.key(id) else { return false };
        self.remove(key);
        true
    }

    /// Ends the sequences whose readers have gone ([`End::Cancelled`]). Looks at all of them: to be called when a reader
    /// said so, not every step.
    pub fn sweep_cancelled(&mut self, events: &mut Vec<Event>) {
        // Ending one may let others in line that are gone too.
        loop {
            let gone = self.sequences.iter().filter(|(_, sequence)| sequence.reader.cancelled());
            let gone: Vec<Key> = gone.map(|(key, _)| key).collect();
            if gone.is_empty() {
                return;
            }
            for key in gone {
                self.end(key, End::Cancelled, events);
            }
        }
    }

    /// Plans the next step into `plan`, which is cleared first. True: submit it, and [`apply`](Self::apply) what is
    /// collected (a plan may have no rows; it then carries retirements, or is there to collect tokens that are late).
    /// False: there is nothing to submit; collect what is in flight, or park.
    ///
    /// Events: first runs, and readers that stalled too long.
    pub fn schedule(&mut self, now: Instant, plan: &mut StepPlan, events: &mut Vec<Event>) -> bool {
        packing::clear(plan);
        self.look_after_stalled(now, events);
        self.line_up();
        self.choose(now, plan);
        if self.is_stuck() {
            self.takes_all = true;
            self.refused = None;
            self.choose(now, plan);
            self.takes_all = false;
        }
        let packed = self.pack(plan, events);

        plan.retired.append(&mut self.retired);
        plan.preempted.append(&mut self.preempted);
        plan.rewinds.append(&mut self.rewinds);
        plan.edits.append(&mut self.edits);
        self.warn_leases();
        let waits_for_tokens = self.in_flight.is_empty() && self.num_outstanding > 0;
        let submit = !plan.rows.is_empty()
            || !plan.retired.is_empty()
            || !plan.preempted.is_empty()
            || !plan.rewinds.is_empty()
            || !plan.edits.is_empty()
            || !plan.block_copies.is_empty()
            || waits_for_tokens;
        if submit {
            plan.step = self.step;
            self.step += 1;
            self.in_flight.push_back(packed);
        } else {
            self.spare.push(packed.rows);
        }
        submit
    }

    /// The first two passes.
    fn choose(&mut self, now: Instant, plan: &mut StepPlan) {
        let left = self.reserve(now, plan);
        let (starved, num_stalled) = (left.starved.is_some(), self.stalled.len());
        self.admit(left, now, plan);
        // Who stalls in line no longer keeps blocks from those who run behind it.
        if starved && self.stalled.len() > num_stalled {
            self.reserve(now, plan);
        }
    }

    /// Whether nobody can run, though there are some who want to and wait for no tokens: each lacks blocks that another
    /// one holds, of a tenant that is not far enough ahead.
    fn is_stuck(&self) -> bool {
        let waits_for_tokens = |sequence: &Sequence| !sequence.is_stalled() && sequence.outstanding.is_some();
        self.tenants.is_shared()
            && self.in_flight.is_empty()
            && self.len() > self.stalled.len()
            && !self.running.iter().any(|&(_, key)| self.sequences[key].ready)
            && !self.sequences.iter().any(|(_, sequence)| waits_for_tokens(sequence))
    }

    /// The oldest step in flight, whose output has come, took so long: what the prompts of later ones are measured by.
    pub fn record_step(&mut self, elapsed: Duration) {
        if let Some(step) = self.in_flight.front() {
            self.prefill_budget.record(elapsed, step.mix);
        }
    }

    /// Whether anything could be planned, or is in flight; false if the readers of all there are have no room (or there
    /// are none): park until a command, a reader's wake-up or [`next_deadline`](Self::next_deadline).
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.retired.is_empty() || !self.in_flight.is_empty() || self.len() > self.stalled.len()
    }

    /// Sequences here, in whatever state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers for metrics; cheap enough for every step.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        let counters = self.blocks.counters();
        SchedulerStats {
            waiting: self.tenants.num_waiting() + self.num_siblings(),
            waiting_tokens: self.tenants.waiting().map(|key| self.sequences[key].num_uncomputed_tokens()).sum(),
            running: self.running.len(),
            stalled: self.stalled.len(),
            num_blocks: self.blocks.num_blocks(),
            used_blocks: self.blocks.num_used(),
            preemptions: self.preemptions,
            prefix_cache_queries_tokens: counters.queries_tokens,
            prefix_cache_hits_tokens: counters.hits_tokens,
            evictions: counters.evictions,
            block_copies: counters.copies,
            leased_blocks: self.leases.num_blocks(),
            cached_blocks: self.blocks.num_cached(),
        }
    }

    /// Forgets the contents of all blocks that nobody holds. Says how many those were, and how many held ones can still be
    /// found.
    pub fn flush_cache(&mut self) -> (usize, usize) {
        let freed = self.blocks.forget_free();
        (freed, self.blocks.num_registered())
    }

    /// Whether anything has changed in the prefix cache that [`take_block_events`](Self::take_block_events) would give.
    #[must_use]
    pub fn has_block_events(&self) -> bool {
        self.blocks.has_events()
    }

    /// What has changed in the prefix cache since the last call, in order.
    pub fn take_block_events(&mut self) -> Vec<BlockEvent> {
        self.blocks.take_events()
    }
}
