//! `candlewick.v1.Chat`: messages in, the assistant's turn out, at once or token by token.

use tonic::{Request, Response, Status, codegen::BoxStream, metadata::MetadataMap};

use super::{Backend, FieldPaths, chat_convert, convert, deadline::deadline, status::status, stream};
use crate::{
    engine::{Event, Prompt, Request as EngineRequest},
    error::Result,
    proto::candlewick::v1::{
        ChatOptions, CompleteRequest, CompleteResponse, CompleteStreamRequest, CompleteStreamResponse, Message,
        RequestOptions, chat_server::Chat, complete_stream_response::Event as WireEvent,
    },
    server::events::Events,
};

/// What both calls take.
type Asked = (Vec<Message>, Option<RequestOptions>, Option<ChatOptions>);

/// Where an engine's complaints belong in these requests.
const PATHS: FieldPaths = FieldPaths {
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
    backend: Backend,
}

impl ChatService {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend }
    }

    /// Admits a request; gives its id and its events.
    async fn open(&self, metadata: &MetadataMap, asked: Asked) -> Result<(String, Events)> {
        let request = self.request(metadata, asked).map_err(|error| self.backend.refused(error))?;
        let id = request.request_id.clone();
        Ok((id, stream::open(&self.backend, request, &PATHS).await?))
    }

    fn request(&self, metadata: &MetadataMap, asked: Asked) -> Result<EngineRequest> {
        let (messages, options, chat) = asked;
        let prompt = chat_convert::prompt(messages, chat)?;
        let request = convert::request(Prompt::Chat(prompt), options, self.backend.engine.info())?;
        Ok(EngineRequest { deadline: deadline(metadata)?, ..request })
    }
}

#[tonic::async_trait]
impl Chat for ChatService {
    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<CompleteResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (id, events) =
            self.open(&metadata, (message.messages, message.options, message.chat)).await.map_err(status)?;
        let whole = events.whole().await.map_err(status)?;
        Ok(Response::new(CompleteResponse {
            started: Some(convert::started(&id, &self.backend.engine.info().name, whole.started)),
            message: Some(chat_convert::answer(whole.first.text, whole.first.pieces)),
            output: Some(convert::delta(0, String::new(), whole.first.tokens)),
            finished: Some(convert::finished(whole.first.finished)),
            alternatives: convert::alternatives(whole.others),
            prompt_logprobs: whole.prompt.map(convert::prompt_logprobs),
        }))
    }

    type CompleteStreamStream = BoxStream<CompleteStreamResponse>;

    async fn complete_stream(
        &self,
        request: Request<CompleteStreamRequest>,
    ) -> Result<Response<Self::CompleteStreamStream>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (id, events) =
            self.open(&metadata, (message.messages, message.options, message.chat)).await.map_err(status)?;
        let engine = self.backend.engine.clone();
        Ok(Response::new(stream::respond(events, move |seq, event| {
            let event = match event {
                Event::Started(event) => WireEvent::Started(convert::started(&id, &engine.info().name, *event)),
                Event::Prompt(prompt) => WireEvent::PromptLogprobs(convert::prompt_logprobs(prompt)),
                Event::Delta(event) => WireEvent::Delta(convert::chat_delta(event)),
                Event::Finished(event) => WireEvent::Finished(convert::finished(event)),
            };
            Some(CompleteStreamResponse { seq, event: Some(event) })
        })))
    }
}
