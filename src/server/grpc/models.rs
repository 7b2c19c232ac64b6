//! `candlewick.v1.Models`: what is served.

use tonic::{Request, Response, Status};

use super::{Backend, status::status};
use crate::{
    engine::{self, Engine},
    proto::candlewick::v1::{
        GetRequest, GetResponse, ListRequest, ListResponse, Model, ModelImpl, models_server::Models,
    },
    server::backend::check_model,
};

pub(super) struct ModelsService {
    backend: Backend,
}

impl ModelsService {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend }
    }
}

/// The model, or an adapter beside it, by the name that requests use.
fn model(engine: &Engine, name: &str) -> Model {
    let (info, text) = (engine.info(), engine.text());
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Model {
        name: name.to_owned(),
        architecture: info.architecture.clone(),
        max_model_len: clamp(engine.config().max_model_len),
        vocab_size: clamp(info.vocab_size),
        has_tokenizer: text.tokenizer.is_some(),
        has_chat_template: text.chat_template.is_some(),
        num_parameters: info.num_parameters,
        dtype: info.dtype.clone(),
        eos_token_ids: info.eos_token_ids.iter().map(|id| id.0).collect(),
        model_impl: match info.model_impl {
            engine::ModelImpl::Candlewick => ModelImpl::Candlewick,
            engine::ModelImpl::CandleTransformers => ModelImpl::CandleTransformers,
        }
        .into(),
    }
}

#[tonic::async_trait]
impl Models for ModelsService {
    async fn list(&self, _request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let engine = &self.backend.engine;
        let adapters = engine.info().adapters.list();
        let names = std::iter::once(&engine.info().name).chain(adapters.iter().map(|(name, _)| name));
        Ok(Response::new(ListResponse { models: names.map(|name| model(engine, name)).collect() }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let engine = &self.backend.engine;
        let name = &request.get_ref().name;
        check_model(Some(name), engine.info()).map_err(status)?;
        Ok(Response::new(GetResponse { model: Some(model(engine, name)) }))
    }
}
