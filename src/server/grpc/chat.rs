//! `candlewick.v1.Chat`: messages in, the assistant's turn out, at once or token by token.

use tonic::{Request, Response, Status, codegen::BoxStream, metadata::MetadataMap};

use super::{Backend, FieldPaths, convert, deadline::deadline, status::status, stream::Events};
use crate::{
    engine::{Event, Prompt, Request as EngineRequest},
    error::{Error, Result},
    proto::candlewick::v1::{
        CompleteRequest, CompleteResponse, CompleteStreamRequest, CompleteStreamResponse, Message, RequestOptions,
        Role as WireRole, chat_server::Chat, complete_stream_response::Event as WireEvent,
    },
    text::{ChatMessage, Role},
};

/// Where an engine's complaints belong in these requests.
const PATHS: FieldPaths =
    FieldPaths { sampling: "options.sampling", renamed: &[("prompt.text", "messages"), ("prompt", "messages")] };

pub(super) struct ChatService {
    backend: Backend,
}

impl ChatService {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend }
    }

    /// Admits a request; gives its id and its events.
    async fn open(
        &self,
        metadata: &MetadataMap,
        messages: Vec<Message>,
        options: Option<RequestOptions>,
    ) -> Result<(String, Events)> {
        let request = self.request(metadata, messages, options).map_err(|error| self.backend.refused(error))?;
        let id = request.request_id.clone();
        Ok((id, Events::open(&self.backend, request, &PATHS).await?))
    }

    fn request(
        &self,
        metadata: &MetadataMap,
        messages: Vec<Message>,
        options: Option<RequestOptions>,
    ) -> Result<EngineRequest> {
        let request = convert::request(Prompt::Chat(turns(messages)?), options, self.backend.engine.info())?;
        Ok(EngineRequest { deadline: deadline(metadata)?, ..request })
    }
}

/// The messages as chat templates know them.
fn turns(messages: Vec<Message>) -> Result<Vec<ChatMessage>> {
    if messages.is_empty() {
        return Err(Error::invalid("messages", "is empty, must have at least one message"));
    }
    let turn = |(k, message): (usize, Message)| {
        let role = match message.role() {
            WireRole::System => Role::System,
            WireRole::User => Role::User,
            WireRole::Assistant => Role::Assistant,
            WireRole::Tool => Role::Tool,
            WireRole::Unspecified => {
                return Err(Error::invalid(format!("messages[{k}].role"), "must be system, user, assistant or tool"));
            }
        };
        Ok(ChatMessage::new(role, message.content))
    };
    messages.into_iter().enumerate().map(turn).collect()
}

#[tonic::async_trait]
impl Chat for ChatService {
    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<CompleteResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (id, events) = self.open(&metadata, message.messages, message.options).await.map_err(status)?;
        let whole = events.whole().await.map_err(status)?;
        Ok(Response::new(CompleteResponse {
            started: Some(convert::started(&id, &self.backend.engine.info().name, whole.started)),
            message: Some(Message { role: WireRole::Assistant.into(), content: whole.text }),
            output: Some(convert::delta(String::new(), whole.tokens)),
            finished: Some(convert::finished(whole.finished)),
        }))
    }

    type CompleteStreamStream = BoxStream<CompleteStreamResponse>;

    async fn complete_stream(
        &self,
        request: Request<CompleteStreamRequest>,
    ) -> Result<Response<Self::CompleteStreamStream>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (id, events) = self.open(&metadata, message.messages, message.options).await.map_err(status)?;
        let engine = self.backend.engine.clone();
        Ok(Response::new(events.respond(move |seq, event| {
            let event = match event {
                Event::Started(event) => WireEvent::Started(convert::started(&id, &engine.info().name, event)),
                Event::Delta(event) => WireEvent::Delta(convert::delta(event.text, event.tokens)),
                Event::Finished(event) => WireEvent::Finished(convert::finished(event)),
            };
            Some(CompleteStreamResponse { seq, event: Some(event) })
        })))
    }
}
