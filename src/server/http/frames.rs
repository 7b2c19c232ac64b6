//! Answers that stream: a [`Teller`] turns events into frames, which go out as server-sent events (WHATWG HTML, section
//! "Server-sent events") or as lines of JSON.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    http::header::CONTENT_TYPE,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event as SseEvent, KeepAlive},
    },
};
use futures::{Stream, StreamExt};
use serde::Serialize;

use super::{choices::Choices, failure::Failure};
use crate::engine::Event;

/// A comment goes out after so long a silence, so that no proxy takes a long prefill for a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The name of a server-sent event.
    pub(crate) event: Option<&'static str>,
    /// Without line breaks.
    pub(crate) data: String,
}

/// Frames that are ready to go out.
#[derive(Debug, Default)]
pub(crate) struct Frames(VecDeque<Frame>);

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
        self.0.push_back(Frame { event: None, data: word.to_owned() });
    }

    fn add(&mut self, event: Option<&'static str>, message: &impl Serialize) {
        match serde_json::to_string(message) {
            Ok(data) => self.0.push_back(Frame { event, data }),
            // Unreachable: our messages are maps with string keys.
            Err(error) => tracing::error!(%error, "a message could not be written"),
        }
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

/// The frames of a call, until it ends or fails. Dropping it cancels its generations.
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
        let events = self.map(|Frame { event, data }| {
            let frame = SseEvent::default().data(data);
            Ok::<_, Infallible>(match event {
                Some(event) => frame.event(event),
                None => frame,
            })
        });
        let answer = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        // nginx would collect a response otherwise.
        ([("x-accel-buffering", "no")], answer).into_response()
    }

    /// The answer as lines of JSON.
    pub(crate) fn lines(self) -> Response {
        let lines = self.map(|Frame { data, .. }| Ok::<_, Infallible>(data + "\n"));
        ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
    }
}

impl<T: Teller> Stream for Telling<T> {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let this = self.get_mut();
        loop {
            if let Some(frame) = this.frames.0.pop_front() {
                return Poll::Ready(Some(frame));
            }
            let Some(choices) = &mut this.choices else { return Poll::Ready(None) };
            match ready!(choices.poll_next_unpin(cx)) {
                Some((choice, Ok(event))) => this.teller.tell(choice, event, &mut this.frames),
                Some((_, Err(error))) => {
                    this.choices = None;
                    this.teller.fail(error.into(), &mut this.frames);
                }
                None => {
                    this.choices = None;
                    this.teller.end(&mut this.frames);
                }
            }
        }
    }
}
