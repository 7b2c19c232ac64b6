//! A running server as the place that tokens come from: our own gRPC services, as a client.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use tonic::{
    Request, Status, Streaming,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::sampling_args::SamplingArgs;
use crate::{
    config::Secret,
    engine::{Delta, Event, Finished, Prompt, Started, Timings},
    error::{Code, Error, Result},
    ids::TokenId,
    params::{FinishReason, PromptLogprobs, SampledToken, SamplingParams, TokenLogprobs, Usage},
    proto::candlewick::v1::{
        self as pb, chat_client::ChatClient, complete_stream_response::Event as ChatEvent, finish::Matched,
        generate_stream_response::Event as GenerateEvent, generation_client::GenerationClient,
        models_client::ModelsClient, prompt::Prompt as PromptKind,
    },
    text::{ChatMessage, Piece, Role},
};

/// Shows a key with every call, where there is one.
#[derive(Clone)]
struct Key(Option<AsciiMetadataValue>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A server, and the model that it serves.
pub(super) struct Remote {
    channel: InterceptedService<Channel, Key>,
    pub(super) model: pb::Model,
}

impl Remote {
    /// Connects and asks what is served.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no address, `Unavailable` where nobody answers, what the server says otherwise.
    pub(super) async fn connect(url: &str, key: Option<&Secret>) -> Result<Self> {
        let bearer = |key: &Secret| format!("Bearer {}", key.reveal()).parse::<AsciiMetadataValue>();
        let mut value: Option<AsciiMetadataValue> =
            key.map(bearer).transpose().map_err(|_| Error::invalid("--api-key", "cannot stand in a header"))?;
        value.iter_mut().for_each(|value| value.set_sensitive(true));
        let endpoint = Endpoint::from_shared(with_scheme(url))
            .map_err(|error| Error::invalid("--connect", format!("{url} is no address: {error}")))?;
        let channel = endpoint.connect().await.map_err(|error| {
            Error::new(Code::Unavailable, format!("cannot connect to {url}: {}", root_cause(&error)))
        })?;
        let channel = InterceptedService::new(channel, Key(value));
        let models = ModelsClient::new(channel.clone()).list(pb::ListRequest {}).await.map_err(|s| from_status(&s))?;
        let model = default_of(models.into_inner().models);
        let model = model.ok_or_else(|| Error::new(Code::NotFound, format!("{url} serves no model")))?;
        Ok(Self { channel, model })
    }

    /// Continues a prompt.
    ///
    /// # Errors
    /// What the server says before the stream begins.
    pub(super) async fn generate(
        &self,
        prompt: Prompt,
        sampling: &SamplingArgs,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<Event>> + Send>>> {
        self.generate_with(prompt, sampling.to_proto()).await
    }

    /// Continues a prompt, with parameters as the wire has them.
    ///
    /// # Errors
    /// What the server says before the stream begins.
    pub(super) async fn generate_with(
        &self,
        prompt: Prompt,
        sampling: pb::SamplingParams,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<Event>> + Send>>> {
        let options = Some(pb::RequestOptions { sampling: Some(sampling), ..pb::RequestOptions::default() });
        let prompt = match prompt {
            // The command line talks in plain messages: what else a chat may hold is not its own to send.
            Prompt::Chat(chat) => {
                let message = |m: ChatMessage| pb::Message {
                    role: role(m.role) as i32,
                    content: m.content,
                    ..Default::default()
                };
                let messages = chat.messages.into_iter().map(message).collect();
                let request = pb::CompleteStreamRequest { messages, options, chat: None };
                let response = ChatClient::new(self.channel.clone()).complete_stream(request).await;
                return self.events(response, |r: pb::CompleteStreamResponse| r.event.and_then(Payload::of_chat));
            }
            Prompt::Text(text) => PromptKind::Text(text),
            Prompt::Tokens(ids) => PromptKind::TokenIds(pb::TokenIds { ids: ids.into_iter().map(|id| id.0).collect() }),
        };
        let request = pb::GenerateStreamRequest { prompt: Some(pb::Prompt { prompt: Some(prompt) }), options };
        let response = GenerationClient::new(self.channel.clone()).generate_stream(request).await;
        self.events(response, |r: pb::GenerateStreamResponse| r.event.and_then(Payload::of_generate))
    }

    fn events<R: Send + 'static>(
        &self,
        response: Result<tonic::Response<Streaming<R>>, Status>,
        payload: fn(R) -> Option<Payload>,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<Event>> + Send>>> {
        let messages = response.map_err(|status| from_status(&status))?.into_inner();
        let eos = self.model.eos_token_ids.clone();
        let events = messages.filter_map(move |message| {
            let event = match message {
                Ok(message) => payload(message).map(|payload| Ok(payload.into_event(&eos))),
                Err(status) => Some(Err(from_status(&status))),
            };
            std::future::ready(event)
        });
        Ok(Box::pin(events))
    }
}

/// The model that requests get which name none, as ours do.
fn default_of(models: Vec<pb::Model>) -> Option<pb::Model> {
    models.into_iter().find(|model| model.is_default)
}

/// What both services' events hold.
enum Payload {
    Started(Box<pb::Started>),
    Delta(pb::Delta),
    Finished(Box<pb::Finished>),
    Prompt(pb::PromptLogprobs),
}

impl Payload {
    /// Heartbeats are nothing to the command line.
    fn of_generate(event: GenerateEvent) -> Option<Self> {
        match event {
            GenerateEvent::Started(started) => Some(Self::Started(started)),
            GenerateEvent::Delta(delta) => Some(Self::Delta(delta)),
            GenerateEvent::Finished(finished) => Some(Self::Finished(finished)),
            GenerateEvent::PromptLogprobs(prompt) => Some(Self::Prompt(prompt)),
            GenerateEvent::Progress(_) => None,
        }
    }

    fn of_chat(event: ChatEvent) -> Option<Self> {
        match event {
            ChatEvent::Started(started) => Some(Self::Started(started)),
            ChatEvent::Delta(delta) => Some(Self::Delta(delta)),
            ChatEvent::Finished(finished) => Some(Self::Finished(finished)),
            ChatEvent::PromptLogprobs(prompt) => Some(Self::Prompt(prompt)),
            ChatEvent::Progress(_) => None,
        }
    }

    /// The engine's own event. Parameters that the server echoes are left out: the command line has no use for them.
    fn into_event(self, eos_token_ids: &[u32]) -> Event {
        match self {
            Self::Started(started) => {
                let (prompt_tokens, params) = (started.prompt_tokens, SamplingParams::default());
                Event::Started(Box::new(Started { prompt_tokens, params }))
            }
            Self::Delta(delta) => {
                let mut logprobs = delta.logprobs.into_iter().map(|position| Box::new(logprobs(position)));
                let tokens = delta.token_ids.into_iter();
                let tokens = tokens.map(|id| SampledToken { id: TokenId(id), logprobs: logprobs.next() }).collect();
                let thought = Some(delta.reasoning).filter(|text| !text.is_empty());
                Event::Delta(Delta {
                    index: delta.index,
                    text: delta.text,
                    pieces: thought.map(Piece::Reasoning).into_iter().collect(),
                    tokens,
                    usage: Usage::default(),
                })
            }
            Self::Finished(finished) => {
                let usage = finished.usage.unwrap_or_default();
                let usage = Usage {
                    prompt_tokens: usage.prompt_tokens,
                    cached_tokens: usage.cached_tokens,
                    completion_tokens: usage.completion_tokens,
                };
                let finish = finished.finish.unwrap_or_default();
                let tool_calls = finish.reason() == pb::FinishReason::ToolCalls;
                let reason = reason(finish, eos_token_ids);
                let (timings, receipt) = (Timings::default(), None);
                Event::Finished(Finished { index: finished.index, reason, tool_calls, usage, timings, receipt })
            }
            Self::Prompt(prompt) => {
                let token = |position: pb::PositionLogprobs| SampledToken {
                    id: TokenId(position.chosen.map_or(0, |chosen| chosen.token_id)),
                    logprobs: Some(Box::new(logprobs(position))),
                };
                let tokens = prompt.logprobs.into_iter().map(token).collect();
                Event::Prompt(PromptLogprobs { start: prompt.start, tokens })
            }
        }
    }
}

fn reason(finish: pb::Finish, eos_token_ids: &[u32]) -> FinishReason {
    match finish.matched {
        Some(Matched::TokenId(id)) if eos_token_ids.contains(&id) => FinishReason::EndOfSequence(TokenId(id)),
        Some(Matched::TokenId(id)) => FinishReason::StopToken(TokenId(id)),
        Some(Matched::Stop(stop)) => FinishReason::StopString(stop),
        None if finish.reason() == pb::FinishReason::Stop => FinishReason::GrammarComplete,
        None => FinishReason::Length,
    }
}

fn logprobs(position: pb::PositionLogprobs) -> TokenLogprobs {
    TokenLogprobs {
        chosen: position.chosen.unwrap_or_default().logprob,
        top: position.top.into_iter().map(|token| (TokenId(token.token_id), token.logprob)).collect(),
    }
}

fn role(role: Role) -> pb::Role {
    match role {
        Role::System => pb::Role::System,
        Role::User => pb::Role::User,
        Role::Assistant => pb::Role::Assistant,
        Role::Tool => pb::Role::Tool,
    }
}

/// The server's words; its code decides nothing here.
fn from_status(status: &Status) -> Error {
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    let code = match status.code() {
        tonic::Code::InvalidArgument => Code::InvalidArgument,
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::ResourceExhausted => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    Error::new(code, message)
}

/// The last error of a chain: "connection refused" rather than "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_address_means_http() {
        assert_eq!(with_scheme("127.0.0.1:50051"), "http://127.0.0.1:50051");
        assert_eq!(with_scheme("http://[::1]:1"), "http://[::1]:1");
    }

    #[test]
    fn the_model_that_answers_is_the_default_one_wherever_it_is_listed() {
        let model = |name: &str, is_default| pb::Model { name: name.into(), is_default, ..pb::Model::default() };
        let models = vec![model("unloaded", false), model("there", true), model("other", false)];
        assert_eq!(default_of(models).unwrap().name, "there");
        assert!(default_of(vec![model("unloaded", false)]).is_none());
    }

    #[test]
    fn finish_reasons_come_back_as_the_engine_gave_them() {
        let finish = |matched| pb::Finish { matched, ..pb::Finish::default() };
        let cases = [
            (Some(Matched::TokenId(2)), FinishReason::EndOfSequence(TokenId(2))),
            (Some(Matched::TokenId(7)), FinishReason::StopToken(TokenId(7))),
            (Some(Matched::Stop("x".into())), FinishReason::StopString("x".into())),
            (None, FinishReason::Length),
        ];
        for (matched, expected) in cases {
            assert_eq!(reason(finish(matched), &[2]), expected);
        }
        let complete = pb::Finish { reason: pb::FinishReason::Stop.into(), matched: None };
        assert_eq!(reason(complete, &[]), FinishReason::GrammarComplete);
    }

    #[test]
    fn tokens_come_back_with_their_log_probabilities() {
        let token = |token_id, logprob| pb::TokenLogprob { token_id, logprob };
        let delta = pb::Delta {
            reasoning: String::new(),
            tool_calls: Vec::new(),
            index: 0,
            text: "ab".into(),
            token_ids: vec![5, 6],
            logprobs: vec![pb::PositionLogprobs { chosen: Some(token(5, -1.0)), top: vec![token(9, -0.5)] }],
        };
        let Event::Delta(delta) = Payload::Delta(delta).into_event(&[]) else { panic!("another event") };
        let logprobs = TokenLogprobs { chosen: -1.0, top: vec![(TokenId(9), -0.5)] };
        assert_eq!(delta.text, "ab");
        assert_eq!(delta.tokens[0], SampledToken { id: TokenId(5), logprobs: Some(Box::new(logprobs)) });
        assert_eq!(delta.tokens[1], SampledToken { id: TokenId(6), logprobs: None });
    }
}
