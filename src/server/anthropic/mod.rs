//! Anthropic's Messages API over HTTP: `/v1/messages` and `/v1/messages/count_tokens`.

mod answer;
pub(super) mod error;
mod request;

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
    paths::Renames,
    prompt::chat_ids,
};
use crate::{engine::Request as EngineRequest, error::Result};

/// What the engine calls a field, and what this API does.
const RENAMES: Renames = &[("stop", "stop_sequences"), ("prompt.text", "messages"), ("prompt", "messages")];

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
        let turns = conversation.turns()?;
        let stream = messages.stream == Some(true);
        let request = messages.request(&call.request_id, turns, &backend.engine.info().default_params)?;
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
    Ok(Json(stamp.message(&whole.text, Some(&finished.reason), finished.usage)).into_response())
}

/// `POST /v1/messages/count_tokens`.
async fn count_tokens(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<Anthropic>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let _admission = http.models.admit_call(&call.caller)?;
    let conversation: Conversation = call.parse().map_err(|error| http.models.refused(error))?;
    let backend = &http.models.backend(&call.caller, Some(conversation.model()), None).await?;
    let turns = conversation.turns().map_err(|error| backend.refused(error))?;
    let ids = chat_ids(backend, &call.caller, turns, true).await?;
    Ok(Json(json!({"input_tokens": ids.len()})))
}
