//! The engine thread: drain commands, schedule, execute, apply, hand over; park when there is nothing to do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    channel::{Bell, Delivery, ReaderControl},
    executor::{Executor, StepPlan},
    scheduler::{Scheduler, SequenceEvent},
    sequence::Sequence,
};
use crate::{
    error::Result,
    telemetry::{EngineState, EngineTotals, Reporter},
};

/// How long the engine sleeps before it tries again to hand over what the fan-out had no room for.
const OUTBOX_RETRY: Duration = Duration::from_millis(1);
/// How long the engine sleeps when nothing runs and nothing is due; every event that matters rings the bell.
const IDLE: Duration = Duration::from_secs(3600);

/// A sequence of the engine, read through its channel.
pub(super) type Queued = Sequence<Arc<ReaderControl>>;
/// What one step hands to the fan-out, which fills the readers' channels: one message a step, not one a reader.
pub(super) type Batch = Vec<(Arc<ReaderControl>, Delivery)>;

/// Where the engine thread stands, for the watchdog: odd while a step runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    ticks: AtomicU64,
    /// Set by the supervisor when it has given this thread up, or wants it to end.
    pub abandoned: AtomicBool,
}

impl Progress {
    /// The number of the step under way, if one is.
    pub(super) fn step_under_way(&self) -> Option<u64> {
        let ticks = self.ticks.load(Ordering::Acquire);
        (ticks % 2 == 1).then_some(ticks)
    }

    fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Release);
    }
}

/// Everything the engine thread owns.
pub(super) struct StepLoop {
    pub scheduler: Scheduler<Arc<ReaderControl>>,
    pub executor: Box<dyn Executor>,
    pub requests: Receiver<Queued>,
    pub bell: Arc<Bell>,
    pub progress: Arc<Progress>,
    pub fan_out: mpsc::Sender<Batch>,
    pub reporter: Reporter,
}

impl StepLoop {
    /// Runs until the supervisor wants it to end, or every sender of requests is gone.
    ///
    /// # Errors
    /// An executor's error, after which nothing that it holds can be trusted.
    pub(super) fn run(&mut self) -> Result<()> {
        self.bell.answer_here();
        let mut plan = StepPlan::default();
        let mut events = Vec::new();
        let mut outbox = Batch::new();
        while !self.progress.abandoned.load(Ordering::Acquire) {
            let open = self.drain(&mut events);
            self.scheduler.schedule(Instant::now(), self.bell.take(), &mut plan, &mut events);
            if !plan.is_empty() {
                self.execute(&plan, &mut events)?;
            }
            self.report();
            outbox.extend(events.drain(..).map(hand_over));
            self.send(&mut outbox);
            if plan.rows.is_empty() {
                if !open {
                    return Ok(());
                }
                self.park(outbox.is_empty());
            }
        }
        Ok(())
    }

    /// Takes new requests in; false once no more can come.
    fn drain(&mut self, events: &mut Vec<SequenceEvent<Arc<ReaderControl>>>) -> bool {
        loop {
            match self.requests.try_recv() {
                Ok(sequence) => self.scheduler.add(sequence, events),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn execute(
        &mut self,
        plan: &StepPlan,
        events: &mut Vec<SequenceEvent<Arc<ReaderControl>>>,
    ) -> Result<()> {
        self.progress.tick();
        self.executor.submit(plan)?;
        let output = self.executor.collect()?;
        self.progress.tick();
        self.scheduler.apply(Instant::now(), &output, events)
    }

    /// Hands the outbox to the fan-out without waiting; what does not fit stays for the next step. It is bounded: the
    /// scheduler counts tokens as under way from the moment they are made.
    fn send(&self, outbox: &mut Batch) {
        if outbox.is_empty() || self.progress.abandoned.load(Ordering::Acquire) {
            return;
        }
        if let Ok(permit) = self.fan_out.try_reserve() {
            permit.send(std::mem::take(outbox));
        }
    }

    fn park(&self, delivered: bool) {
        let due = self.scheduler.next_deadline().map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        thread::park_timeout(if delivered { due } else { OUTBOX_RETRY });
    }

    fn report(&mut self) {
        let stats = self.scheduler.stats();
        self.reporter.report(
            EngineState {
                num_running: stats.running as u64,
                num_waiting: stats.waiting as u64,
                kv_cache_usage: stats.kv_cache_usage,
            },
            EngineTotals {
                preemptions: stats.preemptions,
                prefix_cache_query_tokens: stats.prefix_queries_tokens,
                prefix_cache_hit_tokens: stats.prefix_hits_tokens,
                block_copies: stats.block_copies,
                block_evictions: stats.block_evictions,
            },
        );
    }
}

fn hand_over(event: SequenceEvent<Arc<ReaderControl>>) -> (Arc<ReaderControl>, Delivery) {
    let SequenceEvent { reader, tokens, usage, end } = event;
    reader.sent(tokens.len());
    (reader, Delivery { tokens: tokens.into_vec(), usage, end })
}
