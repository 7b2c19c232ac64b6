//! What is served, as Ollama's clients ask for it.

use axum::{
    Json,
    extract::{Request, State},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Ollama, request::check};
use crate::{
    engine::Engine,
    server::http::{
        Http,
        call::{Call, ContentType},
        failure::Failed,
    },
};

fn details(engine: &Engine) -> Value {
    let info = engine.info();
    json!({
        "parent_model": "",
        "format": if info.path.ends_with(".gguf") { "gguf" } else { "safetensors" },
        "family": info.model_type,
        "families": [info.model_type],
        "parameter_size": format!("{:.1}M", info.num_parameters as f64 / 1e6),
        "quantization_level": info.dtype,
    })
}

/// The model, as lists show it. It has no digest: its bytes are not hashed when it is loaded.
fn entry(engine: &Engine) -> Value {
    let info = engine.info();
    json!({
        "name": info.name,
        "model": info.name,
        "modified_at": Timestamp::now().to_string(),
        "size": info.weight_bytes,
        "digest": "",
        "details": details(engine),
    })
}

/// `GET /api/tags`.
pub(super) async fn tags(State(http): State<Http>) -> Json<Value> {
    Json(json!({"models": [entry(&http.backend.engine)]}))
}

/// `GET /api/ps`.
pub(super) async fn running(State(http): State<Http>) -> Json<Value> {
    let mut entry = entry(&http.backend.engine);
    entry["size_vram"] = 0.into();
    entry["context_length"] = http.backend.engine.config().max_model_len.into();
    Json(json!({"models": [entry]}))
}

/// `GET /api/version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

#[derive(Debug, Deserialize)]
struct Show {
    /// Older clients say `name`.
    #[serde(alias = "name")]
    model: String,
}

/// `POST /api/show`.
pub(super) async fn show(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<Ollama>> {
    let call = Call::read(&http, request, ContentType::Any).await?;
    let asked: Show = call.parse()?;
    let engine = &http.backend.engine;
    let info = engine.info();
    check(&asked.model, info)?;
    let family = &info.model_type;
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": Timestamp::now().to_string(),
        "details": details(engine),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": info.num_parameters,
            format!("{family}.context_length"): engine.config().max_model_len,
            format!("{family}.vocab_size"): info.vocab_size,
        },
        "capabilities": ["completion"],
    })))
}
