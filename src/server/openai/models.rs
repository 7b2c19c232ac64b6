//! What is served: `/v1/models`, `/version`, `/ping`.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{answer::now, error::OpenAi};
use crate::{
    engine::Health,
    server::{
        http::{Http, failure::Failed},
        models::Listed,
    },
};

/// A model or an adapter, as OpenAI describes one, with vLLM's additions.
fn model(listed: &Listed) -> Value {
    let parent = listed.parent.as_ref();
    json!({
        "id": listed.name,
        "object": "model",
        "created": now(),
        "owned_by": "candlewick",
        "root": parent.map_or(&listed.name, |(_, root)| root),
        "parent": parent.map(|(name, _)| name),
        "max_model_len": listed.about.as_ref().map(|about| about.config.max_model_len),
    })
}

/// `GET /v1/models`: the models that requests may name, and their adapters.
pub(super) async fn list(State(http): State<Http>) -> Json<Value> {
    let listed = http.models.list();
    let models: Vec<_> = listed.iter().filter(|listed| listed.state.answers()).map(model).collect();
    Json(json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{model}`; names may have slashes.
pub(super) async fn one(State(http): State<Http>, Path(name): Path<String>) -> Result<Json<Value>, Failed<OpenAi>> {
    let listed = http.models.list();
    let found = listed.iter().find(|listed| listed.name == name && listed.state.answers());
    Ok(Json(found.map(model).ok_or_else(|| http.models.unknown(&name))?))
}

/// `GET /version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /ping`: whether requests are taken.
pub(super) async fn ping(State(http): State<Http>) -> StatusCode {
    match http.models.health() {
        Health::Serving => StatusCode::OK,
        Health::Restarting | Health::Draining => StatusCode::SERVICE_UNAVAILABLE,
    }
}
