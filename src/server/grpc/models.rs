//! `candlewick.v1.Models`: what is served, and what comes and goes.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{
    Models,
    admin::{check_operator, reader},
    status::status,
    stream::onlooking,
};
use crate::{
    config::Quantization,
    engine::{ModelImpl, load::LoadProgress},
    error::{Code, Error, Result},
    proto::candlewick::v1::{self as wire, load_progress::Stage, load_response, models_server::Models as Service},
    server::models::{About, Listed, LoadAsked, LoadStatus, ModelState, Reader},
};

/// Calls of Watch at once.
const WATCHES: usize = 1024;
/// Shortest time between two messages of a stream: a load makes hundreds of steps.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct ModelsService {
    models: Models,
    watches: Arc<Semaphore>,
}

impl ModelsService {
    pub(super) fn new(models: Models) -> Self {
        Self { models, watches: Arc::new(Semaphore::new(WATCHES)) }
    }
}

/// A line of the list, in this wire's words.
fn model(listed: Listed) -> wire::Model {
    let Listed { name, state, about, progress, failure, is_default, parent, memory_bytes } = listed;
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let known = about.as_deref().map(|About { info, config, has_tokenizer, has_chat_template, .. }| wire::Model {
        architecture: info.architecture.clone(),
        max_model_len: clamp(config.max_model_len),
        vocab_size: clamp(info.vocab_size),
        has_tokenizer: *has_tokenizer,
        has_chat_template: *has_chat_template,
        num_parameters: info.num_parameters,
        dtype: info.dtype.clone(),
        eos_token_ids: info.eos_token_ids.iter().map(|id| id.0).collect(),
        model_impl: match info.model_impl {
            ModelImpl::Candlewick => wire::ModelImpl::Candlewick,
            ModelImpl::CandleTransformers => wire::ModelImpl::CandleTransformers,
        }
        .into(),
        ..wire::Model::default()
    });
    wire::Model {
        name,
        state: state_to_wire(state).into(),
        progress: progress.map(progress_to_wire),
        failure,
        is_default,
        parent: parent.map(|(name, _)| name),
        memory_bytes,
        ..known.unwrap_or_default()
    }
}

fn state_to_wire(state: ModelState) -> wire::ModelState {
    match state {
        ModelState::Loading => wire::ModelState::Loading,
        ModelState::Ready => wire::ModelState::Ready,
        ModelState::Draining => wire::ModelState::Draining,
        ModelState::Idle => wire::ModelState::Idle,
        ModelState::Unloaded => wire::ModelState::Unloaded,
        ModelState::Failed => wire::ModelState::Failed,
    }
}

fn progress_to_wire(progress: LoadProgress) -> wire::LoadProgress {
    let (stage, done, total) = match progress {
        LoadProgress::Downloading { bytes, total_bytes } => (Stage::Downloading, bytes, total_bytes),
        LoadProgress::Loading { tensors, total } => (Stage::Reading, tensors as u64, total as u64),
    };
    wire::LoadProgress { stage: stage.into(), done, total }
}

/// The model of that name: the one that answers, where another of that name leaves or comes.
fn named(models: &Models, name: &str, reader: Reader) -> Option<wire::Model> {
    let mut own: Vec<_> = models.list_for(reader).into_iter().filter(|listed| listed.name == name).collect();
    own.sort_by_key(|listed| !listed.state.answers());
    own.into_iter().next().map(model)
}

fn asked(request: wire::LoadRequest) -> Result<LoadAsked> {
    let wire::LoadRequest { name, path, replace, quantization, max_model_len, kv_cache_memory_bytes } = request;
    let has_settings = quantization.is_some() || max_model_len.is_some() || kv_cache_memory_bytes.is_some();
    if path.as_deref().is_none_or(str::is_empty) && has_settings {
        let why = "must be set where settings are: a model that was served before is loaded as it was";
        return Err(Error::invalid("path", why));
    }
    let quantization = quantization.filter(|name| !name.is_empty()).map(|name| Quantization::parse(&name));
    Ok(LoadAsked {
        name,
        path,
        replace: replace.unwrap_or(false),
        quantization: quantization.transpose()?,
        max_model_len,
        kv_cache_memory_bytes,
    })
}

#[tonic::async_trait]
impl Service for ModelsService {
    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let reader = reader(request.metadata(), request.extensions());
        Ok(Response::new(wire::ListResponse { models: self.models.list_for(reader).into_iter().map(model).collect() }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetResponse>, Status> {
        let name = &request.get_ref().name;
        let unknown = || status(self.models.refused(self.models.unknown(name)));
        let reader = reader(request.metadata(), request.extensions());
        let model = named(&self.models, name, reader).ok_or_else(unknown)?;
        Ok(Response::new(wire::GetResponse { model: Some(model) }))
    }

    type LoadStream = BoxStream<wire::LoadResponse>;

    async fn load(&self, request: Request<wire::LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        check_operator(&metadata, &extensions).map_err(status)?;
        let begun = asked(message).and_then(|asked| self.models.load(asked));
        let (name, progress) = begun.map_err(status)?;
        let events = load_events(self.models.clone(), name, progress);
        Ok(Response::new(Box::pin(events.take_until(self.models.closing().leaving()))))
    }

    async fn unload(&self, request: Request<wire::UnloadRequest>) -> Result<Response<wire::UnloadResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        check_operator(&metadata, &extensions).map_err(status)?;
        let wire::UnloadRequest { name, wait_ms, drain_timeout_ms } = message;
        let cut_after = drain_timeout_ms.map(Duration::from_millis);
        let unloading = self.models.unload(&name, cut_after).map_err(status)?;
        let live = match unloading {
            Some(mut unloading) => {
                let wait = Duration::from_millis(wait_ms.unwrap_or(0));
                // How far it came is said either way.
                let _in_time = timeout(wait, unloading.gone()).await;
                unloading.num_live()
            }
            None => None,
        };
        let live_requests = live.map_or(0, |live| u32::try_from(live).unwrap_or(u32::MAX));
        Ok(Response::new(wire::UnloadResponse { live_requests, unloaded: live.is_none() }))
    }

    type WatchStream = BoxStream<wire::WatchResponse>;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let reader = reader(request.metadata(), request.extensions());
        let place = self.watches.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("{WATCHES} watch the models already");
            status(self.models.refused(Error::new(Code::ResourceExhausted, why)))
        })?;
        let lists = lists((self.models.clone(), reader), place).take_until(self.models.closing().leaving());
        Ok(onlooking(Box::pin(lists)))
    }
}

/// How far a load has come, at its pace or the reader's, and what comes of it.
fn load_events(
    models: Models,
    name: String,
    status_of: watch::Receiver<LoadStatus>,
) -> impl futures::Stream<Item = Result<wire::LoadResponse, Status>> + Send + 'static {
    let begin = Some((status_of, Instant::now()));
    stream::unfold(begin, move |state| {
        let (models, name) = (models.clone(), name.clone());
        async move {
            let (mut status_of, next) = state?;
            loop {
                let now = status_of.borrow_and_update().clone();
                let event = match now {
                    LoadStatus::Under(None) => None,
                    LoadStatus::Under(Some(progress)) => {
                        Some(load_response::Event::Progress(progress_to_wire(progress)))
                    }
                    LoadStatus::Over(Ok(())) => {
                        let event = named(&models, &name, Reader::Operator).map(load_response::Event::Model);
                        return Some((Ok(wire::LoadResponse { event }), None));
                    }
                    LoadStatus::Over(Err(error)) => return Some((Err(status(error)), None)),
                };
                if event.is_some() && Instant::now() >= next {
                    return Some((Ok(wire::LoadResponse { event }), Some((status_of, Instant::now() + PAUSE))));
                }
                // The end is told at once, and what comes too soon with what comes later.
                if status_of.changed().await.is_err() {
                    let gone = Error::new(Code::Unavailable, "the model was not loaded: the server is going down");
                    return Some((Err(status(gone)), None));
                }
            }
        }
    })
}

/// The list now and at every change, at a pace. Made when it is read, so that a slow reader has nothing waiting.
fn lists(
    (models, reader): (Models, Reader),
    place: OwnedSemaphorePermit,
) -> impl futures::Stream<Item = Result<wire::WatchResponse, Status>> + Send + 'static {
    let mut changes = models.changes();
    changes.mark_changed();
    stream::unfold((models, changes, Instant::now(), place), move |(models, mut changes, next, place)| async move {
        changes.changed().await.ok()?;
        sleep_until(next).await;
        changes.mark_unchanged();
        let message = wire::WatchResponse { models: models.list_for(reader).into_iter().map(model).collect() };
        Some((Ok(message), (models, changes, Instant::now() + PAUSE, place)))
    })
}
