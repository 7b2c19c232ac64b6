//! `candlewick.v1.Embeddings`: inputs in, vectors out, all at once or as they come.

use futures::{future::BoxFuture, stream};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use super::{
    Backend, Models, convert,
    deadline::deadline,
    status::{fields, retry_after_ms, status},
};
use crate::{
    engine::{EmbedInput, EmbedOptions, EmbedRequest, Embedding, Embeddings, ModelInfo},
    error::{Code, Error, Result},
    ids::TokenId,
    params::Pooling,
    proto::candlewick::v1::{
        self as wire, embed_input::Input, embed_stream_request::Request as Asked, embed_stream_response::Outcome,
        embeddings_server::Embeddings as Service,
    },
    server::{
        access::Caller,
        backend::{check_embeds, name, request_id},
        closing::Closing,
        held::Held,
    },
};

/// Inputs of one stream that are under way, or whose results the client has not taken.
const STREAMED_AT_ONCE: usize = 32;

pub(super) struct EmbeddingsService {
    models: Models,
}

impl EmbeddingsService {
    pub(super) fn new(models: Models) -> Self {
        Self { models }
    }

    /// The answer to a unary call.
    async fn answer(
        &self,
        caller: &Caller,
        message: wire::EmbedRequest,
        deadline: Option<Instant>,
    ) -> Result<(wire::EmbedResponse, Held)> {
        let options = message.options.unwrap_or_default();
        let backend = &self.models.backend(caller, options.model.as_deref(), deadline).await?;
        let info = backend.engine.info();
        let asked = request_id("options.request_id", options.request_id.clone()).and_then(|id| {
            let inputs = message.inputs.into_iter().enumerate();
            let inputs = inputs.map(|(k, asked)| input(Some(asked), &format!("inputs[{k}]"))).collect::<Result<_>>()?;
            Ok(EmbedRequest { request_id: id, inputs, deadline, ..request(options, info)? })
        });
        let request = asked.map_err(|error| backend.refused(error))?;
        let request_id = request.request_id.clone();
        let embeddings = backend.embed(caller, request).await.map_err(|error| located(error, |field| field))?;
        let answer = wire::EmbedResponse {
            request_id,
            model: info.name.clone(),
            usage: Some(convert::usage(embeddings.usage())),
            pooling: pooling_to_wire(embeddings.pooling).into(),
            embeddings: embeddings.embeddings.into_iter().map(embedding).collect(),
        };
        Ok((answer, Held::new(embeddings.room)))
    }
}

#[tonic::async_trait]
impl Service for EmbeddingsService {
    async fn embed(&self, request: Request<wire::EmbedRequest>) -> Result<Response<wire::EmbedResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions).map_err(status)?;
        let deadline = deadline(&metadata).map_err(status)?;
        let (answer, held) = self.answer(&caller, message, deadline).await.map_err(status)?;
        let mut response = Response::new(answer);
        response.extensions_mut().insert(held);
        Ok(response)
    }

    type EmbedStreamStream = BoxStream<wire::EmbedStreamResponse>;

    async fn embed_stream(
        &self,
        request: Request<Streaming<wire::EmbedStreamRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        let (metadata, extensions, inbound) = request.into_parts();
        let line = Line {
            caller: Caller::of(&extensions).map_err(status)?,
            models: self.models.clone(),
            backend: None,
            inbound: Some(inbound),
            request: EmbedRequest { deadline: deadline(&metadata).map_err(status)?, ..EmbedRequest::new(Vec::new()) },
            waiting: None,
            running: JoinSet::new(),
        };
        let results = stream::unfold(Some(line), async |line| {
            let mut line = line?;
            let result = line.next().await?;
            let goes_on = result.is_ok().then_some(line);
            Some((result, goes_on))
        });
        Ok(Response::new(Box::pin(results)))
    }
}

/// One stream of inputs. Each runs on a task of its own, so that what is done lets go of its place in the queue whether
/// the client reads or not; dropping the stream ends them all.
struct Line {
    caller: Caller,
    models: Models,
    /// The model of the options that came last; none before the first message.
    backend: Option<Backend>,
    /// Until the client has sent its last input.
    inbound: Option<Streaming<wire::EmbedStreamRequest>>,
    /// What all inputs share; it has none itself.
    request: EmbedRequest,
    /// A message whose model is not there yet. Nothing more is read before it.
    waiting: Option<BoxFuture<'static, Result<(Backend, Asked)>>>,
    running: JoinSet<Done>,
}

/// What is said of an input, with its vector's room, which is held until the client takes it.
type Done = (wire::EmbedStreamResponse, Option<Held>);

impl Line {
    /// The next result; none once all are out.
    async fn next(&mut self) -> Option<Result<wire::EmbedStreamResponse, Status>> {
        loop {
            if self.inbound.is_none() && self.waiting.is_none() && self.running.is_empty() {
                return None;
            }
            let closing = self.backend.as_ref().map_or_else(|| self.models.closing(), |own| own.closing.clone());
            let is_idle = self.running.is_empty() && self.waiting.is_none();
            let has_room = self.running.len() < STREAMED_AT_ONCE;
            let inbound = self.inbound.as_mut().filter(|_| has_room && self.waiting.is_none());
            let reads = inbound.is_some();
            let waiting = self.waiting.as_mut();
            let waits = waiting.is_some();
            let found = async {
                match waiting {
                    Some(waiting) => waiting.await,
                    None => std::future::pending().await,
                }
            };
            let message = async {
                match inbound {
                    Some(inbound) => inbound.message().await,
                    None => Ok(None),
                }
            };
            tokio::select! {
                error = cut_off(closing, is_idle) => return Some(Err(status(error))),
                Some(done) = self.running.join_next() => {
                    let failed = |panic| Error::internal(format!("an embedding failed: {panic}"));
                    return Some(done.map(|(response, _held)| response).map_err(|panic| status(failed(panic))));
                }
                found = found, if waits => {
                    self.waiting = None;
                    if let Err(error) = found.and_then(|(backend, asked)| self.take_in(backend, asked)) {
                        return Some(Err(status(error)));
                    }
                }
                message = message, if reads => match message {
                    Ok(Some(message)) => match self.hear(message) {
                        Ok(()) => {}
                        Err(error) => return Some(Err(status(error))),
                    },
                    Ok(None) => self.inbound = None,
                    // A message that is no good; where the client is gone, it goes nowhere.
                    Err(broken) => return Some(Err(broken)),
                },
            }
        }
    }

    /// Hears a message, for which a model may have to be waited for.
    ///
    /// # Errors
    /// `InvalidArgument` where it asks for nothing; that ends the stream.
    fn hear(&mut self, message: wire::EmbedStreamRequest) -> Result<()> {
        let nothing = || self.models.refused(Error::invalid("request", "must be options or an item"));
        let asked = message.request.ok_or_else(nothing)?;
        let model = match (&asked, &self.backend) {
            (Asked::Item(_), Some(backend)) => return self.take_in(backend.clone(), asked),
            (Asked::Item(_), None) => None,
            (Asked::Options(options), _) => options.model.clone(),
        };
        let (models, caller, deadline) = (self.models.clone(), self.caller.clone(), self.request.deadline);
        self.waiting = Some(Box::pin(async move {
            let backend = models.backend(&caller, model.as_deref(), deadline).await?;
            Ok((backend, asked))
        }));
        Ok(())
    }

    /// Takes in what was asked of a model.
    ///
    /// # Errors
    /// `InvalidArgument` where the options cannot be; that ends the stream.
    fn take_in(&mut self, backend: Backend, asked: Asked) -> Result<()> {
        match asked {
            Asked::Options(options) => {
                let request = request(options, backend.engine.info()).map_err(|error| backend.refused(error))?;
                self.request = EmbedRequest { deadline: self.request.deadline, ..request };
            }
            Asked::Item(item) => {
                let (backend, caller, request) = (backend.clone(), self.caller.clone(), self.request.clone());
                self.running.spawn(async move {
                    let (outcome, held) = match one(&backend, &caller, request, item.input).await {
                        Ok((embedding, held)) => (Outcome::Embedding(embedding), Some(held)),
                        Err(error) => (Outcome::Error(told(error)), None),
                    };
                    (wire::EmbedStreamResponse { id: item.id, outcome: Some(outcome) }, held)
                });
            }
        }
        self.backend = Some(backend);
        Ok(())
    }
}

/// Why the stream ends before its time, once it must: sooner where nothing is left to finish.
async fn cut_off(closing: Closing, is_idle: bool) -> Error {
    match is_idle {
        true => closing.clone().leaving().await,
        false => closing.clone().cut().await,
    }
    closing.error("this stream had ended")
}

/// The vector of one input of a stream.
async fn one(
    backend: &Backend,
    caller: &Caller,
    request: EmbedRequest,
    asked: Option<wire::EmbedInput>,
) -> Result<(wire::Embedding, Held)> {
    let input = input(asked, "item.input").map_err(|error| backend.refused(error))?;
    let embedded = backend.embed(caller, EmbedRequest { inputs: vec![input], ..request }).await;
    // The only input has no index here.
    let of_item = |field: String| match field.strip_prefix("inputs[0]") {
        Some(rest) => format!("item.input{rest}"),
        None => field,
    };
    let Embeddings { embeddings, room, .. } = embedded.map_err(|error| located(error, of_item))?;
    let first = embeddings.into_iter().next().ok_or_else(|| Error::internal("no vector for an input"))?;
    Ok((embedding(first), Held::new(room)))
}

/// An engine's request of these options, without inputs or deadline.
fn request(options: wire::EmbedOptions, info: &ModelInfo) -> Result<EmbedRequest> {
    check_embeds(options.model.as_deref(), info)?;
    let default = EmbedOptions::default();
    Ok(EmbedRequest {
        options: EmbedOptions {
            pooling: pooling(options.pooling)?,
            normalize: options.normalize.unwrap_or(default.normalize),
            dimensions: options.dimensions,
            truncate: options.truncate.unwrap_or(default.truncate),
        },
        priority: options.priority.unwrap_or(0),
        cache_salt: options.cache_salt.map(|salt| name("options.cache_salt", salt)).transpose()?,
        ..EmbedRequest::new(Vec::new())
    })
}

fn pooling(asked: Option<i32>) -> Result<Option<Pooling>> {
    let Some(number) = asked else { return Ok(None) };
    match wire::Pooling::try_from(number) {
        Ok(wire::Pooling::Unspecified) => Ok(None),
        Ok(wire::Pooling::Mean) => Ok(Some(Pooling::Mean)),
        Ok(wire::Pooling::Last) => Ok(Some(Pooling::Last)),
        Err(_) => Err(Error::invalid("options.pooling", format!("is {number}, must be a value of Pooling"))),
    }
}

fn pooling_to_wire(pooling: Pooling) -> wire::Pooling {
    match pooling {
        Pooling::Mean => wire::Pooling::Mean,
        Pooling::Last => wire::Pooling::Last,
    }
}

fn input(asked: Option<wire::EmbedInput>, field: &str) -> Result<EmbedInput> {
    match asked.and_then(|asked| asked.input) {
        Some(Input::Text(text)) => Ok(EmbedInput::Text(text)),
        Some(Input::TokenIds(ids)) => Ok(EmbedInput::Tokens(ids.ids.into_iter().map(TokenId).collect())),
        None => Err(Error::invalid(field, "must be text or token_ids")),
    }
}

fn embedding(embedding: Embedding) -> wire::Embedding {
    let Embedding { values, usage } = embedding;
    wire::Embedding { values, prompt_tokens: usage.prompt_tokens, cached_tokens: usage.cached_tokens }
}

/// The engine's complaint, with this wire's paths; `of` says where inputs stand.
fn located(mut error: Error, of: impl Fn(String) -> String) -> Error {
    for violation in &mut error.violations {
        let field = of(violation.field.replace(".token_ids[", ".token_ids.ids["));
        violation.field = match field.as_str() {
            "dimensions" | "pooling" => format!("options.{field}"),
            _ => field,
        };
    }
    if let ([violation], Code::InvalidArgument) = (error.violations.as_slice(), error.code) {
        error.message = format!("{}: {}", violation.field, violation.description);
    }
    error
}

fn told(error: Error) -> wire::EmbedError {
    let (fields, retry_after_ms) = (fields(&error), retry_after_ms(&error));
    let status = status(error);
    wire::EmbedError { code: i32::from(status.code()), message: status.message().to_owned(), fields, retry_after_ms }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::server::models::tests::that_loads;

    #[tokio::test]
    async fn what_is_done_is_told_while_a_model_is_waited_for() {
        let (models, _loads) = that_loads();
        let mut line = Line {
            caller: Caller::anybody(),
            models,
            backend: None,
            inbound: None,
            request: EmbedRequest::new(Vec::new()),
            waiting: None,
            running: JoinSet::new(),
        };
        let options = wire::EmbedOptions { model: Some("mine".into()), ..wire::EmbedOptions::default() };
        line.hear(wire::EmbedStreamRequest { request: Some(Asked::Options(options)) }).unwrap();
        line.running.spawn(async { (wire::EmbedStreamResponse { id: 7, outcome: None }, None) });
        assert_eq!(line.next().await.unwrap().unwrap().id, 7);
        assert!(line.next().now_or_never().is_none(), "and then for the model");
    }
}
