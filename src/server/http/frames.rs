//! Answers that stream: a [`Teller`] turns events into frames, which go out as server-sent events (WHATWG HTML, section
//! "Server-sent events") or as lines of JSON.

use std::{
    convert::Infallible,
    iter, mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{choices::Choices, failure::Failure};
use crate::engine::Event;

/// A comment goes out after so long a silence at the latest, so that no proxy takes a long prefill for a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: &[u8] = b":\n\n";
/// Bytes of frames that go out in one piece; at least one frame does.
const PIECE_BYTES: usize = 8 << 10;
/// What a token's frame fits into.
const FRAME_BYTES: usize = 512;

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How frames are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Events,
    Lines,
}

/// Frames that are ready to go out, as they go out.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    form: Form,
    bytes: Vec<u8>,
}

impl Frames {
    /// Adds a message.
    pub(crate) fn json(&mut self, message: &impl Serialize) {
        self.add(None, message);
    }

    /// Adds a message under a name.
    pub(crate) fn event(&mut self, event: &'static str, message: &impl Serialize) {
        self.add(Some(event), message);
    }

    /// Adds a word that is no JSON.
    pub(crate) fn word(&mut self, word: &str) {
        self.begin(None);
        self.bytes.extend_from_slice(word.as_bytes());
        self.end();
    }

    fn add(&mut self, event: Option<&str>, message: &impl Serialize) {
        let before = self.bytes.len();
        self.begin(event);
        // JSON has no line break outside of its strings, and writes those in them as `\n`.
        match serde_json::to_writer(&mut self.bytes, message) {
            Ok(()) => self.end(),
            // Unreachable: our messages are maps with string keys.
            Err(error) => {
                self.bytes.truncate(before);
                tracing::error!(%error, "a message could not be written");
            }
        }
    }

    fn begin(&mut self, event: Option<&str>) {
        self.bytes.reserve(FRAME_BYTES);
        if self.form == Form::Lines {
            return;
        }
        if let Some(event) = event {
            self.bytes.extend_from_slice(b"event: ");
            self.bytes.extend_from_slice(event.as_bytes());
            self.bytes.push(b'\n');
        }
        self.bytes.extend_from_slice(b"data: ");
    }

    fn end(&mut self) {
        let end: &[u8] = if self.form == Form::Lines { b"\n" } else { b"\n\n" };
        self.bytes.extend_from_slice(end);
    }
}

/// The frames of a piece of server-sent events, each in memory of its own: who keeps one does not keep the piece.
pub(crate) fn each(piece: &[u8]) -> impl Iterator<Item = Bytes> {
    const END: &[u8] = b"\n\n";
    let mut rest = piece;
    iter::from_fn(move || {
        // Nothing else has an empty line, see above.
        let end = rest.windows(END.len()).position(|bytes| bytes == END)? + END.len();
        let (frame, others) = rest.split_at(end);
        rest = others;
        Some(Bytes::copy_from_slice(frame))
    })
}

/// An answer of server-sent events, and of comments where there are none for long.
pub(crate) fn sse(frames: impl Stream<Item = Bytes> + Send + Unpin + 'static) -> Response {
    // nginx would collect a response otherwise.
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache"), (X_ACCEL_BUFFERING, "no")];
    (headers, body(Alive { frames, keep_alive: KeepAlive::new() })).into_response()
}

fn body(frames: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    Body::from_stream(frames.map(Ok::<_, Infallible>))
}

/// Frames that break their silence.
struct Alive<S> {
    frames: S,
    keep_alive: KeepAlive,
}

impl<S: Stream<Item = Bytes> + Unpin> Stream for Alive<S> {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let polled = self.frames.poll_next_unpin(cx);
        if polled.is_pending() && self.keep_alive.is_due(cx) {
            return Poll::Ready(Some(Bytes::from_static(COMMENT)));
        }
        self.keep_alive.spoke |= polled.is_ready();
        polled
    }
}

/// Comes round when it is time for a comment.
struct KeepAlive {
    ticks: Interval,
    /// Something went out since the last tick.
    spoke: bool,
}

impl KeepAlive {
    fn new() -> Self {
        // Two ticks, of which the first may come at once after something was said.
        let period = KEEP_ALIVE / 2;
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, spoke: true }
    }

    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        while self.ticks.poll_tick(cx).is_ready() {
            if !mem::take(&mut self.spoke) {
                return true;
            }
        }
        false
    }
}

/// Tells what happens in a face's own words.
pub(crate) trait Teller: Send + Unpin + 'static {
    /// An event of one choice.
    fn tell(&mut self, choice: usize, event: Event, frames: &mut Frames);
    /// All choices have ended.
    fn end(&mut self, frames: &mut Frames);
    /// A choice failed; the others are dropped.
    fn fail(&mut self, failure: Failure, frames: &mut Frames);
}

/// The frames of a call, as many at once as there are, until it ends or fails. Dropping it cancels its generations.
pub(crate) struct Telling<T> {
    choices: Option<Choices>,
    teller: T,
    frames: Frames,
}

impl<T: Teller> Telling<T> {
    pub(crate) fn new(choices: Choices, teller: T) -> Self {
        Self { choices: Some(choices), teller, frames: Frames::default() }
    }

    /// The answer as server-sent events.
    pub(crate) fn sse(self) -> Response {
        sse(self)
    }

    /// The answer as lines of JSON.
    pub(crate) fn lines(mut self) -> Response {
        self.frames.form = Form::Lines;
        ([(CONTENT_TYPE, "application/x-ndjson")], body(self)).into_response()
    }
}

impl<T: Teller> Stream for Telling<T> {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let this = self.get_mut();
        while this.frames.bytes.len() < PIECE_BYTES
            && let Some(choices) = &mut this.choices
        {
            match choices.poll_next_unpin(cx) {
                Poll::Ready(Some((choice, Ok(event)))) => this.teller.tell(choice, event, &mut this.frames),
                Poll::Ready(Some((_, Err(error)))) => {
                    this.choices = None;
                    this.teller.fail(error.into(), &mut this.frames);
                }
                Poll::Ready(None) => {
                    this.choices = None;
                    this.teller.end(&mut this.frames);
                }
                Poll::Pending => break,
            }
        }
        if !this.frames.bytes.is_empty() {
            return Poll::Ready(Some(mem::take(&mut this.frames.bytes).into()));
        }
        if this.choices.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_told_apart_as_their_form_has_it() {
        for (form, told) in [
            (Form::Events, "data: {\"a\":\"x\\ny\"}\n\nevent: say\ndata: 1\n\ndata: [DONE]\n\n"),
            (Form::Lines, "{\"a\":\"x\\ny\"}\n1\n[DONE]\n"),
        ] {
            let mut frames = Frames { form, ..Frames::default() };
            frames.json(&json!({"a": "x\ny"}));
            frames.event("say", &1);
            frames.word("[DONE]");
            assert_eq!(String::from_utf8(frames.bytes).unwrap(), told);
        }
    }

    #[test]
    fn a_piece_comes_apart_into_its_frames() {
        let mut frames = Frames::default();
        (0..3).for_each(|k| frames.event("say", &json!({"k": k, "text": "a\n\nb"})));
        let whole = Bytes::from(frames.bytes);
        let apart: Vec<_> = each(&whole).collect();
        assert_eq!((apart.len(), apart.concat()), (3, whole.to_vec()));
        assert!(apart.iter().all(|frame| frame.starts_with(b"event: say\ndata: {") && frame.ends_with(b"}\n\n")));
        let piece = whole.as_ptr_range();
        assert!(apart.iter().all(|frame| !piece.contains(&frame.as_ptr())), "who keeps one does not keep the piece");
        assert_eq!(each(b"").count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_in_time_and_only_silence() {
        let mut keep_alive = KeepAlive::new();
        let began = Instant::now();
        poll_fn(|cx| if keep_alive.is_due(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        assert_eq!(began.elapsed(), KEEP_ALIVE);
        let mut due = async |spoke| {
            keep_alive.spoke |= spoke;
            poll_fn(|cx| Poll::Ready(keep_alive.is_due(cx))).await
        };
        for _ in 0..40 {
            tokio::time::advance(KEEP_ALIVE / 4).await;
            assert!(!due(true).await);
        }
        let mut broken = false;
        for _ in 0..2 {
            tokio::time::advance(KEEP_ALIVE / 2).await;
            broken |= due(false).await;
        }
        assert!(broken);
    }
}
