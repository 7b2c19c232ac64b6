//! `candlewick.v1.Generation`: a prompt in, tokens out, at once or one by one.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Extensions, Request, Response, Status, codegen::BoxStream, metadata::MetadataMap};

use super::{
    Backend, FieldPaths, Models, chat_convert, convert,
    deadline::deadline,
    resumable::Resumables,
    status::status,
    stream::{self, Teller},
    streaming::{self, Wishes},
};
use crate::{
    engine::{Prompt as EnginePrompt, Request as EngineRequest},
    error::{Error, Result},
    proto::candlewick::v1::{
        GenerateRequest, GenerateResponse, GenerateStreamRequest, GenerateStreamResponse, Prompt, QuoteRequest,
        QuoteResponse, RequestOptions, ResumeRequest, ResumeResponse, generation_server::Generation,
    },
    server::{access::Caller, events::Events},
};

/// Where an engine's complaints belong in these requests.
const PATHS: FieldPaths =
    FieldPaths { sampling: "options.sampling", renamed: &[("prompt.token_ids", "prompt.token_ids.ids")] };

/// The same of a quote, which asks for a prompt or for a chat.
const QUOTE_PATHS: FieldPaths = FieldPaths {
    sampling: "options.sampling",
    renamed: &[
        ("prompt.token_ids", "prompt.token_ids.ids"),
        ("tools", "chat.tools"),
        ("tool_choice", "chat.tool_choice"),
    ],
};

pub(super) struct GenerationService {
    models: Models,
    resumables: Resumables,
}

impl GenerationService {
    pub(super) fn new(models: Models, resumables: Resumables) -> Self {
        Self { models, resumables }
    }

    /// Admits a request whose answer comes at once; gives who tells it, its model and its events.
    async fn open(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        prompt: Option<Prompt>,
        options: Option<RequestOptions>,
    ) -> Result<(Teller, Backend, Events)> {
        let caller = Caller::of(extensions)?;
        let deadline = deadline(metadata).map_err(|error| self.models.refused(error))?;
        let backend = self.models.backend(&caller, convert::model(options.as_ref()), deadline).await?;
        let request = engine_request(&backend, deadline, prompt, options).map_err(|error| backend.refused(error))?;
        let teller = Teller::new(&request, Duration::ZERO);
        let events = stream::open(&backend, &caller, request, &PATHS).await?;
        Ok((teller, backend, events))
    }
}

fn engine_request(
    backend: &Backend,
    deadline: Option<Instant>,
    prompt: Option<Prompt>,
    options: Option<RequestOptions>,
) -> Result<EngineRequest> {
    let request = convert::request(convert::prompt(prompt)?, options, backend.engine.info())?;
    Ok(EngineRequest { deadline, ..request })
}

#[tonic::async_trait]
impl Generation for GenerationService {
    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        Wishes::refuse_in_unary(message.options.as_ref()).map_err(status)?;
        let opened = self.open((&metadata, &extensions), message.prompt, message.options).await;
        let (teller, backend, events) = opened.map_err(status)?;
        let whole = events.whole().await.map_err(status)?;
        let started = teller.started(&backend, whole.started);
        let finished = |end| stream::finished(&backend, started.effective.as_ref(), end);
        Ok(Response::new(GenerateResponse {
            output: Some(convert::delta(0, whole.first.text, whole.first.tokens)),
            finished: Some(finished(whole.first.finished)),
            alternatives: convert::alternatives(whole.others, finished),
            prompt_logprobs: whole.prompt.map(convert::prompt_logprobs),
            started: Some(started),
        }))
    }

    type GenerateStreamStream = BoxStream<GenerateStreamResponse>;

    async fn generate_stream(
        &self,
        request: Request<GenerateStreamRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions).map_err(status)?;
        let deadline = deadline(&metadata).map_err(|error| status(self.models.refused(error)))?;
        let model = convert::model(message.options.as_ref());
        let backend = self.models.backend(&caller, model, deadline).await.map_err(status)?;
        let wishes = Wishes::of_stream(&backend, message.options.as_ref(), || format!("{:?}", message.prompt));
        let asked = wishes
            .and_then(|wishes| Ok((wishes, engine_request(&backend, deadline, message.prompt, message.options)?)));
        let (wishes, request) = asked.map_err(|error| status(backend.refused(error)))?;
        let response = streaming::respond(&backend, &self.resumables, caller, request, &PATHS, wishes).await;
        Ok(Response::new(response.map_err(status)?))
    }

    type ResumeStream = BoxStream<ResumeResponse>;

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<Self::ResumeStream>, Status> {
        let caller = Caller::of(request.extensions()).map_err(status)?;
        let ResumeRequest { stream_id, after_seq } = request.into_inner();
        let attachment = self.resumables.resume(&caller.owner(), &stream_id, after_seq.unwrap_or(0)).map_err(status)?;
        let has_ended = attachment.has_ended();
        let events = stream::numbered(attachment.events());
        Ok(if has_ended { stream::onlooking(events) } else { Response::new(events) })
    }

    async fn quote(&self, request: Request<QuoteRequest>) -> Result<Response<QuoteResponse>, Status> {
        let caller = Caller::of(request.extensions()).map_err(status)?;
        let deadline = deadline(request.metadata()).map_err(status)?;
        let mut admission = self.models.admit_call(&caller).map_err(status)?;
        let QuoteRequest { prompt, messages, options, chat } = request.into_inner();
        let prompt = match (prompt, messages.is_empty()) {
            (Some(_), false) => Err(Error::invalid("messages", "cannot be with prompt: one of them is quoted")),
            (prompt, true) => convert::prompt(prompt),
            (None, false) => chat_convert::prompt(messages, chat).map(EnginePrompt::Chat),
        };
        let model = convert::model(options.as_ref());
        let Backend { engine, .. } = &self.models.backend(&caller, model, deadline).await.map_err(status)?;
        // Now that there is something to work with: others do not wait for a model.
        let _place = self.models.line_up(&caller).map_err(status)?;
        let request = prompt.and_then(|prompt| convert::request(prompt, options, engine.info()));
        let quote = engine.quote(caller.own(request.map_err(status)?)).await;
        let quote = quote.map_err(|error| status(QUOTE_PATHS.locate(error)))?;
        admission.admitted();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let rates = engine.rates();
        Ok(Response::new(QuoteResponse {
            model: engine.info().name.clone(),
            prompt_tokens: quote.prompt_tokens,
            cached_tokens: quote.cached_tokens,
            queue_position: u32::try_from(quote.position).unwrap_or(u32::MAX),
            estimated_queue_ms: quote.queue_time.map(ms),
            estimated_ttft_ms: quote.time_to_first_token.map(ms),
            prefill_tokens_per_second: rates.prefill_tokens_per_second(),
            decode_tokens_per_second: rates.decode_tokens_per_second(),
        }))
    }
}
