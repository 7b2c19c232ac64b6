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

/// An adapter beside it.
fn adapter(engine: &Engine, name: &str, root: &str) -> Value {
    let mut model = model(engine);
    (model["id"], model["root"], model["parent"]) = (json!(name), json!(root), json!(engine.info().name));
    model
}

/// `GET /v1/models`: the model and its adapters.
pub(super) async fn list(State(http): State<Http>) -> Json<Value> {
    let engine = &http.backend.engine;
    let mut models = vec![model(engine)];
    models.extend(engine.info().adapters.list().iter().map(|(name, root)| adapter(engine, name, root)));
    Json(json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{model}`; names may have slashes.
pub(super) async fn one(State(http): State<Http>, Path(name): Path<String>) -> Result<Json<Value>, Failed<OpenAi>> {
    check_model(Some(&name), http.backend.engine.info())?;
    let engine = &http.backend.engine;
    let listed = engine.info().adapters.list();
    let found = listed.iter().find(|(own, _)| *own == name);
    Ok(Json(found.map_or_else(|| model(engine), |(name, root)| adapter(engine, name, root))))
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
