//! The bounded channel between the engine thread and one reader, and the bell that wakes the engine.
//!
//! The engine never waits for a reader. It counts the tokens that are under way to each one ([`ReaderControl`]), plans a
//! sequence only while there is room for what the step may bring, and so can always deliver; one place more is kept for
//! the message that ends the stream. A reader that takes tokens, or goes away, rings the bell of a parked engine.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::sequence::Reader;
use crate::{
    error::{Error, Result},
    params::{FinishReason, PromptLogprobs, SampledToken},
    telemetry::{Outcome, Telemetry},
};

/// What one step brought for one reader.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Set when the sequence ran for the first time: how long it had waited. Stays here, for the metrics.
    pub waited: Option<Duration>,
    /// Tokens of the prompt that the prefix cache had.
    pub cached_tokens: u32,
    /// Log-probabilities of the prompt; takes as much of the reader's room as one token.
    pub prompt: Option<PromptLogprobs>,
    /// New tokens, in order.
    pub tokens: SmallVec<[SampledToken; 1]>,
    /// Set in the last delivery of a stream.
    pub end: Option<Result<FinishReason>>,
}

impl Delivery {
    /// An end without tokens.
    pub(super) fn failed(error: Error) -> Self {
        Self { end: Some(Err(error)), ..Self::default() }
    }
}

/// Wakes the engine thread when it is parked, and tells it that some reader wants to be looked at.
#[derive(Debug, Default)]
pub(super) struct Bell {
    engine: OnceLock<Thread>,
    attention: AtomicBool,
}

impl Bell {
    /// Called once by the engine thread, before it parks for the first time.
    pub(super) fn answer_here(&self) {
        self.engine.get_or_init(std::thread::current);
    }

    /// Wakes the engine.
    pub(super) fn ring(&self) {
        self.attention.store(true, Ordering::Release);
        if let Some(engine) = self.engine.get() {
            engine.unpark();
        }
    }

    /// Whether it rang since the last call.
    pub(super) fn take(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::Acquire)
    }
}

/// The state that the engine and one reader share.
#[derive(Debug)]
pub(super) struct ReaderControl {
    deliveries: mpsc::Sender<Delivery>,
    /// Tokens handed over by the engine and not yet taken by the reader: raised by the engine, lowered by the reader.
    in_flight_tokens: AtomicUsize,
    capacity_tokens: usize,
    /// Set by the reader when it goes away.
    cancelled: AtomicBool,
    /// Set by whoever sends the end, so that it is sent once.
    ended: AtomicBool,
    bell: Arc<Bell>,
    /// A place among the live requests: free again when both the reader and the engine have let go.
    _permit: OwnedSemaphorePermit,
    arrived: Instant,
    /// When the sequence first ran, and when its first and its newest token went out, in microseconds after arrival; 0
    /// before. Written by the fan-out only.
    started_us: AtomicU64,
    first_token_us: AtomicU64,
    newest_token_us: AtomicU64,
}

impl ReaderControl {
    /// A control for a reader of at most `capacity_tokens` undelivered tokens, and the reader's end.
    pub(super) fn new(
        capacity_tokens: usize,
        bell: Arc<Bell>,
        permit: OwnedSemaphorePermit,
    ) -> (Arc<Self>, mpsc::Receiver<Delivery>) {
        // Every delivery but the last takes the room of at least one token, so room bounds messages.
        let (deliveries, receiver) = mpsc::channel(capacity_tokens + 1);
        let control = Self {
            deliveries,
            in_flight_tokens: AtomicUsize::new(0),
            capacity_tokens,
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            bell,
            _permit: permit,
            arrived: Instant::now(),
            started_us: AtomicU64::new(0),
            first_token_us: AtomicU64::new(0),
            newest_token_us: AtomicU64::new(0),
        };
        (Arc::new(control), receiver)
    }

    /// Engine side: `tokens` are on their way.
    pub(super) fn sent(&self, tokens: usize) {
        self.in_flight_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Reader side: `tokens` were taken. Rings where that makes half the room free again.
    pub(super) fn taken(&self, tokens: usize) {
        let before = self.in_flight_tokens.fetch_sub(tokens, Ordering::AcqRel);
        let half = self.capacity_tokens / 2;
        if before > half && before.saturating_sub(tokens) <= half {
            self.bell.ring();
        }
    }

    /// Reader side: nobody reads any more. True where that ends a sequence that had not ended.
    pub(super) fn cancel(&self) -> bool {
        let first = !self.cancelled.swap(true, Ordering::AcqRel) && !self.ended.load(Ordering::Acquire);
        if first {
            self.bell.ring();
        }
        first
    }

    /// Time since the request came.
    pub(super) fn age(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// Fan-out side: puts a delivery into the reader's channel and measures it.
    pub(super) fn deliver(&self, delivery: Delivery, telemetry: &Telemetry) {
        if delivery.end.is_some() && self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        self.measure(&delivery, telemetry);
        if delivery.tokens.is_empty() && delivery.end.is_none() && delivery.prompt.is_none() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(lost)) = self.deliveries.try_send(delivery) {
            // Unreachable while the scheduler keeps its promise; the reader must then learn that its text has a hole.
            tracing::error!(tokens = lost.tokens.len(), "a reader's channel overflowed");
            self.cancel();
        }
    }

    fn measure(&self, delivery: &Delivery, telemetry: &Telemetry) {
        let us = |elapsed: Duration| u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        if let Some(waited) = delivery.waited {
            telemetry.record_queue_time(waited);
            self.started_us.store(us(waited), Ordering::Relaxed);
        }
        let now_us = us(self.arrived.elapsed());
        if !delivery.tokens.is_empty() {
            telemetry.record_generated(delivery.tokens.len());
            match self.newest_token_us.swap(now_us, Ordering::Relaxed) {
                0 => {
                    let prefill_us = now_us.saturating_sub(self.started_us.load(Ordering::Relaxed));
                    telemetry.record_first_token(Duration::from_micros(now_us), Duration::from_micros(prefill_us));
                    self.first_token_us.store(now_us, Ordering::Relaxed);
                }
                before => telemetry.record_inter_token(Duration::from_micros(now_us.saturating_sub(before))),
            }
        }
        if let Some(end) = &delivery.end {
            telemetry.record_end(end.as_ref().map_or(Outcome::Error, Outcome::from), self.arrived.elapsed());
            let first_us = self.first_token_us.load(Ordering::Relaxed);
            if first_us > 0 {
                telemetry.record_decode(Duration::from_micros(now_us.saturating_sub(first_us)));
            }
        }
    }
}

impl Reader for ReaderControl {
    fn room(&self) -> usize {
        self.capacity_tokens.saturating_sub(self.in_flight_tokens.load(Ordering::Acquire))
    }

    fn capacity(&self) -> usize {
        self.capacity_tokens
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}
