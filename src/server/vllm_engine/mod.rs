//! `vllm.grpc.engine.VllmEngine`, as the routers in front of vLLM speak it: token ids in, token ids out. Its requests name
//! no model: they go to the default one.
//!
//! Not offered, and `UNIMPLEMENTED`: the profiler, which routers can do without.

mod convert;
mod kv_events;
mod loads;
mod tokenizer;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status, codegen::BoxStream};

use self::tokenizer::Archive;
use super::{
    access::{Caller, check_program},
    backend::request_id as given_or_drawn,
    events::{Events, Whole, WholeOutput},
    grpc::{Backend, FieldPaths, admin::check_operator, deadline::deadline, status::status, stream as responses},
    held::Held,
    models::{About, Models},
};
use crate::{
    engine::{EmbedInput, EmbedRequest as EngineEmbedRequest, Event, Flushed, Health, Which},
    error::{Code, Error, Result},
    ids::TokenId,
    params::{PromptLogprobs, SampledToken},
    proto::{
        smg::grpc::common::{
            FlushCacheRequest, FlushCacheResponse, GetTokenizerChunk, GetTokenizerRequest, KvEventBatch,
            ProfileResponse, StartProfileRequest, StopProfileRequest, SubscribeKvEventsRequest,
        },
        vllm::grpc::engine::{
            AbortRequest, AbortResponse, EmbedRequest, EmbedResponse, GenerateRequest, GenerateResponse,
            GetLoadsRequest, GetLoadsResponse, GetModelInfoRequest, GetModelInfoResponse, GetServerInfoRequest,
            GetServerInfoResponse, HealthCheckRequest, HealthCheckResponse, vllm_engine_server::VllmEngine,
        },
    },
};

/// Where an engine's complaints belong in a GenerateRequest.
const PATHS: FieldPaths = FieldPaths {
    sampling: "sampling_params",
    renamed: &[
        ("prompt.token_ids", "tokenized.input_ids"),
        ("prompt.text", "text"),
        ("prompt", "tokenized.input_ids"),
        ("structured_outputs.json_object", "sampling_params.json_object"),
        ("structured_outputs.json", "sampling_params.json_schema"),
        ("structured_outputs.", "sampling_params."),
        ("structured_outputs", "sampling_params.constraint"),
        ("inputs[0].token_ids", "tokenized.input_ids"),
        ("inputs[0]", "tokenized.input_ids"),
    ],
};

/// When to look again whether a model has come back.
const IDLE_RETRY: Duration = Duration::from_secs(2);
/// Ids of one abort. A message has room for two million of nothing.
const MAX_ABORTED: usize = 4096;

pub(super) struct VllmEngineService {
    models: Models,
    began: Instant,
    /// What routers fetch, once the first has asked.
    archive: Mutex<Packed>,
}

/// The archive of the model that was last asked for, by the hash of its weights.
#[derive(Clone, Default)]
struct Packed {
    weights_hash: String,
    archive: Arc<OnceCell<Archive>>,
}

impl VllmEngineService {
    pub(super) fn new(models: Models) -> Self {
        Self { models, began: Instant::now(), archive: Mutex::default() }
    }

    /// The model that these calls are about.
    async fn backend(&self, caller: &Caller, deadline: Option<tokio::time::Instant>) -> Result<Backend> {
        self.models.backend(caller, None, deadline).await
    }

    /// What is known of that model, and the model where it is in memory. Routers look again and again, and that should
    /// neither bring an idle model back nor keep one.
    fn look_at(&self) -> Result<(Arc<About>, Option<Backend>)> {
        self.models.look_at(None).map_err(|error| self.models.refused(error))
    }

    /// Where the archive of this model is, or is to be.
    fn archive_of(&self, backend: &Backend) -> Arc<OnceCell<Archive>> {
        let weights_hash = &backend.engine.info().weights_hash;
        let mut packed = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        if packed.weights_hash != *weights_hash {
            *packed = Packed { weights_hash: weights_hash.clone(), archive: Arc::default() };
        }
        packed.archive.clone()
    }

    async fn open(&self, request: Request<GenerateRequest>) -> Result<Events> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions)?;
        let deadline = deadline(&metadata).map_err(|error| self.models.refused(error))?;
        let request = convert::request(message);
        let backend = self.backend(&caller, deadline).await?;
        let request = request.map(|request| crate::engine::Request { deadline, ..request });
        let request = request.map_err(|error| backend.refused(error))?;
        responses::open(&backend, &caller, request, &PATHS).await
    }

    /// One input's vector, pooled as the model's files say and of length 1, as vLLM gives it.
    async fn vector(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>> {
        let (metadata, extensions, EmbedRequest { request_id, tokenized }) = request.into_parts();
        let caller = Caller::of(&extensions)?;
        let deadline = deadline(&metadata).map_err(|error| self.models.refused(error))?;
        let asked = given_or_drawn("request_id", Some(request_id)).map(|id| {
            let ids = tokenized.unwrap_or_default().input_ids.into_iter().map(TokenId).collect();
            let request = EngineEmbedRequest::new(vec![EmbedInput::Tokens(ids)]);
            EngineEmbedRequest { request_id: id, deadline, ..request }
        });
        let backend = self.backend(&caller, deadline).await?;
        let request = asked.map_err(|error| backend.refused(error))?;
        let embedded = backend.embed(&caller, request).await;
        let embedded = embedded.map_err(|error| PATHS.locate(error))?;
        let prompt_tokens = embedded.usage().prompt_tokens;
        let first = embedded.embeddings.into_iter().next();
        let embedding = first.ok_or_else(|| Error::internal("no vector for an input"))?.values;
        let embedding_dim = u32::try_from(embedding.len()).unwrap_or(u32::MAX);
        let mut response = Response::new(EmbedResponse { embedding, prompt_tokens, embedding_dim });
        response.extensions_mut().insert(Held::new(embedded.room));
        Ok(response)
    }
}

fn not_offered(what: &str) -> Status {
    status(Error::new(Code::Unimplemented, format!("{what} is not offered by this server")))
}

/// Of a model that is idle.
fn not_in_memory(about: &About) -> Error {
    let why = format!("model {:?} is idle, and nothing is cached: its next request loads it", about.info.name);
    Error::new(Code::Unavailable, why).retry_after(IDLE_RETRY)
}

/// The wire's signed numbers, which no count of ours exceeds.
fn signed(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[tonic::async_trait]
impl VllmEngine for VllmEngineService {
    type GenerateStream = BoxStream<GenerateResponse>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let streams = request.get_ref().stream;
        // Nothing predicts it, so the engine says nothing of it; readers count on its place in the list.
        let mut first_of_prompt = convert::first_token(request.get_ref());
        let events = self.open(request).await.map_err(status)?;
        if !streams {
            // One complete message a sequence; the first has the prompt's log-probabilities.
            let whole = stream::once(events.whole()).flat_map(move |whole| {
                let all = whole.map_err(status).map(|Whole { mut prompt, first, others, .. }| {
                    if let Some(prompt) = &mut prompt {
                        prompt.tokens.splice(0..0, first_of_prompt.take());
                    }
                    let complete = |WholeOutput { tokens, finished, .. }| {
                        let ids = tokens.iter().map(|token: &SampledToken| token.id.0).collect();
                        Ok(convert::complete(ids, tokens, finished, prompt.take()))
                    };
                    std::iter::once(first).chain(others).map(complete).collect::<Vec<_>>()
                });
                stream::iter(all.unwrap_or_else(|status| vec![Err(status)]))
            });
            return Ok(Response::new(Box::pin(whole)));
        }
        let mut output_ids: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut prompt = None::<PromptLogprobs>;
        Ok(Response::new(responses::respond(events, move |_, event| match event {
            Event::Started(_) => None,
            Event::Prompt(more) => {
                match &mut prompt {
                    Some(prompt) => prompt.tokens.extend(more.tokens),
                    None => {
                        let tokens = first_of_prompt.take().into_iter().chain(more.tokens).collect();
                        prompt = Some(PromptLogprobs { tokens, ..more });
                    }
                }
                None
            }
            // Text alone, which was held back: routers make their own.
            Event::Delta(delta) if delta.tokens.is_empty() => None,
            Event::Delta(delta) => {
                output_ids.entry(delta.index).or_default().extend(delta.tokens.iter().map(|token| token.id.0));
                Some(convert::chunk(delta, prompt.take()))
            }
            Event::Finished(end) => {
                let ids = output_ids.remove(&end.index).unwrap_or_default();
                Some(convert::complete(ids, Vec::new(), end, None))
            }
        })))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        let owner = Caller::of(request.extensions()).map_err(status)?.owner();
        let ids = &request.get_ref().request_ids;
        if ids.len() > MAX_ABORTED {
            let why = format!("has {} entries, at most {MAX_ABORTED} are allowed in one call", ids.len());
            return Err(status(Error::invalid("request_ids", why)));
        }
        // Its caller's own alone: routers may not know what others call theirs.
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        self.models.abort(Which::Own(owner.as_deref(), &ids));
        Ok(Response::new(AbortResponse {}))
    }

    async fn health_check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let health = self.models.health();
        let message = match health {
            Health::Serving => "serving",
            Health::Restarting => "the engine is restarting",
            Health::Draining => "the server is draining",
        };
        Ok(Response::new(HealthCheckResponse { healthy: health == Health::Serving, message: message.to_owned() }))
    }

    async fn get_model_info(&self, _: Request<GetModelInfoRequest>) -> Result<Response<GetModelInfoResponse>, Status> {
        let (about, _) = self.look_at().map_err(status)?;
        let About { info, config, .. } = &*about;
        // Where routers on the same machine find the tokenizer's files.
        let tokenizer_path = if Path::new(&info.path).is_dir() { info.path.clone() } else { String::new() };
        Ok(Response::new(GetModelInfoResponse {
            model_path: info.path.clone(),
            is_generation: true,
            max_context_length: u32::try_from(config.max_model_len).unwrap_or(u32::MAX),
            vocab_size: u32::try_from(info.vocab_size).unwrap_or(u32::MAX),
            supports_vision: false,
            served_model_name: info.name.clone(),
            tokenizer_path,
            model_type: info.model_type.clone(),
            architectures: vec![info.architecture.clone()],
            eos_token_ids: info.eos_token_ids.iter().map(|id| signed(id.index())).collect(),
            pad_token_id: 0,
            bos_token_id: info.bos_token_id.map_or(0, |id| signed(id.index())),
            // One place in the context must be left to generate into.
            max_req_input_len: signed(config.max_model_len.saturating_sub(1)),
            default_sampling_params_json: convert::default_sampling_params_json(&info.default_params),
        }))
    }

    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let (about, backend) = self.look_at().map_err(status)?;
        let state = backend.map(|backend| backend.engine.telemetry().state()).unwrap_or_default();
        let About { info, config, .. } = &*about;
        Ok(Response::new(GetServerInfoResponse {
            active_requests: u32::try_from(state.num_running + state.num_waiting).unwrap_or(u32::MAX),
            is_paused: self.models.health_of(&info.name) != Some(Health::Serving),
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            server_type: "vllm-grpc".to_owned(),
            data_parallel_size: 1,
            block_size: signed(config.block_size),
            model_dtype: info.dtype.clone(),
            max_num_seqs: signed(config.max_num_seqs),
            ..GetServerInfoResponse::default()
        }))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        self.vector(request).await.map_err(status)
    }

    async fn flush_cache(&self, request: Request<FlushCacheRequest>) -> Result<Response<FlushCacheResponse>, Status> {
        check_operator(request.metadata(), request.extensions()).map_err(status)?;
        let flushed = match self.look_at().map_err(status)?.1 {
            Some(backend) => backend.engine.flush_cache().await.map_err(status)?,
            None => Flushed::default(),
        };
        let message = format!("{} blocks freed, {} in use", flushed.freed, flushed.in_use);
        Ok(Response::new(FlushCacheResponse { success: true, message }))
    }

    async fn start_profile(&self, _: Request<StartProfileRequest>) -> Result<Response<ProfileResponse>, Status> {
        Err(not_offered("StartProfile"))
    }

    async fn stop_profile(&self, _: Request<StopProfileRequest>) -> Result<Response<ProfileResponse>, Status> {
        Err(not_offered("StopProfile"))
    }

    async fn get_loads(&self, _: Request<GetLoadsRequest>) -> Result<Response<GetLoadsResponse>, Status> {
        let (about, backend) = self.look_at().map_err(status)?;
        Ok(Response::new(loads::loads(&about.config, backend.as_ref())))
    }

    type GetTokenizerStream = BoxStream<GetTokenizerChunk>;

    async fn get_tokenizer(
        &self,
        request: Request<GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        let caller = Caller::of(request.extensions()).map_err(status)?;
        let deadline = deadline(request.metadata()).map_err(status)?;
        let backend = self.backend(&caller, deadline).await.map_err(status)?;
        let (archive, engine) = (self.archive_of(&backend), backend.engine.clone());
        let packed = archive.get_or_try_init(|| backend.work(&caller, move || Archive::of(&engine)));
        packed.await.map_err(status)?;
        let chunks = (0..).map_while(move |n| archive.get()?.chunk(n)).map(Ok);
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    type SubscribeKvEventsStream = BoxStream<KvEventBatch>;

    async fn subscribe_kv_events(
        &self,
        request: Request<SubscribeKvEventsRequest>,
    ) -> Result<Response<Self::SubscribeKvEventsStream>, Status> {
        // These are everybody's tokens.
        let checked = check_program(request.metadata().as_ref());
        checked.and_then(|()| Caller::of(request.extensions())?.check_admin()).map_err(status)?;
        let after = Some(request.get_ref().start_sequence_number).filter(|&after| after > 0);
        let (about, backend) = self.look_at().map_err(status)?;
        let backend = backend.ok_or_else(|| status(not_in_memory(&about)))?;
        let subscription = backend.engine.subscribe_kv_events(after).map_err(status)?;
        let messages = kv_events::messages(subscription).take_until(backend.closing.clone().leaving());
        Ok(responses::onlooking(Box::pin(messages.map(Ok))))
    }
}
