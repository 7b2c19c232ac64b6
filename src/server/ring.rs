//! Events of a stream that outlives its connection: numbered, kept for a reader that comes back, and bounded.
//!
//! One producer pushes; at most one reader is attached. Who attaches takes over from who was there, because a client that
//! comes back is often the one whose old connection nobody has found dead yet. While a reader is attached the producer
//! waits for it ([`Ring::room`]), as it would without a ring, and what it has yet to read goes for its size only where that is
//! many times what a ring holds; while none is, it goes on, and the oldest events make room.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::error::{Code, Error, Result};

/// Events that may wait for an attached reader before the producer waits too.
const MAX_LAG: u64 = 16;
/// How many times its bytes a ring may hold for a reader that is there and has yet to read: not everything that is pushed
/// waits for room, answers to what the client says among it.
const PROTECTED: usize = 4;

/// What a ring may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Ring<T> {
    limits: RingLimits,
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    /// With their sizes; the last one has the number `newest`.
    events: VecDeque<(usize, T)>,
    bytes: usize,
    newest: u64,
    end: Option<Result<()>>,
    /// Counts attachments.
    attachment: u64,
    /// Of the reader that is attached: the number of the newest event that it has.
    cursor: Option<u64>,
    /// When a reader last came, took an event or went.
    touched: Instant,
    /// The attachment that was asked to end without an error.
    let_go: u64,
    /// Nobody can come back to it.
    forgotten: bool,
    /// Who is to learn of it by its first event has not read that.
    unheard: bool,
}

impl<T> State<T> {
    fn oldest(&self) -> u64 {
        self.newest + 1 - self.events.len() as u64
    }

    fn unread_bytes(&self, cursor: u64) -> usize {
        let unread = usize::try_from(self.newest.saturating_sub(cursor)).unwrap_or(usize::MAX);
        self.events.iter().rev().take(unread).map(|(bytes, _)| bytes).sum()
    }

    /// Whether there is more than there may be, and something that can go.
    fn is_over(&self, limits: RingLimits) -> bool {
        let waits = self.cursor.is_some_and(|cursor| cursor < self.oldest());
        let most = if waits { limits.bytes.saturating_mul(PROTECTED) } else { limits.bytes };
        self.events.len() > limits.events || self.bytes > most && self.events.len() > 1
    }

    fn drop_oldest(&mut self) {
        if let Some((bytes, _)) = self.events.pop_front() {
            self.bytes -= bytes;
        }
    }
}

/// A reader's place in a ring; dropping it detaches.
pub(crate) struct Attachment<T> {
    ring: Arc<Ring<T>>,
    number: u64,
    /// Says whether what it has read has gone out.
    gone: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl<T> Drop for Attachment<T> {
    fn drop(&mut self) {
        let mut state = self.ring.state();
        state.unheard &= !self.gone.as_ref().is_some_and(|gone| gone());
        if state.attachment == self.number && state.cursor.take().is_some() {
            state.touched = Instant::now();
            self.ring.changed.notify_waiters();
        }
    }
}

impl<T> Ring<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Valid between any two statements, so a panicking holder leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Ring<T> {
    pub(crate) fn new(limits: RingLimits) -> Arc<Self> {
        let state = State {
            events: VecDeque::new(),
            bytes: 0,
            newest: 0,
            end: None,
            attachment: 0,
            cursor: None,
            touched: Instant::now(),
            let_go: 0,
            forgotten: false,
            unheard: false,
        };
        Arc::new(Self { limits, state: Mutex::new(state), changed: Notify::new() })
    }

    /// Adds an event of this size; the oldest ones make room.
    pub(crate) fn push(&self, bytes: usize, event: T) {
        let mut state = self.state();
        state.newest += 1;
        state.bytes += bytes;
        state.events.push_back((bytes, event));
        while state.is_over(self.limits) {
            state.drop_oldest();
        }
        self.changed.notify_waiters();
    }

    /// Nothing comes after what is here.
    pub(crate) fn end(&self, end: Result<()>) {
        self.state().end.get_or_insert(end);
        self.changed.notify_waiters();
    }

    /// Forgets the events up to `seq`: their reader has them.
    pub(crate) fn ack(&self, seq: u64) {
        let mut state = self.state();
        while !state.events.is_empty() && state.oldest() <= seq {
            state.drop_oldest();
        }
        let kept = state.events.len();
        if kept < state.events.capacity() / 4 {
            state.events.shrink_to(2 * kept);
        }
    }

    /// Nothing is about to come: gives back the memory that waits for it.
    pub(crate) fn settle(&self) {
        self.state().events.shrink_to_fit();
    }

    /// Attaches a reader behind the event `after_seq`, in the place of the one that is there.
    ///
    /// # Errors
    /// `DataLoss` where the events after that one are gone, `InvalidArgument` where it has not come yet.
    pub(crate) fn attach(self: &Arc<Self>, after_seq: u64) -> Result<Attachment<T>> {
        let mut state = self.state();
        if after_seq > state.newest {
            let why = format!("is {after_seq}, but the newest event is {}", state.newest);
            return Err(Error::invalid("after_seq", why));
        }
        if after_seq + 1 < state.oldest() {
            return Err(gone(after_seq, state.oldest()));
        }
        state.attachment += 1;
        state.cursor = Some(after_seq);
        // Whoever comes knows of it.
        state.unheard = false;
        state.touched = Instant::now();
        self.changed.notify_waiters();
        Ok(Attachment { ring: self.clone(), number: state.attachment, gone: None })
    }

    /// Attaches the first reader, who learns by the first event how to come back: where it goes before it has that, nobody
    /// can, and the ring is abandoned at once ([`Attachment::says`]).
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub(crate) fn attach_stranger(self: &Arc<Self>) -> Result<Attachment<T>> {
        let attachment = self.attach(0)?;
        self.state().unheard = true;
        Ok(attachment)
    }

    /// Ends the stream of the reader of this number without an error, if it still is the one; it can come back.
    pub(crate) fn let_go(&self, number: u64) {
        let mut state = self.state();
        state.let_go = state.let_go.max(number);
        self.changed.notify_waiters();
    }

    /// Returns when the producer may go on with an event of so many bytes: nobody is attached, or not far behind. One that is
    /// larger than all that may wait for a reader comes once nothing waits, which it would push out.
    pub(crate) async fn room(&self, bytes: usize) {
        let max_lag = MAX_LAG.min(self.limits.events as u64 / 2).max(1);
        self.until(|state| {
            let fits = |cursor: u64| {
                let lag = state.newest.saturating_sub(cursor);
                let waiting = || state.unread_bytes(cursor).saturating_add(bytes);
                lag == 0 || (lag < max_lag && waiting() <= self.limits.bytes / 2)
            };
            state.cursor.is_none_or(fits).then_some(())
        })
        .await;
    }

    /// Has it abandoned at once, and lets go of what it holds: who still reads it is told that it is lost.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.forgotten = true;
        state.events = VecDeque::new();
        state.bytes = 0;
        self.changed.notify_waiters();
    }

    /// Returns when nobody has been attached for `ttl`, or it was forgotten.
    pub(crate) async fn abandoned(&self, ttl: Duration) {
        let due = |state: &State<T>| match state.cursor {
            _ if state.forgotten => Some(state.touched),
            Some(_) => None,
            None if state.unheard => Some(state.touched),
            None => Some(state.touched + ttl),
        };
        loop {
            let at = self.until(|state| due(state)).await;
            tokio::select! {
                () = sleep_until(at) => return,
                () = self.until(|state| (due(state) != Some(at)).then_some(())) => {}
            }
        }
    }

    /// Whether it has ended with an error.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.state().end, Some(Err(_)))
    }

    /// Since when nobody has been attached.
    pub(crate) fn detached_since(&self) -> Option<Instant> {
        let state = self.state();
        state.cursor.is_none().then_some(state.touched)
    }

    /// Since when nobody reads a stream that has ended: nobody is attached, or who is has not taken anything for `ttl`.
    pub(crate) fn idle_since(&self, ttl: Duration) -> Option<Instant> {
        let state = self.state();
        let nobody_reads = state.cursor.is_none() || state.touched.elapsed() >= ttl;
        (state.end.is_some() && nobody_reads).then_some(state.touched)
    }

    async fn until<R>(&self, mut look: impl FnMut(&mut State<T>) -> Option<R>) -> R {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change goes unnoticed.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.state()) {
                return found;
            }
            changed.await;
        }
    }
}

impl<T: Clone> Attachment<T> {
    /// Has it ask whether what it has read has gone out, when it goes: who sends it may still have it in its hand.
    pub(crate) fn says(self, gone: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let mut said = self;
        said.gone = Some(Box::new(gone));
        said
    }

    /// Whether all that it will read is there.
    pub(crate) fn has_ended(&self) -> bool {
        self.ring.state().end.is_some()
    }

    /// Counts the readers of the ring.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next event with its number; none at the end.
    async fn next(&self) -> Option<Result<(u64, T)>> {
        self.ring
            .until(|state| {
                if state.attachment != self.number {
                    let why = "the stream was resumed elsewhere, and goes on there";
                    return Some(Some(Err(Error::new(Code::Aborted, why))));
                }
                let seq = state.cursor? + 1;
                if seq < state.oldest() && seq <= state.newest {
                    return Some(Some(Err(gone(seq - 1, state.oldest()))));
                }
                if seq <= state.newest {
                    let at = usize::try_from(seq - state.oldest()).unwrap_or(usize::MAX);
                    let event = state.events.get(at).map(|(_, event)| event.clone())?;
                    state.cursor = Some(seq);
                    state.touched = Instant::now();
                    // The producer may be waiting for this.
                    self.ring.changed.notify_waiters();
                    return Some(Some(Ok((seq, event))));
                }
                if state.let_go == self.number {
                    return Some(None);
                }
                state.end.clone().map(|end| end.err().map(Err))
            })
            .await
    }

    /// All events from here on. An error is the last.
    pub(crate) fn events(self) -> impl Stream<Item = Result<(u64, T)>> + Send + 'static
    where
        T: Send + 'static,
    {
        stream::unfold(Some(self), |attachment| async move {
            let attachment = attachment?;
            match attachment.next().await? {
                Ok(event) => Some((Ok(event), Some(attachment))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

fn gone(after_seq: u64, oldest: u64) -> Error {
    let why = format!("the events after {after_seq} are no longer kept: the oldest one is {oldest}");
    Error::new(Code::DataLoss, why)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    const LIMITS: RingLimits = RingLimits { events: 4, bytes: 100 };

    fn ready(stream: &mut (impl Stream<Item = Result<(u64, u32)>> + Unpin)) -> Option<Option<Result<(u64, u32)>>> {
        stream.next().now_or_never()
    }

    /// Events and bytes that are kept.
    fn kept(ring: &Ring<u32>) -> (usize, usize) {
        let state = ring.state();
        (state.events.len(), state.bytes)
    }

    #[tokio::test]
    async fn a_reader_that_comes_back_gets_what_came_meanwhile() {
        let ring = Ring::new(LIMITS);
        let mut first = Box::pin(ring.attach(0).unwrap().events());
        ring.push(1, 10);
        assert_eq!(ready(&mut first).unwrap().unwrap().unwrap(), (1, 10));
        assert!(ready(&mut first).is_none());
        drop(first);
        ring.push(1, 20);
        ring.push(1, 30);
        ring.end(Ok(()));
        let rest: Vec<_> = ring.attach(1).unwrap().events().map(|event| event.unwrap()).collect().await;
        assert_eq!(rest, [(2, 20), (3, 30)]);
    }

    #[tokio::test]
    async fn what_the_ring_let_go_is_said_to_be_lost() {
        for (bytes, oldest) in [(1, 7), (40, 9)] {
            let ring = Ring::new(LIMITS);
            (0..10).for_each(|k| ring.push(bytes, k));
            assert_eq!(ring.state().oldest(), oldest, "events of {bytes} bytes");
            assert_eq!(ring.attach(oldest - 2).err().unwrap().code, Code::DataLoss);
            assert!(ring.attach(oldest - 1).is_ok());
            assert_eq!(ring.attach(11).err().unwrap().violations[0].field, "after_seq");
        }
    }

    #[tokio::test]
    async fn what_a_reader_has_yet_to_read_stays_whatever_its_size() {
        let ring = Ring::new(LIMITS);
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        ring.push(40, 1);
        assert!(ring.room(0).now_or_never().is_some());
        // One event may be larger than what is left.
        ring.push(90, 2);
        assert!(ring.room(0).now_or_never().is_none(), "the producer waits");
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap(), (1, 1));
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap(), (2, 2));
        ring.push(40, 3);
        assert_eq!(kept(&ring), (1, 40), "what was read makes room");
        drop(reader);
        (0..3).for_each(|k| ring.push(40, k));
        assert_eq!(kept(&ring), (2, 80), "and so does what nobody is there to read");
    }

    #[tokio::test]
    async fn a_reader_gets_an_event_of_any_size_and_all_before_it() {
        let ring = Ring::new(RingLimits { events: 100, bytes: 100 });
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        let sizes = [1000, 20, 20, 1000, 1000, 5];
        let produces = async {
            for (bytes, event) in sizes.into_iter().zip(0..) {
                ring.room(bytes).await;
                ring.push(bytes, event);
            }
            ring.end(Ok(()));
        };
        let reads = async {
            let mut read = Vec::new();
            while let Some(event) = reader.next().await {
                read.push(event.unwrap().1);
                // As late as it may be: the producer has done all that it can.
                tokio::task::yield_now().await;
            }
            read
        };
        let (read, ()) = tokio::join!(reads, produces);
        assert_eq!(read, [0, 1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn what_nobody_waited_to_push_is_kept_for_a_reader_up_to_a_bound() {
        let ring = Ring::new(RingLimits { events: 100, bytes: 100 });
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        (0..10).for_each(|k| ring.push(40, k));
        assert_eq!(kept(&ring), (10, 400));
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap(), (1, 0));
        (10..20).for_each(|k| ring.push(40, k));
        assert_eq!(kept(&ring), (10, 400));
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap_err().code, Code::DataLoss);
    }

    #[tokio::test]
    async fn a_reader_that_has_yet_to_read_is_bounded_in_events() {
        let ring = Ring::new(LIMITS);
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        (0..5).for_each(|k| ring.push(1, k));
        assert_eq!(kept(&ring), (4, 4));
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap_err().code, Code::DataLoss);
    }

    #[tokio::test]
    async fn a_reader_that_is_let_go_stays_so_though_an_older_one_is_too() {
        let ring = Ring::<u32>::new(LIMITS);
        let _older = ring.attach(0).unwrap();
        let newer = ring.attach(0).unwrap();
        let (first, second) = (1, newer.number());
        let mut newer = Box::pin(newer.events());
        assert!(ready(&mut newer).is_none());
        ring.let_go(second);
        ring.let_go(first);
        assert!(ready(&mut newer).unwrap().is_none());
    }

    #[tokio::test]
    async fn an_event_larger_than_the_ring_is_kept_until_the_next() {
        let ring = Ring::new(LIMITS);
        ring.push(1000, 1);
        assert_eq!(ring.state().events.len(), 1);
        ring.push(1, 2);
        assert_eq!(kept(&ring), (1, 1));
    }

    #[tokio::test]
    async fn who_attaches_takes_over() {
        let ring = Ring::new(LIMITS);
        ring.push(1, 1);
        let mut first = Box::pin(ring.attach(0).unwrap().events());
        let mut second = Box::pin(ring.attach(0).unwrap().events());
        assert_eq!(ready(&mut first).unwrap().unwrap().unwrap_err().code, Code::Aborted);
        assert!(ready(&mut first).unwrap().is_none());
        drop(first);
        assert_eq!(ready(&mut second).unwrap().unwrap().unwrap(), (1, 1));
    }

    #[tokio::test]
    async fn the_producer_waits_for_a_reader_that_is_there() {
        let ring = Ring::new(RingLimits { events: 100, bytes: 1000 });
        assert!(ring.room(0).now_or_never().is_some());
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        (0..MAX_LAG).for_each(|k| ring.push(1, k as u32));
        assert!(ring.room(0).now_or_never().is_none());
        assert!(ready(&mut reader).is_some());
        assert!(ring.room(0).now_or_never().is_some());
        drop(reader);
        (0..90).for_each(|k| ring.push(1, k));
        assert!(ring.room(0).now_or_never().is_some(), "nobody is there to wait for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_is_abandoned_when_nobody_came_back_in_time() {
        let ring = Ring::<u32>::new(LIMITS);
        let ttl = Duration::from_secs(60);
        let began = Instant::now();
        let reader = ring.attach(0).unwrap();
        let abandoned = ring.abandoned(ttl);
        tokio::pin!(abandoned);
        assert!(tokio::time::timeout(10 * ttl, &mut abandoned).await.is_err());
        drop(reader);
        abandoned.await;
        assert_eq!(began.elapsed().as_secs(), 11 * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_of_which_nobody_has_learned_is_abandoned_with_its_first_reader() {
        let ttl = Duration::from_secs(60);
        for (looks, has_gone) in [(0, false), (1, false), (2, true)] {
            let ring = Ring::new(LIMITS);
            let mut stranger = Box::pin(ring.attach_stranger().unwrap().says(move || has_gone).events());
            ring.push(1, 1);
            let taken = (0..looks).filter(|_| ready(&mut stranger).is_some()).count();
            assert_eq!((taken, ring.detached_since()), (looks.min(1), None));
            drop(stranger);
            assert!(ring.detached_since().is_some());
            let soon = tokio::time::timeout(ttl / 2, ring.abandoned(ttl)).await.is_ok();
            assert_eq!(soon, !has_gone, "who has read it need not have sent it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_by_its_id_has_learned_of_a_ring() {
        let (ring, ttl) = (Ring::<u32>::new(LIMITS), Duration::from_secs(60));
        let stranger = ring.attach_stranger().unwrap();
        drop(ring.attach(0).unwrap());
        drop(stranger);
        let soon = tokio::time::timeout(ttl / 2, ring.abandoned(ttl)).await;
        assert!(soon.is_err(), "it can come again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_ended_is_idle_once_its_reader_stands_still() {
        let (ring, ttl) = (Ring::new(LIMITS), Duration::from_secs(60));
        let mut reader = Box::pin(ring.attach(0).unwrap().events());
        (0..3).for_each(|k| ring.push(1, k));
        tokio::time::advance(2 * ttl).await;
        assert!(ring.idle_since(ttl).is_none(), "it may go on");
        ring.end(Ok(()));
        assert!(ring.idle_since(ttl).is_some());
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap(), (1, 0));
        assert!(ring.idle_since(ttl).is_none(), "its reader reads");
        tokio::time::advance(ttl).await;
        assert_eq!(ring.idle_since(ttl).map(|since| since.elapsed()), Some(ttl));
        ring.forget();
        assert_eq!(kept(&ring), (0, 0));
        assert_eq!(ready(&mut reader).unwrap().unwrap().unwrap_err().code, Code::DataLoss);
        assert!(ring.attach(1).is_err());
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_not_kept() {
        let ring = Ring::new(LIMITS);
        (0..3).for_each(|k| ring.push(10, k));
        ring.ack(2);
        assert_eq!(kept(&ring), (1, 10));
        assert_eq!(ring.attach(1).err().unwrap().code, Code::DataLoss);
        assert!(ring.attach(2).is_ok());
        ring.ack(u64::MAX);
        assert!(ring.state().events.is_empty());
    }
}
