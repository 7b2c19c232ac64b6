//! One server, and one streamed request to it over the API that was chosen.

use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::{Response, StatusCode, redirect::Policy};
use serde_json::{Value, json};

use super::{BackendKind, BenchServeArgs, server_events::EventParser};
use crate::{
    cli::connect::Remote,
    config::{Secret, suggest::nearest},
    engine::{Event, Prompt},
    error::{Code, Error, Result},
    ids::TokenId,
    proto::candlewick::v1 as pb,
};

/// Time to connect, and for the list of models.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an answer that is no stream: an error, a list of models.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What is kept of a server's complaint.
const MAX_COMPLAINT_CHARS: usize = 300;
/// Messages of a stream beyond one a token: a beginning, an end, pings.
const SLACK: u64 = 4096;
/// Of these chat prompts are made; nearly all are one token each to nearly all tokenizers, with the space before.
const WORDS: [&str; 16] = [
    "the", "a", "time", "house", "water", "light", "was", "and", "in", "on", "day", "night", "long", "small", "green",
    "old",
];

/// What one request brought.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// From sending to the first token.
    pub first: Option<Duration>,
    /// From each message with tokens to the next.
    pub gaps: Vec<Duration>,
    /// From sending to the last token.
    pub last: Duration,
    /// As the server counts them.
    pub input_tokens: Option<u64>,
    /// As the server counts them; messages with tokens, where it does not.
    pub output_tokens: u64,
}

/// Notes when tokens came.
struct Clock {
    sent: Instant,
    newest: Option<Instant>,
    answer: Answer,
    counted: Option<u64>,
    messages: u64,
    most_messages: u64,
}

impl Clock {
    fn new(max_tokens: u32) -> Self {
        let most_messages = 2 * u64::from(max_tokens) + SLACK;
        let (answer, counted) = (Answer::default(), None);
        Self { sent: Instant::now(), newest: None, answer, counted, messages: 0, most_messages }
    }

    /// # Errors
    /// Where the server says far more than it was asked for.
    fn message(&mut self) -> Result<(), String> {
        self.messages += 1;
        if self.messages > self.most_messages { Err("the stream does not end".to_owned()) } else { Ok(()) }
    }

    fn tokens(&mut self) {
        let now = Instant::now();
        match self.newest.replace(now) {
            None => self.answer.first = Some(now - self.sent),
            Some(before) => self.answer.gaps.push(now - before),
        }
        self.answer.last = now - self.sent;
    }

    fn finish(mut self) -> Result<Answer, String> {
        let Some(first) = self.answer.first else { return Err("the stream brought no token".to_owned()) };
        self.answer.output_tokens = self.counted.unwrap_or(self.answer.gaps.len() as u64 + 1);
        self.answer.last = self.answer.last.max(first);
        Ok(self.answer)
    }
}

enum Kind {
    Http { client: reqwest::Client, url: String, chat: bool, api_key: Option<String> },
    Grpc(Box<Remote>),
}

/// A server and the model that is asked for.
pub(super) struct Client {
    kind: Kind,
    pub(super) model: String,
    ignore_eos: bool,
    timeout: Duration,
}

impl Client {
    /// Connects, and asks for the models there are.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no address; `Unavailable` where nobody answers; `NotFound` where the server does not
    /// have the model, with the name that it may have been.
    pub(super) async fn connect(args: &BenchServeArgs) -> Result<Self> {
        let base = args.base_url.trim_end_matches('/');
        let (kind, known) = match args.backend {
            BackendKind::Grpc => {
                let remote = Remote::connect(base, args.api_key.as_ref()).await?;
                let known = vec![remote.model.name.clone()];
                (Kind::Grpc(Box::new(remote)), known)
            }
            BackendKind::OpenAi | BackendKind::OpenAiChat => {
                // Whoever is named is asked, and nobody else: no proxy, no other place that an answer points to.
                let builder = reqwest::Client::builder().connect_timeout(PATIENCE).redirect(Policy::none()).no_proxy();
                // Without TLS nobody's certificates are wanted, and a machine that has none can still ask.
                let is_plain = base.starts_with("http://");
                let builder = if is_plain { builder.tls_certs_only([]) } else { builder };
                let client = builder.build().map_err(|error| Error::internal(format!("an HTTP client: {error}")))?;
                let chat = args.backend == BackendKind::OpenAiChat;
                let url = format!("{base}/v1/{}completions", if chat { "chat/" } else { "" });
                let known = models(&client, base, args.api_key.as_ref().map(Secret::reveal)).await?;
                (
                    Kind::Http { client, url, chat, api_key: args.api_key.as_ref().map(|key| key.reveal().to_owned()) },
                    known,
                )
            }
        };
        let model = choose(args.model.as_deref(), &known, base)?;
        Ok(Self { kind, model, ignore_eos: !args.stop_at_eos, timeout: args.request_timeout })
    }

    /// Entries of the vocabulary, where the server says so.
    pub(super) fn vocab_size(&self) -> Option<u32> {
        match &self.kind {
            Kind::Grpc(remote) => Some(remote.model.vocab_size),
            Kind::Http { .. } => None,
        }
    }

    /// Sends one prompt and reads its answer to the end.
    ///
    /// # Errors
    /// In a sentence, why there is no whole answer.
    pub(super) async fn ask(&self, prompt: Vec<u32>, max_tokens: u32) -> Result<Answer, String> {
        let asked = async {
            match &self.kind {
                Kind::Http { client, url, chat, api_key } => {
                    let body = self.body(prompt, max_tokens, *chat);
                    let request = client.post(url).header("content-type", "application/json").body(body);
                    let request = match api_key {
                        Some(key) => request.bearer_auth(key),
                        None => request,
                    };
                    stream_of_http(request, max_tokens, *chat).await
                }
                Kind::Grpc(remote) => self.stream_of_grpc(remote, prompt, max_tokens).await,
            }
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("took longer than --request-timeout {}", self.timeout.as_secs_f64())),
        }
    }

    fn body(&self, prompt: Vec<u32>, max_tokens: u32, chat: bool) -> String {
        let mut body = json!({
            "model": self.model,
            "temperature": 0.0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        if chat {
            let words: Vec<_> = prompt.iter().map(|&id| WORDS[id as usize % WORDS.len()]).collect();
            body["messages"] = json!([{"role": "user", "content": words.join(" ")}]);
            body["max_completion_tokens"] = max_tokens.into();
        } else {
            body["prompt"] = prompt.into();
            body["max_tokens"] = max_tokens.into();
        }
        body.to_string()
    }

    async fn stream_of_grpc(&self, remote: &Remote, prompt: Vec<u32>, max_tokens: u32) -> Result<Answer, String> {
        let sampling = pb::SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(max_tokens),
            ignore_eos: self.ignore_eos.then_some(true),
            ..pb::SamplingParams::default()
        };
        let prompt = Prompt::Tokens(prompt.into_iter().map(TokenId).collect());
        let mut clock = Clock::new(max_tokens);
        let mut events = remote.generate_with(prompt, sampling).await.map_err(|error| clipped(&error.to_string()))?;
        while let Some(event) = events.next().await {
            clock.message()?;
            match event.map_err(|error| clipped(&error.to_string()))? {
                Event::Delta(delta) if !delta.tokens.is_empty() => clock.tokens(),
                Event::Finished(finished) => {
                    clock.answer.input_tokens = Some(finished.usage.prompt_tokens.into());
                    clock.counted = Some(finished.usage.completion_tokens.into());
                    return clock.finish();
                }
                Event::Delta(_) | Event::Started(_) | Event::Prompt(_) => {}
            }
        }
        Err("the stream ended without saying why".to_owned())
    }
}

async fn stream_of_http(request: reqwest::RequestBuilder, max_tokens: u32, chat: bool) -> Result<Answer, String> {
    let mut clock = Clock::new(max_tokens);
    let response = request.send().await.map_err(|error| root_cause(&error))?;
    let status = response.status();
    if status != StatusCode::OK {
        return Err(format!("{status}: {}", complaint(&body(response).await?)));
    }
    let mut bytes = response.bytes_stream();
    let (mut parser, mut events, mut ended) = (EventParser::default(), Vec::new(), false);
    while let Some(piece) = bytes.next().await {
        parser.push(&piece.map_err(|error| root_cause(&error))?, &mut events)?;
        for event in events.drain(..) {
            clock.message()?;
            if event == b"[DONE]" {
                return clock.finish();
            }
            let event: Value =
                serde_json::from_slice(&event).map_err(|error| format!("an event is no JSON: {error}"))?;
            ended |= hear(&event, chat, &mut clock)?;
        }
    }
    // Some servers leave the last event out.
    if ended { clock.finish() } else { Err("the stream was cut off".to_owned()) }
}

/// Takes in one event of a stream; whether it says that the answer has ended.
fn hear(event: &Value, chat: bool, clock: &mut Clock) -> Result<bool, String> {
    if event.get("error").is_some_and(|error| !error.is_null()) {
        return Err(complaint(event.to_string().as_bytes()));
    }
    let usage = &event["usage"];
    clock.answer.input_tokens = usage["prompt_tokens"].as_u64().or(clock.answer.input_tokens);
    clock.counted = usage["completion_tokens"].as_u64().or(clock.counted);
    let choice = &event["choices"][0];
    let says = |value: &Value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    let ended = choice["finish_reason"].is_string();
    let speaks = if chat {
        ["content", "reasoning_content", "reasoning", "tool_calls"].iter().any(|field| says(&choice["delta"][*field]))
    } else {
        // Bytes that are no whole character yet are a token without text.
        says(&choice["text"]) || choice["text"].is_string() && !ended
    };
    if speaks {
        clock.tokens();
    }
    Ok(ended)
}

/// The names of the models that a server has; none where it has no list.
async fn models(client: &reqwest::Client, base: &str, api_key: Option<&str>) -> Result<Vec<String>> {
    let url = format!("{base}/v1/models");
    let request = client.get(&url).timeout(PATIENCE);
    let request = match api_key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    let response = request.send().await.map_err(|error| match error.is_builder() {
        true => Error::invalid("--base-url", format!("{base} is no address: {}", root_cause(&error))),
        false => Error::new(Code::Unavailable, format!("cannot reach {base}: {}", root_cause(&error))),
    })?;
    let status = response.status();
    let text = body(response).await.map_err(|why| Error::new(Code::Unavailable, format!("{url}: {why}")))?;
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => return Ok(Vec::new()),
        status => return Err(Error::new(Code::Unavailable, format!("{url}: {status}: {}", complaint(&text)))),
    }
    let list: Value = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Code::Unavailable, format!("{url} answers with no JSON: {error}")))?;
    let names = list["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn choose(asked: Option<&str>, known: &[String], base: &str) -> Result<String> {
    match asked {
        // What a server without a list has is its own to say.
        Some(name) if known.is_empty() || known.iter().any(|known| known == name) => Ok(name.to_owned()),
        Some(name) => {
            let hint = nearest(name, known.iter().map(String::as_str))
                .map_or_else(String::new, |near| format!("; did you mean {near}?"));
            Err(Error::new(Code::NotFound, format!("--model: {base} has no model {name}{hint}")))
        }
        None => known.first().cloned().ok_or_else(|| {
            Error::invalid("--model", format!("{base} lists no models, so the name of one must be given"))
        }),
    }
}

/// A body that is no stream, as far as it is believed.
async fn body(response: Response) -> Result<Vec<u8>, String> {
    let (mut bytes, mut body) = (response.bytes_stream(), Vec::new());
    while let Some(piece) = bytes.next().await {
        let piece = piece.map_err(|error| root_cause(&error))?;
        let room = MAX_BODY_BYTES - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == MAX_BODY_BYTES {
            break;
        }
    }
    Ok(body)
}

/// What an error's body says: its message, else all of it.
fn complaint(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let message =
        [&parsed["error"]["message"], &parsed["message"], &parsed["error"]].into_iter().find_map(Value::as_str);
    clipped(message.unwrap_or(&text))
}

fn clipped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_COMPLAINT_CHARS).collect()
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    clipped(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(events: &[&str], chat: bool) -> Result<Answer, String> {
        let mut clock = Clock::new(8);
        for event in events {
            clock.message()?;
            hear(&serde_json::from_str(event).unwrap(), chat, &mut clock)?;
        }
        clock.finish()
    }

    #[test]
    fn tokens_are_counted_by_the_server_or_by_messages() {
        let text = [
            r#"{"choices": [{"text": "a", "finish_reason": null}]}"#,
            r#"{"choices": [{"text": "", "finish_reason": null}]}"#,
            r#"{"choices": [{"text": "", "finish_reason": "length"}]}"#,
        ];
        let answer = heard(&text, false).unwrap();
        assert_eq!((answer.output_tokens, answer.gaps.len(), answer.input_tokens), (2, 1, None));
        let usage = r#"{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}"#;
        let answer = heard(&[text[0], usage], false).unwrap();
        assert_eq!((answer.output_tokens, answer.input_tokens), (5, Some(7)));
    }

    #[test]
    fn a_chat_speaks_where_its_delta_does() {
        let delta = |delta: &str| format!(r#"{{"choices": [{{"delta": {delta}}}]}}"#);
        let events = [
            delta(r#"{"role": "assistant", "content": ""}"#),
            delta(r#"{"reasoning_content": "hm"}"#),
            delta(r#"{"content": "a"}"#),
            delta(r#"{"tool_calls": [{}]}"#),
            delta("{}"),
        ];
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        assert_eq!(heard(&events, true).unwrap().output_tokens, 3);
    }

    #[test]
    fn what_is_no_answer_is_said() {
        let error = heard(&[r#"{"error": {"message": "out of\nmemory"}}"#], false).unwrap_err();
        assert_eq!(error, "out of memory");
        assert_eq!(heard(&["{}"], true).unwrap_err(), "the stream brought no token");
        for odd in ["[]", "3", r#"{"choices": 3}"#, r#"{"choices": [{"text": 4}], "usage": []}"#] {
            assert!(heard(&[odd], false).is_err(), "{odd}");
        }
        let many = vec!["{}"; 5000];
        assert_eq!(heard(&many, false).unwrap_err(), "the stream does not end");
    }

    #[test]
    fn a_complaint_is_its_message_and_short() {
        assert_eq!(complaint(br#"{"error": {"message": "no"}}"#), "no");
        assert_eq!(complaint(br#"{"error": "no"}"#), "no");
        assert_eq!(complaint(b"\xffplain"), "\u{fffd}plain");
        assert_eq!(complaint(&[b'x'; 5000]).len(), MAX_COMPLAINT_CHARS);
    }

    #[test]
    fn a_model_is_the_first_or_one_that_is_there() {
        let known = ["qwen".to_owned(), "llama".to_owned()];
        assert_eq!(choose(None, &known, "x").unwrap(), "qwen");
        assert_eq!(choose(Some("llama"), &known, "x").unwrap(), "llama");
        assert_eq!(choose(Some("other"), &[], "x").unwrap(), "other");
        assert!(choose(None, &[], "x").is_err());
        let error = choose(Some("lama"), &known, "x").unwrap_err();
        assert!(error.message.contains("did you mean llama?"), "{error}");
    }
}
