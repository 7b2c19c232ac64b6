//! From a request to its events, whatever face it came in by.
//!
//! A call that is refused fails at once with its status. A call that is admitted gets its response headers at once,
//! before its first event: routers give up on a worker that stays silent while it computes.

use std::{
    collections::BTreeMap,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt};
use tokio::time::timeout_at;

use super::{
    access::{Admission, Caller},
    backend::Backend,
    closing::CutWatch,
};
use crate::{
    engine::{Event, Finished, Generation, Request, Started},
    error::{Code, Error, Result},
    params::{PromptLogprobs, SampledToken},
    text::Piece,
};

/// The events of one call: the engine's, until they end or are ended. Dropping them cancels the request.
pub(crate) struct Events {
    generation: Option<Generation>,
    /// Ends the call before its time.
    cut: CutWatch,
    /// What it takes of its tenant's quotas, until it ends.
    admission: Option<Admission>,
    /// Tokens generated that were counted there.
    charged: u64,
}

/// All events of a call, put together.
pub(crate) struct Whole {
    pub(crate) started: Started,
    /// Of the prompt, where they were asked for.
    pub(crate) prompt: Option<PromptLogprobs>,
    /// Index 0.
    pub(crate) first: WholeOutput,
    /// The others, by their index.
    pub(crate) others: Vec<WholeOutput>,
}

/// All of one sequence.
pub(crate) struct WholeOutput {
    pub(crate) text: String,
    /// Of a chat, all that was said, by kind.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) tokens: Vec<SampledToken>,
    pub(crate) finished: Finished,
}

impl Events {
    /// Has the engine admit a request of this caller.
    ///
    /// # Errors
    /// `ResourceExhausted` where the caller has used up its quota; the engine's, where it refuses the request;
    /// `DeadlineExceeded` where it does not admit it in time.
    pub(crate) async fn open(backend: &Backend, caller: &Caller, request: Request) -> Result<Self> {
        let quota = caller.admit(&request).map_err(|error| backend.refused(error))?;
        Self::admitted(backend, caller, quota, request).await
    }

    /// The same of a request that was counted with others.
    ///
    /// # Errors
    /// The engine's, likewise.
    pub(crate) async fn admitted(
        backend: &Backend,
        caller: &Caller,
        quota: Admission,
        request: Request,
    ) -> Result<Self> {
        let deadline = request.deadline;
        let admission = backend.engine.generate(caller.own(request));
        let admitted = match deadline {
            Some(deadline) => timeout_at(deadline, admission).await.unwrap_or_else(|_| {
                let late = Error::new(Code::DeadlineExceeded, "the deadline passed before the request was admitted");
                Err(backend.refused(late))
            }),
            None => admission.await,
        };
        Ok(Self::of(backend, quota, admitted?))
    }

    /// Those of a stream that the engine has admitted.
    pub(crate) fn of(backend: &Backend, admission: Admission, generation: Generation) -> Self {
        // What was admitted is computed, whoever reads it.
        admission.charge_prompt(generation.prompt().len());
        let cut = backend.closing.cut_watch();
        Self { generation: Some(generation), cut, admission: Some(admission), charged: 0 }
    }

    /// The engine's stream, while it lasts.
    pub(crate) fn generation(&mut self) -> Option<&mut Generation> {
        self.generation.as_mut()
    }

    fn charge(&mut self, tokens: u64) {
        if let Some(admission) = &self.admission {
            admission.charge(tokens);
            self.charged += tokens;
        }
    }

    /// Lets the engine's stream and the quotas go. What was generated and not told counts too: of sequences that only
    /// competed to be told, and what a reader left behind.
    fn end(&mut self) {
        let generated = self.generation.take().map_or(0, |generation| generation.generated_tokens());
        self.charge(generated.saturating_sub(self.charged));
        self.admission = None;
    }

    /// Waits for all events.
    ///
    /// # Errors
    /// The error that ended the stream.
    pub(crate) async fn whole(mut self) -> Result<Whole> {
        let broken = || Error::internal("a stream that ended without all its events");
        let (mut started, mut prompt) = (None, None::<PromptLogprobs>);
        let mut said: BTreeMap<u32, (String, Vec<Piece>, Vec<SampledToken>)> = BTreeMap::new();
        let mut outputs = BTreeMap::new();
        while let Some(event) = self.next().await {
            match event? {
                Event::Started(event) => started = Some(*event),
                Event::Prompt(more) => match &mut prompt {
                    Some(prompt) => prompt.tokens.extend(more.tokens),
                    None => prompt = Some(more),
                },
                Event::Delta(delta) => {
                    let (text, pieces, tokens) = said.entry(delta.index).or_default();
                    text.push_str(&delta.text);
                    tokens.extend(delta.tokens);
                    pieces.extend(delta.pieces);
                }
                Event::Finished(finished) => {
                    let (text, pieces, tokens) = said.remove(&finished.index).unwrap_or_default();
                    outputs.insert(finished.index, WholeOutput { text, pieces, tokens, finished });
                }
            }
        }
        let started = started.ok_or_else(broken)?;
        let complete = outputs.len() == started.params.n as usize;
        let mut outputs = outputs.into_values().filter(|_| complete);
        Ok(Whole { started, prompt, first: outputs.next().ok_or_else(broken)?, others: outputs.collect() })
    }
}

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(generation) = &mut self.generation else { return Poll::Ready(None) };
        let mut polled = generation.poll_next_unpin(cx);
        if polled.is_pending() && self.cut.poll(cx).is_ready() {
            polled = Poll::Ready(Some(Err(self.cut.error("this stream had ended"))));
        }
        match &polled {
            // All that its call asks for was admitted.
            Poll::Ready(Some(Ok(Event::Started(_)))) => {
                if let Some(admission) = &mut self.admission {
                    admission.admitted();
                }
            }
            Poll::Ready(Some(Ok(Event::Delta(delta)))) => self.charge(delta.tokens.len() as u64),
            _ => {}
        }
        if let Poll::Ready(Some(Err(_)) | None) = polled {
            // Who hears of the end may ask again at once.
            self.end();
        }
        polled
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.end();
    }
}
