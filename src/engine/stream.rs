//! `Generation`: one request's stream of events. Turns tokens into text, ends at stop strings and deadlines, and
//! cancels its sequence when it is dropped.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep},
};

use super::{
    Engine,
    best_of::BestOf,
    channel::{Delivery, ReaderControl},
    supervisor::Registration,
};
use crate::{
    error::{Code, Error, Result},
    params::{FinishReason, PromptLogprobs, SampledToken, SamplingParams, Usage},
    telemetry::Outcome,
    text::{Detokenizer, OutputParser, Piece, StopMatcher},
};

/// What a stream tells its reader: one `Started`, deltas, one `Finished` a sequence; or an error, after which nothing
/// comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request was admitted.
    Started(Started),
    /// Log-probabilities of the prompt, a stretch at a time, where they were asked for; before the first delta.
    Prompt(PromptLogprobs),
    /// New tokens, or text that was held back.
    Delta(Delta),
    /// The end.
    Finished(Finished),
}

/// What is in force for this request.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The parameters, with the seed and the token limit that were chosen where the request left them open.
    pub params: SamplingParams,
}

/// New tokens and the text that they complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Which of the request's sequences goes on, from 0.
    pub index: u32,
    /// Whole characters, never a part of a stop string; may be empty while either is in doubt. Of a chat, what is meant
    /// for the reader: the text in `pieces`.
    pub text: String,
    /// Of a chat, all that was said, in order and by kind; else empty.
    pub pieces: Vec<Piece>,
    /// The tokens.
    pub tokens: Vec<SampledToken>,
    /// What the sequence has cost so far.
    pub usage: Usage,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which of the request's sequences, from 0.
    pub index: u32,
    /// Why.
    pub reason: FinishReason,
    /// The answer is tool calls, each of them whole.
    pub tool_calls: bool,
    /// What it cost.
    pub usage: Usage,
}

/// Turns the tokens of one stream into text, up to its first stop string.
pub(super) struct TextOut {
    pub detokenizer: Detokenizer,
    pub matcher: StopMatcher,
    pub params: Arc<SamplingParams>,
    /// Of a chat.
    pub parser: Option<OutputParser>,
}

/// The text of some tokens.
struct Spoken {
    text: String,
    /// Tokens up to and including the one that completed the stop string; else all.
    kept: usize,
    /// The stop string that was found.
    stop: Option<String>,
}

/// What is handed on for some text.
#[derive(Default)]
struct Said {
    text: String,
    pieces: Vec<Piece>,
    tool_calls: bool,
}

impl TextOut {
    fn speak(&mut self, tokens: &[SampledToken], end: &Option<Result<FinishReason>>) -> Spoken {
        let mut text = String::new();
        for (k, token) in tokens.iter().enumerate().take(tokens.len() - self.silent(end).min(tokens.len())) {
            let piece = self.detokenizer.push(token.id);
            if let Some(stop) = self.hear(&piece, &mut text) {
                return Spoken { text, kept: k + 1, stop: Some(stop) };
            }
        }
        let mut stop = None;
        if end.is_some() {
            let piece = self.detokenizer.finish();
            stop = self.hear(&piece, &mut text);
            if stop.is_none() {
                text.push_str(&self.matcher.finish());
            }
        }
        Spoken { text, kept: tokens.len(), stop }
    }

    /// Tokens at the end that are not spoken: one that ends the sequence is not part of the answer, unless asked for.
    fn silent(&self, end: &Option<Result<FinishReason>>) -> usize {
        let stopped = matches!(end, Some(Ok(FinishReason::EndOfSequence(_) | FinishReason::StopToken(_))));
        usize::from(stopped && !self.params.include_stop_str_in_output)
    }

    /// Adds to `text` what may be said now; the stop string that `piece` completes, if it does.
    fn hear(&mut self, piece: &str, text: &mut String) -> Option<String> {
        let step = self.matcher.push(piece);
        text.push_str(&step.emit);
        step.matched.and_then(|k| self.params.stop.get(k).cloned())
    }
}

/// One sequence of a request.
pub(super) struct Output {
    pub deliveries: mpsc::Receiver<Delivery>,
    pub control: Arc<ReaderControl>,
    pub text: Option<TextOut>,
    pub usage: Usage,
    pub done: bool,
    /// A place in the list of streams to end if the engine dies.
    pub _registration: Registration,
}

/// The events of one request. Dropping it cancels: its sequences leave the batch and their blocks are freed within one
/// step, whether they wait, are in prefill or decode.
pub struct Generation {
    /// Events that are ready, before the next delivery is taken: at most three, or all that `best_of` held back.
    pub(super) ready: VecDeque<Event>,
    /// By their index.
    pub(super) outputs: Vec<Output>,
    /// Whose turn it is to be looked at first.
    pub(super) turn: usize,
    pub(super) best_of: Option<BestOf>,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    pub(super) done: bool,
    /// Keeps the engine running.
    pub(super) engine: Engine,
}

impl Output {
    /// Frees the sequence, if it has not ended by itself, and counts how it came to its end.
    fn release(&self, engine: &Engine, outcome: Outcome) {
        if self.control.cancel() {
            engine.telemetry().record_end(outcome, self.control.age());
        }
    }

    /// Turns one delivery into events.
    ///
    /// # Errors
    /// The error that ended the sequence.
    fn take(&mut self, index: u32, delivery: Delivery, events: &mut Vec<Event>) -> Result<Option<FinishReason>> {
        let Delivery { cached_tokens, mut tokens, end, prompt, .. } = delivery;
        self.control.taken(tokens.len() + usize::from(prompt.is_some()));
        events.extend(prompt.map(Event::Prompt));
        let Spoken { text, kept, stop } = match &mut self.text {
            Some(out) => out.speak(&tokens, &end),
            None => Spoken { text: String::new(), kept: tokens.len(), stop: None },
        };
        tokens.truncate(kept);
        self.usage.cached_tokens = cached_tokens;
        self.usage.completion_tokens += u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let (reason, error) = match (stop, end) {
            (Some(stop), _) => (Some(FinishReason::StopString(stop)), None),
            (None, Some(Ok(reason))) => (Some(reason), None),
            (None, Some(Err(error))) => (None, Some(error)),
            (None, None) => (None, None),
        };
        let Said { text, pieces, tool_calls } = self.sort(text, reason.as_ref());
        if !tokens.is_empty() || !text.is_empty() || !pieces.is_empty() {
            events.push(Event::Delta(Delta { index, text, pieces, tokens: tokens.into_vec(), usage: self.usage }));
        }
        if let Some(error) = error {
            return Err(error);
        }
        let Some(reason) = reason else { return Ok(None) };
        self.done = true;
        events.push(Event::Finished(Finished { index, reason: reason.clone(), tool_calls, usage: self.usage }));
        Ok(Some(reason))
    }

    /// What the text is: of a chat, sorted by kind.
    fn sort(&mut self, text: String, reason: Option<&FinishReason>) -> Said {
        let Some(parser) = self.text.as_mut().and_then(|text| text.parser.as_mut()) else {
            return Said { text, ..Said::default() };
        };
        let mut pieces = parser.push(&text);
        let mut tool_calls = false;
        if let Some(reason) = reason {
            let ending = parser.finish(reason);
            pieces.extend(ending.pieces);
            tool_calls = ending.tool_calls;
        }
        let said = pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            _ => None,
        });
        Said { text: said.collect(), pieces, tool_calls }
    }
}

impl Generation {
    /// What the request has cost so far, all its sequences together.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let first = self.outputs.first().map(|output| output.usage).unwrap_or_default();
        let completion_tokens = self.outputs.iter().map(|output| output.usage.completion_tokens).sum();
        Usage { completion_tokens, ..first }
    }

    fn release(&self, outcome: Outcome) {
        self.outputs.iter().for_each(|output| output.release(&self.engine, outcome));
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Event>>> {
        self.done = true;
        self.release(Outcome::Abort);
        Poll::Ready(Some(Err(error)))
    }

    /// The next delivery of any sequence that has not ended, in turns.
    fn poll_outputs(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Option<Delivery>)> {
        let n = self.outputs.len();
        for k in (self.turn..n).chain(0..self.turn) {
            let output = &mut self.outputs[k];
            if !output.done
                && let Poll::Ready(delivery) = output.deliveries.poll_recv(cx)
            {
                self.turn = (k + 1) % n;
                return Poll::Ready((k, delivery));
            }
        }
        Poll::Pending
    }

    /// Turns one delivery of sequence `k` into events.
    ///
    /// # Errors
    /// The error that ended the sequence.
    fn take(&mut self, k: usize, delivery: Delivery) -> Result<()> {
        let mut events = Vec::new();
        let output = &mut self.outputs[k];
        if let Some(reason) = output.take(k as u32, delivery, &mut events)? {
            output.release(&self.engine, Outcome::from(&reason));
        }
        self.done = self.outputs.iter().all(|output| output.done);
        for event in events {
            match (&mut self.best_of, event) {
                (Some(best_of), event @ (Event::Delta(_) | Event::Finished(_))) => best_of.hold(event),
                (_, event) => self.ready.push_back(event),
            }
        }
        if let Some(best_of) = self.best_of.as_mut().filter(|_| self.done) {
            self.ready.extend(best_of.release());
        }
        Ok(())
    }
}

impl Stream for Generation {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.done {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                return self.fail(Error::new(Code::DeadlineExceeded, "the deadline passed before the last token"));
            }
            let outcome = match ready!(self.poll_outputs(cx)) {
                (k, Some(delivery)) => self.take(k, delivery),
                (_, None) => Err(Error::internal("the engine ended without finishing this stream")),
            };
            if let Err(error) = outcome {
                return self.fail(error);
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.release(Outcome::Abort);
    }
}

/// A timer for a deadline, if there is one.
pub(super) fn timer(deadline: Option<Instant>) -> Option<Pin<Box<Sleep>>> {
    deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)))
}
