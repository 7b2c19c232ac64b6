//! Keeps an engine alive: starts its thread, watches its steps, and when one panics, fails or hangs, ends the streams
//! that it served with `INTERNAL` and starts anew. The process lives on.

use std::{
    any::Any,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Adapters, Health,
    channel::{Bell, Delivery, ReaderControl},
    executor::Executor,
    kv_log::KvLog,
    live::Live,
    outbox::{self, Outbox},
    rates::{Ahead, Rates},
    scheduler::Scheduler,
    step::{Command, Pace, Progress, Queued, StepLoop, UnderWay},
    unavailable,
};
use crate::{
    config::EngineConfig,
    error::{Code, Error, Result},
    ids::SequenceId,
    telemetry::{Reporter, Telemetry},
};

/// Makes a fresh executor; called at every start of the engine, on a thread that may take its time.
pub type ExecutorFactory = Arc<dyn Fn() -> Result<Box<dyn Executor + Send>> + Send + Sync>;

/// Steps that may wait for the fan-out task before the engine keeps them itself.
const FAN_OUT_DEPTH: usize = 4;
/// Commands that may wait for the engine thread.
const COMMANDS: usize = 1024;
/// How often the watchdog looks, as a part of the step timeout.
const WATCH_PARTS: u32 = 8;
/// First and longest pause between attempts to start an engine that will not start.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

type Readers = Arc<Mutex<HashMap<SequenceId, Weak<ReaderControl>>>>;

/// One life of the engine, as the API sees it.
pub(super) struct Life {
    /// A place a request that the engine or a reader holds; what each request may hold is bounded by itself.
    pub live: Arc<Live>,
    /// Has room for as many.
    pub requests: SyncSender<Queued>,
    /// What is asked of sequences and leases that are there.
    pub commands: SyncSender<Command>,
    pub bell: Arc<Bell>,
    progress: Arc<Progress>,
    /// Says what [`Progress::abandoned`] says, to those who wait.
    given_up: watch::Sender<bool>,
    readers: Readers,
}

/// A stream's entry in the list of those to end when this life of the engine ends badly; leaves it when dropped.
pub(super) struct Registration {
    id: SequenceId,
    readers: Readers,
}

impl Drop for Registration {
    fn drop(&mut self) {
        locked(&self.readers).remove(&self.id);
    }
}

impl Life {
    /// Enters a stream into the list of those that end with this life.
    pub(super) fn register(&self, id: SequenceId, reader: &Arc<ReaderControl>) -> Registration {
        locked(&self.readers).insert(id, Arc::downgrade(reader));
        Registration { id, readers: self.readers.clone() }
    }

    /// The readers of all live sequences.
    pub(super) fn readers(&self) -> Vec<Arc<ReaderControl>> {
        locked(&self.readers).values().filter_map(Weak::upgrade).collect()
    }

    /// What stands before a tenant's request at `place` in line: what its tenant has before it, and of every other tenant
    /// as many requests at the most, since tenants take turns.
    pub(super) fn ahead(&self, tenant: Option<&str>, place: (i32, SequenceId), max_num_seqs: usize) -> Ahead {
        let (mut ahead, mut running) = (Ahead::default(), 0);
        let mut others: HashMap<Option<Arc<str>>, Ahead> = HashMap::new();
        for reader in self.readers() {
            let standing = reader.standing();
            let left = standing.prompt_tokens.saturating_sub(standing.computed_tokens) as usize;
            let its_place = reader.place();
            if reader.has_ended() || its_place.1 == place.1 {
                continue;
            }
            let theirs = &reader.request().tenant;
            if standing.started {
                running += usize::from(!standing.stalled);
                ahead.tokens += if standing.spoke { 0 } else { left };
            } else if theirs.as_deref() != tenant {
                let other = others.entry(theirs.clone()).or_default();
                other.requests += 1;
                other.tokens += left;
            } else if its_place < place {
                ahead.requests += 1;
                ahead.tokens += left;
            }
        }
        let own = ahead.requests;
        for other in others.into_values() {
            let before = other.requests.min(own);
            ahead.requests += before;
            ahead.tokens += other.tokens / other.requests.max(1) * before;
        }
        ahead.rows = (running + ahead.requests + 1).saturating_sub(max_num_seqs);
        ahead
    }

    /// Has the engine thread do something between two steps.
    ///
    /// # Errors
    /// `ResourceExhausted` where too much was asked of it already, `Unavailable` where it is gone.
    pub(super) fn command(&self, command: Command) -> Result<()> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => {
                Error::new(Code::ResourceExhausted, "the engine has too much to do between two steps")
            }
            TrySendError::Disconnected(_) => Error::new(Code::Unavailable, "the engine is restarting"),
        })?;
        self.bell.ring();
        Ok(())
    }

    /// Asks the engine thread something between two steps.
    ///
    /// # Errors
    /// As [`command`](Self::command); `Unavailable` where this life ends first. A thread that hangs neither answers nor drops
    /// what was to be answered.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, replied) = oneshot::channel();
        self.command(question(reply))?;
        let mut given_up = self.given_up.subscribe();
        let answer = tokio::select! {
            biased;
            answer = replied => answer.ok(),
            _given_up = given_up.wait_for(|given_up| *given_up) => None,
        };
        answer.ok_or_else(|| unavailable("the engine is restarting"))
    }

    /// Tells the engine thread to end after its present step.
    pub(super) fn stop(&self) {
        self.progress.abandoned.store(true, Ordering::Release);
        self.given_up.send_replace(true);
        self.bell.ring();
    }

    /// Whether this life was given up.
    pub(super) fn stopped(&self) -> bool {
        self.progress.abandoned.load(Ordering::Acquire)
    }
}

/// How a life ended.
enum Ending {
    /// It was asked to.
    Stopped,
    /// It failed, and why.
    Failed(String),
}

/// One life of the engine, as its supervisor holds it.
struct Running {
    life: Arc<Life>,
    ending: oneshot::Receiver<Ending>,
    fan_out: JoinHandle<()>,
}

impl Running {
    /// Starts the engine thread and the task that fills the readers' channels.
    fn start(executor: Box<dyn Executor + Send>, shared: &Supervised) -> Result<Self> {
        let Supervised { config, telemetry, rates, .. } = shared;
        let max_live = config.max_live();
        let (requests, receiver) = sync_channel(max_live);
        let (commands, commanded) = sync_channel(COMMANDS);
        let (fan_out, batches) = mpsc::channel(FAN_OUT_DEPTH);
        let (ended, ending) = oneshot::channel();
        let life = Arc::new(Life {
            live: Live::new(max_live),
            requests,
            commands,
            bell: Arc::default(),
            progress: Arc::default(),
            given_up: watch::Sender::new(false),
            readers: Readers::default(),
        });
        let (bell, progress) = (life.bell.clone(), life.progress.clone());
        let outbox = Outbox::new(fan_out);
        let pace = Pace::new(rates.clone());
        let (config, reporter) = (config.clone(), Reporter::new(telemetry.clone()));
        thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(move || {
                    let scheduler = Scheduler::new(&config, executor.max_tokens_per_step());
                    let (requests, commands, under_way) = (receiver, commanded, UnderWay::default());
                    let mut step_loop = StepLoop {
                        scheduler,
                        executor,
                        requests,
                        commands,
                        bell,
                        progress,
                        outbox,
                        reporter,
                        pace,
                        under_way,
                    };
                    step_loop.run()
                }));
                // Nobody listens where the supervisor has given this thread up.
                let _unheard = ended.send(match outcome {
                    Ok(Ok(())) => Ending::Stopped,
                    Ok(Err(error)) => Ending::Failed(error.to_string()),
                    Err(panic) => Ending::Failed(format!("panic: {}", panic_message(&*panic))),
                });
            })
            .map_err(|error| Error::internal(format!("the engine thread does not start: {error}")))?;
        let fan_out = tokio::spawn(outbox::fan_out(batches, telemetry.clone(), shared.kv_log.clone()));
        Ok(Self { life, ending, fan_out })
    }

    /// Waits until the thread ends or hangs.
    async fn ended(&mut self, step_timeout: Duration) -> Ending {
        tokio::select! {
            ending = &mut self.ending => ending.unwrap_or_else(|_| Ending::Failed("the engine thread vanished".into())),
            () = hung(&self.life.progress, step_timeout) => {
                Ending::Failed(format!("a step took longer than {} s", step_timeout.as_secs_f32()))
            }
        }
    }

    /// Ends every stream of this life with `INTERNAL`. The place for the last message is kept free in each channel.
    async fn fail_streams(self, telemetry: &Telemetry) {
        self.life.stop();
        // Nothing may slip into a channel after its end.
        self.fan_out.abort();
        let _aborted = self.fan_out.await;
        let readers: Vec<_> = locked(&self.life.readers).drain().filter_map(|(_, reader)| reader.upgrade()).collect();
        for reader in readers {
            let error = Error::internal("the engine failed under this request; a new request can be made at once");
            reader.deliver(Delivery::failed(error), telemetry);
        }
    }
}

/// Returns when one and the same step has been under way for `timeout`.
async fn hung(progress: &Progress, timeout: Duration) {
    let mut look = interval((timeout / WATCH_PARTS).max(Duration::from_millis(1)));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since: Option<(u64, Instant)> = None;
    loop {
        let now = look.tick().await;
        since = match (progress.step_under_way(), since) {
            (Some(step), Some((seen, began))) if seen == step && now - began >= timeout => return,
            (Some(step), Some((seen, began))) if seen == step => Some((seen, began)),
            (step, _) => step.map(|step| (step, now)),
        };
    }
}

/// What the API and the supervisor share.
pub(super) struct Supervised {
    pub config: EngineConfig,
    pub telemetry: Arc<Telemetry>,
    pub rates: Arc<Rates>,
    adapters: Adapters,
    pub health: watch::Sender<Health>,
    /// What the prefix cache holds, whichever life it belongs to.
    pub kv_log: Arc<KvLog>,
    /// The engine's present life; none between two.
    life: Mutex<Option<Arc<Life>>>,
    announced: AtomicBool,
    draining: AtomicBool,
    /// Nobody has the engine any more.
    given_up: watch::Sender<bool>,
}

impl Supervised {
    pub(super) fn new(config: EngineConfig, telemetry: Arc<Telemetry>, adapters: Adapters) -> Arc<Self> {
        Arc::new(Self {
            config,
            telemetry,
            rates: Arc::default(),
            adapters,
            health: watch::Sender::new(Health::Serving),
            kv_log: Arc::default(),
            life: Mutex::new(None),
            announced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            given_up: watch::Sender::new(false),
        })
    }

    /// The engine's present life, unless it is between two.
    pub(super) fn life(&self) -> Option<Arc<Life>> {
        locked(&self.life).clone()
    }

    /// From now on health says that nothing new should come.
    pub(super) fn announce_drain(&self) {
        self.announced.store(true, Ordering::Release);
        self.health.send_replace(Health::Draining);
    }

    /// From now on nothing new is admitted.
    pub(super) fn begin_drain(&self) {
        self.announce_drain();
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Nobody has the engine any more: its present life ends, and none comes after it.
    pub(super) fn give_up(&self) {
        // First this, so that a life that begins meanwhile is either seen here or sees it.
        self.given_up.send_replace(true);
        if let Some(life) = self.life() {
            life.stop();
        }
    }

    /// Health turns first, so that who sees a stream fail sees why.
    fn set_life(&self, life: Option<Arc<Life>>) {
        let health = match (&life, self.announced.load(Ordering::Acquire)) {
            (_, true) => Health::Draining,
            (Some(_), false) => Health::Serving,
            (None, false) => Health::Restarting,
        };
        *locked(&self.life) = life;
        self.health.send_replace(health);
    }

    /// Starts the first life and the task that watches over it and its successors.
    ///
    /// # Errors
    /// The factory's, at the first start; later ones are tried again.
    pub(super) async fn start(self: &Arc<Self>, factory: ExecutorFactory) -> Result<()> {
        let first = self.begin_life(&factory).await?;
        tokio::spawn(self.clone().watch_over(first, factory));
        Ok(())
    }

    async fn begin_life(&self, factory: &ExecutorFactory) -> Result<Running> {
        let make = factory.clone();
        let executor = tokio::task::spawn_blocking(move || make())
            .await
            .map_err(|panic| Error::internal(format!("the executor does not start: {panic}")))??;
        self.kv_log.clear();
        let running = Running::start(executor, self)?;
        self.set_life(Some(running.life.clone()));
        Ok(running)
    }

    async fn watch_over(self: Arc<Self>, mut running: Running, factory: ExecutorFactory) {
        loop {
            let Ending::Failed(why) = running.ended(self.config.step_timeout).await else { return };
            tracing::error!(why, "the engine failed; its streams end and it starts anew");
            self.telemetry.record_restart();
            self.set_life(None);
            running.fail_streams(&self.telemetry).await;
            self.adapters.forget_holders();
            let Some(next) = self.next_life(&factory).await else { return };
            running = next;
        }
    }

    /// The life after one that failed; none once nobody has the engine any more, who would be the one to stop it.
    async fn next_life(&self, factory: &ExecutorFactory) -> Option<Running> {
        let mut given_up = self.given_up.subscribe();
        let mut pause = RESTART_PAUSE.0;
        while !*given_up.borrow() {
            match self.begin_life(factory).await {
                Ok(running) if *given_up.borrow() => running.life.stop(),
                Ok(running) => {
                    tracing::info!("the engine is back");
                    return Some(running);
                }
                Err(error) => tracing::error!(%error, "the engine does not come back yet"),
            }
            let _in_time = timeout(pause, given_up.wait_for(|given_up| *given_up)).await;
            pause = (pause * 2).min(RESTART_PAUSE.1);
        }
        None
    }
}

/// A lock that a panicking holder leaves usable: what these guard is valid between any two statements.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of an unknown kind")
}
