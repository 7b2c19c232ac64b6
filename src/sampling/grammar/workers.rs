//! Threads that compute masks while the model runs: none of those that multiply.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
};

use llguidance::CancellationHandle;

use super::{Grammar, Matcher, Next};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

/// Deep grammars recurse deeply; only what is touched is ever taken from memory.
const STACK_BYTES: usize = 64 << 20;
const MOST_THREADS: usize = 4;

/// The threads. They end when this is dropped and their last job is done.
pub struct MaskWorkers {
    /// Holds at most one job a sequence: whoever has given one away has no matcher to give.
    jobs: Sender<Job>,
}

struct Job {
    work: Work,
    reply: SyncSender<Answer>,
}

enum Work {
    Start { grammar: Arc<Grammar>, params: Arc<SamplingParams>, eos: Arc<[TokenId]> },
    Next(Box<Matcher>),
}

type Answer = Result<(Box<Matcher>, Result<Next>)>;

/// A mask that is being computed. Dropping it gives the computation up.
pub struct PendingMask {
    answer: Receiver<Answer>,
    cancellation: Option<CancellationHandle>,
}

impl MaskWorkers {
    /// As many threads as a quarter of the cores, one to four.
    ///
    /// # Errors
    /// `Internal` where no thread can be started.
    pub fn new() -> Result<Self> {
        let threads = thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, MOST_THREADS));
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for k in 0..threads {
            let queue = Arc::clone(&queue);
            let worker = thread::Builder::new().name(format!("mask-{k}")).stack_size(STACK_BYTES);
            worker
                .spawn(move || work(&queue))
                .map_err(|error| Error::internal(format!("cannot start a thread for masks: {error}")))?;
        }
        Ok(Self { jobs })
    }

    /// Makes a matcher at the start of the text, and its first mask.
    #[must_use]
    pub fn start(&self, grammar: Arc<Grammar>, params: Arc<SamplingParams>, eos: Arc<[TokenId]>) -> PendingMask {
        self.submit(Work::Start { grammar, params, eos }, None)
    }

    /// Computes a matcher's next mask.
    #[must_use]
    pub fn next(&self, matcher: Box<Matcher>) -> PendingMask {
        let cancellation = matcher.cancellation();
        self.submit(Work::Next(matcher), cancellation)
    }

    fn submit(&self, work: Work, cancellation: Option<CancellationHandle>) -> PendingMask {
        let (reply, answer) = sync_channel(1);
        // Where all threads have died, the reply dies with the job, and whoever waits learns of it.
        let _sent = self.jobs.send(Job { work, reply });
        PendingMask { answer, cancellation }
    }
}

impl PendingMask {
    /// Waits for the mask.
    ///
    /// # Errors
    /// `Internal` where the worker failed; the inner error is [`Matcher::next`]'s.
    pub fn wait(mut self) -> Answer {
        self.cancellation = None;
        self.answer.recv().unwrap_or_else(|_| Err(Error::internal("the thread that computes masks failed")))
    }
}

impl Drop for PendingMask {
    fn drop(&mut self) {
        if let Some(cancellation) = &self.cancellation {
            cancellation.cancel();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { work, reply }) = job else { return };
        let matcher = match work {
            Work::Start { grammar, params, eos } => Matcher::new(&grammar, &params, &eos).map(Box::new),
            Work::Next(matcher) => Ok(matcher),
        };
        let answer = matcher.map(|mut matcher| {
            let next = matcher.what_next();
            (matcher, next)
        });
        // Nobody waits for a sequence that ended meanwhile.
        let _unheard = reply.send(answer);
    }
}
