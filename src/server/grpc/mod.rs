//! gRPC and gRPC-Web: the services of `candlewick.v1`, health and reflection, over the server's models.

pub(crate) mod admin;
pub(crate) mod chat;
mod chat_convert;
pub(crate) mod convert;
pub(crate) mod deadline;
mod embeddings;
pub(crate) mod generation;
pub(crate) mod health;
mod inbound;
pub(crate) mod models;
mod resumable;
mod room;
mod session;
pub mod status;
pub(crate) mod stream;
mod streaming;
pub(crate) mod structured_outputs;
pub(crate) mod tokens;
mod told;

use std::time::Duration;

use axum::Router;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;

pub(crate) use self::convert::FieldPaths;
pub(crate) use super::backend::Backend;
use super::{models::Models, oip, vllm_engine};
use crate::{
    error::{Error, Result},
    proto::{
        FILE_DESCRIPTOR_SET,
        candlewick::v1::{
            admin_server::AdminServer, chat_server::ChatServer, embeddings_server::EmbeddingsServer,
            generation_server::GenerationServer, models_server::ModelsServer, tokens_server::TokensServer,
        },
        inference::grpc_inference_service_server::GrpcInferenceServiceServer,
        vllm::grpc::engine::vllm_engine_server::VllmEngineServer,
    },
};

/// Bytes of the largest request: prompts of a few hundred thousand ids, or a megabyte of text, with room.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The services whose health clients may ask for; the empty name is the server as a whole.
const SERVICES: [&str; 9] = [
    "",
    "candlewick.v1.Generation",
    "candlewick.v1.Chat",
    "candlewick.v1.Models",
    "candlewick.v1.Tokens",
    "candlewick.v1.Admin",
    "candlewick.v1.Embeddings",
    "vllm.grpc.engine.VllmEngine",
    "inference.GRPCInferenceService",
];

/// All services, to clients of gRPC and, binary and text, to browsers.
///
/// # Errors
/// `Internal` where the descriptors that were built in cannot be read.
pub(super) fn routes(models: &Models, drain_grace: Duration) -> Result<Router> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let unreadable = |error| Error::internal(format!("reflection: {error}"));
    let resumables = resumable::Resumables::new(models.streams());
    let generation = generation::GenerationService::new(models.clone(), resumables.clone());
    let sessions = session::Sessions::new(models.streams());
    let chat = chat::ChatService::new(models.clone(), resumables, sessions);
    let served = models::ModelsService::new(models.clone());
    let tokens = tokens::TokensService::new(models.clone());
    let admin = admin::AdminService::new(models.clone(), drain_grace);
    let embeddings = embeddings::EmbeddingsService::new(models.clone());
    let inference = oip::InferenceService::new(models.clone());
    let vllm = vllm_engine::VllmEngineService::new(models.clone());
    let routes = Routes::new(health::service(models))
        .add_service(GenerationServer::new(generation).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(ChatServer::new(chat).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(ModelsServer::new(served))
        .add_service(TokensServer::new(tokens).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(AdminServer::new(admin))
        .add_service(EmbeddingsServer::new(embeddings).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(VllmEngineServer::new(vllm).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(GrpcInferenceServiceServer::new(inference).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(reflection().build_v1().map_err(unreadable)?)
        .add_service(reflection().build_v1alpha().map_err(unreadable)?);
    Ok(inbound::bounded(routes.into_axum_router(), models.bodies())?.layer(GrpcWebLayer::new()))
}
