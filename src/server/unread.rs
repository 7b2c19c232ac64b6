//! Answers that nobody takes are cut off, however little of them is left.
//!
//! A reader without a window is not asked again by HTTP: what an answer holds, a place among the live requests first of
//! all, it would hold for as long as the connection lasts, though the engine is done with it and neither deadline nor time
//! to live is looked at. So each answer notes whether something of it has been handed over that has yet to go out
//! ([`Reading`]), and the task that sends it ([`Streams`]) is dropped where that stays so for three quarters of the
//! stall timeout, or where the caller's deadline passes meanwhile. Where somebody goes away because a model's queue is full, it
//! has only a few seconds ([`Patience`]), unless nothing that others wait for is held for it ([`HoldsNoPlace`]). A stream of HTTP/2 is reset then, a connection of HTTP/1 closed; what can be read on
//! elsewhere, a session or a resumable stream, goes on without that reader.

use std::{
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use http_body::{Frame, SizeHint};
use hyper_util::rt::TokioExecutor;
use tokio::{
    task_local,
    time::{Instant, Sleep, sleep_until},
};

use super::{grpc::deadline, held::HoldsNoPlace};

/// How long "for ever" is.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
/// What a reader gets at the least to take a piece whatever its deadline, so that one that reads hears that it has passed.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long it may stand still while others find no place. The docs say so.
const GRACE: Duration = Duration::from_secs(5);

/// Bytes of an answer that are handed over at once: of larger pieces nobody sees that they are taken, if slowly.
const PIECE_BYTES: usize = 16 << 10;

task_local! {
    /// Of the answer that this task sends.
    static READING: Arc<Reading>;
}

/// How the answer that a task sends is taken. A connection of HTTP/1 sends one after another.
#[derive(Debug, Default)]
pub(super) struct Reading {
    stage: AtomicU8,
    /// A piece of the answer under way has gone out.
    gone: AtomicBool,
    /// The answer under way is a [`HoldsNoPlace`].
    holds_no_place: AtomicBool,
    /// When the caller stops waiting for the answer under way.
    deadline: Mutex<Option<Instant>>,
}

/// The answer's next piece is waited for, or there is none.
const WAITS: u8 = 0;
/// A piece was handed over; the next one is asked for when that one goes out.
const HANDED: u8 = 1;
/// The same, and the timer runs.
const STUCK: u8 = 2;

/// What [`Reading`] comes to between two looks at it.
#[derive(Debug, PartialEq, Eq)]
enum Pace {
    Waits,
    /// Something was taken, and what comes next is not taken yet.
    Goes,
    Stands,
}

impl Reading {
    /// Of the answer that this task is to send, where anybody looks at that.
    pub(super) fn here() -> Option<Arc<Self>> {
        READING.try_with(Arc::clone).ok()
    }

    /// Whether anything of it has gone out.
    pub(super) fn has_begun(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn deadline(&self) -> MutexGuard<'_, Option<Instant>> {
        // One value.
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When an answer of which nothing is taken from now on is given up.
    fn due(&self, patience: Duration) -> Instant {
        let now = Instant::now();
        let due = now.checked_add(patience).unwrap_or(now + LONG);
        self.deadline().map_or(due, |deadline| due.min(deadline.max(now + LAST_WORD)))
    }

    fn pace(&self) -> Pace {
        match self.stage.compare_exchange(HANDED, STUCK, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Pace::Goes,
            Err(STUCK) => Pace::Stands,
            Err(_) => Pace::Waits,
        }
    }
}

/// A body that notes how it is taken.
struct Noting {
    body: Body,
    /// What is left of a large piece.
    rest: Bytes,
    reading: Arc<Reading>,
}

impl HttpBody for Noting {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, rest, .. } = &mut *self;
        let frame = match rest.is_empty() {
            true => Pin::new(body).poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(mem::take(rest))))),
        };
        let mut cut = |mut data: Bytes| {
            *rest = data.split_off(data.len().min(PIECE_BYTES));
            data
        };
        let frame = frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(&mut cut))));
        let stage = if frame.is_pending() { WAITS } else { HANDED };
        if self.reading.stage.swap(stage, Ordering::Relaxed) != WAITS {
            self.reading.gone.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.reading.stage.store(WAITS, Ordering::Relaxed);
        *self.reading.deadline() = None;
    }
}

/// The same routes, whose answers note how they are taken.
pub(super) fn noted(router: Router) -> Router {
    router.layer(middleware::from_fn(note))
}

async fn note(request: Request, next: Next) -> Response {
    let deadline = deadline::of(request.headers());
    let mut response = next.run(request).await;
    let holds_no_place = response.extensions_mut().remove::<HoldsNoPlace>().is_some();
    match Reading::here() {
        Some(reading) => {
            *reading.deadline() = deadline;
            reading.gone.store(false, Ordering::Relaxed);
            reading.holds_no_place.store(holds_no_place, Ordering::Relaxed);
            response.map(|body| Body::new(Noting { body, rest: Bytes::new(), reading }))
        }
        // Nobody would look at it.
        None => response,
    }
}

/// How long a reader may take nothing of an answer.
#[derive(Clone)]
pub(super) struct Patience {
    longest: Duration,
    is_crowded: Arc<dyn Fn(Duration) -> bool + Send + Sync>,
}

impl Patience {
    /// At the longest so long. `is_crowded` says whether somebody found no place in so long a time, and would find none still.
    pub(super) fn new(longest: Duration, is_crowded: impl Fn(Duration) -> bool + Send + Sync + 'static) -> Self {
        Self { longest, is_crowded: Arc::new(is_crowded) }
    }

    fn grace(&self) -> Duration {
        GRACE.min(self.longest)
    }
}

/// A piece that is not taken.
struct Stuck {
    until: Instant,
    /// Nobody else gains by its end.
    holds_no_place: bool,
    /// Goes off at the end, and before that whenever it is to be looked who waits.
    timer: Pin<Box<Sleep>>,
}

impl Stuck {
    /// From now on.
    fn of(reading: &Reading, patience: &Patience) -> Self {
        let (until, look) = (reading.due(patience.longest), Instant::now() + patience.grace());
        let holds_no_place = reading.holds_no_place.load(Ordering::Relaxed);
        Self { until, holds_no_place, timer: Box::pin(sleep_until(until.min(look))) }
    }

    /// Ready when the answer is to be given up.
    fn poll(&mut self, cx: &mut Context<'_>, patience: &Patience) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let (now, grace) = (Instant::now(), patience.grace());
            if now >= self.until || (!self.holds_no_place && (patience.is_crowded)(grace)) {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.until.min(now + grace));
        }
    }
}

/// Runs what sends answers: a task a stream of HTTP/2, each of which is given up where its reader takes nothing for so long.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) patience: Patience,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let patience = self.patience.clone();
        let sent = async move {
            if unless_stuck(stream, &patience).await.is_none() {
                tracing::debug!("an answer that nobody took was reset");
            }
        };
        hyper::rt::Executor::execute(&TokioExecutor::new(), sent);
    }
}

/// Runs something that sends answers; none where it was given up because nothing of one was taken for so long, or when the
/// deadline of its caller passed.
pub(super) async fn unless_stuck<F: Future>(sends: F, patience: &Patience) -> Option<F::Output> {
    let reading = Arc::<Reading>::default();
    let mut sends = pin!(READING.scope(reading.clone(), sends));
    let mut stuck: Option<Stuck> = None;
    poll_fn(|cx| {
        // First, so that what has become possible by the time the timer fires is done.
        if let Poll::Ready(output) = sends.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        match reading.pace() {
            Pace::Waits => stuck = None,
            Pace::Goes => stuck = Some(Stuck::of(&reading, patience)),
            Pace::Stands => {}
        }
        match &mut stuck {
            Some(stuck) => stuck.poll(cx, patience).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use futures::{Stream, StreamExt, stream};
    use tokio::{
        sync::Semaphore,
        time::{sleep, timeout},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Where there are places.
    fn patience() -> Patience {
        Patience::new(PATIENCE, |_| false)
    }

    /// Sends an answer as hyper does: what it has in its hand must go out before it asks for more. The window opens by bytes.
    async fn send(
        pieces: impl Stream<Item = &'static str> + Send + 'static,
        deadline: Option<Instant>,
        window: Arc<Semaphore>,
    ) {
        let reading = Reading::here().unwrap();
        *reading.deadline() = deadline;
        let body = Body::from_stream(pieces.map(Ok::<_, axum::Error>));
        let mut pieces = Body::new(Noting { body, rest: Bytes::new(), reading: reading.clone() }).into_data_stream();
        let mut gone = 0;
        while let Some(piece) = pieces.next().await {
            let bytes = piece.unwrap().len();
            assert_eq!(reading.has_begun(), gone > 0);
            window.acquire_many(bytes.try_into().unwrap()).await.unwrap().forget();
            gone += 1;
        }
        reading.gone.store(false, Ordering::Relaxed);
    }

    fn window(bytes: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(bytes))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_given_up_with_all_that_it_holds() {
        for taken in [0, 2] {
            let (began, held) = (Instant::now(), Arc::new(()));
            let holds = held.clone();
            let pieces = stream::iter(["a", "b", "c"]).inspect(move |_| drop(holds.clone()));
            let sent = unless_stuck(send(pieces, None, window(taken)), &patience()).await;
            assert_eq!((sent, began.elapsed()), (None, PATIENCE), "after {taken} pieces");
            assert_eq!(Arc::strong_count(&held), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_makes_room_sooner_once_others_find_no_place() {
        for (found_none_after, given_up_after) in [(0, 5), (4, 5), (12, 15), (16, 20)] {
            let (began, long) = (Instant::now(), 100 * PATIENCE);
            let patience = Patience::new(long, move |within| {
                assert_eq!(within, GRACE);
                began.elapsed() >= Duration::from_secs(found_none_after)
            });
            let sent = unless_stuck(send(stream::iter(["a"]), None, window(0)), &patience).await;
            assert_eq!((sent, began.elapsed()), (None, Duration::from_secs(given_up_after)));
            // Who reads, and who has nothing to read, is let be.
            let late = stream::once(sleep(long)).map(|()| "a");
            assert_eq!(unless_stuck(send(late, None, window(1)), &patience).await, Some(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_nothing_to_say_is_not_given_up() {
        let silent = stream::once(async { "a" }).chain(stream::pending());
        let patience = patience();
        let sent = unless_stuck(send(silent, None, window(1)), &patience);
        assert!(timeout(100 * PATIENCE, sent).await.is_err(), "it still is waited for");
        let late = stream::once(sleep(5 * PATIENCE)).map(|()| "a");
        assert_eq!(unless_stuck(send(late, None, window(1)), &patience).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_a_little_now_and_then_gets_all() {
        let (window, began) = (window(0), Instant::now());
        let opens = window.clone();
        let opening = async {
            for _ in 0..5 {
                sleep(PATIENCE * 9 / 10).await;
                opens.add_permits(1);
            }
        };
        let patience = patience();
        let sent = unless_stuck(send(stream::iter(["a"; 5]), None, window), &patience);
        let (sent, ()) = tokio::join!(sent, opening);
        assert_eq!((sent, began.elapsed()), (Some(()), PATIENCE * 9 / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_one_large_piece_a_little_at_a_time_gets_it_while_others_find_no_place() {
        let large: &str = "x".repeat(5 * PIECE_BYTES + 1).leak();
        let (window, long) = (window(0), 100 * PATIENCE);
        let opens = window.clone();
        let opening = async {
            for _ in 0..6 {
                sleep(GRACE * 4 / 5).await;
                opens.add_permits(PIECE_BYTES);
            }
        };
        let patience = Patience::new(long, |_| true);
        let sent = unless_stuck(send(stream::iter([large]), None, window), &patience);
        let (sent, ()) = tokio::join!(sent, opening);
        assert_eq!(sent, Some(()));
    }

    #[tokio::test]
    async fn a_large_piece_goes_out_whole_and_in_order() {
        let large: Vec<u8> = (0..3 * PIECE_BYTES as u32 + 7).map(|n| (n % 251) as u8).collect();
        let mut body = Noting { body: Body::from(large.clone()), rest: Bytes::new(), reading: Arc::default() };
        let mut sent = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((large.len() - sent.len()) as u64));
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            let data = frame.into_data().unwrap();
            assert!(data.len() <= PIECE_BYTES);
            sent.extend_from_slice(&data);
        }
        assert!(sent == large);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_no_place_has_its_time_though_others_find_none() {
        let (began, patience) = (Instant::now(), Patience::new(PATIENCE, |_| true));
        let answer = async {
            Reading::here().unwrap().holds_no_place.store(true, Ordering::Relaxed);
            send(stream::iter(["a"]), None, window(0)).await;
        };
        assert_eq!((unless_stuck(answer, &patience).await, began.elapsed()), (None, PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_what_is_not_taken_and_leaves_what_is() {
        let deadline = PATIENCE / 2;
        let began = Instant::now();
        let stuck = send(stream::iter(["a"]), Some(began + deadline), window(0));
        assert_eq!((unless_stuck(stuck, &patience()).await, began.elapsed()), (None, deadline));
        let began = Instant::now();
        let silent = stream::once(sleep(PATIENCE)).map(|()| "a");
        let taken = send(silent, Some(began + deadline), window(1));
        assert_eq!(unless_stuck(taken, &patience()).await, Some(()), "the engine ends it, and says why");
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_answer_left_says_nothing_of_the_next_one_on_its_connection() {
        let answers = async {
            let now = Some(Instant::now());
            send(stream::iter(["a", "b"]), now, window(2)).await;
            sleep(5 * PATIENCE).await;
            send(stream::iter(["a"]), None, window(1)).await;
        };
        assert_eq!(unless_stuck(answers, &patience()).await, Some(()));
    }
}
