//! Sequences that are pooled, among some that generate, on a cache too small for all: each gets the very vector that it
//! would have got alone, whatever was cached, cut into chunks, preempted or late.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::world::Outbox;
use crate::{
    config::{EngineConfig, KvCacheGroups},
    engine::{
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions, Random},
        faults::{self, Fault},
        scheduler::{End, Event, Scheduler},
        sequence::Sequence,
    },
    ids::{SequenceId, TokenId},
    params::{Pooling, SamplingParams},
};

const MAX_LEN: usize = 24;
const SEQUENCES: u64 = 16;
const HISTORIES: u64 = 300;
/// Steps after which a history is stuck.
const STEPS: usize = 5000;

/// How often each kind of event happened.
#[derive(Debug, Default)]
struct Seen {
    vectors: usize,
    preemptions: u64,
    chunks: usize,
    cached: usize,
    longest: usize,
    aborted: usize,
    with_windows: usize,
    with_states: usize,
}

/// One of three texts, cut somewhere: prompts that share prefixes.
fn prompt(random: &mut Random, most: usize) -> Vec<TokenId> {
    let (text, length) = (random.below(3) as u32, 1 + random.below(most));
    (0..length as u32).map(|k| TokenId((7 * text + 3 * k + k / 5) % 24)).collect()
}

struct World {
    random: Random,
    scheduler: Scheduler,
    executor: FakeExecutor,
    plan: StepPlan,
    under_way: usize,
    slides: bool,
    keeps_states: bool,
    /// The sequences that are pooled and have not ended: of what, and how.
    expected: HashMap<SequenceId, (Vec<TokenId>, Pooling)>,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let keeps_states = random.below(6) == 0;
        let max_tokens_per_step = if keeps_states { 1 } else { 1 + random.below(2) };
        let window = Some(1 + random.below(9));
        let groups: [&[_]; 4] = [&[None], &[None], &[None, window], &[window]];
        let kv_groups = KvCacheGroups::of(groups[random.below(4)]);
        let config = EngineConfig {
            block_size: 4,
            num_blocks: (7 + random.below(12)) * kv_groups.count(),
            kv_groups,
            prefixes_are_shared: !keeps_states,
            max_num_batched_tokens: 3 + random.below(14),
            max_num_seqs: 1 + random.below(5),
            max_model_len: MAX_LEN,
            max_waiting: SEQUENCES as usize,
            enable_prefix_caching: random.below(5) > 0,
            ..EngineConfig::default()
        };
        let lag = [0, 0, 60, 200][random.below(4)];
        // One in three executors computes a step while the next one is planned.
        let overlaps = seed % 3 == 1;
        let (max_tokens_per_step, lag) = if overlaps { (1, 0) } else { (max_tokens_per_step, lag) };
        let options = FakeOptions {
            vocab_size: 24,
            max_tokens_per_step,
            lag,
            keeps_states,
            overlaps,
            seed,
            ..FakeOptions::default()
        };
        Self {
            random,
            slides: kv_groups.num_full() < kv_groups.count(),
            keeps_states,
            scheduler: Scheduler::new(&config, max_tokens_per_step),
            executor: FakeExecutor::new(&config, options),
            plan: StepPlan::default(),
            under_way: 0,
            expected: HashMap::new(),
            seen: Seen::default(),
        }
    }

    fn come(&mut self, id: SequenceId) -> Result<(), String> {
        let pooling = [Some(Pooling::Mean), Some(Pooling::Last), Some(Pooling::Mean), None][self.random.below(4)];
        let prompt = prompt(&mut self.random, if pooling.is_some() { MAX_LEN } else { MAX_LEN - 4 });
        let max_tokens = if pooling.is_some() { 0 } else { 1 + self.random.below(4) as u32 };
        let params = Arc::new(SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() });
        let reader = Arc::new(Outbox::new(64));
        // Who comes later may come first in line, and take the blocks of others.
        let priority = self.random.below(4) as i32;
        let sequence = Sequence { pooling, priority, ..Sequence::new(id, prompt.as_slice().into(), params, reader) };
        self.expected.extend(pooling.map(|pooling| (id, (prompt, pooling))));
        self.scheduler.add(sequence).map_err(|error| error.message)
    }

    fn step(&mut self) -> Result<(), String> {
        let mut events = Vec::new();
        let submits = self.scheduler.schedule(Instant::now(), &mut self.plan, &mut events);
        if submits {
            let pooled = |id| self.expected.contains_key(id);
            self.seen.chunks += self.plan.rows.iter().filter(|row| !row.samples && pooled(&row.id)).count();
            self.executor.submit(&self.plan).map_err(|error| error.message)?;
            self.under_way += 1;
        }
        let stays = submits && self.executor.runs_ahead() && self.scheduler.go_ahead();
        while self.under_way > usize::from(stays) {
            self.under_way -= 1;
            let output = self.executor.collect().map_err(|error| error.message)?;
            self.scheduler.apply(output, &mut events).map_err(|error| error.message)?;
        }
        self.scheduler.audit()?;
        events.into_iter().try_for_each(|event| self.hear(event))
    }

    fn hear(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Ended { id, end: End::Pooled(vector), usage } => {
                let (prompt, pooling) = self.expected.remove(&id).ok_or("a vector that nobody asked for")?;
                if vector != FakeExecutor::expected_vector(&prompt, pooling) {
                    return Err(format!("sequence {id}: another {pooling:?} than alone"));
                }
                if (usage.prompt_tokens as usize, usage.completion_tokens) != (prompt.len(), 0) {
                    return Err(format!("sequence {id}: {usage:?} for {} tokens", prompt.len()));
                }
                if pooling == Pooling::Mean && usage.cached_tokens > 0 {
                    return Err(format!("sequence {id}: a mean without what was cached"));
                }
                self.seen.vectors += 1;
                self.seen.cached += usize::from(usage.cached_tokens > 0);
                self.seen.longest += usize::from(prompt.len() == MAX_LEN);
                self.seen.with_windows += usize::from(self.slides);
                self.seen.with_states += usize::from(self.keeps_states);
                Ok(())
            }
            Event::Tokens { id, .. } if self.expected.contains_key(&id) => Err(format!("sequence {id} got a token")),
            Event::Ended { end: End::Failed(error), .. } => Err(error.message),
            _ => Ok(()),
        }
    }

    fn run(mut self) -> Result<Seen, String> {
        let mut next = 0;
        for _ in 0..STEPS {
            if next < SEQUENCES && self.random.below(3) > 0 {
                self.come(SequenceId(next))?;
                next += 1;
            }
            if self.random.below(30) == 0 && self.scheduler.abort(SequenceId(self.random.next() % SEQUENCES)) {
                self.seen.aborted += 1;
                let gone: Vec<_> = self.expected.keys().copied().collect();
                let here: Vec<_> = self.scheduler.sequences().map(|sequence| sequence.id).collect();
                gone.iter().filter(|id| !here.contains(id)).for_each(|id| drop(self.expected.remove(id)));
            }
            self.step()?;
            if next == SEQUENCES && !self.scheduler.has_work() {
                break;
            }
        }
        self.seen.preemptions = self.scheduler.stats().preemptions;
        let left = (self.expected.len(), self.executor.num_sequences(), self.scheduler.stats().used_blocks);
        if left == (0, 0, 0) { Ok(self.seen) } else { Err(format!("vectors, states and blocks left: {left:?}")) }
    }
}

fn history(seed: u64) -> Result<Seen, String> {
    World::new(seed).run().map_err(|what| format!("seed {seed}: {what}"))
}

#[test]
fn every_vector_is_the_one_that_its_input_has_alone() {
    let mut total = Seen::default();
    for seed in 0..HISTORIES {
        let Seen { vectors, preemptions, chunks, cached, longest, aborted, with_windows, with_states } =
            history(seed).unwrap_or_else(|what| panic!("{what}"));
        total.vectors += vectors;
        total.preemptions += preemptions;
        total.chunks += chunks;
        total.cached += cached;
        total.longest += longest;
        total.aborted += aborted;
        total.with_windows += with_windows;
        total.with_states += with_states;
    }
    println!("{total:?}");
    let Seen { vectors, preemptions, chunks, cached, longest, aborted, with_windows, with_states } = total;
    let least = [vectors, chunks, cached, longest, aborted, with_windows, with_states].into_iter().min();
    assert!(least >= Some(50) && preemptions > 0, "too seldom: {total:?}");
}

#[test]
fn a_mean_that_takes_tokens_from_the_cache_is_noticed() {
    let complaint = faults::with(Some(Fault::MeanOfUncached), || (0..HISTORIES).find_map(|seed| history(seed).err()));
    assert!(complaint.is_some_and(|what| what.contains("mean")));
}
