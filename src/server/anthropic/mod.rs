//! Anthropic's Messages API over HTTP: `/v1/messages` and `/v1/messages/count_tokens`.

mod answer;
mod blocks;
pub(super) mod error;
mod request;
mod tools;

use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use self::{
    answer::{MessageEvents, Stamp},
    error::Anthropic,
    request::{Conversation, Messages},
};
use super::http::{
    Http,
    call::{Call, ContentType},
    choices::Choices,
    failure::{Failed, method_not_allowed},
    frames::Telling,
    parts::parts,
    paths::Renames,
    prompt::chat_ids,
    thinking::can_think,
};
use crate::{engine::Request as EngineRequest, error::Result};

/// What the engine calls a field, and what this API does.
const RENAMES: Renames = &[
    ("stop", "stop_sequences"),
    ("prompt.text", "messages"),
    ("prompt", "messages"),
    ("continue_final_message", "messages"),
    ("thinking_token_budget", "thinking.budget_tokens"),
    ("structured_outputs.json", "output_config.format.schema"),
    ("structured_outputs", "output_config.format"),
];

/// The routes.
pub(super) fn routes(http: Http) -> Router {
    Router::new()
        .route("/v1/messages", post(create))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .method_not_allowed_fallback(method_not_allowed::<Anthropic>)
        .with_state(http)
}

/// `POST /v1/messages`.
async fn create(State(http): State<Http>, request: Request) -> Result<Response, Failed<Anthropic>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let conversation: Conversation = call.parse().map_err(|error| http.models.refused(error))?;
    let model = conversation.model().to_owned();
    let backend = &http.models.backend(&call.caller, Some(&model), None).await?;
    let asked = || -> Result<(bool, EngineRequest)> {
        let messages: Messages = call.parse()?;
        let chat = conversation.chat(can_think(backend))?;
        let stream = messages.stream == Some(true);
        let request = messages.request(&call.request_id, chat, &backend.engine.info().default_params)?;
        Ok((stream, EngineRequest { model: Some(model.clone()), ..request }))
    };
    let (stream, request) = asked().map_err(|error| backend.refused(error))?;
    let choices = Choices::open(backend, &call.caller, [request], 1, RENAMES).await?;
    let stamp = Stamp { id: format!("msg_{}", call.request_id), model };
    drop(call);
    if stream {
        return Ok(Telling::new(choices, MessageEvents::new(stamp)).sse());
    }
    let (whole, finished) = choices.one().await?;
    Ok(Json(stamp.message(&parts(whole.pieces), Some(&finished), finished.usage)).into_response())
}

/// `POST /v1/messages/count_tokens`.
async fn count_tokens(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<Anthropic>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let mut admission = http.models.admit_call(&call.caller)?;
    let conversation: Conversation = call.parse().map_err(|error| http.models.refused(error))?;
    let backend = &http.models.backend(&call.caller, Some(conversation.model()), None).await?;
    let chat = conversation.chat(can_think(backend)).map_err(|error| backend.refused(error))?;
    let ids = chat_ids(backend, &call.caller, chat, false).await?;
    admission.admitted();
    Ok(Json(json!({"input_tokens": ids.len()})))
}
