//! Who runs in the next step, with how many tokens, in which blocks. Policy only: blocks are counted in
//! [`block_manager`](super::block_manager), a sequence's state is in [`sequence`](super::sequence).
//!
//! All sequences stand in one [`Order`]. A step is planned in three passes:
//!
//! 1. *Reserve*: in order, each running sequence gets the blocks that its next tokens need. Where none are free, they
//!    are taken from the stalled, then from those who come last, and only from those who come later. A sequence whose
//!    reader has no room leaves the batch.
//! 2. *Admit*: in order, the waiting get a row and blocks for all their known tokens, while there is budget left.
//! 3. *Pack*: decodes first, then the prefills in order share what is left of the budget.
//!
//! So the first in order always gains a token: it can have everybody's blocks, a row, and a token of the budget.

mod apply;
#[cfg(test)]
mod audit;
mod edit;
mod event;
mod group;
mod lease;
mod packing;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    time::{Duration, Instant},
};

use super::{
    block_manager::{BlockEvent, BlockHasher, BlockManager, BlockTable, blake3_128},
    executor::{BlockCopy, ParamsEdit, Rewind, StepPlan},
    faults::{Fault, planted},
    sequence::{Key, Order, Sequence, Sequences, Status},
};
use crate::{
    config::EngineConfig,
    error::{Code, Error, Result},
    ids::SequenceId,
};

use lease::Leases;

pub use edit::Edit;
pub use event::{End, Event, SchedulerStats};

/// How long a reader that is to be cut off may be behind: long enough for one that keeps up to be woken.
const CUT_OFF_AFTER: Duration = Duration::from_millis(100);

/// A row of a step in flight: what the cache will hold once the step is collected.
#[derive(Clone, Copy)]
struct Computed {
    key: Key,
    id: SequenceId,
    /// The sequence's preemptions then: if there have been more, the blocks are others'.
    num_preemptions: u32,
    num_tokens: usize,
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

    blocks: BlockManager,
    leases: Leases,
    sequences: Sequences,
    /// Every sequence is in one of these, as its status says.
    waiting: BTreeMap<Order, Key>,
    running: Vec<(Order, Key)>,
    stalled: Vec<Key>,
    /// Sequences that begin with the same prompt as the one they wait for: they share its blocks once it has computed
    /// them.
    siblings: HashMap<SequenceId, Vec<Sequence>>,

    /// The rows of the steps that were submitted and not applied, oldest first, and buffers to use again.
    in_flight: VecDeque<Vec<Computed>>,
    spare: Vec<Vec<Computed>>,
    /// Sequences whose tokens are on their way.
    num_outstanding: usize,
    /// Ended sequences that the executor has not been told of.
    retired: Vec<SequenceId>,
    /// Tokens taken back that the executor has not been told of.
    rewinds: Vec<Rewind>,
    /// Parameters that have changed, and that the executor has not been told of.
    edits: Vec<ParamsEdit>,
    /// The first in line, if there were too few blocks for it and nobody's blocks have changed hands since: then there
    /// still are, and looking its prompt up again every step would be a waste.
    refused: Option<Order>,
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
        let cache_tokens = config.num_blocks * config.block_size;
        Self {
            max_num_batched_tokens: config.max_num_batched_tokens.max(1),
            max_num_seqs: config.max_num_seqs.max(1),
            max_sequences: config.max_num_seqs + config.max_waiting,
            max_len: config.max_model_len.min(cache_tokens.saturating_sub(max_tokens_per_step - 1)),
            max_tokens_per_step,
            stall_timeout: config.stall_timeout,
            blocks: BlockManager::new(config.num_blocks, config.block_size, config.enable_prefix_caching, hasher)
                .with_events(config.enable_kv_cache_events),
            leases: Leases::new(config.max_leased_blocks(), config.max_pinned_blocks()),
            sequences: Sequences::default(),
            waiting: BTreeMap::new(),
            running: Vec::with_capacity(config.max_num_seqs),
            stalled: Vec::new(),
            siblings: HashMap::new(),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            num_outstanding: 0,
            retired: Vec::new(),
            rewinds: Vec::new(),
            edits: Vec::new(),
            refused: None,
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
        let left = self.reserve(now, plan);
        self.admit(left, now, plan);
        let rows = self.pack(plan, events);

        plan.retired.append(&mut self.retired);
        plan.rewinds.append(&mut self.rewinds);
        plan.edits.append(&mut self.edits);
        self.warn_leases();
        let waits_for_tokens = self.in_flight.is_empty() && self.num_outstanding > 0;
        let submit = !plan.rows.is_empty()
            || !plan.retired.is_empty()
            || !plan.rewinds.is_empty()
            || !plan.edits.is_empty()
            || !plan.block_copies.is_empty()
            || waits_for_tokens;
        if submit {
            plan.step = self.step;
            self.step += 1;
            self.in_flight.push_back(rows);
        } else {
            self.spare.push(rows);
        }
        submit
    }

    /// Whether anything could be planned, or is in flight; false if the readers of all there are have no room (or there
    /// are none): park until a command, a reader's wake-up or [`next_deadline`](Self::next_deadline).
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.retired.is_empty() || !self.in_flight.is_empty() || self.len() > self.stalled.len()
    }

    /// When [`schedule`](Self::schedule) must be called even if nothing else happens: the earliest stall timeout.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let since = |&key: &Key| match self.sequences[key].status {
            Status::Stalled { since, .. } => since.checked_add(self.patience(key)),
            _ => None,
        };
        self.stalled.iter().filter_map(since).min()
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
            waiting: self.waiting.len() + self.num_siblings(),
            waiting_tokens: self.waiting.values().map(|&key| self.sequences[key].num_uncomputed_tokens()).sum(),
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
        }
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

    // ---- The passes of a step.

    /// Lets stalled sequences back in line whose readers have taken half of what was sent: sooner, and a sequence would
    /// come and go with every token. Ends those whose readers take nothing.
    fn look_after_stalled(&mut self, now: Instant, events: &mut Vec<Event>) {
        for i in (0..self.stalled.len()).rev() {
            let key = self.stalled[i];
            let patience = self.patience(key);
            let sequence = &mut self.sequences[key];
            let needed = sequence.room_needed(self.max_tokens_per_step);
            let Status::Stalled { since, room } = &mut sequence.status else { continue };
            let room_now = sequence.reader.room();
            if sequence.reader.may_resume(needed) {
                self.set_status(key, Status::Waiting);
            } else if room_now > *room && !sequence.is_cut_off {
                (*since, *room) = (now, room_now);
            } else if now.saturating_duration_since(*since) >= patience {
                let message = match sequence.is_cut_off {
                    true => "the reader did not keep up, and the stream was to end then".to_owned(),
                    false => format!("the reader took nothing for {} s", patience.as_secs_f32()),
                };
                self.end(key, End::Failed(Error::new(Code::Aborted, message)), events);
            }
        }
    }

    /// How long a reader may take nothing; one that is to be cut off, less than makes half its room free.
    fn patience(&self, key: Key) -> Duration {
        if self.sequences[key].is_cut_off { CUT_OFF_AFTER } else { self.stall_timeout }
    }

    /// First pass. Returns what the running sequences leave of the budget, and the first of them that had to go
    /// without blocks.
    fn reserve(&mut self, now: Instant, plan: &mut StepPlan) -> Left {
        let mut left = Left { budget: self.max_num_batched_tokens, starved: None };
        let mut i = 0;
        while let Some(&(order, key)) = self.running.get(i) {
            let num_uncomputed = self.sequences[key].num_uncomputed_tokens();
            if num_uncomputed > 0 && self.stalls(key, now) {
                continue;
            }
            let ready = num_uncomputed > 0 && self.reserve_blocks(order, key, &mut plan.block_copies);
            self.sequences[key].ready = ready;
            if ready {
                left.budget = left.budget.saturating_sub(num_uncomputed);
            } else if num_uncomputed > 0 {
                left.starved = left.starved.or(Some(order));
            }
            i += 1;
        }
        left
    }

    /// Second pass.
    fn admit(&mut self, mut left: Left, now: Instant, plan: &mut StepPlan) {
        let mut seen = Bound::Unbounded;
        while let Some((&order, &key)) = self.waiting.range((seen, Bound::Unbounded)).next() {
            seen = Bound::Excluded(order);
            let is_full = left.budget == 0 || self.running.len() >= self.max_num_seqs;
            let outranks = self.running.last().is_some_and(|&(last, _)| order < last);
            if is_full && !outranks
                || left.starved.is_some_and(|starved| starved < order)
                || self.refused == Some(order)
            {
                break;
            }
            // Its tokens from before it lost its row may still be on their way.
            if self.sequences[key].outstanding.is_some() && !planted(Fault::OutstandingIgnored) {
                continue;
            }
            if self.stalls(key, now) {
                continue;
            }
            if !self.reserve_all_blocks(order, key, &mut plan.block_copies) {
                self.refused = Some(order);
                break;
            }
            if self.running.len() >= self.max_num_seqs
                && let Some(&(_, last)) = self.running.last()
            {
                self.set_status(last, Status::Waiting);
            }
            self.set_status(key, Status::Running);
            let sequence = &mut self.sequences[key];
            sequence.ready = true;
            left.budget = left.budget.saturating_sub(sequence.num_uncomputed_tokens());
        }
    }

    /// Third pass. Where the first in order prefills, the decodes leave it a token.
    fn pack(&mut self, plan: &mut StepPlan, events: &mut Vec<Event>) -> Vec<Computed> {
        let mut rows = self.spare.pop().unwrap_or_default();
        let mut budget = self.max_num_batched_tokens + usize::from(planted(Fault::BudgetOffByOne));
        let first = self.running.iter().map(|&(_, key)| &self.sequences[key]).find(|sequence| sequence.ready);
        let first_prefills = first.is_some_and(|first| first.num_uncomputed_tokens() > 1);
        let mut held_back = usize::from(first_prefills && !planted(Fault::DecodesTakeAll));
        for is_decode in [true, false] {
            for &(_, key) in &self.running {
                let sequence = &mut self.sequences[key];
                let num_uncomputed = sequence.num_uncomputed_tokens();
                if !sequence.ready || (num_uncomputed == 1) != is_decode {
                    continue;
                }
                let num_scheduled = num_uncomputed.min(budget - held_back);
                if num_scheduled == 0 {
                    break;
                }
                budget -= num_scheduled;
                if sequence.cached_tokens.is_none() {
                    packing::start(sequence, &mut self.blocks, plan, events);
                }
                sequence.reader.computed(sequence.num_computed_tokens);
                packing::pack_row(sequence, num_scheduled, self.max_tokens_per_step, self.blocks.block_size(), plan);
                self.num_outstanding += usize::from(sequence.outstanding.is_some());
                rows.push(Computed {
                    key,
                    id: sequence.id,
                    num_preemptions: sequence.num_preemptions,
                    num_tokens: sequence.num_computed_tokens,
                });
            }
            held_back = 0;
        }
        rows
    }

    // ---- Decisions.

    /// Takes a sequence out of the batch, or of the line, if its reader has no room for what it may sample.
    fn stalls(&mut self, key: Key, now: Instant) -> bool {
        let sequence = &self.sequences[key];
        let room = sequence.reader.room();
        let stalls = room < sequence.room_needed(self.max_tokens_per_step) && !planted(Fault::StalledScheduled);
        if stalls {
            self.set_status(key, Status::Stalled { since: now, room });
        }
        stalls
    }

    /// Blocks for all known tokens of a sequence and for those it may sample, at the cost of others if need be.
    fn reserve_blocks(&mut self, order: Order, key: Key, copies: &mut Vec<BlockCopy>) -> bool {
        let num_lookahead = if planted(Fault::LookaheadForgotten) { 0 } else { self.max_tokens_per_step - 1 };
        loop {
            let sequence = &mut self.sequences[key];
            let write = sequence.num_computed_tokens..sequence.tokens.len() + num_lookahead;
            if self.blocks.reserve(&mut sequence.table, write, copies) {
                return true;
            }
            if self.evict_lease(false) {
                continue;
            }
            if let Some(victim) = self.victim(order) {
                self.preempt(victim);
            } else if !self.is_alone(key) || !self.evict_lease(true) {
                return false;
            }
        }
    }

    /// The same for a sequence that may hold none yet: takes over what the prefix cache has.
    fn reserve_all_blocks(&mut self, order: Order, key: Key, copies: &mut Vec<BlockCopy>) -> bool {
        let sequence = &mut self.sequences[key];
        let is_new = sequence.table.is_empty();
        // What must be computed, for the prompt's log-probabilities or a mean over it, is not taken from the cache.
        let wants_cached = is_new && !sequence.needs_whole_prompt();
        let leased = if wants_cached { self.adopt_lease(key) } else { None };
        let sequence = &mut self.sequences[key];
        if wants_cached {
            let cached = leased.unwrap_or_else(|| self.blocks.adopt_prefix(&mut sequence.table, &sequence.tokens));
            sequence.num_computed_tokens = cached;
        }
        let reserved = self.reserve_blocks(order, key, copies);
        if let Some(leased) = leased.filter(|_| !reserved) {
            self.restore_lease(key, leased);
            return false;
        }
        let sequence = &mut self.sequences[key];
        if !reserved && is_new {
            self.blocks.release(&mut sequence.table);
            sequence.num_computed_tokens = 0;
        }
        if reserved && planted(Fault::RegisteredBeforeComputed) {
            self.blocks.register(&mut sequence.table, &sequence.tokens, sequence.tokens.len());
        }
        reserved
    }

    /// Whether nobody else could give it blocks, now or later.
    fn is_alone(&self, key: Key) -> bool {
        self.sequences.iter().all(|(other, sequence)| other == key || sequence.table.is_empty())
    }

    /// Who gives up blocks for the sequence at `order`: a stalled one, or else the last of those who come later.
    fn victim(&self, order: Order) -> Option<Key> {
        self.sequences
            .iter()
            .filter(|(_, sequence)| !sequence.table.is_empty() && (sequence.is_stalled() || sequence.order() > order))
            .max_by_key(|(_, sequence)| (sequence.is_stalled(), sequence.order()))
            .map(|(key, _)| key)
    }

    /// Takes a sequence's blocks away; all its tokens will be computed again, as far as the prefix cache has not kept
    /// them.
    fn preempt(&mut self, key: Key) {
        let sequence = &mut self.sequences[key];
        self.blocks.release(&mut sequence.table);
        if !planted(Fault::PreemptedKeepsComputed) {
            sequence.num_computed_tokens = 0;
        }
        sequence.num_preemptions += 1;
        self.preemptions += 1;
        self.refused = None;
        if sequence.status == Status::Running {
            self.set_status(key, Status::Waiting);
        }
    }

    // ---- Bookkeeping.

    /// Whether a request can be taken, and where it will end at the latest.
    fn check(&self, sequence: &mut Sequence) -> Result<()> {
        // What is pooled needs no place for a token after it.
        let limit = self.max_len + usize::from(sequence.pooling.is_some());
        let prompt = sequence.prompt.len();
        if prompt == 0 {
            return Err(Error::invalid("prompt", "is empty, must have at least one token"));
        }
        if prompt >= limit {
            let most = limit.saturating_sub(1);
            return Err(Error::invalid("prompt", format!("has {prompt} tokens, at most {most} can be answered here")));
        }
        sequence.max_len = match sequence.params.max_tokens {
            None => limit,
            Some(max_tokens) if prompt + max_tokens as usize <= limit => prompt + max_tokens as usize,
            Some(max_tokens) => {
                let most = limit - prompt;
                let description = format!("is {max_tokens}, at most {most} fit here after a prompt of {prompt} tokens");
                return Err(Error::invalid("max_tokens", description));
            }
        };
        let here = self.len() + self.num_siblings();
        if here >= self.max_sequences {
            return Err(Error::new(Code::ResourceExhausted, format!("{here} requests are here already")));
        }
        if self.sequences.key(sequence.id).is_some() {
            return Err(Error::internal(format!("sequence {} was added twice", sequence.id)));
        }
        let most_held = sequence.guard.as_ref().map_or(0, |guard| guard.most_held());
        if sequence.reader.capacity() < sequence.room_needed(self.max_tokens_per_step) + most_held {
            return Err(Error::internal("a reader must have room for the tokens of one step"));
        }
        Ok(())
    }

    fn enter(&mut self, sequence: Sequence) {
        let order = sequence.order();
        let key = self.sequences.insert(sequence);
        self.waiting.insert(order, key);
    }

    fn set_status(&mut self, key: Key, status: Status) {
        self.leave_list(key);
        let sequence = &mut self.sequences[key];
        sequence.status = status;
        sequence.ready = false;
        self.join_list(key);
    }

    /// Lists a sequence that is in no list where its status and its order put it.
    fn join_list(&mut self, key: Key) {
        let sequence = &self.sequences[key];
        let order = sequence.order();
        self.refused = None;
        match sequence.status {
            Status::Waiting => {
                self.waiting.insert(order, key);
            }
            Status::Running => {
                let at = self.running.partition_point(|&(other, _)| other < order);
                self.running.insert(at, (order, key));
            }
            Status::Stalled { .. } => {
                self.stalled.push(key);
            }
        }
    }

    fn leave_list(&mut self, key: Key) {
        let sequence = &self.sequences[key];
        let order = sequence.order();
        match sequence.status {
            Status::Waiting => {
                self.waiting.remove(&order);
            }
            Status::Running => {
                if let Ok(at) = self.running.binary_search_by_key(&order, |&(order, _)| order) {
                    self.running.remove(at);
                }
            }
            Status::Stalled { .. } => self.stalled.retain(|&other| other != key),
        }
    }

    fn remove(&mut self, key: Key) {
        self.release_siblings(key);
        self.leave_list(key);
        let Some(mut sequence) = self.sequences.remove(key) else { return };
        if !planted(Fault::BlocksLeaked) {
            self.keep_for_lease(&mut sequence);
            self.blocks.release(&mut sequence.table);
        }
        self.refused = None;
        self.num_outstanding -= usize::from(sequence.outstanding.is_some());
        if sequence.cached_tokens.is_some() {
            self.retired.push(sequence.id);
        }
    }

    fn end(&mut self, key: Key, end: End, events: &mut Vec<Event>) {
        let sequence = &self.sequences[key];
        events.push(Event::Ended { id: sequence.id, end, usage: sequence.usage() });
        self.remove(key);
    }
}

/// What the reserve pass leaves to the admit pass.
struct Left {
    /// Tokens.
    budget: usize,
    /// The first running sequence that lacks blocks: nobody behind it takes any.
    starved: Option<Order>,
}
