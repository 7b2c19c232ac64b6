//! The engine thread: drain commands, schedule, execute, apply, hand over; park when there is nothing to do.
//!
//! An executor that [runs ahead](Executor::runs_ahead) has the next step before the one under way is collected, so that it never
//! waits for the thread that plans. With any other each step is collected before the next one is planned.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    block_manager::Salt,
    channel::{Bell, ReaderControl},
    executor::{Executor, StepPlan},
    operator::Flushed,
    outbox::Outbox,
    rates::Rates,
    scheduler::{Edit, Event, Scheduler},
    sequence::{LeaseHolder, Sequence},
};
use crate::{
    error::Result,
    ids::{SequenceId, TokenId},
    telemetry::{BlockStates, EngineState, EngineTotals, Reporter, StepFacts},
};

/// How long the engine sleeps before it tries again to hand over what the fan-out had no room for.
const OUTBOX_RETRY: Duration = Duration::from_millis(1);
/// How long the engine sleeps when nothing runs and nothing is due; every event that matters rings the bell.
const IDLE: Duration = Duration::from_secs(3600);

/// The new sequences of one request, which begin alike, and their readers.
pub(super) type Queued = Vec<(Sequence, Arc<ReaderControl>)>;

/// What the engine thread does between two steps when asked.
pub(super) enum Command {
    /// Changes the sequences of a request.
    Edit { ids: Vec<SequenceId>, edit: Edit },
    /// Of a prompt's tokens, how many are cached.
    Lookup { tokens: Arc<[TokenId]>, salt: Option<Salt>, reply: oneshot::Sender<usize> },
    /// Forgets what the prefix cache holds and nobody uses.
    FlushCache { reply: oneshot::Sender<Flushed> },
    /// Has one conversation hold another one's blocks too.
    ForkLease { parent: u64, child: Arc<dyn LeaseHolder>, num_tokens: usize },
}

/// Measures steps and ends.
pub(super) struct Pace {
    rates: Arc<Rates>,
    newest_end: Option<Instant>,
}

impl Pace {
    pub(super) fn new(rates: Arc<Rates>) -> Self {
        Self { rates, newest_end: None }
    }

    fn count_step(&self, elapsed: Duration, plan: &StepPlan) {
        let of_prompts = plan.rows.iter().filter(|row| row.num_output_tokens == 0);
        let prompt_tokens: usize = of_prompts.map(|row| row.query.len()).sum();
        // What a grammar forced, or a preemption took, is neither a prompt nor what a stream waits for between two tokens.
        if prompt_tokens > 0 || plan.rows.iter().all(|row| row.query.len() == 1) {
            self.rates.record_step(elapsed, prompt_tokens, plan.token_ids.len() - prompt_tokens);
        }
    }

    /// The time between two ends tells how fast places become free only while somebody waits for them.
    fn count_ends(&mut self, events: &[Event], somebody_waits: bool) {
        if !somebody_waits {
            self.newest_end = None;
            return;
        }
        let ends = events.iter().filter(|event| matches!(event, Event::Ended { .. })).count();
        if ends == 0 {
            return;
        }
        let now = Instant::now();
        if let Some(newest) = self.newest_end.replace(now) {
            self.rates.record_ends(now - newest, ends);
        }
    }
}

/// Where the engine thread stands, for the watchdog: odd while the executor has it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    ticks: AtomicU64,
    /// Set by the supervisor when it has given this thread up, or wants it to end.
    pub abandoned: AtomicBool,
}

impl Progress {
    /// Which call of the executor is under way, if one is.
    pub(super) fn step_under_way(&self) -> Option<u64> {
        let ticks = self.ticks.load(Ordering::Acquire);
        (ticks % 2 == 1).then_some(ticks)
    }

    fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Release);
    }
}

/// The steps that were submitted and not collected: none or one while a step is planned.
#[derive(Default)]
pub(super) struct UnderWay {
    /// Oldest first.
    steps: VecDeque<Submitted>,
    /// Whether the next step may be planned before the newest of them is collected.
    may_be_followed: bool,
    /// When the newest output came.
    newest_output: Option<Instant>,
    /// Buffers to use again.
    spare: Vec<StepPlan>,
}

/// A step, and what it took so far.
struct Submitted {
    plan: StepPlan,
    schedule: Duration,
    at: Instant,
}

/// A step whose output was applied.
struct Done {
    plan: StepPlan,
    schedule: Duration,
    execute: Duration,
    executed: Instant,
}

/// Everything the engine thread owns.
pub(super) struct StepLoop {
    pub scheduler: Scheduler,
    pub executor: Box<dyn Executor>,
    pub requests: Receiver<Queued>,
    pub commands: Receiver<Command>,
    pub bell: Arc<Bell>,
    pub progress: Arc<Progress>,
    pub outbox: Outbox,
    pub reporter: Reporter,
    pub pace: Pace,
    pub under_way: UnderWay,
}

impl StepLoop {
    /// Runs until the supervisor wants it to end, or every sender of requests is gone.
    ///
    /// # Errors
    /// An executor's error, after which nothing that it holds can be trusted.
    pub(super) fn run(&mut self) -> Result<()> {
        self.bell.answer_here();
        let mut events = Vec::new();
        while !self.is_given_up() {
            // The bell is read before the queue: who rang it may just have queued what it rings for.
            let attention = self.bell.take();
            let open = self.drain();
            if attention {
                self.scheduler.sweep_cancelled(&mut events);
                self.scheduler.sweep_leases();
                self.obey();
            }
            let plans = self.under_way.steps.is_empty() || self.under_way.may_be_followed;
            let submits = plans && self.submit(&mut events)?;
            // A step that may be followed runs on while the next one is planned; others are waited for.
            let stays = usize::from(submits && self.under_way.may_be_followed);
            let collects = self.under_way.steps.len() > stays;
            let done = if collects { self.collect(&mut events)? } else { None };
            // Rates and gauges are those of another life by now, and the streams of this one have ended.
            if collects && done.is_none() || !collects && submits && self.is_given_up() {
                return Ok(());
            }
            self.report();
            self.pace.count_ends(&events, self.scheduler.stats().waiting > 0);
            self.outbox.take_in(&mut events);
            let delivered = self.outbox.send(&mut self.scheduler);
            if let Some(Done { plan, schedule, execute, executed }) = done {
                self.reporter.record_step(&facts(&plan, [schedule, execute, executed.elapsed()]));
                self.under_way.spare.push(plan);
            }
            if !submits && !collects {
                if !open {
                    return Ok(());
                }
                self.park(delivered);
            }
        }
        Ok(())
    }

    /// Takes new requests in; false once no more can come.
    fn drain(&mut self) -> bool {
        loop {
            match self.requests.try_recv() {
                Ok(group) => {
                    let (sequences, readers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
                    let ids: Vec<_> = sequences.iter().map(|sequence| sequence.id).collect();
                    match self.scheduler.add_group(sequences) {
                        Ok(()) => ids.into_iter().zip(readers).for_each(|(id, to)| self.outbox.add_reader(id, to)),
                        Err(error) => readers.into_iter().for_each(|to| self.outbox.refuse(to, error.clone())),
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Does what was asked for. Who asks rings the bell; what was asked before a sequence came is done before it runs.
    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Edit { ids, edit } => {
                    // They may have come since the queue was looked at. One that has ended meanwhile needs no edit; who asked
                    // sees its end.
                    self.drain();
                    for id in ids {
                        self.scheduler.edit(id, &edit);
                    }
                }
                Command::Lookup { tokens, salt, reply } => {
                    // Nobody may be waiting any more.
                    let _unheard = reply.send(self.scheduler.lookup(salt, &tokens));
                }
                Command::FlushCache { reply } => {
                    let (freed, in_use) = self.scheduler.flush_cache();
                    let _unheard = reply.send(Flushed { freed, in_use });
                }
                Command::ForkLease { parent, child, num_tokens } => {
                    self.scheduler.fork_lease(parent, child, num_tokens);
                }
            }
        }
    }

    /// Plans a step and submits it; false where there is none to submit.
    fn submit(&mut self, events: &mut Vec<Event>) -> Result<bool> {
        let mut plan = self.under_way.spare.pop().unwrap_or_default();
        let began = Instant::now();
        if !self.scheduler.schedule(began, &mut plan, events) {
            self.under_way.spare.push(plan);
            return Ok(false);
        }
        let at = Instant::now();
        self.watched(|executor| executor.submit(&plan))?;
        self.under_way.steps.push_back(Submitted { plan, schedule: at - began, at });
        self.under_way.may_be_followed = self.executor.runs_ahead() && self.scheduler.go_ahead();
        Ok(true)
    }

    /// Waits for the oldest step and applies what came of it. None where this thread was given up meanwhile.
    fn collect(&mut self, events: &mut Vec<Event>) -> Result<Option<Done>> {
        let output = self.watched(|executor| executor.collect())?;
        let executed = Instant::now();
        let oldest = self.under_way.steps.pop_front().filter(|_| !self.is_given_up());
        let Some(Submitted { plan, schedule, at }) = oldest else { return Ok(None) };
        // It did not begin before the step before it was done.
        let before = self.under_way.newest_output.replace(executed);
        let execute = executed.saturating_duration_since(before.map_or(at, |before| before.max(at)));
        self.pace.count_step(execute, &plan);
        self.scheduler.record_step(execute);
        self.scheduler.apply(output, events)?;
        Ok(Some(Done { plan, schedule, execute, executed }))
    }

    /// Has the executor do something while the watchdog looks.
    fn watched<T>(&mut self, work: impl FnOnce(&mut dyn Executor) -> Result<T>) -> Result<T> {
        self.progress.tick();
        let done = work(&mut *self.executor)?;
        self.progress.tick();
        Ok(done)
    }

    fn is_given_up(&self) -> bool {
        self.progress.abandoned.load(Ordering::Acquire)
    }

    fn park(&self, delivered: bool) {
        let due = self.scheduler.next_deadline().map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        thread::park_timeout(if delivered { due } else { OUTBOX_RETRY });
    }

    fn report(&mut self) {
        let stats = self.scheduler.stats();
        self.reporter.report(
            EngineState {
                num_running: (stats.running + stats.stalled) as u64,
                num_waiting: stats.waiting as u64,
                num_waiting_tokens: stats.waiting_tokens as u64,
                kv_cache_usage: stats.used_blocks as f64 / stats.num_blocks.max(1) as f64,
                num_paused: stats.stalled as u64,
                blocks: BlockStates {
                    sequences: stats.used_blocks.saturating_sub(stats.leased_blocks) as u64,
                    leases: stats.leased_blocks.min(stats.used_blocks) as u64,
                    free: stats.num_blocks.saturating_sub(stats.used_blocks) as u64,
                    cached: stats.cached_blocks as u64,
                },
            },
            EngineTotals {
                preemptions: stats.preemptions,
                prefix_cache_query_tokens: stats.prefix_cache_queries_tokens,
                prefix_cache_hit_tokens: stats.prefix_cache_hits_tokens,
                block_copies: stats.block_copies,
                block_evictions: stats.evictions,
            },
        );
    }
}

/// What a step computed, for those who watch.
fn facts(plan: &StepPlan, [schedule, execute, apply]: [Duration; 3]) -> StepFacts {
    let decodes = plan.rows.iter().filter(|row| row.num_output_tokens > 0 && row.query.len() == 1).count();
    StepFacts {
        prefill_sequences: plan.rows.len() - decodes,
        prefill_tokens: plan.token_ids.len() - decodes,
        decode_sequences: decodes,
        context_tokens: plan.rows.iter().map(|row| row.context_len as usize + row.query.len()).sum(),
        schedule,
        execute,
        apply,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::SyncSender};

    use super::*;
    use crate::{
        config::EngineConfig,
        engine::{
            channel::ReaderSpec,
            executor::{PlannedRow, StepOutput},
            fake::{FakeExecutor, FakeOptions},
            live::Live,
            outbox::Batch,
            scheduler::End,
        },
        error::Error,
        params::{FinishReason, Usage},
        telemetry::Telemetry,
    };

    const MS: Duration = Duration::from_millis(1);

    fn pace() -> Pace {
        Pace::new(Arc::default())
    }

    /// A step of rows of so many tokens each, of sequences that have generated so many.
    fn plan(rows: &[(usize, u32)]) -> StepPlan {
        let mut plan = StepPlan::default();
        for &(num_tokens, num_output_tokens) in rows {
            let start = plan.token_ids.len();
            plan.token_ids.resize(start + num_tokens, TokenId(0));
            plan.rows.push(PlannedRow {
                id: SequenceId(plan.rows.len() as u64),
                query: start..start + num_tokens,
                blocks: 0..0,
                context_len: 0,
                samples: true,
                num_output_tokens,
                prompt_targets: 0..0,
                max_new_tokens: 1,
                follows: None,
            });
        }
        plan
    }

    #[test]
    fn time_in_which_nobody_waited_says_nothing_of_how_fast_places_become_free() {
        let mut pace = pace();
        let end = End::Finished(FinishReason::Length);
        let ended = [Event::Ended { id: SequenceId(1), end, usage: Usage::default() }];
        pace.count_ends(&ended, true);
        pace.count_ends(&[], false);
        pace.count_ends(&ended, true);
        assert_eq!(pace.rates.retry_after(), None, "between the two was an idle hour");
        pace.count_ends(&[], true);
        pace.count_ends(&ended, true);
        assert!(pace.rates.retry_after().is_some());
    }

    /// Is given up while it computes.
    struct GivenUp {
        executor: FakeExecutor,
        progress: Arc<Progress>,
    }

    impl Executor for GivenUp {
        fn submit(&mut self, plan: &StepPlan) -> Result<()> {
            self.executor.submit(plan)
        }

        fn collect(&mut self) -> Result<StepOutput> {
            self.progress.abandoned.store(true, Ordering::Release);
            self.executor.collect()
        }

        fn runs_ahead(&self) -> bool {
            self.executor.runs_ahead()
        }
    }

    /// A loop that ends with its only sequence, and who may give it a command.
    fn one_sequence(
        executor: impl Executor + Send + 'static,
        (progress, telemetry): (Arc<Progress>, Arc<Telemetry>),
    ) -> (StepLoop, SyncSender<Command>, tokio::sync::mpsc::Receiver<Batch>) {
        let bell = Arc::<Bell>::default();
        let place = Live::new(1).take(None, 1).unwrap();
        let id = SequenceId(1);
        let spec =
            ReaderSpec { capacity_tokens: 8, credits: None, prompt_tokens: 3, place: (0, id), request: Arc::default() };
        let (reader, _deliveries) = ReaderControl::new(spec, bell.clone(), place);
        let sequence = Sequence::new(id, [TokenId(5); 3].into(), Arc::default(), reader.clone());
        let (requests, queued) = std::sync::mpsc::sync_channel(1);
        requests.send(vec![(sequence, reader)]).unwrap();
        let (commands, commanded) = std::sync::mpsc::sync_channel(1);
        let (fan_out, batches) = tokio::sync::mpsc::channel(1);
        let step_loop = StepLoop {
            scheduler: Scheduler::new(&EngineConfig::default(), 1),
            executor: Box::new(executor),
            requests: queued,
            commands: commanded,
            bell,
            progress,
            outbox: Outbox::new(fan_out),
            reporter: Reporter::new(telemetry),
            pace: pace(),
            under_way: UnderWay::default(),
        };
        (step_loop, commands, batches)
    }

    #[test]
    fn a_thread_that_was_given_up_in_a_step_says_nothing_of_it() {
        let telemetry = Arc::new(Telemetry::new("test"));
        // What the life after it says.
        let state = EngineState { num_running: 7, ..EngineState::default() };
        Reporter::new(telemetry.clone()).report(state, EngineTotals::default());
        let progress = Arc::<Progress>::default();
        let executor = FakeExecutor::new(&EngineConfig::default(), FakeOptions::default());
        let executor = GivenUp { executor, progress: progress.clone() };
        let (mut step_loop, _commands, mut batches) = one_sequence(executor, (progress.clone(), telemetry.clone()));
        step_loop.run().unwrap();
        assert!(progress.abandoned.load(Ordering::Acquire), "the step ran");
        assert_eq!(telemetry.state(), state);
        assert_eq!(step_loop.pace.rates.prefill_tokens_per_second(), None);
        assert!(batches.try_recv().is_err());
    }

    /// Writes down what it is asked for, and fails the collection of so manieth a step.
    struct Recorded {
        executor: FakeExecutor,
        calls: Arc<Mutex<String>>,
        fails_at: Option<usize>,
    }

    impl Executor for Recorded {
        fn submit(&mut self, plan: &StepPlan) -> Result<()> {
            self.calls.lock().unwrap().push('s');
            self.executor.submit(plan)
        }

        fn collect(&mut self) -> Result<StepOutput> {
            let mut calls = self.calls.lock().unwrap();
            calls.push('c');
            match self.fails_at {
                Some(at) if calls.matches('c').count() == at => Err(Error::internal("the card is gone")),
                _ => self.executor.collect(),
            }
        }

        fn runs_ahead(&self) -> bool {
            self.executor.runs_ahead()
        }
    }

    /// The calls of an executor whose only reader takes nothing and has room for eight tokens, how its loop ended, and what the
    /// metrics say then.
    fn calls(overlaps: bool, fails_at: Option<usize>) -> (String, Result<()>, Arc<Telemetry>) {
        let options = FakeOptions { overlaps, ..FakeOptions::default() };
        let executor = FakeExecutor::new(&EngineConfig::default(), options);
        let (calls, telemetry) = (Arc::default(), Arc::new(Telemetry::new("test")));
        let executor = Recorded { executor, calls: Arc::clone(&calls), fails_at };
        let (mut step_loop, _commands, _batches) = one_sequence(executor, (Arc::default(), telemetry.clone()));
        let ended = step_loop.run();
        let calls = calls.lock().unwrap().clone();
        (calls, ended, telemetry)
    }

    #[test]
    fn a_step_is_submitted_while_the_one_before_it_runs_where_the_executor_can_do_that() {
        let (calls, ended, telemetry) = calls(true, None);
        ended.unwrap();
        assert_eq!(calls, format!("s{}c", "sc".repeat(7)));
        let text = telemetry.encode();
        for (kind, tokens) in [("prefill", 3), ("decode", 7)] {
            let line = format!("candlewick:batch_tokens_total{{model_name=\"test\",kind=\"{kind}\"}} {tokens}");
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.contains("candlewick:step_time_seconds_count{model_name=\"test\",phase=\"execute\"} 8"));
    }

    #[test]
    fn any_other_executor_has_its_step_collected_before_the_next_is_planned() {
        let (calls, ended, _) = calls(false, None);
        ended.unwrap();
        assert_eq!(calls, "sc".repeat(8));
    }

    #[test]
    fn an_error_ends_the_loop_though_another_step_is_under_way() {
        let (calls, ended, _) = calls(true, Some(3));
        assert_eq!((calls.as_str(), ended.is_err()), ("sscscsc", true));
    }

    #[test]
    fn a_thread_that_was_given_up_with_a_step_under_way_ends() {
        let progress = Arc::<Progress>::default();
        let options = FakeOptions { overlaps: true, ..FakeOptions::default() };
        let executor = FakeExecutor::new(&EngineConfig::default(), options);
        let executor = GivenUp { executor, progress: progress.clone() };
        let told = (progress.clone(), Arc::new(Telemetry::new("test")));
        let (mut step_loop, _commands, mut batches) = one_sequence(executor, told);
        step_loop.run().unwrap();
        assert_eq!(step_loop.under_way.steps.len(), 1);
        assert_eq!(progress.step_under_way(), None, "no call of the executor is");
        // That it started was said before.
        assert!(batches.try_recv().is_ok() && batches.try_recv().is_err());
    }

    #[test]
    fn an_edit_that_comes_with_its_sequence_is_not_lost() {
        let executor = FakeExecutor::new(&EngineConfig::default(), FakeOptions::default());
        let told = (Arc::default(), Arc::new(Telemetry::new("test")));
        let (mut step_loop, commands, _batches) = one_sequence(executor, told);
        let edit = Edit { priority: Some(-5), ..Edit::default() };
        commands.send(Command::Edit { ids: vec![SequenceId(1)], edit: edit.clone() }).unwrap();
        // The queue of requests was looked at a moment before.
        step_loop.obey();
        assert_eq!(step_loop.scheduler.len(), 1);
        assert!(!step_loop.scheduler.edit(SequenceId(2), &edit) && step_loop.scheduler.edit(SequenceId(1), &edit));
    }

    #[test]
    fn a_batch_is_prompts_and_what_goes_on_by_one_token() {
        let mut plan = plan(&[(50, 0), (1, 0), (7, 3), (1, 4), (1, 1)]);
        plan.rows[4].context_len = 30;
        let facts = facts(&plan, [MS, 2 * MS, 3 * MS]);
        assert_eq!(facts.context_tokens, 50 + 1 + 7 + 1 + 31);
        assert_eq!((facts.prefill_sequences, facts.prefill_tokens, facts.decode_sequences), (3, 58, 2));
        assert_eq!((facts.schedule, facts.execute, facts.apply), (MS, 2 * MS, 3 * MS));
    }

    #[test]
    fn forced_and_recomputed_tokens_are_no_prompt() {
        let pace = pace();
        pace.count_step(100 * MS, &plan(&[(50, 3), (1, 4)]));
        assert_eq!((pace.rates.prefill_tokens_per_second(), pace.rates.decode_tokens_per_second()), (None, None));
        pace.count_step(20 * MS, &plan(&[(1, 3), (1, 4)]));
        assert_eq!(pace.rates.decode_tokens_per_second().map(f64::round), Some(50.0));
        pace.count_step(100 * MS, &plan(&[(40, 0), (9, 7), (1, 4)]));
        // Forty of fifty tokens, so four fifths of the time.
        assert_eq!(pace.rates.prefill_tokens_per_second().map(f64::round), Some(500.0));
    }
}
