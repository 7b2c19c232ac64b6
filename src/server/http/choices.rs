//! Several generations that one call asks for: several prompts, several answers to each.

use std::{
    iter,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};

use super::{
    parts::ReasoningTokens,
    paths::{Renames, rename},
};
use crate::{
    engine::{Event, Finished, Request},
    error::{Error, Result},
    params::{SampledToken, SamplingParams},
    server::{access::Caller, backend::Backend, events::Events},
    text::Piece,
};

/// Generations a call.
pub(crate) const MAX_CHOICES: usize = 128;

/// The events of all choices, each with its choice's index, as they come. Dropping them cancels all.
pub(crate) struct Choices {
    events: Several,
    number: usize,
}

/// Most calls ask for one, which needs nobody to say whose turn it is.
enum Several {
    One(Box<Events>),
    Many(SelectAll<BoxStream<'static, (usize, Result<Event>)>>),
}

/// The requests of a call, one an answer. Where there are several, each has an id of its own, and those to a prompt whose
/// request is seeded have seeds of their own, counted up from it.
fn each(prompts: impl ExactSizeIterator<Item = Request>, answers: usize) -> impl Iterator<Item = Request> {
    let is_only = prompts.len() * answers == 1;
    let repeated = prompts.flat_map(move |request| iter::repeat_n(request, answers));
    repeated.enumerate().map(move |(index, request)| {
        let seed = request.params.seed.map(|seed| seed.wrapping_add((index % answers) as u64));
        Request {
            request_id: if is_only { request.request_id } else { format!("{}-{index}", request.request_id) },
            params: SamplingParams { seed, ..request.params },
            ..request
        }
    })
}

/// One choice, put together.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) text: String,
    /// Of a chat, all that was said, by kind.
    pub(crate) pieces: Vec<Piece>,
    /// The prompt's, after its first one, where their log-probabilities were asked for.
    pub(crate) prompt: Vec<SampledToken>,
    pub(crate) tokens: Vec<SampledToken>,
    /// Of a chat, how many of them the model thought with.
    pub(crate) reasoning: ReasoningTokens,
    /// Set once it has ended.
    pub(crate) finished: Option<Finished>,
}

impl Choices {
    /// Has the engine admit so many answers to each of `prompts`, all or none, one request an answer. Each is made when it is
    /// its turn: a prompt may be as large as a body.
    ///
    /// # Errors
    /// The quotas', before the engine hears of any; the engine's for the first one that it refuses. Fields have the face's
    /// names.
    pub(crate) async fn open(
        backend: &Backend,
        caller: &Caller,
        prompts: impl IntoIterator<Item = Request, IntoIter: ExactSizeIterator>,
        answers: usize,
        renames: Renames,
    ) -> Result<Self> {
        let mut prompts = prompts.into_iter().peekable();
        let count = prompts.len();
        let quota = caller.admit_all(count, answers, prompts.peek().map(|request| &request.params));
        let mut quota = quota.map_err(|error| rename(backend.refused(error), renames))?;
        let mut opened = Vec::with_capacity(count * answers);
        for (index, request) in each(prompts, answers).enumerate() {
            let own = quota.split(&request, index % answers == 0);
            let events = Events::admitted(backend, caller, own, request).await;
            opened.push(events.map_err(|error| rename(error, renames))?);
        }
        let events = match <[Events; 1]>::try_from(opened) {
            Ok([events]) => Several::One(Box::new(events)),
            Err(opened) => {
                let named = |(index, events): (usize, Events)| events.map(move |event| (index, event)).boxed();
                Several::Many(opened.into_iter().enumerate().map(named).collect())
            }
        };
        Ok(Self { events, number: count * answers })
    }

    /// How many choices there are.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Waits for all choices.
    ///
    /// # Errors
    /// The first error of any.
    pub(crate) async fn whole(mut self) -> Result<Vec<(Whole, Finished)>> {
        let mut wholes: Vec<Whole> = (0..self.number).map(|_| Whole::default()).collect();
        while let Some((index, event)) = self.next().await {
            let Some(whole) = wholes.get_mut(index) else { continue };
            match event? {
                Event::Started(_) => {}
                Event::Prompt(prompt) => whole.prompt.extend(prompt.tokens),
                Event::Delta(delta) => {
                    whole.text.push_str(&delta.text);
                    whole.reasoning.take(delta.tokens.len(), &delta.pieces);
                    whole.pieces.extend(delta.pieces);
                    whole.tokens.extend(delta.tokens);
                }
                Event::Finished(finished) => whole.finished = Some(finished),
            }
        }
        let ended = |mut whole: Whole| {
            let finished =
                whole.finished.take().ok_or_else(|| Error::internal("a stream ended without a last event"))?;
            Ok((whole, finished))
        };
        wholes.into_iter().map(ended).collect()
    }

    /// Waits for the only choice.
    ///
    /// # Errors
    /// Its error.
    pub(crate) async fn one(self) -> Result<(Whole, Finished)> {
        let only = self.whole().await?.into_iter().next();
        only.ok_or_else(|| Error::internal("a call without a generation was waited for"))
    }
}

impl Stream for Choices {
    type Item = (usize, Result<Event>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.events {
            Several::One(events) => events.poll_next_unpin(cx).map(|event| Some((0, event?))),
            Several::Many(events) => events.poll_next_unpin(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::Prompt;

    #[test]
    fn a_call_holds_a_request_at_a_time_however_many_answers_it_asks_for() {
        let copies: Arc<str> = "one a request".into();
        let prompt = |seed| {
            let params = SamplingParams { seed, ..SamplingParams::default() };
            let prompt = Request::new(Prompt::Text("a text".into()));
            Request { request_id: "r".into(), tenant: Some(copies.clone()), params, ..prompt }
        };
        let mut made = Vec::new();
        for request in each([Some(u64::MAX), None].into_iter().map(prompt), 3) {
            // Ours, this one, and the one that the next is made of.
            assert!(Arc::strong_count(&copies) <= 3, "{}", Arc::strong_count(&copies));
            made.push((request.request_id, request.params.seed));
        }
        let ids: Vec<_> = made.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["r-0", "r-1", "r-2", "r-3", "r-4", "r-5"]);
        let seeds: Vec<_> = made.iter().map(|(_, seed)| *seed).collect();
        assert_eq!(seeds, [Some(u64::MAX), Some(0), Some(1), None, None, None]);
        assert_eq!(
            each([prompt(None)].into_iter(), 1).next().unwrap().request_id,
            "r",
            "the only one is called as the call is"
        );
    }
}
