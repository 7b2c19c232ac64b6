//! Ollama's API over HTTP: `/api/chat`, `/api/generate`, `/api/embed`, and what is served. Streams are lines of JSON.

mod answer;
mod embed;
mod models;
mod request;

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde_json::{Value, json};

use self::{
    answer::{Lines, Said, Words},
    request::{Chat, Generate, Options, backend_of},
};
use super::{
    backend::Backend,
    http::{
        Http,
        call::{Call, ContentType},
        choices::Choices,
        failure::{Failed, Failure, Shape, method_not_allowed, no_such_path},
        frames::Telling,
        origin::own_or_listed,
        paths::Renames,
        thinking::can_think,
    },
};
use crate::{config::AllowedOrigins, engine, error::Result};

/// What the engine calls a field, and what this API does.
const RENAMES: Renames = &[
    ("prompt.text", "prompt"),
    ("continue_final_message", "messages"),
    ("max_tokens", "options.num_predict"),
    ("repetition_penalty", "options.repeat_penalty"),
    ("temperature", "options.temperature"),
    ("top_p", "options.top_p"),
    ("min_p", "options.min_p"),
    ("typical_p", "options.typical_p"),
    ("mirostat_tau", "options.mirostat_tau"),
    ("mirostat_eta", "options.mirostat_eta"),
    ("mirostat", "options.mirostat"),
    ("structured_outputs.json", "format"),
    ("structured_outputs", "format"),
    ("stop", "options.stop"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("presence_penalty", "options.presence_penalty"),
];

/// Ollama's shape of errors: `{"error": "…"}`.
pub(super) struct Ollama;

impl Shape for Ollama {
    fn body(failure: &Failure) -> Value {
        json!({"error": failure.message})
    }
}

/// The routes, open to pages of these sites. A browser would send this face's requests for any page: they need not say that
/// they are JSON.
pub(super) fn routes(http: Http, origins: &AllowedOrigins) -> Router {
    Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::legacy))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::running))
        .route("/api/show", post(models::show))
        .route("/api/version", get(models::version))
        .route("/api/{*path}", any(no_such_path::<Ollama>))
        .method_not_allowed_fallback(method_not_allowed::<Ollama>)
        .layer(middleware::from_fn_with_state(origins.clone(), own_or_listed::<Ollama>))
        .with_state(http)
}

/// `POST /api/chat`.
async fn chat(State(http): State<Http>, request: Request) -> Result<Response, Failed<Ollama>> {
    let call = Call::read(&http, request, ContentType::Any).await?;
    let (backend, model) = backend_of(&http, &call).await?;
    let asked = call.parse::<Chat>().and_then(|chat| chat.read(model, can_think(&backend)));
    let (prompt, options) = asked.map_err(|error| backend.refused(error))?;
    answer(&backend, call, Words::Chat, prompt, options).await
}

/// `POST /api/generate`.
async fn generate(State(http): State<Http>, request: Request) -> Result<Response, Failed<Ollama>> {
    let call = Call::read(&http, request, ContentType::Any).await?;
    let (backend, model) = backend_of(&http, &call).await?;
    let templated = backend.engine.text().chat_template.is_some();
    let asked = call.parse::<Generate>();
    let asked = asked.and_then(|generate| generate.read(model, templated, can_think(&backend)));
    let (prompt, options) = asked.map_err(|error| backend.refused(error))?;
    answer(&backend, call, Words::Generate, prompt, options).await
}

/// Without a prompt the call asks for the model to be loaded, which it is.
async fn answer(
    backend: &Backend,
    call: Call,
    words: Words,
    prompt: Option<engine::Prompt>,
    options: Options,
) -> Result<Response, Failed<Ollama>> {
    let info = backend.engine.info();
    let mut lines = Lines::new(words, options.model.clone());
    let Some(prompt) = prompt else { return Ok(Json(lines.loaded()).into_response()) };
    let (stream, model) = (options.stream, Some(options.model.clone()));
    let params = options.params(&info.default_params).map_err(|error| backend.refused(error))?;
    let caller = call.caller.clone();
    let request = engine::Request { request_id: call.into_id(), model, params, ..engine::Request::new(prompt) };
    let choices = Choices::open(backend, &caller, [request], 1, RENAMES).await?;
    if stream {
        return Ok(Telling::new(choices, lines).lines());
    }
    let (whole, finished) = choices.one().await?;
    Ok(Json(lines.last(&Said::of(whole), &finished)).into_response())
}
