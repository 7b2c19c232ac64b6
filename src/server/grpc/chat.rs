//! `candlewick.v1.Chat`: messages in, the assistant's turn out, at once or token by token.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Extensions, Request, Response, Status, Streaming, codegen::BoxStream, metadata::MetadataMap};

use super::{
    Backend, FieldPaths, Models, chat_convert, convert,
    deadline::deadline,
    resumable::Resumables,
    session::Sessions,
    status::status,
    stream::{self, Teller},
    streaming::{self, Wishes},
};
use crate::{
    engine::{Prompt, Request as EngineRequest},
    error::Result,
    proto::candlewick::v1::{
        ChatOptions, CompleteRequest, CompleteResponse, CompleteStreamRequest, CompleteStreamResponse, Message,
        RequestOptions, SessionRequest, SessionResponse, chat_server::Chat,
    },
    server::{access::Caller, events::Events},
};

/// What both calls take.
type Asked = (Vec<Message>, Option<RequestOptions>, Option<ChatOptions>);

/// Where an engine's complaints belong in these requests, and in others that hold a chat.
pub(super) const PATHS: FieldPaths = FieldPaths {
    sampling: "options.sampling",
    renamed: &[
        ("prompt.text", "messages"),
        ("prompt", "messages"),
        ("tools", "chat.tools"),
        ("tool_choice", "chat.tool_choice"),
        ("chat_template", "chat.chat_template"),
        ("continue_final_message", "chat.continue_final_message"),
        ("thinking_token_budget", "chat.thinking_token_budget"),
    ],
};

pub(super) struct ChatService {
    models: Models,
    resumables: Resumables,
    sessions: Sessions,
}

impl ChatService {
    pub(super) fn new(models: Models, resumables: Resumables, sessions: Sessions) -> Self {
        Self { models, resumables, sessions }
    }

    /// Admits a request whose answer comes at once; gives who tells it, its model and its events.
    async fn open(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        asked: Asked,
    ) -> Result<(Teller, Backend, Events)> {
        let caller = Caller::of(extensions)?;
        let deadline = deadline(metadata).map_err(|error| self.models.refused(error))?;
        let backend = self.models.backend(&caller, convert::model(asked.1.as_ref()), deadline).await?;
        let request = engine_request(&backend, deadline, asked).map_err(|error| backend.refused(error))?;
        let teller = Teller::new(&request, Duration::ZERO);
        let events = stream::open(&backend, &caller, request, &PATHS).await?;
        Ok((teller, backend, events))
    }
}

fn engine_request(backend: &Backend, deadline: Option<Instant>, asked: Asked) -> Result<EngineRequest> {
    let (messages, options, chat) = asked;
    let prompt = chat_convert::prompt(messages, chat)?;
    let request = convert::request(Prompt::Chat(prompt), options, backend.engine.info())?;
    Ok(EngineRequest { deadline, ..request })
}

#[tonic::async_trait]
impl Chat for ChatService {
    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<CompleteResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        Wishes::refuse_in_unary(message.options.as_ref()).map_err(status)?;
        let asked = (message.messages, message.options, message.chat);
        let (teller, backend, events) = self.open((&metadata, &extensions), asked).await.map_err(status)?;
        let whole = events.whole().await.map_err(status)?;
        let started = teller.started(&backend, whole.started);
        let finished = |end| stream::finished(&backend, started.effective.as_ref(), end);
        Ok(Response::new(CompleteResponse {
            message: Some(chat_convert::answer(whole.first.text, whole.first.pieces)),
            output: Some(convert::delta(0, String::new(), whole.first.tokens)),
            finished: Some(finished(whole.first.finished)),
            alternatives: convert::alternatives(whole.others, finished),
            prompt_logprobs: whole.prompt.map(convert::prompt_logprobs),
            started: Some(started),
        }))
    }

    type CompleteStreamStream = BoxStream<CompleteStreamResponse>;

    async fn complete_stream(
        &self,
        request: Request<CompleteStreamRequest>,
    ) -> Result<Response<Self::CompleteStreamStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions).map_err(status)?;
        let CompleteStreamRequest { messages, options, chat } = message;
        let deadline = deadline(&metadata).map_err(|error| status(self.models.refused(error)))?;
        let model = convert::model(options.as_ref());
        let backend = self.models.backend(&caller, model, deadline).await.map_err(status)?;
        let wishes = Wishes::of_stream(&backend, options.as_ref(), || format!("{messages:?}{chat:?}"));
        let asked =
            wishes.and_then(|wishes| Ok((wishes, engine_request(&backend, deadline, (messages, options, chat))?)));
        let (wishes, request) = asked.map_err(|error| status(backend.refused(error)))?;
        let response = streaming::respond(&backend, &self.resumables, caller, request, &PATHS, wishes).await;
        Ok(Response::new(response.map_err(status)?))
    }

    type SessionStream = BoxStream<SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::of(request.extensions()).map_err(status)?;
        let deadline = deadline(request.metadata()).map_err(|error| status(self.models.refused(error)))?;
        Ok(Response::new(self.sessions.connect(&self.models, caller, deadline, request.into_inner())))
    }
}
