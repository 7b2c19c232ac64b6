//! `candlewick generate`: continues one prompt, streaming to standard output.

use std::{
    io::{self, IsTerminal, Read, Write},
    time::{Duration, Instant},
};

use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

use super::{
    Stop,
    backend::{Backend, BackendArgs, Events},
    block_on,
    sampling_args::SamplingArgs,
};
use crate::{
    engine::{Event, Finished, Prompt},
    error::{Error, Result},
    ids::TokenId,
    params::{FinishReason, SampledToken},
    text::MAX_TEXT_BYTES,
};

/// What `generate` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) backend: BackendArgs,
    /// Text to continue; standard input if left out.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue.
    #[arg(long, value_name = "ID", value_delimiter = ',', conflicts_with = "prompt")]
    prompt_token_ids: Option<Vec<u32>>,
    /// Print one JSON object at the end instead: text, token ids, why it ended, usage, timings.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: GenerateArgs) -> Result<(), Stop> {
    // Before the model is loaded, so that a missing prompt is said at once.
    let prompt = prompt(&args)?;
    block_on(async move {
        let backend = Backend::open(&args.backend).await?;
        let asked = Instant::now();
        let events = backend.generate(prompt, &args.sampling).await?;
        if args.json {
            let transcript = Transcript::read(events, asked, |_, _| Ok(())).await?;
            writeln!(io::stdout(), "{}", transcript.to_json(backend.model_name()))?;
        } else {
            let speaks = backend.has_tokenizer();
            let mut out = Printer { speaks, ends_with_newline: false };
            Transcript::read(events, asked, |text, tokens| out.print(text, tokens)).await?;
            out.end()?;
        }
        Ok(())
    })
}

fn prompt(args: &GenerateArgs) -> Result<Prompt, Stop> {
    if let Some(ids) = &args.prompt_token_ids {
        return Ok(Prompt::Tokens(ids.iter().copied().map(TokenId).collect()));
    }
    if let Some(text) = &args.prompt {
        return Ok(Prompt::Text(text.clone()));
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let why = "give the text to continue, or --prompt-token-ids, or pipe a text to standard input";
        return Err(Error::invalid("--prompt", why).into());
    }
    let mut bytes = Vec::new();
    stdin.lock().take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Prompt::Text(piped_text(bytes)?))
}

/// The text of a pipe, less the newline that `echo` and editors put at its end.
fn piped_text(bytes: Vec<u8>) -> Result<String> {
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(Error::invalid("standard input", format!("is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| Error::invalid("standard input", error.to_string()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Writes what comes, as it comes: text, or token ids where the model has no tokenizer.
struct Printer {
    speaks: bool,
    ends_with_newline: bool,
}

impl Printer {
    fn print(&mut self, text: &str, tokens: &[SampledToken]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.speaks {
            out.write_all(text.as_bytes())?;
            if !text.is_empty() {
                self.ends_with_newline = text.ends_with('\n');
            }
        } else {
            for token in tokens {
                write!(out, "{} ", token.id)?;
            }
        }
        out.flush()
    }

    fn end(self) -> io::Result<()> {
        if self.ends_with_newline { Ok(()) } else { writeln!(io::stdout()) }
    }
}

/// Everything that a stream brought.
#[derive(Debug)]
struct Transcript {
    text: String,
    tokens: Vec<SampledToken>,
    finished: Finished,
    /// From asking to the first token.
    first_token: Duration,
    /// From asking to the end.
    total: Duration,
}

impl Transcript {
    /// Reads a stream to its end, showing each piece to `seen`.
    async fn read(
        mut events: Events,
        asked: Instant,
        mut seen: impl FnMut(&str, &[SampledToken]) -> io::Result<()>,
    ) -> Result<Self, Stop> {
        let (mut text, mut tokens, mut first_token) = (String::new(), Vec::new(), None);
        while let Some(event) = events.next().await {
            match event? {
                Event::Started(_) | Event::Prompt(_) => {}
                Event::Delta(delta) => {
                    first_token.get_or_insert_with(|| asked.elapsed());
                    seen(&delta.text, &delta.tokens)?;
                    text.push_str(&delta.text);
                    tokens.extend(delta.tokens);
                }
                Event::Finished(finished) => {
                    let total = asked.elapsed();
                    return Ok(Self { text, tokens, finished, first_token: first_token.unwrap_or(total), total });
                }
            }
        }
        Err(Error::internal("the stream ended without saying why").into())
    }

    fn to_json(&self, model: &str) -> Value {
        let (reason, stop_reason) = finish_reason(&self.finished.reason);
        let usage = self.finished.usage;
        let decoding = self.total.saturating_sub(self.first_token);
        let intervals = self.tokens.len().saturating_sub(1);
        let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let per = |n: usize| {
            if n == 0 { Value::Null } else { json!(milliseconds(decoding / u32::try_from(n).unwrap_or(u32::MAX))) }
        };
        let mut object = json!({
            "model": model,
            "text": self.text,
            "token_ids": self.tokens.iter().map(|token| token.id.0).collect::<Vec<_>>(),
            "finish_reason": reason,
            "stop_reason": stop_reason,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
            },
            "timings": {
                "ttft_ms": milliseconds(self.first_token),
                "itl_ms": per(intervals),
                "total_ms": milliseconds(self.total),
            },
        });
        if self.tokens.iter().any(|token| token.logprobs.is_some()) {
            object["logprobs"] = self.tokens.iter().map(logprobs_json).collect();
        }
        object
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

    use super::*;
    use crate::{
        engine::{Delta, Started, Timings},
        error::Code,
        params::{SamplingParams, TokenLogprobs, Usage},
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
            tokens: vec![token],
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

    #[test]
    fn a_pipe_loses_the_newline_at_its_end_and_no_other() {
        assert_eq!(piped_text(b"a\nb\n\n".to_vec()).unwrap(), "a\nb\n");
        assert_eq!(piped_text(b"ab".to_vec()).unwrap(), "ab");
        assert!(piped_text(vec![0xff]).is_err());
    }
}
