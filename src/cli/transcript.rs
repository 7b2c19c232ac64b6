//! What a stream of `generate` brought, answer by answer, and as JSON.

use std::{
    io,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::{Value, json};

use super::{Stop, backend::Events};
use crate::{
    engine::{Event, Finished},
    error::{Error, Result},
    params::{FinishReason, SampledToken, Usage},
};

/// One of a request's sequences.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) tokens: Vec<SampledToken>,
    finished: Option<Finished>,
}

/// Everything that a stream brought.
#[derive(Debug)]
pub(super) struct Transcript {
    /// In the order of their index; each has ended.
    pub(super) answers: Vec<Answer>,
    /// Tokens of the prompt from the second, where their log-probabilities were asked for.
    prompt: Vec<SampledToken>,
    /// From asking to the first token.
    first_token: Duration,
    /// From asking to the end.
    total: Duration,
}

impl Transcript {
    /// Reads a stream to its end, showing each piece of any answer to `seen`.
    ///
    /// # Errors
    /// What the stream ended with instead of an answer, or what `seen` says.
    pub(super) async fn read(
        mut events: Events,
        asked: Instant,
        mut seen: impl FnMut(&str, &[SampledToken]) -> io::Result<()>,
    ) -> Result<Self, Stop> {
        let (mut answers, mut prompt, mut first_token) = (Vec::new(), Vec::new(), None);
        while let Some(event) = events.next().await {
            match event? {
                Event::Started(_) => {}
                Event::Prompt(stretch) => prompt.extend(stretch.tokens),
                Event::Delta(delta) => {
                    first_token.get_or_insert_with(|| asked.elapsed());
                    seen(&delta.text, &delta.tokens)?;
                    let answer = answer(&mut answers, delta.index);
                    answer.text.push_str(&delta.text);
                    answer.tokens.extend(delta.tokens);
                }
                Event::Finished(finished) => {
                    let index = finished.index;
                    answer(&mut answers, index).finished = Some(finished);
                }
            }
        }
        if answers.is_empty() || answers.iter().any(|answer| answer.finished.is_none()) {
            return Err(Error::internal("the stream ended without saying why").into());
        }
        let total = asked.elapsed();
        Ok(Self { answers, prompt, first_token: first_token.unwrap_or(total), total })
    }

    /// One object: of one answer its fields, of several `choices`; usage and timings of all.
    pub(super) fn to_json(&self, model: &str) -> Value {
        let mut object = json!({ "model": model });
        match &self.answers[..] {
            [answer] => answer.write(&mut object),
            answers => {
                let choice = |(index, answer): (usize, &Answer)| {
                    let mut choice = json!({ "index": index });
                    answer.write(&mut choice);
                    choice
                };
                object["choices"] = answers.iter().enumerate().map(choice).collect();
            }
        }
        let usage = self.usage();
        object["usage"] = json!({
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        });
        let decoding = self.total.saturating_sub(self.first_token);
        let intervals = self.answers.iter().map(|answer| answer.tokens.len()).max().unwrap_or(0).saturating_sub(1);
        let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let per = |n: usize| {
            if n == 0 { Value::Null } else { json!(milliseconds(decoding / u32::try_from(n).unwrap_or(u32::MAX))) }
        };
        object["timings"] = json!({
            "ttft_ms": milliseconds(self.first_token),
            "itl_ms": per(intervals),
            "total_ms": milliseconds(self.total),
        });
        if !self.prompt.is_empty() {
            object["prompt_logprobs"] = self.prompt.iter().map(logprobs_json).collect();
        }
        object
    }

    /// The prompt once, and the tokens of all answers.
    fn usage(&self) -> Usage {
        let each = self.answers.iter().filter_map(|answer| Some(answer.finished.as_ref()?.usage));
        let add = |sum: Usage, usage: Usage| Usage {
            completion_tokens: sum.completion_tokens.saturating_add(usage.completion_tokens),
            ..sum
        };
        each.reduce(add).unwrap_or_default()
    }
}

/// The answer of that index, which may be the first that is heard of it.
fn answer(answers: &mut Vec<Answer>, index: u32) -> &mut Answer {
    // The engine's own counting, or a server's: whose would be large is refused before.
    let index = (index as usize).min(crate::params::limits::SEQUENCES);
    if answers.len() <= index {
        answers.resize_with(index + 1, Answer::default);
    }
    &mut answers[index]
}

impl Answer {
    fn write(&self, object: &mut Value) {
        let (reason, stop_reason) = self.finished.as_ref().map_or(("", Value::Null), |f| finish_reason(&f.reason));
        object["text"] = json!(self.text);
        object["token_ids"] = self.tokens.iter().map(|token| token.id.0).collect();
        object["finish_reason"] = json!(reason);
        object["stop_reason"] = stop_reason;
        if self.tokens.iter().any(|token| token.logprobs.is_some()) {
            object["logprobs"] = self.tokens.iter().map(logprobs_json).collect();
        }
    }
}

fn logprobs_json(token: &SampledToken) -> Value {
    let Some(logprobs) = &token.logprobs else { return Value::Null };
    let top = logprobs.top.iter().map(|(id, logprob)| json!({ "token_id": id.0, "logprob": logprob }));
    json!({ "token_id": token.id.0, "logprob": logprobs.chosen, "top": top.collect::<Vec<_>>() })
}

/// As vLLM says it: `finish_reason`, and `stop_reason`, which tells what of the request's own matched.
fn finish_reason(reason: &FinishReason) -> (&'static str, Value) {
    match reason {
        FinishReason::EndOfSequence(_) | FinishReason::GrammarComplete => ("stop", Value::Null),
        FinishReason::StopToken(id) => ("stop", json!(id.0)),
        FinishReason::StopString(stop) => ("stop", json!(stop)),
        FinishReason::Length => ("length", Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use smallvec::smallvec;

    use super::*;
    use crate::{
        engine::{Delta, Started, Timings},
        error::Code,
        ids::TokenId,
        params::{PromptLogprobs, SamplingParams, TokenLogprobs},
    };

    fn delta(text: &str, ids: &[u32]) -> Event {
        let tokens = ids.iter().map(|&id| SampledToken { id: TokenId(id), logprobs: None }).collect();
        Event::Delta(Delta { index: 0, text: text.into(), pieces: Vec::new(), tokens, usage: Usage::default() })
    }

    fn finished(reason: FinishReason) -> Event {
        Event::Finished(Finished {
            index: 0,
            reason,
            tool_calls: false,
            usage: Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 3 },
            timings: Timings::default(),
            receipt: None,
        })
    }

    fn read(events: Vec<Result<Event>>) -> Result<Transcript, Stop> {
        let events = Box::pin(stream::iter(events));
        futures::executor::block_on(Transcript::read(events, Instant::now(), |_, _| Ok(())))
    }

    #[test]
    fn the_object_holds_all_that_came() {
        let started = Event::Started(Box::new(Started { prompt_tokens: 3, params: SamplingParams::default() }));
        let events = vec![
            Ok(started),
            Ok(delta("He", &[5])),
            Ok(delta("", &[6])),
            Ok(delta("llo", &[7])),
            Ok(finished(FinishReason::Length)),
        ];
        let object = read(events).unwrap().to_json("demo");
        assert_eq!(object["text"], "Hello");
        assert_eq!(object["token_ids"], json!([5, 6, 7]));
        assert_eq!((&object["finish_reason"], &object["stop_reason"]), (&json!("length"), &Value::Null));
        assert_eq!(object["usage"]["completion_tokens"], 3);
        assert!(object["timings"]["ttft_ms"].is_number() && object["timings"]["itl_ms"].is_number());
        assert!(object.get("logprobs").is_none());
    }

    #[test]
    fn log_probabilities_are_listed_where_they_came() {
        let logprobs = TokenLogprobs { chosen: -0.5, top: vec![(TokenId(9), -0.25)] };
        let token = SampledToken { id: TokenId(5), logprobs: Some(Box::new(logprobs)) };
        let delta = Event::Delta(Delta {
            index: 0,
            text: "x".into(),
            pieces: Vec::new(),
            tokens: smallvec![token],
            usage: Usage::default(),
        });
        let object = read(vec![Ok(delta), Ok(finished(FinishReason::StopString("y".into())))]).unwrap().to_json("demo");
        assert_eq!(
            object["logprobs"],
            json!([{ "token_id": 5, "logprob": -0.5, "top": [{ "token_id": 9, "logprob": -0.25 }] }])
        );
        assert_eq!(object["stop_reason"], "y");
        assert_eq!(object["timings"]["itl_ms"], Value::Null);
    }

    #[test]
    fn several_answers_are_choices_and_the_prompt_has_its_own_list() {
        let of = |event: Event, index: u32| match event {
            Event::Delta(delta) => Ok(Event::Delta(Delta { index, ..delta })),
            Event::Finished(finished) => Ok(Event::Finished(Finished { index, ..finished })),
            other => Ok(other),
        };
        let logprobs = Some(Box::new(TokenLogprobs { chosen: -2.0, top: Vec::new() }));
        let tokens = vec![SampledToken { id: TokenId(4), logprobs }];
        let events = vec![
            Ok(Event::Prompt(PromptLogprobs { start: 1, tokens })),
            of(delta("a", &[1]), 0),
            of(delta("x", &[2]), 1),
            of(finished(FinishReason::Length), 1),
            of(delta("b", &[3]), 0),
            of(finished(FinishReason::StopString("c".into())), 0),
        ];
        let object = read(events).unwrap().to_json("demo");
        let choices = json!([
            {"index": 0, "text": "ab", "token_ids": [1, 3], "finish_reason": "stop", "stop_reason": "c"},
            {"index": 1, "text": "x", "token_ids": [2], "finish_reason": "length", "stop_reason": null},
        ]);
        assert_eq!((&object["choices"], object.get("text")), (&choices, None));
        assert_eq!(object["prompt_logprobs"], json!([{"token_id": 4, "logprob": -2.0, "top": []}]));
        assert_eq!((&object["usage"]["prompt_tokens"], &object["usage"]["completion_tokens"]), (&json!(3), &json!(6)));
        // Both must have ended.
        assert!(read(vec![of(delta("a", &[1]), 0), of(finished(FinishReason::Length), 1)]).is_err());
    }

    #[test]
    fn an_error_in_the_stream_is_the_outcome() {
        let error = Error::new(Code::Aborted, "preempted too often");
        let outcome = read(vec![Ok(delta("x", &[1])), Err(error)]);
        assert!(matches!(outcome, Err(Stop::Error(error)) if error.code == Code::Aborted));
        assert!(matches!(read(vec![Ok(delta("x", &[1]))]), Err(Stop::Error(_))));
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_stream() {
        let events: Events = Box::pin(stream::iter([Ok(delta("x", &[1])), Ok(delta("y", &[2]))]));
        let outcome = futures::executor::block_on(Transcript::read(events, Instant::now(), |_, _| {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }));
        assert!(matches!(outcome, Err(Stop::ClosedPipe)));
    }
}
