//! `candlewick.v1.Generation`: a prompt in, tokens out, at once or one by one.

use tonic::{Request, Response, Status, codegen::BoxStream, metadata::MetadataMap};

use super::{Backend, FieldPaths, convert, deadline::deadline, status::status, stream};
use crate::{
    engine::{Event, Request as EngineRequest},
    error::Result,
    proto::candlewick::v1::{
        GenerateRequest, GenerateResponse, GenerateStreamRequest, GenerateStreamResponse, Prompt, RequestOptions,
        generate_stream_response::Event as WireEvent, generation_server::Generation,
    },
    server::events::Events,
};

/// Where an engine's complaints belong in these requests.
const PATHS: FieldPaths =
    FieldPaths { sampling: "options.sampling", renamed: &[("prompt.token_ids", "prompt.token_ids.ids")] };

pub(super) struct GenerationService {
    backend: Backend,
}

impl GenerationService {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend }
    }

    /// Admits a request; gives its id and its events.
    async fn open(
        &self,
        metadata: &MetadataMap,
        prompt: Option<Prompt>,
        options: Option<RequestOptions>,
    ) -> Result<(String, Events)> {
        let request = self.request(metadata, prompt, options).map_err(|error| self.backend.refused(error))?;
        let id = request.request_id.clone();
        Ok((id, stream::open(&self.backend, request, &PATHS).await?))
    }

    fn request(
        &self,
        metadata: &MetadataMap,
        prompt: Option<Prompt>,
        options: Option<RequestOptions>,
    ) -> Result<EngineRequest> {
        let request = convert::request(convert::prompt(prompt)?, options, self.backend.engine.info())?;
        Ok(EngineRequest { deadline: deadline(metadata)?, ..request })
    }
}

#[tonic::async_trait]
impl Generation for GenerationService {
    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (id, events) = self.open(&metadata, message.prompt, message.options).await.map_err(status)?;
        let whole = events.whole().await.map_err(status)?;
        Ok(Response::new(GenerateResponse {
            started: Some(convert::started(&id, &self.backend.engine.info().name, whole.started)),
            output: Some(convert::delta(0, whole.first.text, whole.first.tokens)),
            finished: Some(convert::finished(whole.first.finished)),
            alternatives: convert::alternatives(whole.others),
            prompt_logprobs: whole.prompt.map(convert::prompt_logprobs),
        }))
    }

    type GenerateStreamStream = BoxStream<GenerateStreamResponse>;

    async fn generate_stream(
        &self,
        request: Request<GenerateStreamRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (metadata, _, message) = request.into_parts();
        let (id, events) = self.open(&metadata, message.prompt, message.options).await.map_err(status)?;
        let engine = self.backend.engine.clone();
        Ok(Response::new(stream::respond(events, move |seq, event| {
            let event = match event {
                Event::Started(event) => WireEvent::Started(convert::started(&id, &engine.info().name, *event)),
                Event::Prompt(prompt) => WireEvent::PromptLogprobs(convert::prompt_logprobs(prompt)),
                Event::Delta(event) => WireEvent::Delta(convert::delta(event.index, event.text, event.tokens)),
                Event::Finished(event) => WireEvent::Finished(convert::finished(event)),
            };
            Some(GenerateStreamResponse { seq, event: Some(event) })
        })))
    }
}
