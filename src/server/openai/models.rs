//! What is served: `/v1/models`, `/version`, `/ping`.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{answer::now, error::OpenAi};
use crate::{
    engine::{Engine, Health},
    server::{
        backend::check_model,
        http::{Http, failure::Failed},
    },
};

/// The model, as OpenAI describes one, with vLLM's additions.
fn model(engine: &Engine) -> Value {
    let info = engine.info();
    json!({
        "id": info.name,
        "object": "model",
        "created": now(),
        "owned_by": "candlewick",
        "root": info.name,
        "parent": null,
        "max_model_len": engine.config().max_model_len,
    })
}

/// `GET /v1/models`.
pub(super) async fn list(State(http): State<Http>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&http.backend.engine)]}))
}

/// `GET /v1/models/{model}`; names may have slashes.
pub(super) async fn one(State(http): State<Http>, Path(name): Path<String>) -> Result<Json<Value>, Failed<OpenAi>> {
    check_model(Some(&name), http.backend.engine.info())?;
    Ok(Json(model(&http.backend.engine)))
}

/// `GET /version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /ping`: whether requests are taken.
pub(super) async fn ping(State(http): State<Http>) -> StatusCode {
    match *http.backend.engine.health().borrow() {
        Health::Serving => StatusCode::OK,
        Health::Restarting | Health::Draining => StatusCode::SERVICE_UNAVAILABLE,
    }
}
