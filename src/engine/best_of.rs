//! `best_of`: holds the sequences of a request back until all have ended, then lets the most likely ones out.

use super::stream::{Delta, Event, Finished};
use crate::{params::SampledToken, text::Piece};

/// The sequences of one request, as far as they have come. Bounded by the sequences a request may ask for and their
/// `max_tokens`.
pub(super) struct BestOf {
    /// How many are let out.
    n: usize,
    /// Whether the request asked for log-probabilities; the ranking does in any case.
    keeps_logprobs: bool,
    held: Vec<Held>,
}

#[derive(Default)]
struct Held {
    text: String,
    pieces: Vec<Piece>,
    tokens: Vec<SampledToken>,
    finished: Option<Finished>,
}

impl Held {
    /// The logarithm of the probability of all its tokens together.
    fn cumulative_logprob(&self) -> f64 {
        self.tokens.iter().filter_map(|token| token.logprobs.as_ref()).map(|logprobs| f64::from(logprobs.chosen)).sum()
    }
}

impl BestOf {
    /// For `of` sequences, of which `n` are let out.
    pub(super) fn new(n: usize, of: usize, keeps_logprobs: bool) -> Self {
        Self { n, keeps_logprobs, held: (0..of).map(|_| Held::default()).collect() }
    }

    /// Takes an event of one sequence.
    pub(super) fn hold(&mut self, event: Event) {
        match event {
            Event::Delta(delta) => {
                if let Some(held) = self.held.get_mut(delta.index as usize) {
                    held.text.push_str(&delta.text);
                    held.pieces.extend(delta.pieces);
                    held.tokens.extend(delta.tokens);
                }
            }
            Event::Finished(finished) => {
                if let Some(held) = self.held.get_mut(finished.index as usize) {
                    held.finished = Some(finished);
                }
            }
            Event::Started(_) | Event::Prompt(_) => {}
        }
    }

    /// The events of the `n` most likely, numbered anew, the most likely first; of equal ones the earlier.
    pub(super) fn release(&mut self) -> impl Iterator<Item = Event> + use<> {
        let mut held = std::mem::take(&mut self.held);
        held.sort_by(|one, other| other.cumulative_logprob().total_cmp(&one.cumulative_logprob()));
        held.truncate(self.n);
        let keeps_logprobs = self.keeps_logprobs;
        (0..).zip(held).flat_map(move |(index, Held { text, pieces, mut tokens, finished })| {
            if !keeps_logprobs {
                tokens.iter_mut().for_each(|token| token.logprobs = None);
            }
            let finished = finished.map(|finished| Finished { index, ..finished });
            let usage = finished.as_ref().map(|finished| finished.usage).unwrap_or_default();
            let delta = Event::Delta(Delta { index, text, pieces, tokens: tokens.into(), usage });
            [Some(delta), finished.map(Event::Finished)].into_iter().flatten()
        })
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::{
        ids::TokenId,
        params::{FinishReason, TokenLogprobs, Usage},
    };

    fn said(best_of: &mut BestOf, index: u32, logprobs: &[f32]) {
        for (k, &chosen) in logprobs.iter().enumerate() {
            let logprobs = Some(Box::new(TokenLogprobs { chosen, top: Vec::new() }));
            let tokens = smallvec![SampledToken { id: TokenId(10 * index + k as u32), logprobs }];
            let delta = Delta { index, text: format!("{index}"), pieces: Vec::new(), tokens, usage: Usage::default() };
            best_of.hold(Event::Delta(delta));
        }
        best_of.hold(Event::Finished(Finished {
            index,
            reason: FinishReason::Length,
            tool_calls: false,
            usage: Usage::default(),
            timings: crate::engine::Timings::default(),
            receipt: None,
        }));
    }

    #[test]
    fn the_most_likely_sequences_come_out_numbered_anew() {
        for keeps_logprobs in [false, true] {
            let mut best_of = BestOf::new(2, 3, keeps_logprobs);
            said(&mut best_of, 1, &[-1.0, -1.0]);
            said(&mut best_of, 0, &[-3.0]);
            said(&mut best_of, 2, &[-0.5, -0.25, -0.25]);
            let events: Vec<_> = best_of.release().collect();
            let [Event::Delta(first), Event::Finished(_), Event::Delta(second), Event::Finished(end)] = &events[..]
            else {
                panic!("{events:?}");
            };
            assert_eq!((first.index, &first.text[..], second.index, &second.text[..]), (0, "222", 1, "11"));
            assert_eq!(end.index, 1);
            assert_eq!(first.tokens.iter().all(|token| token.logprobs.is_some()), keeps_logprobs);
        }
    }
}
