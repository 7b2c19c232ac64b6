//! OpenAI's API over HTTP, with vLLM's additions, thin over the engine.
//!
//! Requests are read in `fields` (what all that generate have in common), `completions`, `chat`, `responses` and
//! `embeddings`; answers are written in the same files, their shared parts in `answer` and `logprobs`.

mod adapters;
mod answer;
mod chat;
mod chunks;
mod completions;
mod embeddings;
pub(super) mod error;
mod features;
mod fields;
mod logprobs;
mod messages;
mod models;
mod prompts;
mod responses;
mod samplers;
mod tokens;
mod tools;

use axum::{
    Router,
    routing::{any, get, post},
};

use self::error::OpenAi;
use super::http::{
    Http,
    failure::{method_not_allowed, no_such_path},
};

/// The routes.
pub(super) fn routes(http: Http) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/version", get(models::version))
        .route("/ping", get(models::ping).post(models::ping))
        .route("/v1/{*path}", any(no_such_path::<OpenAi>))
        .method_not_allowed_fallback(method_not_allowed::<OpenAi>)
        .with_state(http.clone())
        .merge(responses::routes(http))
}
