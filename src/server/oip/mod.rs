//! `inference.GRPCInferenceService`: the Open Inference Protocol with Triton's stream, so that clients work unchanged.
//!
//! The tensors are those of Triton's vLLM backend: a text and JSON parameters in, text out, a delta a response where
//! `stream` is set. Requests of one stream run beside each other; what is wrong with one is said on the stream, which
//! stays open.

mod answer;
mod sampling;
mod tensors;

use std::collections::HashMap;

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream, stream::SelectAll};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use self::{answer::Answer, tensors::Value};
use super::{
    access::Caller,
    events::Events,
    grpc::{Backend, FieldPaths, admin::reader, deadline::deadline, status::status, stream as responses},
    models::{Listed, ModelState, Models},
};
use crate::{
    engine::{Event, Health, Prompt, PromptOptions, Request as EngineRequest},
    error::{Code, Error, Result},
    proto::inference::{
        InferParameter, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
        ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStreamInferResponse,
        ModelTransactionPolicy, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::GrpcInferenceService, infer_parameter::ParameterChoice,
        model_metadata_response::TensorMetadata, repository_index_response::ModelIndex,
    },
    server::backend::{name, request_id},
};

/// The only version of a model.
const VERSION: &str = "1";
/// What serves it, in Triton's words.
const PLATFORM: &str = "candlewick";
/// Requests of one stream that run at once; the next is read when one has ended.
const REQUESTS_AT_ONCE: usize = 64;
/// Asks for a last response without outputs.
const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

/// Where an engine's complaints belong in a ModelInferRequest.
const PATHS: FieldPaths =
    FieldPaths { sampling: "sampling_parameters", renamed: &[("prompt.text", "text_input"), ("prompt", "text_input")] };

/// The answers to one request of a stream.
type Answers = BoxStream<ModelStreamInferResponse>;

#[derive(Clone)]
pub(super) struct InferenceService {
    models: Models,
}

impl InferenceService {
    pub(super) fn new(models: Models) -> Self {
        Self { models }
    }

    fn is_ready(&self) -> bool {
        self.models.health() == Health::Serving
    }

    /// The model of that name and version.
    async fn backend(
        &self,
        caller: &Caller,
        (model, version): (&str, &str),
        deadline: Option<Instant>,
    ) -> Result<Backend> {
        let backend = self.models.backend(caller, Some(model), deadline).await?;
        check_version(version).map_err(|error| backend.refused(error))?;
        Ok(backend)
    }

    /// Whether that model is served.
    fn check(&self, model: &str, version: &str) -> Result<()> {
        match self.models.knows(model) {
            true => check_version(version),
            false => Err(self.models.unknown(model)),
        }
    }

    /// What a request asks the engine, and how it wants the answer.
    fn request(
        backend: &Backend,
        mut message: ModelInferRequest,
        deadline: Option<Instant>,
    ) -> Result<(EngineRequest, Answer)> {
        let mut values: HashMap<_, _> = tensors::inputs(&mut message)?.into_iter().collect();
        let mut text = |name: &str| match values.remove(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        let prompt = text("text_input").ok_or_else(|| Error::invalid("inputs", "must have a text_input"))?;
        let defaults = &backend.engine.info().default_params;
        let mut params = match text("sampling_parameters") {
            Some(json) => sampling::parameters(&json, defaults)?,
            None => defaults.clone(),
        };
        let flag = |name: &str| match values.get(name) {
            Some(Value::Flag(flag)) => Some(*flag),
            _ => None,
        };
        let streams = flag("stream").unwrap_or(false);
        let excludes = flag("exclude_input_in_output").unwrap_or(streams);
        if streams && !excludes {
            return Err(Error::invalid("exclude_input_in_output", "must not be false where the answer is a stream"));
        }
        let wanted =
            |output: &&'static str| *output == "text_output" || flag(&format!("return_{output}")).unwrap_or(false);
        let offered = tensors::OUTPUTS.iter().map(|(name, ..)| *name).filter(wanted).collect();
        let named = std::mem::take(&mut message.outputs).into_iter().map(|output| output.name).collect();
        let outputs = answer::outputs(named, offered)?;
        if outputs.contains(&"cumulative_logprob") {
            params.logprobs = params.logprobs.or(Some(0));
        }
        let answer = Answer {
            model_name: backend.engine.info().name.clone(),
            model_version: VERSION.to_owned(),
            id: name("id", message.id)?,
            streams,
            before: if excludes { String::new() } else { prompt.clone() },
            outputs,
            ends_empty: is_set(&message.parameters, EMPTY_FINAL),
            ..Answer::default()
        };
        let request = EngineRequest {
            model: Some(message.model_name),
            request_id: request_id("id", Some(answer.id.clone()))?,
            prompt: Prompt::Text(prompt),
            prompt_options: PromptOptions::default(),
            params,
            priority: 0,
            cache_salt: None,
            tenant: None,
            network: None,
            deadline,
            stream: crate::engine::StreamOptions::default(),
        };
        Ok((request, answer))
    }

    async fn open(
        &self,
        caller: &Caller,
        message: ModelInferRequest,
        deadline: Option<Instant>,
    ) -> Result<(Events, Answer)> {
        let model = (&*message.model_name, &*message.model_version);
        let backend = self.backend(caller, model, deadline).await?;
        let (request, answer) = Self::request(&backend, message, deadline).map_err(|error| backend.refused(error))?;
        Ok((responses::open(&backend, caller, request, &PATHS).await?, answer))
    }

    /// All that comes of one request of a stream.
    fn answers(&self, caller: Caller, message: ModelInferRequest, deadline: Option<Instant>) -> Answers {
        let service = self.clone();
        // Of a request that is refused the id is all that is known to be right.
        let head = Answer {
            model_name: crate::server::backend::cut(&message.model_name, 256).to_owned(),
            model_version: VERSION.to_owned(),
            id: crate::server::backend::cut(&message.id, 256).to_owned(),
            ..Answer::default()
        };
        let opened = async move {
            match service.open(&caller, message, deadline).await {
                Err(error) => stream::iter([Ok(failed(&head, error))]).boxed(),
                Ok((events, answer)) if !answer.streams => stream::once(async move {
                    match events.whole().await {
                        Ok(whole) => answer.whole(whole).into_iter().map(good).collect(),
                        Err(error) => vec![failed(&answer, error)],
                    }
                })
                .flat_map(|answers| stream::iter(answers).map(Ok))
                .boxed(),
                Ok((events, mut answer)) => {
                    events.flat_map(move |event| stream::iter(said(&mut answer, event))).map(Ok).boxed()
                }
            }
        };
        opened.flatten_stream().boxed()
    }
}

fn check_version(version: &str) -> Result<()> {
    match version {
        "" | VERSION => Ok(()),
        other => Err(Error::new(Code::NotFound, format!("version {other:?} is not served here; {VERSION:?} is"))),
    }
}

/// How a model stands, in Triton's words.
fn state(listed: &Listed, health: Option<Health>) -> &'static str {
    match listed.state {
        ModelState::Ready | ModelState::Idle if health == Some(Health::Serving) => "READY",
        ModelState::Loading => "LOADING",
        ModelState::Draining => "UNLOADING",
        _ => "UNAVAILABLE",
    }
}

fn is_set(parameters: &HashMap<String, InferParameter>, name: &str) -> bool {
    let choice = parameters.get(name).and_then(|parameter| parameter.parameter_choice.as_ref());
    matches!(choice, Some(ParameterChoice::BoolParam(true)))
}

fn good(response: ModelInferResponse) -> ModelStreamInferResponse {
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
}

fn failed(answer: &Answer, error: Error) -> ModelStreamInferResponse {
    // The status has the words that may go out, whatever went wrong.
    let error_message = status(error).message().to_owned();
    ModelStreamInferResponse { error_message, infer_response: Some(answer.head(true)) }
}

/// What a stream says of an event.
fn said(answer: &mut Answer, event: Result<Event>) -> Vec<ModelStreamInferResponse> {
    match event {
        Ok(Event::Started(_) | Event::Prompt(_)) => Vec::new(),
        Ok(Event::Delta(delta)) => vec![good(answer.delta(delta))],
        Ok(Event::Finished(finished)) => answer.end(&finished).into_iter().map(good).collect(),
        Err(error) => vec![failed(answer, error)],
    }
}

/// The requests of a stream, each answered beside the others, until the client has said all and been answered.
struct Conversation {
    service: InferenceService,
    caller: Caller,
    /// None once the client has said all.
    requests: Option<Streaming<ModelInferRequest>>,
    deadline: Option<Instant>,
    under_way: SelectAll<Answers>,
    /// Resolves when connections should end: then nothing new is read.
    leaving: BoxFuture<'static, ()>,
}

impl Conversation {
    async fn next(&mut self) -> Option<Result<ModelStreamInferResponse, Status>> {
        loop {
            let (has_room, listens) = (self.under_way.len() < REQUESTS_AT_ONCE, self.requests.is_some());
            let requests = self.requests.as_mut().filter(|_| has_room);
            let answers = !self.under_way.is_empty();
            if requests.is_none() && !answers {
                return None;
            }
            let asked = async {
                match requests {
                    Some(requests) => requests.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // None where the last one under way has ended.
                answer = self.under_way.next(), if answers => if answer.is_some() {
                    return answer;
                },
                () = &mut self.leaving, if listens => self.requests = None,
                asked = asked => match asked {
                    Ok(Some(message)) => self.under_way.push(self.service.answers(self.caller.clone(), message, self.deadline)),
                    Ok(None) => self.requests = None,
                    // What the client broke off is nobody's to be told of.
                    Err(status) => {
                        (self.requests, self.under_way) = (None, SelectAll::new());
                        return Some(Err(status));
                    }
                },
            }
        }
    }
}

fn conversation(conversation: Conversation) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> + Send {
    stream::unfold(conversation, |mut conversation| async move {
        let answer = conversation.next().await?;
        Some((answer, conversation))
    })
}

fn metadata(tensors: &[tensors::Tensor]) -> Vec<TensorMetadata> {
    let of = |&(name, datatype, shape): &tensors::Tensor| TensorMetadata {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
    };
    tensors.iter().map(of).collect()
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.get_ref();
        let serves = self.models.health_of(name) == Some(Health::Serving);
        Ok(Response::new(ModelReadyResponse { ready: serves && check_version(version).is_ok() }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: PLATFORM.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: ["binary_tensor_data", "model_configuration", "parameters"].map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        self.check(&name, &version).map_err(status)?;
        Ok(Response::new(ModelMetadataResponse {
            name,
            versions: vec![VERSION.to_owned()],
            platform: PLATFORM.to_owned(),
            inputs: metadata(tensors::INPUTS),
            outputs: metadata(tensors::OUTPUTS),
        }))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let ModelConfigRequest { name, version } = request.into_inner();
        self.check(&name, &version).map_err(status)?;
        let config = ModelConfig {
            name,
            platform: PLATFORM.to_owned(),
            max_batch_size: 0,
            backend: PLATFORM.to_owned(),
            model_transaction_policy: Some(ModelTransactionPolicy { decoupled: true }),
        };
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let reader = reader(request.metadata(), request.extensions());
        let models = self.models.list_for(reader).into_iter().filter(|listed| listed.parent.is_none());
        let model = |listed: Listed| ModelIndex {
            version: VERSION.to_owned(),
            state: state(&listed, self.models.health_of(&listed.name)).to_owned(),
            reason: listed.failure.unwrap_or_default(),
            name: listed.name,
        };
        Ok(Response::new(RepositoryIndexResponse { models: models.map(model).collect() }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let (headers, extensions, message) = request.into_parts();
        let deadline = deadline(&headers).map_err(status)?;
        let caller = Caller::of(&extensions).map_err(status)?;
        let model = (&*message.model_name, &*message.model_version);
        let backend = self.backend(&caller, model, deadline).await.map_err(status)?;
        let asked = Self::request(&backend, message, deadline).map_err(|error| status(backend.refused(error)));
        let (request, answer) = asked?;
        if answer.streams {
            let why = "must not be set here: ModelStreamInfer answers with a stream";
            return Err(status(backend.refused(Error::invalid("stream", why))));
        }
        let events = responses::open(&backend, &caller, request, &PATHS).await.map_err(status)?;
        let answer = Answer { ends_empty: false, ..answer };
        let mut responses = answer.whole(events.whole().await.map_err(status)?);
        Ok(Response::new(responses.swap_remove(0)))
    }

    type ModelStreamInferStream = BoxStream<ModelStreamInferResponse>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (headers, extensions, requests) = request.into_parts();
        let conversation = conversation(Conversation {
            service: self.clone(),
            caller: Caller::of(&extensions).map_err(status)?,
            requests: Some(requests),
            deadline: deadline(&headers).map_err(status)?,
            under_way: SelectAll::new(),
            leaving: self.models.closing().leaving().boxed(),
        });
        Ok(Response::new(conversation.boxed()))
    }
}
