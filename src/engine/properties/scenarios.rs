//! Short histories with a known outcome.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::world::{Outbox, tokens};
use crate::{
    config::EngineConfig,
    engine::{
        block_manager::Salt,
        channel::{ReaderControl, ReaderSpec},
        executor::{Executor, SequenceOutput, StepOutput, StepPlan},
        fake::{FakeExecutor, FakeOptions},
        live::Live,
        scheduler::{Edit, End, Event, Scheduler},
        sequence::Sequence,
    },
    error::Code,
    ids::{SequenceId, TokenId},
    params::{SampledToken, SamplingParams},
};

/// A scenario, for the suite that must notice faults.
pub(super) type Scenario = fn() -> Result<(), String>;

/// All that say something about the books.
pub(super) const ALL: &[Scenario] =
    &[cached_prefixes_are_found, a_wholly_cached_prompt_costs_one_token, tenants_do_not_share];

pub(super) fn config() -> EngineConfig {
    EngineConfig { block_size: 4, num_blocks: 32, max_model_len: 64, ..EngineConfig::default() }
}

/// An engine of one scheduler and one fake, run until nothing is left.
pub(super) struct Engine {
    pub(super) scheduler: Scheduler,
    executor: FakeExecutor,
    plan: StepPlan,
    next_id: u64,
}

impl Engine {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let options = FakeOptions { keeps_states: !config.prefixes_are_shared, ..FakeOptions::default() };
        let executor = FakeExecutor::new(config, options);
        Self { scheduler: Scheduler::new(config, 1), executor, plan: StepPlan::default(), next_id: 0 }
    }

    pub(super) fn sequence(&mut self, prompt: &[TokenId], max_tokens: u32) -> Sequence {
        self.next_id += 1;
        let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
        Sequence::new(SequenceId(self.next_id), prompt.into(), Arc::new(params), Arc::new(Outbox::new(64)))
    }

    /// One step; its events and the number of tokens it computed.
    pub(super) fn step(&mut self, events: &mut Vec<Event>) -> Result<usize, String> {
        if self.scheduler.schedule(Instant::now(), &mut self.plan, events) {
            self.executor.submit(&self.plan).map_err(|error| error.message)?;
            let output = self.executor.collect().map_err(|error| error.message)?;
            self.scheduler.apply(output, events).map_err(|error| error.message)?;
        }
        self.scheduler.audit()?;
        Ok(self.plan.token_ids.len())
    }

    /// Runs a request alone; the tokens it found in the cache, and what it got.
    fn run(&mut self, prompt: &[TokenId], salt: Option<&str>) -> Result<(u32, Vec<TokenId>), String> {
        let mut sequence = self.sequence(prompt, 2);
        sequence.salt = salt.map(Salt::untold);
        self.run_to_end(sequence)
    }

    /// The same of a sequence of two tokens.
    pub(super) fn run_to_end(&mut self, sequence: Sequence) -> Result<(u32, Vec<TokenId>), String> {
        let prompt = sequence.prompt.clone();
        self.scheduler.add(sequence).map_err(|error| error.message)?;
        let mut events = Vec::new();
        while self.scheduler.has_work() {
            self.step(&mut events)?;
        }
        let mut cached = None;
        let mut got = Vec::new();
        for event in events {
            match event {
                Event::Started { cached_tokens, .. } => cached = Some(cached_tokens),
                Event::Tokens { tokens, .. } => got.extend(tokens.iter().map(|token| token.id)),
                Event::Prompt { .. } | Event::Ended { .. } => {}
            }
        }
        if got != FakeExecutor::expected(FakeOptions::default().vocab_size, &prompt, 2) {
            return Err(format!("wrong tokens {got:?}"));
        }
        Ok((cached.ok_or("never started")?, got))
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, is: T, must: T) -> Result<(), String> {
    if is == must { Ok(()) } else { Err(format!("{what} is {is:?}, must be {must:?}")) }
}

/// Two prompts that differ in their first block only.
fn two_prompts() -> (Vec<TokenId>, Vec<TokenId>) {
    (tokens(&[1, 1, 1, 1, 5, 6, 7, 8, 9]), tokens(&[2, 2, 2, 2, 5, 6, 7, 8, 9]))
}

fn cached_prefixes_are_found() -> Result<(), String> {
    let (one, other) = two_prompts();
    let mut engine = Engine::new(&config());
    for (prompt, cached) in [(&one, 0), (&other, 0), (&one, 8), (&other, 8)] {
        expect("cached tokens", engine.run(prompt, None)?.0, cached)?;
    }
    Ok(())
}

fn a_wholly_cached_prompt_costs_one_token() -> Result<(), String> {
    let prompt = tokens(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut engine = Engine::new(&config());
    engine.run(&prompt, None)?;
    // Alone, the last block is written in place; two at once copy it for one of them.
    expect("cached tokens", engine.run(&prompt, None)?.0, 7)?;
    expect("copies", engine.scheduler.stats().block_copies, 0)?;
    for _ in 0..2 {
        let sequence = engine.sequence(&prompt, 2);
        engine.scheduler.add(sequence).map_err(|error| error.message)?;
    }
    expect("computed tokens", engine.step(&mut Vec::new())?, 2)?;
    expect("copies", engine.scheduler.stats().block_copies, 1)
}

fn tenants_do_not_share() -> Result<(), String> {
    let (prompt, _) = two_prompts();
    let mut engine = Engine::new(&config());
    for (salt, cached) in [(None, 0), (Some("a"), 0), (Some("b"), 0), (Some("a"), 8), (Some("b"), 8), (None, 8)] {
        expect("cached tokens", engine.run(&prompt, salt)?.0, cached)?;
    }
    Ok(())
}

#[test]
fn the_scenarios_come_out_as_described() {
    for scenario in ALL {
        scenario().unwrap();
    }
}

#[test]
fn a_request_that_can_never_fit_is_refused_by_the_field_at_fault() {
    let config = EngineConfig { max_model_len: 12, ..config() };
    let mut engine = Engine::new(&config);
    for (prompt_len, max_tokens, field) in [(0, 1, "prompt"), (12, 1, "prompt"), (8, 5, "max_tokens")] {
        let sequence = engine.sequence(&vec![TokenId(1); prompt_len], max_tokens);
        let error = engine.scheduler.add(sequence).unwrap_err();
        assert_eq!((error.code, error.violations[0].field.as_str()), (Code::InvalidArgument, field));
    }
    let fits = engine.sequence(&[TokenId(1); 8], 4);
    engine.scheduler.add(fits).unwrap();
}

#[test]
fn one_request_too_many_is_refused() {
    let mut engine = Engine::new(&EngineConfig { max_num_seqs: 1, max_waiting: 2, ..config() });
    for _ in 0..3 {
        let sequence = engine.sequence(&[TokenId(1)], 1);
        engine.scheduler.add(sequence).unwrap();
    }
    let sequence = engine.sequence(&[TokenId(1)], 1);
    assert_eq!(engine.scheduler.add(sequence).unwrap_err().code, Code::ResourceExhausted);
}

#[test]
fn a_smaller_priority_takes_the_row_of_a_larger_one() {
    let mut engine = Engine::new(&EngineConfig { max_num_seqs: 1, ..config() });
    let first = engine.sequence(&[TokenId(1)], 8);
    let mut urgent = engine.sequence(&[TokenId(2)], 8);
    urgent.priority = -1;
    engine.scheduler.add(first).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    engine.scheduler.add(urgent).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    assert_eq!(engine.plan.rows[0].id, SequenceId(2));
    assert_eq!(engine.scheduler.stats().preemptions, 0, "there are blocks enough");
}

#[test]
fn a_long_prefill_does_not_hold_up_decodes() {
    let mut engine = Engine::new(&EngineConfig { max_num_batched_tokens: 4, ..config() });
    let short = engine.sequence(&[TokenId(1)], 8);
    let long = engine.sequence(&[TokenId(2); 20], 8);
    engine.scheduler.add(short).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    engine.scheduler.add(long).unwrap();
    for _ in 0..4 {
        engine.step(&mut Vec::new()).unwrap();
        let scheduled: Vec<_> = engine.plan.rows.iter().map(|row| row.query.len()).collect();
        assert_eq!(scheduled, [1, 3]);
    }
}

#[test]
fn a_stop_token_counts_only_after_min_tokens_others() {
    for (min_tokens, ignore_eos, expected) in [(0, false, 1), (1, false, 3), (0, true, 3), (3, false, 6)] {
        let eos = TokenId(7);
        let params = SamplingParams { max_tokens: Some(6), min_tokens, ignore_eos, ..SamplingParams::default() };
        let params = SamplingParams { stop_token_ids: vec![TokenId(9)], ..params };
        let reader = Arc::new(Outbox::new(8));
        let mut sequence = Sequence::new(SequenceId(0), [TokenId(1)].into(), Arc::new(params), reader);
        sequence.eos = [eos].into();
        sequence.max_len = 7;
        let output = [7, 8, 9, 1, 2, 3].map(TokenId);
        let ended = output.iter().position(|&token| sequence.push(token).is_some());
        assert_eq!(ended, Some(expected - 1), "min_tokens {min_tokens}, ignore_eos {ignore_eos}");
    }
}

/// Steps at one and the same time, until the only reader's room is full.
fn run_until_stalled(engine: &mut Engine, outbox: &Outbox, now: Instant) {
    let mut events = Vec::new();
    while engine.scheduler.has_work() {
        if engine.scheduler.schedule(now, &mut engine.plan, &mut events) {
            engine.executor.submit(&engine.plan).unwrap();
            engine.scheduler.apply(engine.executor.collect().unwrap(), &mut events).unwrap();
        }
        for event in events.drain(..) {
            if let Event::Tokens { tokens, .. } = event {
                outbox.send(tokens.len()).unwrap();
            }
        }
    }
}

#[test]
fn a_reader_that_is_to_be_cut_off_has_a_moment_to_catch_up() {
    let ms = Duration::from_millis;
    for (taken, ends) in [(8, false), (1, true)] {
        let mut engine = Engine::new(&config());
        let outbox = Arc::new(Outbox::new(8));
        let sequence = engine.sequence(&[TokenId(1)], 30);
        engine.scheduler.add(Sequence { reader: outbox.clone(), is_cut_off: true, ..sequence }).unwrap();
        let (start, mut events) = (Instant::now(), Vec::new());
        run_until_stalled(&mut engine, &outbox, start);
        assert!(!engine.scheduler.schedule(start + ms(50), &mut engine.plan, &mut events));
        outbox.take(taken);
        let due = engine.scheduler.next_deadline().unwrap();
        for now in [start + ms(60), due] {
            engine.scheduler.schedule(now, &mut engine.plan, &mut events);
        }
        let ended = events.iter().any(|event| matches!(event, Event::Ended { end: End::Failed(_), .. }));
        assert_eq!((due - start, ended), (ms(100), ends), "{taken} of 8 tokens taken: {events:?}");
    }
}

#[test]
fn a_reader_that_begins_to_count_within_a_step_gets_what_comes_of_it() {
    let mut engine = Engine::new(&config());
    let place = Live::new(1).take(None, 1).unwrap();
    let spec = ReaderSpec {
        capacity_tokens: 8,
        credits: None,
        prompt_tokens: 1,
        place: (0, SequenceId(1)),
        request: Arc::default(),
    };
    let (reader, _deliveries) = ReaderControl::new(spec, Arc::default(), place);
    let sequence = engine.sequence(&[TokenId(1)], 8);
    engine.scheduler.add(Sequence { reader: reader.clone(), ..sequence }).unwrap();
    let mut events = Vec::new();
    assert!(engine.scheduler.schedule(Instant::now(), &mut engine.plan, &mut events));
    assert_eq!(engine.plan.rows[0].max_new_tokens, 8);
    reader.grant(1);
    // One token, and two that a grammar forces behind it.
    let tokens = [1, 2, 3].map(|id| SampledToken { id: TokenId(id), logprobs: None }).into_iter().collect();
    let output = SequenceOutput { id: SequenceId(1), tokens, num_written: 0, complete: false };
    let output = StepOutput { sequences: vec![output], ..StepOutput::default() };
    engine.scheduler.apply(output, &mut events).unwrap();
    assert!(matches!(events.last(), Some(Event::Tokens { tokens, .. }) if tokens.len() == 3), "{events:?}");
}

#[test]
fn a_reader_that_takes_nothing_loses_its_stream() {
    let config = config();
    let mut engine = Engine::new(&config);
    let mut sequence = engine.sequence(&[TokenId(1)], 8);
    let outbox = Arc::new(Outbox::new(2));
    sequence.reader = outbox.clone();
    engine.scheduler.add(sequence).unwrap();
    let (start, mut events) = (Instant::now(), Vec::new());
    run_until_stalled(&mut engine, &outbox, start);
    let deadline = engine.scheduler.next_deadline().unwrap();
    assert_eq!(deadline, start + config.stall_timeout);
    engine.scheduler.schedule(deadline, &mut engine.plan, &mut events);
    assert!(
        matches!(&events[..], [Event::Ended { end: End::Failed(error), .. }] if error.code == Code::Aborted),
        "{events:?}"
    );
    assert!(engine.scheduler.is_empty());
}

#[test]
fn an_edit_reaches_those_too_that_wait_for_the_first_of_their_group() {
    let mut engine = Engine::new(&config());
    let prompt = tokens(&[1, 2, 3, 4, 5]);
    let group = (0..3).map(|_| engine.sequence(&prompt, 9)).collect();
    engine.scheduler.add_group(group).unwrap();
    let edit = Edit { max_tokens: Some(2), priority: Some(-1), temperature: Some(0.5) };
    assert!(engine.scheduler.edit(SequenceId(2), &edit) && !engine.scheduler.edit(SequenceId(4), &edit));
    let (mut events, mut temperatures) = (Vec::new(), BTreeMap::new());
    while engine.scheduler.has_work() {
        engine.step(&mut events).unwrap();
        let admitted = engine.plan.admitted.iter();
        temperatures.extend(admitted.map(|sequence| (sequence.id.0, sequence.params.temperature)));
    }
    let said = |id: u64| {
        let own = |event: &Event| match event {
            Event::Tokens { id: of, tokens, .. } if *of == SequenceId(id) => tokens.len(),
            _ => 0,
        };
        events.iter().map(own).sum::<usize>()
    };
    assert_eq!([said(1), said(2), said(3)], [9, 2, 9]);
    let usual = SamplingParams::default().temperature;
    assert_eq!(temperatures, BTreeMap::from([(1, usual), (2, 0.5), (3, usual)]));
}
