//! An executor without arithmetic, for tests of everything above it and for the bench of a step.
//!
//! Its "keys and values" are the tokens themselves: a step stores token ids in slots, and what comes next is a hash of
//! the whole context, *read back through the block tables*: of a group with a window, what the row's tokens see. A wrong
//! slot, a stale block or a lost copy therefore is noticed, as it would be in the real one: it knows what every sequence should
//! read, checks the plan's invariants, and fails the step with a sentence when one does not hold.

mod pooled;

pub use pooled::EMBEDDING_SIZE;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::executor::{
    Executor, PlannedRow, Rewind, SampledToken, SampledTokens, SequenceOutput, StepOutput, StepPlan, TokenLogprobs,
};
use crate::{
    config::{EngineConfig, KvCacheGroups},
    error::{Error, Result},
    ids::{BlockId, SequenceId, TokenId},
    params::PromptLogprobs,
};

/// How a fake behaves.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Most tokens a sequence gains in a step; how many is drawn. At least 1.
    pub max_tokens_per_step: usize,
    /// Chance, in 256ths, that tokens come with a later step than the one that sampled them.
    pub lag: u8,
    /// Whether it keeps a state of each sequence beside the blocks, and so goes on from nothing else.
    pub keeps_states: bool,
    /// Whether a step is computed when it is collected, so that the next one can be planned and submitted before. Tokens are
    /// not to come late then, nor several at a time.
    pub overlaps: bool,
    /// Of what is drawn.
    pub seed: u64,
    /// What befalls the engine, and in which submitted step, counted from 0.
    pub mishap: Option<(u64, Mishap)>,
}

impl Default for FakeOptions {
    fn default() -> Self {
        let (vocab_size, max_tokens_per_step) = (256, 1);
        Self { vocab_size, max_tokens_per_step, lag: 0, keeps_states: false, overlaps: false, seed: 0, mishap: None }
    }
}

/// What can befall an engine.
#[derive(Clone, Debug)]
pub enum Mishap {
    /// `submit` panics.
    Panic,
    /// `submit` fails.
    Fail,
    /// `collect` waits until the gate is opened.
    Hang(Arc<Gate>),
}

/// Shut until somebody opens it, then open for good.
#[derive(Debug, Default)]
pub struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    reached: AtomicBool,
}

impl Gate {
    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Whether anybody has come to wait.
    pub fn reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// Waits for [`open`](Self::open).
    pub fn wait(&self) {
        self.reached.store(true, Ordering::Release);
        let mut is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_open {
            is_open = self.opened.wait(is_open).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What a slot holds, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    token: TokenId,
    position: u32,
}

/// A slot of the fake cache.
#[derive(Clone, Copy, Debug, Default)]
struct FakeSlot {
    stored: Option<Stored>,
    /// When `stored` last changed: the step counted from 1, and the row.
    changed: (u64, usize),
    /// The step, counted from 1, in which it was last written.
    written: u64,
}

/// What a sequence should find in its slots.
struct Known {
    tokens: Vec<TokenId>,
    prompt_len: usize,
    /// Tokens that may not come at an index; the next one comes in their place.
    bans: Vec<(usize, TokenId)>,
    /// Tokens that have gone into its state, where there is one.
    state: Option<u32>,
    /// Set where its states are wanted, and no token.
    pool: Option<pooled::Pool>,
}

/// The fake. See the [module](self).
pub struct FakeExecutor {
    options: FakeOptions,
    random: Random,
    block_size: usize,
    groups: KvCacheGroups,
    max_num_batched_tokens: usize,
    slots: Vec<FakeSlot>,
    sequences: HashMap<SequenceId, Known>,
    /// Tokens that come with a later step.
    late: Vec<SequenceOutput>,
    /// Vectors that do.
    late_pooled: Vec<(SequenceId, Vec<f32>)>,
    /// The steps that were submitted and not collected.
    steps: VecDeque<(u64, Pending)>,
    num_submitted: u64,
    num_computed: u64,
    /// What each row of the newest computed step chose, and for whom.
    chosen: Vec<Option<(SequenceId, TokenId)>>,
    /// Sequences whose tokens the host chooses, as far as this is pretended.
    hosted: HashSet<SequenceId>,
    /// Whether rows of the newest submitted step can be followed.
    runs_ahead: bool,
}

/// A step that was submitted.
enum Pending {
    Plan(Box<StepPlan>),
    Output(StepOutput),
}

impl FakeExecutor {
    /// One with the KV cache of `config`, which it checks plans against.
    #[must_use]
    pub fn new(config: &EngineConfig, options: FakeOptions) -> Self {
        Self {
            random: Random(options.seed),
            options,
            block_size: config.block_size,
            groups: config.kv_groups,
            max_num_batched_tokens: config.max_num_batched_tokens,
            slots: vec![FakeSlot::default(); config.num_blocks * config.block_size],
            sequences: HashMap::new(),
            late: Vec::new(),
            late_pooled: Vec::new(),
            steps: VecDeque::new(),
            num_submitted: 0,
            num_computed: 0,
            chosen: Vec::new(),
            hosted: HashSet::new(),
            runs_ahead: false,
        }
    }

    /// The `n` tokens that come after `prompt` when nothing goes wrong, whatever may end a sequence.
    #[must_use]
    pub fn expected(vocab_size: u32, prompt: &[TokenId], n: usize) -> Vec<TokenId> {
        let mut context = prompt.iter().fold(Context::default(), |context, &token| context.then(token));
        let next = || {
            let token = context.next(vocab_size);
            context = context.then(token);
            token
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// Sequences that it has state for: those that were admitted and not retired.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Sequences of which it keeps a state.
    #[must_use]
    pub fn num_states(&self) -> usize {
        self.sequences.values().filter(|known| known.state.is_some()).count()
    }

    fn check_arrays(&self, plan: &StepPlan) -> Result<()> {
        let n = plan.token_ids.len();
        ensure(plan.positions.len() == n && plan.slot_mapping.len() == n * self.groups.count(), || {
            format!("{n} tokens, {} positions, {} slots", plan.positions.len(), plan.slot_mapping.len())
        })?;
        ensure(n <= self.max_num_batched_tokens, || format!("{n} tokens exceed the budget"))?;
        let mut end = 0;
        for row in &plan.rows {
            ensure(row.query.start == end && row.query.end > end, || format!("query {:?} after {end}", row.query))?;
            end = row.query.end;
        }
        ensure(end == n, || format!("rows end at token {end} of {n}"))
    }

    fn forget_and_learn(&mut self, plan: &StepPlan) -> Result<()> {
        for id in &plan.retired {
            ensure(self.sequences.remove(id).is_some(), || format!("sequence {id} retired, but never admitted"))?;
            self.late.retain(|output| output.id != *id);
            self.late_pooled.retain(|(late, _)| late != id);
        }
        for id in &plan.preempted {
            match self.sequences.get_mut(id) {
                Some(known) => known.state = None,
                None => ensure(plan.retired.contains(id), || format!("sequence {id} preempted, but never admitted"))?,
            }
        }
        for new in &plan.admitted {
            let pool = new.pooling.map(pooled::Pool::new);
            let (tokens, prompt_len) = (new.prompt.to_vec(), new.prompt.len());
            let known = Known { tokens, prompt_len, bans: Vec::new(), state: None, pool };
            let old = self.sequences.insert(new.id, known);
            ensure(old.is_none(), || format!("sequence {} admitted twice", new.id))?;
        }
        for Rewind { id, index, removed } in &plan.rewinds {
            let Some(known) = self.sequences.get_mut(id) else { continue };
            let index = *index as usize;
            let went = known.tokens.split_off(known.tokens.len().min(known.prompt_len + index));
            ensure(went == *removed, || format!("sequence {id} takes {removed:?} back, not {went:?}"))?;
            known.bans.retain(|&(at, _)| at <= index);
            known.bans.extend(removed.first().map(|&token| (index, token)));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, plan: &StepPlan) -> Result<()> {
        for copy in &plan.block_copies {
            let (source, destination) = (self.slots_of(copy.source)?, self.slots_of(copy.destination)?);
            for (from, to) in source.zip(destination) {
                self.slots[to] = FakeSlot { stored: self.slots[from].stored, ..self.slots[to] };
            }
        }
        Ok(())
    }

    fn slots_of(&self, block: BlockId) -> Result<std::ops::Range<usize>> {
        let slots = block.index() * self.block_size..(block.index() + 1) * self.block_size;
        ensure(slots.end <= self.slots.len(), || format!("there is no block {block}"))?;
        Ok(slots)
    }

    /// Takes a row's tokens into its sequence's state, which must stand where the row begins.
    fn go_on(&mut self, row: &PlannedRow) -> Result<()> {
        let Some(known) = self.sequences.get_mut(&row.id).filter(|_| self.options.keeps_states) else { return Ok(()) };
        ensure(row.context_len == 0 || known.state == Some(row.context_len), || {
            format!("sequence {}: goes on at {}, its state at {:?}", row.id, row.context_len, known.state)
        })?;
        known.state = Some(row.context_len + row.query.len() as u32);
        Ok(())
    }

    /// Stores a row's tokens where the plan says, which must be where its block table says.
    fn write_row(&mut self, r: usize, row: &PlannedRow, plan: &StepPlan) -> Result<()> {
        let lookahead = if row.samples { self.options.max_tokens_per_step - 1 } else { 0 };
        let num_covered = row.context_len as usize + row.query.len() + lookahead;
        let num_blocks = row.blocks.len() / self.groups.count();
        ensure(num_blocks * self.block_size >= num_covered, || {
            format!("sequence {}: {num_blocks} blocks do not cover {num_covered} tokens", row.id)
        })?;
        let known = self.known(row.id)?;
        let num_known = known.tokens.len();
        let end = row.context_len as usize + row.query.len();
        ensure(row.samples == (end == num_known) && end <= num_known, || {
            format!("sequence {}: query ends at {end} of {num_known}, samples: {}", row.id, row.samples)
        })?;
        ensure(num_known - known.prompt_len == row.num_output_tokens as usize, || {
            format!(
                "sequence {}: {} output tokens, not {}",
                row.id,
                num_known - known.prompt_len,
                row.num_output_tokens
            )
        })?;
        ensure(known.tokens[row.context_len as usize..end] == plan.token_ids[row.query.clone()], || {
            format!("sequence {}: other tokens than it has at {}..{end}", row.id, row.context_len)
        })?;
        for (i, position) in row.query.clone().zip(row.context_len..) {
            ensure(plan.positions[i] == position, || format!("sequence {}: position {position} is missing", row.id))?;
            for group in 0..self.groups.count() {
                let slot = plan.slot_mapping[i * self.groups.count() + group].index();
                self.write(slot, r, Stored { token: plan.token_ids[i], position })?;
            }
        }
        Ok(())
    }

    fn write(&mut self, slot: usize, row: usize, stored: Stored) -> Result<()> {
        let now = self.num_computed;
        let at = self.slots.get_mut(slot).ok_or_else(|| violation(format!("there is no slot {slot}")))?;
        ensure(at.written < now, || format!("slot {slot} is written twice in a step"))?;
        at.written = now;
        // Writing what is there already is no change: somebody else may be reading it.
        if at.stored != Some(stored) {
            *at = FakeSlot { stored: Some(stored), changed: (now, row), ..*at };
        }
        Ok(())
    }

    /// Reads a row's context back through its block tables, each as far back as the row's first token sees.
    fn read_row(&self, r: usize, row: &PlannedRow, plan: &StepPlan) -> Result<Context> {
        let tokens = &self.known(row.id)?.tokens[..row.context_len as usize + row.query.len()];
        for (table, window) in self.tables(row, plan).zip(self.groups.windows()) {
            let first = (row.context_len as usize + 1).saturating_sub(window);
            for (position, &token) in tokens.iter().enumerate().skip(first) {
                let slot = self.slot(table, position);
                let at = self.slots.get(slot).ok_or_else(|| violation(format!("there is no slot {slot}")))?;
                let says =
                    |what: &str| violation(format!("sequence {}, position {position}: slot {slot} {what}", row.id));
                let stored = at.stored.ok_or_else(|| says("was never written"))?;
                if at.changed.0 == self.num_computed && at.changed.1 != r {
                    return Err(says("is being written by another row"));
                }
                if stored != (Stored { token, position: position as u32 }) {
                    return Err(says(&format!("is stale: it holds {stored:?}")));
                }
            }
        }
        Ok(tokens.iter().fold(Context::default(), |context, &token| context.then(token)))
    }

    /// A row's block tables, one a group.
    fn tables<'a>(&self, row: &PlannedRow, plan: &'a StepPlan) -> std::slice::ChunksExact<'a, BlockId> {
        plan.block_tables[row.blocks.clone()].chunks_exact((row.blocks.len() / self.groups.count()).max(1))
    }

    fn slot(&self, table: &[BlockId], position: usize) -> usize {
        table[position / self.block_size].index() * self.block_size + position % self.block_size
    }

    /// Samples for a row: one token, and as many more as its "draft" was right about, whose keys and values are
    /// written on the way. What the draft was wrong about leaves rubbish in the slots behind.
    fn sample(&mut self, r: usize, row: &PlannedRow, mut context: Context, plan: &StepPlan) -> Result<SequenceOutput> {
        let end = row.context_len as usize + row.query.len();
        let num_drafted = self.options.max_tokens_per_step - 1;
        let num_accepted = self.random.below(num_drafted + 1);
        let mut tokens = SampledTokens::new();
        for i in 0..=num_drafted {
            let known = self.known(row.id)?;
            let index = row.num_output_tokens as usize + i;
            let mut token = context.next(self.options.vocab_size);
            while known.bans.contains(&(index, token)) {
                token = TokenId((token.0 + 1) % self.options.vocab_size);
            }
            context = context.then(token);
            if i <= num_accepted {
                tokens.push(SampledToken { id: token, logprobs: None });
            }
            if i < num_drafted {
                let token = if i < num_accepted { token } else { TokenId(u32::MAX) };
                for table in self.tables(row, plan) {
                    self.write(self.slot(table, end + i), r, Stored { token, position: (end + i) as u32 })?;
                }
            }
        }
        if let Some(known) = self.sequences.get_mut(&row.id) {
            known.tokens.extend(tokens.iter().map(|token| token.id));
        }
        Ok(SequenceOutput { id: row.id, num_written: tokens.len() as u32 - 1, tokens, complete: false })
    }

    /// The log-probability of a token is its position, negated.
    fn prompt_logprobs(&self, row: &PlannedRow) -> Result<PromptLogprobs> {
        let Range { start, end } = row.prompt_targets;
        let known = self.known(row.id)?;
        let predicted = row.context_len + 1..row.context_len + 1 + row.query.len() as u32;
        ensure(predicted.start <= start && end <= predicted.end && end as usize <= known.prompt_len, || {
            format!("sequence {}: the row does not predict {start}..{end}", row.id)
        })?;
        let token = |position: u32| SampledToken {
            id: known.tokens[position as usize],
            logprobs: Some(Box::new(TokenLogprobs { chosen: -(position as f32), top: Vec::new() })),
        };
        Ok(PromptLogprobs { start, tokens: (start..end).map(token).collect() })
    }

    fn known(&self, id: SequenceId) -> Result<&Known> {
        self.sequences.get(&id).ok_or_else(|| violation(format!("sequence {id} runs without being admitted")))
    }
}

impl FakeExecutor {
    /// Whether the next step could be planned before this one is collected: none of its tokens is chosen by the host, as those
    /// are of sequences whose log-probabilities are asked for.
    fn can_be_followed(&mut self, plan: &StepPlan) -> bool {
        for id in &plan.retired {
            self.hosted.remove(id);
        }
        let hosted = plan.admitted.iter().filter(|new| new.params.logprobs.is_some());
        self.hosted.extend(hosted.map(|new| new.id));
        self.options.overlaps && !plan.rows.iter().any(|row| row.samples && self.hosted.contains(&row.id))
    }

    /// Puts the tokens in that were not known when the plan was made.
    fn resolve(&self, plan: &mut StepPlan) -> Result<()> {
        for row in &plan.rows {
            let Some(k) = row.follows else { continue };
            let chosen = self.chosen.get(k as usize).copied().flatten();
            let (_, token) = chosen
                .filter(|&(id, _)| id == row.id && row.query.len() == 1)
                .ok_or_else(|| violation(format!("sequence {} follows row {k}, which chose {chosen:?}", row.id)))?;
            plan.token_ids[row.query.start] = token;
        }
        Ok(())
    }

    fn compute(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        self.num_computed += 1;
        self.check_arrays(plan)?;
        self.forget_and_learn(plan)?;
        self.copy_blocks(plan)?;
        plan.rows.iter().try_for_each(|row| self.go_on(row))?;
        plan.rows.iter().enumerate().try_for_each(|(r, row)| self.write_row(r, row, plan))?;
        let mut sampled = std::mem::take(&mut self.late);
        let mut pooled = std::mem::take(&mut self.late_pooled);
        for (r, row) in plan.rows.iter().enumerate() {
            let context = self.read_row(r, row, plan)?;
            if self.known(row.id)?.pool.is_some() {
                pooled.extend(self.pool_row(row)?.map(|vector| (row.id, vector)));
            } else if row.samples {
                sampled.push(self.sample(r, row, context, plan)?);
            }
        }
        let mut output = StepOutput::default();
        for row in plan.rows.iter().filter(|row| !row.prompt_targets.is_empty()) {
            output.prompts.push((row.id, self.prompt_logprobs(row)?));
        }
        for sequence in sampled {
            let is_late = self.random.below(256) < usize::from(self.options.lag);
            if is_late { &mut self.late } else { &mut output.sequences }.push(sequence);
        }
        for vector in pooled {
            let is_late = self.random.below(256) < usize::from(self.options.lag);
            if is_late { &mut self.late_pooled } else { &mut output.pooled }.push(vector);
        }
        if self.options.overlaps {
            let of_row = |row: &PlannedRow| {
                let sampled = output.sequences.iter().find(|sequence| sequence.id == row.id);
                sampled.and_then(|sequence| Some((row.id, sequence.tokens.last()?.id)))
            };
            self.chosen = plan.rows.iter().map(of_row).collect();
        }
        Ok(output)
    }
}

impl Executor for FakeExecutor {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        let step = self.num_submitted;
        match &self.options.mishap {
            Some((at, Mishap::Panic)) if *at == step => panic!("step {step}: the fake panics as told"),
            Some((at, Mishap::Fail)) if *at == step => return Err(Error::internal("the fake fails as told")),
            _ => self.num_submitted += 1,
        }
        self.runs_ahead = self.can_be_followed(plan);
        let pending = match self.options.overlaps {
            true => Pending::Plan(Box::new(plan.clone())),
            false => Pending::Output(self.compute(plan)?),
        };
        self.steps.push_back((step, pending));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        let (step, pending) =
            self.steps.pop_front().ok_or_else(|| violation("collect without a submitted step".into()))?;
        if let Some((at, Mishap::Hang(gate))) = &self.options.mishap
            && *at == step
        {
            gate.wait();
        }
        match pending {
            Pending::Output(output) => Ok(output),
            Pending::Plan(mut plan) => {
                self.resolve(&mut plan)?;
                self.compute(&plan)
            }
        }
    }

    fn max_tokens_per_step(&self) -> usize {
        self.options.max_tokens_per_step
    }

    fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }
}

fn violation(what: String) -> Error {
    Error::internal(format!("the plan breaks a rule: {what}"))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(violation(what())) }
}

/// The fake's model of language: a hash of all tokens in their order.
#[derive(Clone, Copy, Default)]
struct Context(u64);

impl Context {
    fn then(self, token: TokenId) -> Self {
        Self((self.0 ^ u64::from(token.0)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }

    fn next(self, vocab_size: u32) -> TokenId {
        TokenId((Random(self.0).next() % u64::from(vocab_size.max(1))) as u32)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): repeatable, and enough for a fake.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::executor::AdmittedSequence, ids::Slot};

    fn config() -> EngineConfig {
        EngineConfig { block_size: 2, num_blocks: 4, max_num_batched_tokens: 4, ..EngineConfig::default() }
    }

    /// The first step of a prompt of three tokens, in blocks 1 and 0.
    fn plan() -> StepPlan {
        let prompt: Arc<[TokenId]> = [5, 6, 7].map(TokenId).into();
        StepPlan {
            admitted: vec![AdmittedSequence {
                id: SequenceId(1),
                params: Arc::default(),
                prompt: prompt.clone(),
                dry_breakers: [].into(),
                grammar: None,
                pooling: None,
                adapter: None,
            }],
            rows: vec![PlannedRow {
                id: SequenceId(1),
                query: 0..3,
                blocks: 0..2,
                context_len: 0,
                samples: true,
                num_output_tokens: 0,
                prompt_targets: 0..0,
                max_new_tokens: 1,
                follows: None,
            }],
            token_ids: prompt.to_vec(),
            positions: vec![0, 1, 2],
            slot_mapping: [2, 3, 0].map(Slot).to_vec(),
            block_tables: [1, 0].map(BlockId).to_vec(),
            ..StepPlan::default()
        }
    }

    #[test]
    fn a_right_plan_gives_the_expected_token() {
        let mut fake = FakeExecutor::new(&config(), FakeOptions::default());
        fake.submit(&plan()).unwrap();
        let output = fake.collect().unwrap();
        let expected = FakeExecutor::expected(256, &[5, 6, 7].map(TokenId), 1);
        assert_eq!(output.sequences[0].tokens[0].id, expected[0]);
    }

    #[test]
    fn a_wrong_plan_is_refused_with_the_rule_it_breaks() {
        type Spoil = fn(&mut StepPlan);
        let spoilt: [(Spoil, &str); 8] = [
            (|plan| plan.slot_mapping[1] = Slot(2), "written twice"),
            (|plan| plan.slot_mapping[2] = Slot(5), "never written"),
            (|plan| plan.slot_mapping.swap(0, 1), "is stale"),
            (|plan| plan.rows[0].blocks.end = 1, "do not cover"),
            (|plan| plan.positions[0] = 1, "position 0 is missing"),
            (|plan| plan.rows[0].samples = false, "samples: false"),
            (|plan| plan.rows[0].query.end = 2, "rows end at token 2 of 3"),
            (|plan| plan.retired.push(SequenceId(9)), "never admitted"),
        ];
        for (spoil, rule) in spoilt {
            let mut plan = plan();
            spoil(&mut plan);
            let error = FakeExecutor::new(&config(), FakeOptions::default()).submit(&plan).unwrap_err();
            assert!(error.message.contains(rule), "{error} does not say {rule:?}");
        }
    }

    #[test]
    fn mishaps_happen_when_told() {
        let gate = Arc::new(Gate::default());
        for (mishap, fails) in [(Mishap::Panic, true), (Mishap::Fail, true), (Mishap::Hang(gate.clone()), false)] {
            let mut fake =
                FakeExecutor::new(&config(), FakeOptions { mishap: Some((1, mishap)), ..FakeOptions::default() });
            fake.submit(&plan()).unwrap();
            fake.collect().unwrap();
            let second = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fake.submit(&StepPlan::default())));
            assert_eq!(!matches!(second, Ok(Ok(()))), fails);
            if !fails {
                gate.open();
                fake.collect().unwrap();
            }
        }
    }
}
