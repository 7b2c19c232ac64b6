//! The bounded channel between the engine thread and one reader, and the bell that wakes the engine.
//!
//! The engine never waits for a reader. It counts the tokens that are under way to each one ([`ReaderControl`]), plans a
//! sequence only while there is room for what the step may bring, and so can always deliver; one place more is kept for
//! the message that ends the stream. A reader that takes tokens, or goes away, rings the bell of a parked engine.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{live::LivePlaces, sequence::Reader, stream::Timings};
use crate::{
    error::{Code, Error, Result},
    ids::SequenceId,
    params::{FinishReason, PromptLogprobs, SampledTokens},
    telemetry::{Outcome, RequestFacts, Telemetry, TenantTokens},
};

/// What one step brought for one reader. A channel has room for dozens, each of them goes from one core to another, and most
/// are a token: the rest lies apart.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// New tokens, in order.
    pub tokens: SampledTokens,
    /// Tokens of the prompt that the prefix cache had.
    pub cached_tokens: u32,
    /// What few deliveries have.
    pub rest: Option<Box<Rest>>,
}

/// What a delivery has besides tokens.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Set when the sequence ran for the first time: how long it had waited. Stays here, for the metrics.
    pub waited: Option<Duration>,
    /// Log-probabilities of the prompt; takes as much of the reader's room as one token.
    pub prompt: Option<PromptLogprobs>,
    /// What a sequence that is pooled ends with.
    pub pooled: Option<Vec<f32>>,
    /// Set in the last delivery of a stream.
    pub end: Option<Result<FinishReason>>,
}

impl Delivery {
    /// One without tokens.
    pub(super) fn of(rest: Rest) -> Self {
        Self { rest: Some(Box::new(rest)), ..Self::default() }
    }

    /// An end without tokens.
    pub(super) fn failed(error: Error) -> Self {
        Self::of(Rest { end: Some(Err(error)), ..Rest::default() })
    }

    fn ends(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.end.is_some())
    }

    /// Whether its reader is told nothing by it.
    fn is_silent(&self) -> bool {
        let says = |rest: &Rest| rest.end.is_some() || rest.prompt.is_some();
        self.tokens.is_empty() && !self.rest.as_deref().is_some_and(says)
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
    /// A place among the live requests: free again when both the reader and the engine have let go. Sequences that run
    /// one after another may share one.
    _live: Arc<LivePlaces>,
    arrived: Instant,
    /// When the sequence first ran, in microseconds after arrival; 0 before. Written by the engine thread only.
    started_us: AtomicU64,
    /// When its first and its newest token went out, likewise. Written by the fan-out only.
    first_token_us: AtomicU64,
    newest_token_us: AtomicU64,
    /// Tokens put into the channel. Written by the fan-out only.
    generated_tokens: AtomicU64,
    /// Tokens of the prompt, those of them that the cache had, and those whose keys and values are there now.
    prompt_tokens: u32,
    cached_tokens: AtomicU32,
    computed_tokens: AtomicU32,
    /// Tokens that the reader allows altogether; `u64::MAX` where it does not count. Raised by the reader.
    granted_tokens: AtomicU64,
    /// Tokens handed over since the beginning; written by the engine thread only.
    sent_tokens: AtomicU64,
    /// Its place in line, as [`Order`](super::sequence::Order) has it. The priority is the reader's to change.
    priority: AtomicI32,
    id: SequenceId,
    request: Arc<RequestTag>,
}

/// What the sequences of one request have in common.
#[derive(Debug, Default)]
pub(super) struct RequestTag {
    pub id: String,
    pub tenant: Option<Arc<str>>,
    /// Where its tenant's tokens are counted.
    pub tokens: Option<TenantTokens>,
    /// The name of the adapter that it runs with. Its weights are the sequences' to keep.
    pub adapter: Option<Arc<str>>,
}

/// What a reader's end is made with.
#[derive(Clone, Debug)]
pub(super) struct ReaderSpec {
    /// Tokens that may be under way to it.
    pub capacity_tokens: usize,
    /// Tokens that it allows at first; none where it does not count.
    pub credits: Option<u64>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The sequence's priority and id.
    pub place: (i32, SequenceId),
    /// Whose it is.
    pub request: Arc<RequestTag>,
}

/// How far a sequence has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// It has run.
    pub started: bool,
    /// A token has gone out.
    pub spoke: bool,
    /// Its reader has no room or no credit: it has no row until that changes.
    pub stalled: bool,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub computed_tokens: u32,
}

impl ReaderControl {
    /// A control for a reader, and the reader's end.
    pub(super) fn new(
        spec: ReaderSpec,
        bell: Arc<Bell>,
        live: impl Into<Arc<LivePlaces>>,
    ) -> (Arc<Self>, mpsc::Receiver<Delivery>) {
        let ReaderSpec { capacity_tokens, credits, prompt_tokens, place, request } = spec;
        // Every delivery but the last takes the room of at least one token, so room bounds messages.
        let (deliveries, receiver) = mpsc::channel(capacity_tokens + 1);
        let control = Self {
            deliveries,
            in_flight_tokens: AtomicUsize::new(0),
            capacity_tokens,
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            bell,
            _live: live.into(),
            arrived: Instant::now(),
            started_us: AtomicU64::new(0),
            first_token_us: AtomicU64::new(0),
            newest_token_us: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            prompt_tokens,
            cached_tokens: AtomicU32::new(0),
            computed_tokens: AtomicU32::new(0),
            granted_tokens: AtomicU64::new(credits.unwrap_or(u64::MAX)),
            sent_tokens: AtomicU64::new(0),
            priority: AtomicI32::new(place.0),
            id: place.1,
            request,
        };
        (Arc::new(control), receiver)
    }

    /// Engine side: `tokens` are on their way.
    pub(super) fn sent(&self, tokens: usize) {
        self.in_flight_tokens.fetch_add(tokens, Ordering::Relaxed);
        self.sent_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Engine side: the sequence runs for the first time.
    pub(super) fn started(&self, cached_tokens: u32) {
        self.cached_tokens.store(cached_tokens, Ordering::Relaxed);
        self.computed_tokens.fetch_max(cached_tokens, Ordering::Relaxed);
        self.started_us.store(self.age_us(), Ordering::Release);
    }

    /// Reader side: so many tokens more may be sent. A reader that did not count begins to with this.
    pub(super) fn grant(&self, tokens: u64) {
        let add = |granted: u64| match granted {
            u64::MAX => Some(self.sent_tokens.load(Ordering::Relaxed).saturating_add(tokens)),
            granted => Some(granted.saturating_add(tokens).min(u64::MAX - 1)),
        };
        let _always_some = self.granted_tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        self.bell.ring();
    }

    /// How far the sequence has come.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            started: self.started_us.load(Ordering::Acquire) > 0,
            spoke: self.newest_token_us.load(Ordering::Relaxed) > 0,
            stalled: self.channel_room() == 0 || self.credit_room() == 0,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.load(Ordering::Relaxed),
            computed_tokens: self.computed_tokens.load(Ordering::Relaxed).min(self.prompt_tokens),
        }
    }

    /// Whether the end was sent, or nobody reads.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) || self.cancelled.load(Ordering::Acquire)
    }

    /// Tokens that went out.
    pub(super) fn generated_tokens(&self) -> u64 {
        self.generated_tokens.load(Ordering::Relaxed)
    }

    /// Its priority and id.
    pub(super) fn place(&self) -> (i32, SequenceId) {
        (self.priority.load(Ordering::Relaxed), self.id)
    }

    /// Reader side: another place in line. The engine is told by a command.
    pub(super) fn prioritize(&self, priority: i32) {
        self.priority.store(priority, Ordering::Relaxed);
    }

    /// Whose it is.
    pub(super) fn request(&self) -> &Arc<RequestTag> {
        &self.request
    }

    /// Ends the sequence as if nobody read, except that the reader is told, at once and after what waits for it; false
    /// where it has ended.
    pub(super) fn abort(&self, telemetry: &Telemetry) -> bool {
        let aborted = self.cancel();
        if aborted {
            self.deliver(Delivery::failed(Error::new(Code::Cancelled, "the request was aborted")), telemetry);
        }
        aborted
    }

    /// Waiting, time to the first token, and the time since, as far as they have come.
    pub(super) fn timings(&self) -> Timings {
        let at = |us: &AtomicU64| Duration::from_micros(us.load(Ordering::Acquire));
        let (queue, total) = (at(&self.started_us), self.age());
        let (first, newest) = (at(&self.first_token_us), at(&self.newest_token_us));
        Timings { queue, prefill: first.saturating_sub(queue), decode: newest.saturating_sub(first), total }
    }

    fn age_us(&self) -> u64 {
        u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn channel_room(&self) -> usize {
        self.capacity_tokens.saturating_sub(self.in_flight_tokens.load(Ordering::Acquire))
    }

    fn credit_room(&self) -> usize {
        let left = self.granted_tokens.load(Ordering::Acquire).saturating_sub(self.sent_tokens.load(Ordering::Relaxed));
        usize::try_from(left).unwrap_or(usize::MAX)
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
        if delivery.ends() && self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        self.measure(&delivery, telemetry);
        if delivery.is_silent() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(lost)) = self.deliveries.try_send(delivery) {
            // Unreachable while the scheduler keeps its promise; the reader must then learn that its text has a hole.
            tracing::error!(tokens = lost.tokens.len(), "a reader's channel overflowed");
            self.cancel();
        }
    }

    fn measure(&self, delivery: &Delivery, telemetry: &Telemetry) {
        if let Some(waited) = delivery.rest.as_ref().and_then(|rest| rest.waited) {
            telemetry.record_queue_time(waited);
        }
        let now_us = self.age_us();
        if !delivery.tokens.is_empty() {
            telemetry.record_generated(delivery.tokens.len());
            if let Some(tokens) = &self.request.tokens {
                tokens.record_generated(delivery.tokens.len());
            }
            self.generated_tokens.fetch_add(delivery.tokens.len() as u64, Ordering::Relaxed);
            match self.newest_token_us.swap(now_us, Ordering::Relaxed) {
                0 => {
                    let prefill_us = now_us.saturating_sub(self.started_us.load(Ordering::Relaxed));
                    telemetry.record_first_token(Duration::from_micros(now_us), Duration::from_micros(prefill_us));
                    self.first_token_us.store(now_us, Ordering::Relaxed);
                }
                before => telemetry.record_inter_token(Duration::from_micros(now_us.saturating_sub(before))),
            }
        }
        if let Some(Rest { end: Some(end), pooled, .. }) = delivery.rest.as_deref() {
            let failed = |error: &Error| if error.code == Code::Cancelled { Outcome::Abort } else { Outcome::Error };
            // As in vLLM, a vector is an answer that came to its own end.
            let ended = |reason| if pooled.is_some() { Outcome::Stop } else { Outcome::from(reason) };
            self.record_end(end.as_ref().map_or_else(failed, ended), telemetry);
        }
    }

    /// Counts how the sequence came to its end, and what it had cost by then.
    pub(super) fn record_end(&self, outcome: Outcome, telemetry: &Telemetry) {
        let now_us = self.age_us();
        let since = |us: &AtomicU64| match us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(now_us.saturating_sub(us))),
        };
        let facts = RequestFacts {
            total: self.age(),
            since_scheduled: since(&self.started_us),
            since_first_token: since(&self.first_token_us),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
        };
        telemetry.record_end(outcome, &facts);
    }
}

impl Reader for ReaderControl {
    fn room(&self) -> usize {
        self.channel_room().min(self.credit_room())
    }

    fn may_resume(&self, needed: usize) -> bool {
        self.channel_room() >= needed.max(self.capacity_tokens / 2) && self.credit_room() >= needed
    }

    fn computed(&self, tokens: usize) {
        self.computed_tokens.store(u32::try_from(tokens).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn capacity(&self) -> usize {
        self.capacity_tokens
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}
