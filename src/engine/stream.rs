//! `Generation`: one request's stream of events. Turns tokens into text, ends at stop strings and deadlines, and
//! cancels its sequence when it is dropped.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use sha2::{Digest, Sha256};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep},
};

use super::{
    Engine,
    best_of::BestOf,
    channel::{Delivery, ReaderControl},
    scheduler::Edit,
    step::Command,
    supervisor::{Life, Registration},
};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    params::{FinishReason, PromptLogprobs, SampledToken, SampledTokens, SamplingParams, Usage},
    telemetry::{
        Outcome,
        spans::{Origin, RequestSpan},
    },
    text::{Detokenizer, OutputParser, Piece, StopMatcher},
};

/// Most tokens of one delta of a coalescing stream, so that no message grows without bound.
const COALESCED_TOKENS: usize = 1024;

/// What a stream tells its reader: one `Started`, deltas, one `Finished` a sequence; or an error, after which nothing
/// comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request was admitted.
    Started(Box<Started>),
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
    pub tokens: SampledTokens,
    /// What the sequence has cost so far.
    pub usage: Usage,
}

/// How long the parts of a sequence took, as the engine saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From admission to the first run.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From there to the last one.
    pub decode: Duration,
    /// From admission to now.
    pub total: Duration,
}

/// What proves which answer this was: the same weights, template, seed, parameters and prompt give the same tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The seed that this sequence drew with.
    pub seed: u64,
    /// SHA-256 of the prompt's ids, each four bytes, least significant first.
    pub prompt_hash: [u8; 32],
    /// The same of the ids generated.
    pub output_hash: [u8; 32],
    /// The parameters changed under way: those that it began with do not give this answer.
    pub was_edited: bool,
}

/// How far a stream has come that has not said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits.
    Queued {
        /// Requests before it.
        position: usize,
        /// When it should run, as far as that can be said.
        eta: Option<Duration>,
    },
    /// Its prompt is computed.
    Prefill {
        /// Tokens of the prompt whose keys and values are there.
        done: u32,
        /// Of how many.
        total: u32,
        /// … of which the cache had so many.
        cached: u32,
    },
    /// Tokens have come.
    Decode,
}

/// What changes about a stream under way; what is none stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamEdit {
    /// What the engine must know.
    pub engine: Edit,
    /// New stop strings.
    pub stop: Option<Vec<String>>,
}

impl StreamEdit {
    /// The parameters as they are then.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field.
    pub(crate) fn of(&self, params: &SamplingParams) -> Result<SamplingParams> {
        let edited = SamplingParams {
            max_tokens: self.engine.max_tokens.or(params.max_tokens),
            temperature: self.engine.temperature.unwrap_or(params.temperature),
            stop: self.stop.clone().unwrap_or_else(|| params.stop.clone()),
            ..params.clone()
        };
        edited.validate()?;
        Ok(edited)
    }
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
    /// How long it took.
    pub timings: Timings,
    /// What proves it; none where it was not made here.
    pub receipt: Option<Box<Receipt>>,
}

/// What one delivery comes to.
struct Taken {
    prompt: Option<PromptLogprobs>,
    delta: Option<Delta>,
    /// How the sequence ended, if it did.
    end: Option<Result<Finished>>,
}

/// Turns the tokens of one stream into text, up to its first stop string.
pub(super) struct TextOut {
    pub detokenizer: Detokenizer,
    pub matcher: StopMatcher,
    pub params: Arc<SamplingParams>,
    /// Of a chat.
    pub parser: Option<OutputParser>,
    /// Text that may be said, before the next.
    pub carried: String,
    /// A new stop string that stood in what was held back for the old ones: the stream ends there with its next delivery.
    pub found: Option<String>,
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
        let mut text = std::mem::take(&mut self.carried);
        if let Some(stop) = self.found.take() {
            return Spoken { text, kept: 0, stop: Some(stop) };
        }
        for (k, token) in tokens.iter().enumerate().take(tokens.len() - self.silent(end).min(tokens.len())) {
            let piece = self.detokenizer.push(token.id);
            if let Some(stop) = self.hear(piece, &mut text) {
                return Spoken { text, kept: k + 1, stop: Some(stop) };
            }
        }
        let mut stop = None;
        if end.is_some() {
            let piece = self.detokenizer.finish();
            stop = self.hear(piece, &mut text);
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

    /// Other stop strings from now on. What was held back for the old ones is said with what comes next, up to the first
    /// of the new ones in it: nobody has seen it yet, and no text that is told holds a stop string.
    fn edit(&mut self, params: &Arc<SamplingParams>) {
        let is_new = params.stop != self.params.stop;
        self.params = params.clone();
        if is_new && self.found.is_none() {
            let held = self.matcher.finish();
            self.matcher = StopMatcher::new(&params.stop, params.include_stop_str_in_output);
            let mut carried = std::mem::take(&mut self.carried);
            self.found = self.hear(held, &mut carried);
            self.carried = carried;
        }
    }

    /// Adds to `text` what may be said now; the stop string that `piece` completes, if it does.
    fn hear(&mut self, piece: String, text: &mut String) -> Option<String> {
        let step = self.matcher.push(piece);
        match text.is_empty() {
            true => *text = step.emit,
            false => text.push_str(&step.emit),
        }
        step.matched.and_then(|k| self.params.stop.get(k).cloned())
    }
}

/// One sequence of a request.
pub(super) struct Output {
    pub deliveries: mpsc::Receiver<Delivery>,
    pub control: Arc<ReaderControl>,
    pub text: Option<TextOut>,
    pub usage: Usage,
    /// Of the ids generated so far.
    pub hash: Sha256,
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
    pub(super) prompt: Arc<[TokenId]>,
    pub(super) rendered: Option<String>,
    pub(super) params: Arc<SamplingParams>,
    /// They are not those that it began with.
    pub(super) was_edited: bool,
    pub(super) life: Arc<Life>,
    /// Whether what waits comes in one piece.
    pub(super) coalesces: bool,
    /// An error that comes after what is ready.
    pub(super) failed: Option<Error>,
    /// For its span, where one is wanted.
    pub(super) origin: Option<Box<Origin>>,
    /// How its first sequence to end did.
    pub(super) outcome: Option<Outcome>,
    /// The error that its reader was told.
    pub(super) error: Option<Code>,
    /// Keeps the engine running.
    pub(super) engine: Engine,
}

impl Output {
    /// Frees the sequence, if it has not ended by itself, and counts how it came to its end.
    fn release(&self, engine: &Engine, outcome: Outcome) {
        if self.control.cancel() {
            self.control.record_end(outcome, engine.telemetry());
        }
    }

    /// Turns one delivery into what is told of it.
    fn take(&mut self, index: u32, delivery: Delivery) -> Taken {
        let Delivery { mut tokens, cached_tokens, rest } = delivery;
        let (prompt, end) = rest.map_or((None, None), |rest| (rest.prompt, rest.end));
        self.control.taken(tokens.len() + usize::from(prompt.is_some()));
        let Spoken { text, kept, stop } = match &mut self.text {
            Some(out) => out.speak(&tokens, &end),
            None => Spoken { text: String::new(), kept: tokens.len(), stop: None },
        };
        tokens.truncate(kept);
        tokens.iter().for_each(|token| self.hash.update(token.id.0.to_le_bytes()));
        self.usage.cached_tokens = cached_tokens;
        self.usage.completion_tokens += u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let end = stop.map(|stop| Ok(FinishReason::StopString(stop))).or(end);
        let reason = end.as_ref().and_then(|end| end.as_ref().ok());
        let Said { text, pieces, tool_calls } = self.sort(text, reason);
        self.done = reason.is_some();
        let says = !tokens.is_empty() || !text.is_empty() || !pieces.is_empty();
        let usage = self.usage;
        let delta = says.then_some(Delta { index, text, pieces, tokens, usage });
        let end = end.map(|end| {
            let timings = self.control.timings();
            end.map(|reason| Finished { index, reason, tool_calls, usage, timings, receipt: None })
        });
        Taken { prompt, delta, end }
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

    /// Tokens generated so far for all its sequences, those included that its reader has not taken or is not shown.
    #[must_use]
    pub fn generated_tokens(&self) -> u64 {
        self.outputs.iter().map(|output| output.control.generated_tokens()).sum()
    }

    /// The prompt's ids.
    #[must_use]
    pub fn prompt(&self) -> &[TokenId] {
        &self.prompt
    }

    /// A chat's prompt as text, where the request brought a history.
    #[must_use]
    pub fn rendered(&self) -> Option<&str> {
        self.rendered.as_deref()
    }

    /// When its answer is no longer wanted.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.as_ref().map(|timer| timer.deadline())
    }

    /// How far the stream has come; its first sequence speaks for all.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let Some(first) = self.outputs.first().filter(|first| !first.done) else { return Progress::Decode };
        let standing = first.control.standing();
        if standing.spoke {
            return Progress::Decode;
        }
        if standing.started {
            let (done, total, cached) = (standing.computed_tokens, standing.prompt_tokens, standing.cached_tokens);
            return Progress::Prefill { done, total, cached };
        }
        let (control, most) = (&first.control, self.engine.config().max_num_seqs);
        let ahead = self.life.ahead(control.request().tenant.as_deref(), control.place(), most);
        Progress::Queued { position: ahead.requests, eta: self.engine.rates().queue_time(ahead) }
    }

    /// How long the parts took so far, of the first sequence.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.outputs.first().map(|output| output.control.timings()).unwrap_or_default()
    }

    /// Allows so many tokens more. A stream that did not count begins to with this.
    pub fn grant(&self, tokens: u64) {
        self.outputs.iter().for_each(|output| output.control.grant(tokens));
    }

    /// Changes the stream from its next token on: all its sequences, or none where it cannot be done.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field; `ResourceExhausted` where the engine has too much to do.
    pub fn edit(&mut self, edit: StreamEdit) -> Result<()> {
        let params = Arc::new(edit.of(&self.params)?);
        let ids = self.outputs.iter().map(|output| output.control.place().1).collect();
        self.life.command(Command::Edit { ids, edit: edit.engine.clone() })?;
        self.was_edited |= params != self.params;
        for output in &mut self.outputs {
            if let Some(priority) = edit.engine.priority {
                output.control.prioritize(priority);
            }
            if let Some(text) = &mut output.text {
                text.edit(&params);
            }
        }
        self.params = params;
        Ok(())
    }

    fn receipt(&self, k: usize) -> Receipt {
        let ids = self.prompt.iter().fold(Sha256::new(), |hash, id| hash.chain_update(id.0.to_le_bytes()));
        let seed = self.params.seed.unwrap_or_default().wrapping_add(k as u64);
        let output = self.outputs.get(k).map(|output| output.hash.clone()).unwrap_or_default();
        let (prompt_hash, output_hash) = (ids.finalize().into(), output.finalize().into());
        Receipt { seed, prompt_hash, output_hash, was_edited: self.was_edited }
    }

    /// Adds what else is ready of the same sequence to a delta.
    fn coalesce(&mut self, cx: &mut Context<'_>, delta: &mut Delta) {
        while delta.tokens.len() < COALESCED_TOKENS {
            match self.ready.front() {
                Some(Event::Delta(next)) if next.index == delta.index => {}
                Some(_) => return,
                None if self.failed.is_some() => return,
                None => match self.poll_outputs(cx) {
                    Poll::Ready((k, Some(delivery))) => {
                        self.take(k, delivery);
                        continue;
                    }
                    Poll::Ready((_, None)) | Poll::Pending => return,
                },
            }
            if let Some(Event::Delta(next)) = self.ready.pop_front() {
                delta.text.push_str(&next.text);
                delta.pieces.extend(next.pieces);
                delta.tokens.extend(next.tokens);
                delta.usage = next.usage;
            }
        }
    }

    fn release(&self, outcome: Outcome) {
        self.outputs.iter().for_each(|output| output.release(&self.engine, outcome));
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Event>>> {
        self.done = true;
        self.error = Some(error.code);
        self.release(Outcome::Abort);
        Poll::Ready(Some(Err(error)))
    }

    /// Tells what became of the request to those who gather traces.
    fn leave_span(&mut self) {
        let (Some(origin), Some(spans)) = (self.origin.take(), self.engine.telemetry().spans()) else { return };
        let timings = self.timings();
        let ended = self.done && self.error.is_none();
        spans.record(&RequestSpan {
            origin: &origin,
            model: &self.engine.info().name,
            params: &self.params,
            usage: self.usage(),
            queue: timings.queue,
            prefill: timings.prefill,
            // Whoever read the end may have kept the stream for long.
            total: if ended { timings.queue + timings.prefill + timings.decode } else { timings.total },
            outcome: match (self.error, self.outcome) {
                (Some(_), _) => Outcome::Error,
                (None, Some(outcome)) if ended => outcome,
                (None, _) => Outcome::Abort,
            },
            error: self.error,
        });
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

    /// Turns one delivery of sequence `k` into events; an error that ended the sequence comes after them.
    fn take(&mut self, k: usize, delivery: Delivery) {
        let Taken { prompt, delta, end } = self.outputs[k].take(k as u32, delivery);
        self.ready.extend(prompt.map(Event::Prompt));
        if let Some(delta) = delta {
            self.tell(Event::Delta(delta));
        }
        match end {
            None => {}
            Some(Ok(mut finished)) => {
                let outcome = Outcome::from(&finished.reason);
                self.outputs[k].release(&self.engine, outcome);
                self.outcome.get_or_insert(outcome);
                finished.receipt = Some(Box::new(self.receipt(k)));
                self.tell(Event::Finished(finished));
                self.done = self.outputs.iter().all(|output| output.done);
                if let Some(best_of) = self.best_of.as_mut().filter(|_| self.done) {
                    self.ready.extend(best_of.release());
                }
            }
            Some(Err(error)) => self.failed = Some(error),
        }
    }

    /// Has an event of a sequence ready, or held back.
    fn tell(&mut self, event: Event) {
        match &mut self.best_of {
            Some(best_of) => best_of.hold(event),
            None => self.ready.push_back(event),
        }
    }
}

impl Stream for Generation {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(mut event) = self.ready.pop_front() {
                if let (true, Event::Delta(delta)) = (self.coalesces, &mut event) {
                    self.coalesce(cx, delta);
                }
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(error) = self.failed.take() {
                return self.fail(error);
            }
            if self.done {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                return self.fail(Error::new(Code::DeadlineExceeded, "the deadline passed before the last token"));
            }
            match ready!(self.poll_outputs(cx)) {
                (k, Some(delivery)) => self.take(k, delivery),
                (_, None) => return self.fail(Error::internal("the engine ended without finishing this stream")),
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.release(Outcome::Abort);
        self.leave_span();
    }
}

/// A timer for a deadline, if there is one.
pub(super) fn timer(deadline: Option<Instant>) -> Option<Pin<Box<Sleep>>> {
    deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)))
}
