//! What a long prompt does to the streams beside it, on a machine whose steps take as long as a formula says.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::world::Outbox;
use crate::{
    config::EngineConfig,
    engine::{
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions, Random},
        scheduler::{Event, Scheduler},
        sequence::Sequence,
    },
    ids::{SequenceId, TokenId},
    params::SamplingParams,
};

const STREAMS: u64 = 8;
const LONG_PROMPT: usize = 4000;

/// How long steps take, in microseconds.
#[derive(Clone, Copy)]
struct Machine {
    step: f64,
    decode: f64,
    prompt_token: f64,
    /// What each token before it adds to a prompt's.
    context_token: f64,
    /// How much longer a step may take by chance.
    jitter: f64,
}

const FAST: Machine = Machine { step: 8000.0, decode: 150.0, prompt_token: 90.0, context_token: 0.0, jitter: 0.1 };
/// A model of 0.6 billion bytes on two cores without tiles.
const TWO_CORES: Machine =
    Machine { step: 26_000.0, decode: 1200.0, prompt_token: 2200.0, context_token: 0.9, jitter: 0.1 };

impl Machine {
    fn slower(self, times: f64) -> Self {
        let Self { step, decode, prompt_token, context_token, jitter } = self;
        let [step, decode, prompt_token, context_token] =
            [step, decode, prompt_token, context_token].map(|part| part * times);
        Self { step, decode, prompt_token, context_token, jitter }
    }

    fn time(&self, plan: &StepPlan, random: &mut Random) -> Duration {
        let decodes = plan.rows.iter().filter(|row| row.num_output_tokens > 0).count();
        let others = plan.token_ids.len() - decodes;
        let prompts = plan.rows.iter().filter(|row| row.num_output_tokens == 0);
        let seen: usize = prompts.map(|row| row.query.len() * (row.context_len as usize + row.query.len() / 2)).sum();
        let micros = self.step
            + self.decode * decodes as f64
            + self.prompt_token * others as f64
            + self.context_token * seen as f64;
        Duration::from_secs_f64(micros * (1.0 + self.jitter * random.below(1000) as f64 / 1000.0) / 1e6)
    }
}

/// Streams on a machine, and its clock.
struct Streams {
    scheduler: Scheduler,
    executor: FakeExecutor,
    plan: StepPlan,
    random: Random,
    now: Instant,
    /// When the newest token of each came.
    newest: HashMap<SequenceId, Instant>,
    next_id: u64,
}

impl Streams {
    fn new(itl_target: Option<Duration>) -> Self {
        let config = EngineConfig { num_blocks: 4096, max_model_len: 8192, itl_target, ..EngineConfig::default() };
        Self {
            scheduler: Scheduler::new(&config, 1),
            executor: FakeExecutor::new(&config, FakeOptions::default()),
            plan: StepPlan::default(),
            random: Random(17),
            now: Instant::now(),
            newest: HashMap::new(),
            next_id: 0,
        }
    }

    fn add(&mut self, prompt: usize) -> SequenceId {
        self.next_id += 1;
        let id = SequenceId(self.next_id);
        let prompt = (0..prompt).map(|k| TokenId((self.next_id * 31 + k as u64) as u32 % 250)).collect();
        let params = SamplingParams { ignore_eos: true, max_tokens: Some(3000), ..SamplingParams::default() };
        let sequence = Sequence::new(id, prompt, Arc::new(params), Arc::new(Outbox::new(1 << 20)));
        self.scheduler.add(sequence).unwrap();
        id
    }

    /// A step; the times between tokens that it brought, by stream.
    fn step(&mut self, machine: Machine) -> Vec<(SequenceId, Option<Duration>)> {
        let mut events = Vec::new();
        assert!(self.scheduler.schedule(self.now, &mut self.plan, &mut events));
        self.executor.submit(&self.plan).unwrap();
        let output = self.executor.collect().unwrap();
        let elapsed = machine.time(&self.plan, &mut self.random);
        self.now += elapsed;
        self.scheduler.record_step(elapsed);
        self.scheduler.apply(output, &mut events).unwrap();
        let mut gap = |event| match event {
            Event::Tokens { id, .. } => Some((id, self.newest.insert(id, self.now).map(|before| self.now - before))),
            _ => None,
        };
        events.into_iter().filter_map(&mut gap).collect()
    }

    /// The 99th percentile of the times between tokens over so many steps.
    fn p99(&mut self, machine: Machine, steps: usize) -> Duration {
        let gaps = (0..steps).flat_map(|_| self.step(machine)).filter_map(|(_, gap)| gap).collect();
        p99(gaps)
    }

    /// The same until a prompt has been computed, and how many steps that took.
    fn p99_beside(&mut self, machine: Machine, prompt: usize) -> (Duration, usize) {
        let id = self.add(prompt);
        let mut gaps = Vec::new();
        for steps in 1..4000 {
            let brought = self.step(machine);
            let spoke = brought.iter().any(|&(other, _)| other == id);
            gaps.extend(brought.into_iter().filter(|&(other, _)| other != id).filter_map(|(_, gap)| gap));
            if spoke {
                return (p99(gaps), steps);
            }
        }
        panic!("the prompt is never computed");
    }
}

fn p99(mut gaps: Vec<Duration>) -> Duration {
    gaps.sort_unstable();
    gaps[gaps.len() * 99 / 100]
}

/// Streams that have been decoding for a while.
fn streaming(itl_target: Option<Duration>, machine: Machine) -> Streams {
    let mut streams = Streams::new(itl_target);
    for _ in 0..STREAMS {
        streams.add(20);
    }
    (0..50).for_each(|_| drop(streams.step(machine)));
    streams
}

#[test]
fn a_prompt_of_4000_tokens_no_more_than_doubles_the_time_between_the_others_tokens() {
    let others = [Machine { prompt_token: 400.0, ..FAST }, Machine { step: 40_000.0, ..FAST }];
    for machine in [FAST, FAST.slower(4.0), TWO_CORES].into_iter().chain(others) {
        let mut streams = streaming(None, machine);
        let before = streams.p99(machine, 300);
        let (beside, steps) = streams.p99_beside(machine, LONG_PROMPT);
        println!("p99 {before:?} before, {beside:?} beside a prompt that took {steps} steps");
        assert!(beside <= 2 * before, "{beside:?} beside the prompt, {before:?} before");
        // And the prompt gets most of what that leaves.
        let token = machine.prompt_token + machine.context_token * LONG_PROMPT as f64 / 2.0;
        let fits = before.as_secs_f64() * 1e6 / token / 2.0;
        assert!(steps as f64 <= LONG_PROMPT as f64 / fits + 20.0, "{steps} steps where {fits} tokens fit into one");
    }
}

#[test]
fn steps_that_differ_by_half_of_what_they_take_stall_nobody() {
    for seed in 0..8 {
        for (jitter, prompt_token) in [(0.3, 90.0), (0.5, 90.0), (0.3, 400.0), (0.5, 400.0)] {
            let machine = Machine { jitter, prompt_token, ..FAST };
            let mut streams = streaming(None, machine);
            streams.random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15) | 1);
            // What so short prompts add to their steps is less than chance does.
            for _ in 0..3 {
                streams.p99_beside(machine, 3);
            }
            let before = streams.p99(machine, 100);
            let (beside, steps) = streams.p99_beside(machine, LONG_PROMPT);
            let what = format!("seed {seed}, {jitter} by chance, {prompt_token} us a token, {steps} steps");
            assert!(beside * 2 <= before * 5, "{what}: {beside:?} beside the prompt, {before:?} before");
        }
    }
}

#[test]
fn without_a_target_the_same_prompt_stalls_them() {
    let mut streams = streaming(Some(Duration::ZERO), FAST);
    let before = streams.p99(FAST, 300);
    let (beside, _) = streams.p99_beside(FAST, LONG_PROMPT);
    assert!(beside > 4 * before, "{beside:?} beside the prompt, {before:?} before");
}

#[test]
fn a_target_in_milliseconds_is_kept() {
    for ms in [15, 40] {
        let mut streams = streaming(Some(Duration::from_millis(ms)), FAST);
        let (beside, steps) = streams.p99_beside(FAST, LONG_PROMPT);
        assert!(beside <= Duration::from_millis(ms), "{beside:?} for {ms} ms, {steps} steps");
    }
}

#[test]
fn a_machine_that_slows_down_gets_smaller_chunks_until_it_is_known_to_be_slow() {
    let mut streams = streaming(None, FAST);
    streams.p99(FAST, 100);
    streams.add(LONG_PROMPT);
    let chunk = |streams: &mut Streams, machine| {
        streams.step(machine);
        streams.plan.rows.iter().map(|row| row.query.len()).max().unwrap()
    };
    let at_first = (0..20).map(|_| chunk(&mut streams, FAST)).max().unwrap();
    let slow = FAST.slower(3.0);
    let then: Vec<_> = (0..20).map(|_| chunk(&mut streams, slow)).collect();
    assert!(then[19] * 2 <= at_first && then.iter().all(|&chunk| chunk >= 1), "{at_first}, then {then:?}");
    // Streams alone show that steps are slower whatever is in them.
    while streams.newest.len() < STREAMS as usize + 1 {
        streams.step(slow);
    }
    let before = streams.p99(slow, 100);
    let (beside, _) = streams.p99_beside(slow, LONG_PROMPT);
    assert!(beside <= 2 * before, "{beside:?} beside the prompt, {before:?} before");
}

#[test]
fn nobody_waits_where_nobody_streams() {
    let mut streams = streaming(None, FAST);
    let mut alone = Streams::new(None);
    alone.scheduler.record_step(Duration::from_millis(10));
    alone.add(LONG_PROMPT);
    alone.step(FAST);
    assert_eq!(alone.plan.token_ids.len(), 512, "all that a step may hold");
    streams.add(LONG_PROMPT);
    streams.step(FAST);
    assert!(streams.plan.token_ids.len() < 512);
}
