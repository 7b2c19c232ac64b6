//! Steps that are planned while the one before them runs: what each change to a sequence comes to that meets it with a step
//! under way. The [histories](super) go through all of them at random; here each has its own.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    scenarios::config,
    world::{Outbox, TakesBack, tokens},
};
use crate::{
    config::EngineConfig,
    engine::{
        executor::{Executor, StepOutput, StepPlan},
        fake::{FakeExecutor, FakeOptions},
        scheduler::{Edit, End, Event, Scheduler},
        sequence::{LeaseHolder, Sequence},
    },
    ids::{SequenceId, TokenId},
    params::{FinishReason, SamplingParams},
};

const VOCAB: u32 = 256;

/// A scheduler over an executor that computes a step while the next one is planned, driven as the step loop drives them.
pub(super) struct Overlapped {
    pub(super) scheduler: Scheduler,
    fake: FakeExecutor,
    plan: StepPlan,
    under_way: usize,
    readers: HashMap<SequenceId, Arc<Outbox>>,
    pub(super) events: Vec<Event>,
    /// Rows that were planned so far, and how many of them follow others.
    pub(super) rows: (usize, usize),
    /// Whether a step was planned in which a sequence lost its blocks while its token was on its way.
    took_under_way: bool,
}

impl Overlapped {
    fn new(config: &EngineConfig) -> Self {
        Self::with(config, true)
    }

    /// The same, or over one that has each step collected before the next one is planned.
    pub(super) fn with(config: &EngineConfig, overlaps: bool) -> Self {
        let options = FakeOptions { vocab_size: VOCAB, overlaps, ..FakeOptions::default() };
        Self {
            scheduler: Scheduler::new(config, 1),
            fake: FakeExecutor::new(config, options),
            plan: StepPlan::default(),
            under_way: 0,
            readers: HashMap::new(),
            events: Vec::new(),
            rows: (0, 0),
            took_under_way: false,
        }
    }

    /// A sequence whose reader has room for so many tokens.
    pub(super) fn sequence(&mut self, prompt: &[TokenId], params: SamplingParams, room: usize) -> Sequence {
        let (id, reader) = (SequenceId(self.readers.len() as u64 + 1), Arc::new(Outbox::new(room)));
        self.readers.insert(id, reader.clone());
        Sequence::new(id, prompt.into(), Arc::new(params), reader)
    }

    pub(super) fn add(&mut self, prompt: &[TokenId], params: SamplingParams) -> SequenceId {
        let sequence = self.sequence(prompt, params, 64);
        let id = sequence.id;
        self.scheduler.add(sequence).unwrap();
        id
    }

    /// Plans a step and submits it, if there is one to plan, beside the one under way; then waits for what must be.
    fn step(&mut self) {
        let submits = self.scheduler.schedule(Instant::now(), &mut self.plan, &mut self.events);
        let took = |sequence: &Sequence| sequence.outstanding.is_some_and(|lives| lives < sequence.num_preemptions);
        self.took_under_way |= self.scheduler.sequences().any(took);
        if submits {
            self.fake.submit(&self.plan).unwrap();
            self.under_way += 1;
            self.rows.0 += self.plan.rows.len();
            self.rows.1 += self.plan.rows.iter().filter(|row| row.follows.is_some()).count();
        }
        let stays = submits && self.fake.runs_ahead() && self.scheduler.go_ahead();
        while self.under_way > usize::from(stays) {
            self.under_way -= 1;
            let (output, before) = (self.fake.collect().unwrap(), self.events.len());
            self.scheduler.apply(output, &mut self.events).unwrap();
            for event in &self.events[before..] {
                if let Event::Tokens { id, tokens } = event {
                    self.readers[id].send(tokens.len()).unwrap();
                }
            }
        }
        self.scheduler.audit().unwrap();
    }

    /// Steps until nothing is left, of sequences, blocks and what the executor keeps.
    pub(super) fn run(&mut self) {
        while self.scheduler.has_work() {
            self.step();
        }
        let left = (self.scheduler.len(), self.scheduler.stats().used_blocks, self.fake.num_sequences());
        assert_eq!(left, (0, self.scheduler.num_leased_blocks(), 0));
    }

    pub(super) fn said(&self, id: SequenceId) -> Vec<TokenId> {
        let of_event = |event: &Event| match event {
            Event::Tokens { id: other, tokens } if *other == id => tokens.iter().map(|token| token.id).collect(),
            _ => Vec::new(),
        };
        self.events.iter().flat_map(of_event).collect()
    }

    fn end(&self, id: SequenceId) -> Option<&End> {
        self.events.iter().find_map(|event| match event {
            Event::Ended { id: other, end, .. } if *other == id => Some(end),
            _ => None,
        })
    }
}

pub(super) fn most(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() }
}

/// Parameters under which the first token of an answer to `prompt` ends it.
fn stops_at_once(prompt: &[TokenId]) -> SamplingParams {
    SamplingParams { stop_token_ids: expected(prompt, 1), ..most(4) }
}

fn expected(prompt: &[TokenId], n: usize) -> Vec<TokenId> {
    FakeExecutor::expected(VOCAB, prompt, n)
}

#[test]
fn a_row_says_which_row_of_the_step_before_chooses_its_token() {
    let mut engine = Overlapped::new(&config());
    let prompts = [tokens(&[1, 2, 3]), tokens(&[4, 5])];
    let ids = prompts.each_ref().map(|prompt| engine.add(prompt, most(5)));
    engine.step();
    assert_eq!((engine.under_way, engine.rows), (1, (2, 0)), "the prompts");
    engine.step();
    let rows = &engine.plan.rows;
    assert_eq!(
        rows.iter().map(|row| (row.id, row.follows)).collect::<Vec<_>>(),
        [(ids[0], Some(0)), (ids[1], Some(1))]
    );
    assert_eq!(rows.iter().map(|row| (row.context_len, row.num_output_tokens)).collect::<Vec<_>>(), [(3, 1), (2, 1)]);
    assert_eq!(engine.plan.positions, [3, 2]);
    engine.run();
    for (prompt, id) in prompts.iter().zip(ids) {
        assert_eq!(engine.said(id), expected(prompt, 5));
    }
}

#[test]
fn an_end_by_length_is_known_ahead_so_no_row_is_computed_in_vain() {
    let mut engine = Overlapped::new(&config());
    let prompt = tokens(&[1, 2, 3]);
    let id = engine.add(&prompt, most(4));
    engine.run();
    assert_eq!(engine.rows, (4, 3), "the prompt, and a row for each token but the last");
    assert_eq!(engine.said(id), expected(&prompt, 4));
    assert!(matches!(engine.end(id), Some(End::Finished(FinishReason::Length))));
}

#[test]
fn a_stop_token_comes_a_step_late_and_nothing_is_heard_of_the_row_behind_it() {
    let mut engine = Overlapped::new(&config());
    let prompt = tokens(&[1, 2, 3]);
    let id = engine.add(&prompt, stops_at_once(&prompt));
    engine.run();
    assert_eq!(engine.rows, (2, 1));
    assert_eq!(engine.said(id), expected(&prompt, 1));
    assert!(matches!(engine.end(id), Some(End::Finished(FinishReason::StopToken(_)))));
    assert!(matches!(engine.events.last(), Some(Event::Ended { .. })));
}

#[test]
fn the_blocks_of_a_sequence_that_has_ended_are_written_after_its_last_row() {
    let mut engine = Overlapped::new(&EngineConfig { num_blocks: 2, max_model_len: 8, ..config() });
    let prompts = [tokens(&[1, 2, 3, 4]), tokens(&[5, 6, 7, 8])];
    let first = engine.add(&prompts[0], stops_at_once(&prompts[0]));
    engine.step();
    // Its row ahead has the other block.
    engine.step();
    let second = engine.add(&prompts[1], most(4));
    assert_eq!((engine.under_way, engine.rows.1), (1, 1));
    engine.step();
    assert_eq!(engine.plan.rows[0].id, second, "while the row that nobody waits for was under way");
    engine.run();
    assert_eq!((engine.said(first), engine.said(second)), (expected(&prompts[0], 1), expected(&prompts[1], 4)));
}

#[test]
fn a_reader_that_goes_with_a_step_under_way_hears_nothing_of_it() {
    let mut engine = Overlapped::new(&config());
    let prompts = [tokens(&[1, 2, 3]), tokens(&[4, 5, 6])];
    let [gone, stays] = prompts.each_ref().map(|prompt| engine.add(prompt, most(9)));
    (0..3).for_each(|_| engine.step());
    engine.readers[&gone].gone.store(true, Relaxed);
    let said = engine.said(gone);
    engine.scheduler.sweep_cancelled(&mut engine.events);
    engine.run();
    assert_eq!(engine.said(gone), said);
    assert!(matches!(engine.end(gone), Some(End::Cancelled)));
    assert_eq!(engine.said(stays), expected(&prompts[1], 9));
}

#[test]
fn an_aborted_sequence_leaves_nothing_though_a_step_is_under_way() {
    let mut engine = Overlapped::new(&config());
    let id = engine.add(&tokens(&[1, 2, 3]), most(9));
    engine.step();
    engine.step();
    assert!(engine.scheduler.abort(id));
    engine.run();
    assert!(engine.end(id).is_none());
}

#[test]
fn tokens_that_were_under_way_when_a_sequence_lost_its_blocks_count() {
    // Two blocks for each of two to begin with, and a third for one of them.
    let mut engine = Overlapped::new(&EngineConfig { num_blocks: 4, max_model_len: 16, ..config() });
    let prompts = [tokens(&[1, 2, 3, 4]), tokens(&[5, 6, 7, 8])];
    let ids = prompts.each_ref().map(|prompt| engine.add(prompt, most(9)));
    engine.run();
    assert!(engine.took_under_way);
    for (prompt, id) in prompts.iter().zip(ids) {
        assert_eq!(engine.said(id), expected(prompt, 9));
    }
}

#[test]
fn an_edit_counts_from_the_first_token_that_is_not_under_way() {
    let mut engine = Overlapped::new(&config());
    let prompt = tokens(&[1, 2, 3]);
    let id = engine.add(&prompt, most(9));
    engine.step();
    engine.step();
    assert_eq!(engine.said(id).len(), 1, "and another one is under way");
    let warmer = Edit { temperature: Some(0.5), priority: Some(-1), ..Edit::default() };
    assert!(engine.scheduler.edit(id, &warmer));
    engine.step();
    assert_eq!((engine.plan.edits.len(), engine.plan.edits[0].output.len()), (1, 1));
    assert!(engine.scheduler.edit(id, &Edit { max_tokens: Some(1), ..Edit::default() }));
    engine.run();
    assert_eq!(engine.said(id), expected(&prompt, 3), "it ends with the token that was under way");
    assert!(matches!(engine.end(id), Some(End::Finished(FinishReason::Length))));
}

#[test]
fn who_may_take_tokens_back_is_collected_before_anybody_is_planned() {
    let mut engine = Overlapped::new(&config());
    let guarded = engine.sequence(&tokens(&[1, 2, 3]), most(4), 64);
    engine.scheduler.add(Sequence { guard: Some(Box::new(TakesBack::new(2))), ..guarded }).unwrap();
    let prompt = tokens(&[4, 5, 6]);
    let beside = engine.add(&prompt, most(20));
    while engine.scheduler.len() == 2 {
        assert_eq!(engine.rows.1, 0);
        engine.step();
    }
    engine.run();
    assert!(engine.rows.1 > 0, "alone the other one goes ahead");
    assert_eq!(engine.said(beside), expected(&prompt, 20));
}

#[test]
fn a_step_whose_tokens_the_host_chooses_is_collected_before_the_next_is_planned() {
    let mut engine = Overlapped::new(&config());
    let prompts = [tokens(&[1, 2, 3]), tokens(&[4, 5, 6])];
    let hosted = engine.add(&prompts[0], SamplingParams { logprobs: Some(1), ..most(4) });
    let beside = engine.add(&prompts[1], most(20));
    while engine.scheduler.len() == 2 {
        assert_eq!((engine.rows.1, engine.under_way), (0, 0));
        engine.step();
    }
    engine.run();
    assert!(engine.rows.1 > 0, "alone the other one goes ahead");
    assert_eq!((engine.said(hosted), engine.said(beside)), (expected(&prompts[0], 4), expected(&prompts[1], 20)));
}

#[test]
fn a_group_and_a_fork_share_blocks_that_a_row_under_way_writes() {
    let mut engine = Overlapped::new(&config());
    let prompt = tokens(&[1, 2, 3, 4, 5, 6]);
    let group: Vec<_> = (0..3).map(|_| engine.sequence(&prompt, most(7), 64)).collect();
    let ids: Vec<_> = group.iter().map(|sequence| sequence.id).collect();
    engine.scheduler.add_group(group).unwrap();
    (0..3).for_each(|_| engine.step());
    let mut longer = prompt.clone();
    longer.extend(engine.said(ids[0]));
    longer.push(TokenId(9));
    let child = engine.sequence(&longer, most(7), 64);
    let child_id = child.id;
    assert_eq!(engine.under_way, 1);
    engine.scheduler.fork(ids[0], child).unwrap();
    engine.run();
    for id in ids {
        assert_eq!(engine.said(id), expected(&prompt, 7));
    }
    assert_eq!(engine.said(child_id), expected(&longer, 7));
    assert!(engine.scheduler.stats().block_copies > 0);
}

/// Hears how many tokens its lease holds.
struct Holder {
    id: u64,
    held: AtomicUsize,
    released: AtomicBool,
}

impl Holder {
    fn new(id: u64) -> Arc<Self> {
        Arc::new(Self { id, held: AtomicUsize::new(0), released: AtomicBool::new(false) })
    }
}

impl LeaseHolder for Holder {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_pinned(&self) -> bool {
        false
    }

    fn is_released(&self) -> bool {
        self.released.load(Relaxed)
    }

    fn max_tokens(&self) -> usize {
        usize::MAX
    }

    fn holds(&self, tokens: usize, _pinned: bool) {
        self.held.store(tokens, Relaxed);
    }

    fn warned(&self) {}

    fn lost(&self) {
        self.held.store(0, Relaxed);
    }
}

#[test]
fn a_conversation_keeps_what_was_computed_and_its_next_turn_goes_on_from_there() {
    let mut engine = Overlapped::new(&EngineConfig { enable_prefix_caching: false, ..config() });
    let holder = Holder::new(1);
    let prompt = tokens(&[1, 2, 3, 4, 5, 6]);
    let lease: Arc<dyn LeaseHolder> = holder.clone();
    let turn = engine.sequence(&prompt, stops_at_once(&prompt), 64);
    let id = turn.id;
    engine.scheduler.add(Sequence { lease: Some(lease.clone()), ..turn }).unwrap();
    engine.run();
    assert_eq!(holder.held.load(Relaxed), 6, "as of an engine that does not plan ahead");
    let mut said = prompt;
    said.extend(engine.said(id));
    said.push(TokenId(7));
    let turn = engine.sequence(&said, most(3), 64);
    let id = turn.id;
    engine.scheduler.add(Sequence { lease: Some(lease), ..turn }).unwrap();
    engine.step();
    engine.step();
    // A fork of a turn that has a step under way.
    let child = Holder::new(2);
    assert_eq!(engine.scheduler.fork_lease(1, child.clone(), said.len()), said.len());
    child.released.store(true, Relaxed);
    engine.scheduler.sweep_leases();
    let cached = |event: &Event| matches!(event, Event::Started { id: other, cached_tokens: 6 } if *other == id);
    assert!(engine.events.iter().any(cached));
    engine.run();
    assert_eq!(engine.said(id), expected(&said, 3));
}

#[test]
fn a_block_is_found_when_the_step_that_fills_it_was_collected() {
    let mut engine = Overlapped::new(&config());
    let prompt = tokens(&[1, 2, 3]);
    engine.add(&prompt, most(9));
    let mut wanted = prompt.clone();
    wanted.extend(expected(&prompt, 1));
    wanted.push(TokenId(9));
    engine.step();
    engine.step();
    assert_eq!((engine.under_way, engine.scheduler.lookup(None, &wanted)), (1, 0), "its fourth token is under way");
    engine.step();
    assert_eq!(engine.scheduler.lookup(None, &wanted), 4);
}

#[test]
fn a_reader_has_room_for_every_token_under_way() {
    let prompt = tokens(&[1, 2, 3]);
    for room in 1..=4 {
        let mut engine = Overlapped::new(&config());
        let sequence = engine.sequence(&prompt, most(12), room);
        let id = sequence.id;
        engine.scheduler.add(sequence).unwrap();
        while engine.end(id).is_none() {
            // Sending more than there is room for panics.
            while engine.scheduler.has_work() {
                engine.step();
            }
            engine.readers[&id].take(1);
            engine.step();
        }
        engine.run();
        assert_eq!(engine.said(id), expected(&prompt, 12));
        assert_eq!(engine.rows.1 > 0, room > 1, "room for {room}");
    }
}

#[test]
fn a_token_that_a_row_follows_must_come_with_its_own_step() {
    let mut scheduler = Scheduler::new(&config(), 1);
    let reader = Arc::new(Outbox::new(64));
    let prompt = tokens(&[1, 2, 3]);
    scheduler.add(Sequence::new(SequenceId(1), prompt.into(), Arc::new(most(9)), reader)).unwrap();
    let (mut plan, mut events) = (StepPlan::default(), Vec::new());
    for _ in 0..2 {
        assert!(scheduler.schedule(Instant::now(), &mut plan, &mut events) && scheduler.go_ahead());
    }
    scheduler.apply(StepOutput::default(), &mut events).unwrap();
    let error = scheduler.apply(StepOutput::default(), &mut events).unwrap_err();
    assert!(error.message.contains("too late"), "{error}");
}
