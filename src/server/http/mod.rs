//! What the faces that speak JSON over HTTP share: bodies with bounds, request ids, statuses, and streams of frames.
//!
//! Each face has its own shape of requests, answers and errors in a folder beside this one.

pub(crate) mod call;
pub(crate) mod choices;
pub(crate) mod content;
pub(crate) mod failure;
pub(crate) mod frames;
pub(crate) mod origin;
pub(crate) mod parts;
pub(crate) mod paths;
pub(crate) mod prompt;
pub(crate) mod request_id;
pub(crate) mod thinking;
pub(crate) mod tools;

use axum::{Router, middleware};

use super::{anthropic, models::Models, ollama, openai};
use crate::config::AllowedOrigins;

/// What every JSON face holds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Http {
    pub(crate) models: Models,
}

/// The routes of all faces; `origins` are the sites whose pages may call.
pub(crate) fn routes(models: &Models, origins: &AllowedOrigins) -> Router {
    let http = Http { models: models.clone() };
    Router::new()
        .merge(openai::routes(http.clone()))
        .merge(anthropic::routes(http.clone()))
        .merge(ollama::routes(http, origins))
        .layer(middleware::from_fn(request_id::name))
}
