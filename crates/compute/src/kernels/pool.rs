//! The threads that compute: one pool a runner, whose jobs are a few microseconds to a few milliseconds long.
//!
//! A step forks and joins more than a hundred times, so a fork costs a store and a join a load: the thread that asks for a
//! job works along, and the others look for work for a moment before they sleep. A job's tasks are claimed one by one,
//! whoever is free; a thread that was descheduled holds nobody up but for the task it has.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, available_parallelism},
    time::{Duration, Instant},
};

use super::cpu_tensor::SharedMatrix;
use crate::error::{Error, Result};

/// How long a thread looks for work before it sleeps: longer than what lies between two jobs of a step, and than what the
/// scheduler does between two steps.
const LOOK_FOR: Duration = Duration::from_micros(250);
/// Looks between two looks at the clock.
const LOOKS: usize = 64;
/// Most threads: more than machines have.
const MAX_THREADS: usize = 4096;

/// Threads to compute with. Idle, they sleep.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What a job's tasks run; the pointer is good as long as tasks of the job are unfinished.
type Task = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// How many tasks the job has (high half) and how many of them are claimed (low half).
    claims: AtomicU64,
    /// Tasks of the job that have run.
    finished: AtomicUsize,
    /// Written between jobs, read by whoever has claimed a task.
    task: UnsafeCell<Option<Task>>,
    /// What the first task that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held by the thread that gives out jobs.
    leader: Mutex<()>,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    threads: usize,
}

// SAFETY: `task` is the only field that threads could not share. It is written by the leader while no task is unclaimed or
// unfinished, and read after a successful claim, which acquires what the leader released with the job's claims.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is to something that all threads may call.
unsafe impl Send for Shared {}

thread_local! {
    /// The pool whose jobs this thread gives out; none on others, and within a task.
    static CURRENT: Cell<*const Shared> = const { Cell::new(ptr::null()) };
    /// Whether this thread runs a task: jobs in it are run by itself.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Where nobody chose a pool: one thread a core.
static DEFAULT: LazyLock<Option<Pool>> = LazyLock::new(|| Pool::new(0).ok());

impl Pool {
    /// A pool of so many threads, the one that uses it among them; 0 is one a core that this process may use.
    ///
    /// # Errors
    /// `Internal` where threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = if threads == 0 { available_parallelism().map_or(1, usize::from) } else { threads };
        let shared = Arc::new(Shared {
            claims: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            panic: Mutex::new(None),
            leader: Mutex::new(()),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            threads: threads.min(MAX_THREADS),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for k in 1..pool.shared.threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("kernel-{k}")).spawn(move || shared.work());
            // Those that run already stop as the pool is dropped.
            pool.workers.push(worker.map_err(|error| Error::internal(format!("cannot start threads: {error}")))?);
        }
        Ok(pool)
    }

    /// Runs `run` on this thread, with the jobs in it shared by the pool. Others who use the pool wait.
    pub fn install<T>(&self, run: impl FnOnce() -> T) -> T {
        let _leader = self.shared.leader.lock().unwrap_or_else(PoisonError::into_inner);
        self.lead(run)
    }

    fn lead<T>(&self, run: impl FnOnce() -> T) -> T {
        let _restored = Restore(CURRENT.replace(Arc::as_ptr(&self.shared)));
        run()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks panic with, so that there is nothing to hear of.
            let _ended = worker.join();
        }
    }
}

/// Puts the thread's former pool back.
struct Restore(*const Shared);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// The pool that this thread gives jobs to, as long as `run` does.
fn with_current<T>(run: impl FnOnce(Option<&Shared>) -> T) -> T {
    if IN_TASK.get() {
        return run(None);
    }
    let current = CURRENT.get();
    if !current.is_null() {
        // SAFETY: `lead` sets it to a pool that it borrows, and puts the former one back before it returns.
        return run(Some(unsafe { &*current }));
    }
    let Some(pool) = DEFAULT.as_ref() else { return run(None) };
    let leader: Option<MutexGuard<'_, ()>> = match pool.shared.leader.try_lock() {
        Ok(leader) => Some(leader),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    match leader {
        Some(_leader) => pool.lead(|| run(Some(&pool.shared))),
        // Somebody else has the threads; this one has itself.
        None => run(None),
    }
}

/// Threads that a job of this thread is shared by.
pub(crate) fn current_num_threads() -> usize {
    let current = CURRENT.get();
    if IN_TASK.get() {
        1
    } else if current.is_null() {
        DEFAULT.as_ref().map_or(1, |pool| pool.shared.threads)
    } else {
        // SAFETY: as in `with_current`.
        unsafe { (*current).threads }
    }
}

/// Calls `task` for each number below `count`, on the threads of the current pool where `parallel`. Returns when all have
/// run; a panic of one of them goes on here then.
pub(crate) fn for_each_task(count: usize, parallel: bool, task: impl Fn(usize) + Sync) {
    if !parallel || count <= 1 || u32::try_from(count).is_err() {
        return (0..count).for_each(task);
    }
    with_current(|pool| match pool {
        Some(pool) if pool.threads > 1 => pool.share(count, &task),
        _ => (0..count).for_each(&task),
    });
}

/// Calls `task` for each item, on the threads of the current pool.
pub fn for_each_mut<T: Send>(items: &mut [T], task: impl Fn(&mut T) + Sync) {
    let count = items.len();
    let items = SharedMatrix::new(items);
    for_each_task(count, true, |index| {
        // SAFETY: each index is one task's alone.
        let item = unsafe { items.slice_mut(index, 1) };
        item.iter_mut().for_each(&task);
    });
}

impl Shared {
    /// Has the tasks of a job run, as their leader.
    fn share(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: this only forgets how long the task lives. It is called by claimed tasks alone, and this function does
        // not return before all of them are finished.
        let task: Task = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Task>(task) };
        self.finished.store(0, Ordering::Relaxed);
        // SAFETY: no task of an earlier job is unfinished, so nobody reads it; see the type's `Sync`.
        unsafe { *self.task.get() = Some(task) };
        self.claims.store((count as u64) << 32, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
        while self.run_one() {}
        let mut looks = 0usize;
        while self.finished.load(Ordering::Acquire) < count {
            looks += 1;
            // Whoever has the last task may have lost its core to somebody.
            if looks.is_multiple_of(1 << 12) { thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Claims a task and runs it; false where none is left.
    fn run_one(&self) -> bool {
        let mut claims = self.claims.load(Ordering::Acquire);
        let index = loop {
            let (count, next) = (claims >> 32, claims & u64::from(u32::MAX));
            if next >= count {
                return false;
            }
            match self.claims.compare_exchange_weak(claims, claims + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break next as usize,
                Err(now) => claims = now,
            }
        };
        // SAFETY: the claimed task is unfinished, so the leader has not gone on and the job is the one it was claimed of;
        // the claim acquired its pointer.
        let task = unsafe { *self.task.get() };
        if let Some(task) = task {
            let was_in_task = IN_TASK.replace(true);
            // SAFETY: the leader keeps it alive until the task is counted as finished.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*task)(index) }));
            IN_TASK.set(was_in_task);
            if let Err(panic) = outcome {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
        }
        self.finished.fetch_add(1, Ordering::Release);
        true
    }

    fn has_work(&self) -> bool {
        let claims = self.claims.load(Ordering::SeqCst);
        claims & u64::from(u32::MAX) < claims >> 32
    }

    /// What a worker does until the pool is dropped.
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let since = Instant::now();
            loop {
                let found = (0..LOOKS).any(|_| {
                    std::hint::spin_loop();
                    self.run_one()
                });
                if found {
                    while self.run_one() {}
                    break;
                }
                if since.elapsed() > LOOK_FOR {
                    self.sleep();
                    break;
                }
            }
        }
    }

    fn sleep(&self) {
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        // A leader publishes its job before it looks for sleepers, and this is counted before it looks for a job: one of
        // the two sees the other.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.has_work() && !self.stop.load(Ordering::SeqCst) {
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_all(&self) {
        // Whoever has looked for work and is not waiting yet holds it.
        drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Runs a job of `count` tasks and says how often each ran.
    fn runs_of(count: usize) -> Vec<u32> {
        let runs = (0..count).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
        for_each_task(count, true, |task| {
            runs[task].fetch_add(1, Ordering::Relaxed);
        });
        runs.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn every_task_of_every_job_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            pool.install(|| {
                assert_eq!(current_num_threads(), threads);
                for job in 0..3000 {
                    let count = job * 7 % 23;
                    assert_eq!(runs_of(count), vec![1; count], "{threads} threads, job {job}");
                }
            });
        }
    }

    #[test]
    fn tasks_run_on_several_threads_at_once() {
        let pool = Pool::new(3).unwrap();
        let here = AtomicU32::new(0);
        // Each waits for the others: one thread alone would never come back.
        pool.install(|| {
            for_each_task(3, true, |_| {
                here.fetch_add(1, Ordering::SeqCst);
                while here.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
            });
        });
    }

    #[test]
    fn a_panic_reaches_who_asked_and_the_pool_goes_on() {
        let pool = Pool::new(4).unwrap();
        for bad in [0, 5, 15] {
            let finished = AtomicU32::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| {
                    for_each_task(16, true, |task| {
                        assert!(task != bad, "task {task} went wrong");
                        finished.fetch_add(1, Ordering::Relaxed);
                    });
                });
            }));
            let panic = outcome.expect_err("it goes on here");
            let message = panic.downcast_ref::<String>().expect("a message");
            assert_eq!(message, &format!("task {bad} went wrong"));
            assert_eq!(finished.into_inner(), 15, "the others ran to their end first");
            assert_eq!(pool.install(|| runs_of(40)), vec![1; 40]);
        }
        assert!(CURRENT.get().is_null() && !IN_TASK.get());
    }

    #[test]
    fn a_job_within_a_task_runs_there() {
        let pool = Pool::new(2).unwrap();
        let inner = AtomicU32::new(0);
        pool.install(|| {
            for_each_task(6, true, |_| {
                assert_eq!(current_num_threads(), 1);
                let thread = thread::current().id();
                for_each_task(5, true, |_| {
                    assert_eq!(thread::current().id(), thread);
                    inner.fetch_add(1, Ordering::Relaxed);
                });
            });
        });
        assert_eq!(inner.into_inner(), 30);
    }

    #[test]
    fn idle_threads_sleep_and_wake_for_work() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..20 {
            while pool.shared.sleepers.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
            assert_eq!(pool.install(|| runs_of(9)), vec![1; 9]);
        }
    }

    #[test]
    fn threads_without_a_pool_share_the_default_one_or_help_themselves() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for job in 0..500 {
                        assert_eq!(runs_of(job % 9), vec![1; job % 9]);
                    }
                });
            }
        });
    }

    #[test]
    fn users_of_one_pool_take_turns() {
        let pool = Pool::new(2).unwrap();
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.install(|| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            assert_eq!(runs_of(4), [1; 4]);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }
}
