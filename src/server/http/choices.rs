//! Several generations that one call asks for: several prompts, several answers to each.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};

use super::paths::{Renames, rename};
use crate::{
    engine::{Event, Finished, Request},
    error::{Error, Result},
    params::SampledToken,
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

/// One choice, put together.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) text: String,
    /// Of a chat, all that was said, by kind.
    pub(crate) pieces: Vec<Piece>,
    /// The prompt's, after its first one, where their log-probabilities were asked for.
    pub(crate) prompt: Vec<SampledToken>,
    pub(crate) tokens: Vec<SampledToken>,
    /// Set once it has ended.
    pub(crate) finished: Option<Finished>,
}

impl Choices {
    /// Has the engine admit `requests`, all or none: so many answers to each prompt, one request an answer.
    ///
    /// # Errors
    /// The quotas', before the engine hears of any; the engine's for the first one that it refuses. Fields have the face's
    /// names.
    pub(crate) async fn open(
        backend: &Backend,
        caller: &Caller,
        requests: Vec<Request>,
        answers: usize,
        renames: Renames,
    ) -> Result<Self> {
        let quota = caller.admit_all(&requests, answers).map_err(|error| rename(backend.refused(error), renames));
        let (mut quota, number) = (quota?, requests.len());
        let mut opened = Vec::with_capacity(number);
        for (index, request) in requests.into_iter().enumerate() {
            let own = quota.split(&request, index % answers.max(1) == 0);
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
        Ok(Self { events, number })
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
