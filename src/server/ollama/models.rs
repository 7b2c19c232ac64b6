//! What is served, as Ollama's clients ask for it.

use axum::{
    Json,
    extract::{Request, State},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Ollama, request::name_of};
use crate::{
    engine::ModelInfo,
    server::{
        http::{
            Http,
            call::{Call, ContentType},
            failure::Failed,
        },
        models::{About, Listed, ModelState},
    },
};

fn details(info: &ModelInfo) -> Value {
    json!({
        "parent_model": "",
        "format": if info.path.ends_with(".gguf") { "gguf" } else { "safetensors" },
        "family": info.model_type,
        "families": [info.model_type],
        "parameter_size": format!("{:.1}M", info.num_parameters as f64 / 1e6),
        "quantization_level": info.dtype,
    })
}

/// A model, as lists show it. It has no digest: its bytes are not hashed when it is loaded.
fn entry(info: &ModelInfo) -> Value {
    json!({
        "name": info.name,
        "model": info.name,
        "modified_at": Timestamp::now().to_string(),
        "size": info.weight_bytes,
        "digest": "",
        "details": details(info),
    })
}

/// The models, without their adapters, that stand so.
fn listed(http: &Http, stands: impl Fn(ModelState) -> bool, show: impl Fn(&About) -> Value) -> Json<Value> {
    let is_meant = |listed: &Listed| listed.parent.is_none() && stands(listed.state);
    let models = http.models.list().into_iter().filter(is_meant).filter_map(|listed| listed.about);
    let models: Vec<_> = models.map(|about| show(&about)).collect();
    Json(json!({"models": models}))
}

/// `GET /api/tags`: those that requests may name.
pub(super) async fn tags(State(http): State<Http>) -> Json<Value> {
    listed(&http, ModelState::answers, |about| entry(&about.info))
}

/// `GET /api/ps`: those in memory.
pub(super) async fn running(State(http): State<Http>) -> Json<Value> {
    let in_memory = |state| matches!(state, ModelState::Ready | ModelState::Draining);
    listed(&http, in_memory, |about| {
        let mut entry = entry(&about.info);
        entry["size_vram"] = 0.into();
        entry["context_length"] = about.config.max_model_len.into();
        entry
    })
}

/// `GET /api/version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `POST /api/show`.
pub(super) async fn show(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<Ollama>> {
    let call = Call::read(&http, request, ContentType::Any).await?;
    let (about, _) = http.models.look_at(Some(&name_of(&http, &call)?)).map_err(|error| http.models.refused(error))?;
    let About { info, config, output_format, .. } = &*about;
    let family = &info.model_type;
    // Clients offer tools and ask for thoughts by these words.
    let mut capabilities = vec!["completion"];
    capabilities.extend(output_format.tool_calls.map(|_| "tools"));
    capabilities.extend(output_format.reasons().then_some("thinking"));
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": Timestamp::now().to_string(),
        "details": details(info),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": info.num_parameters,
            format!("{family}.context_length"): config.max_model_len,
            format!("{family}.vocab_size"): info.vocab_size,
        },
        "capabilities": capabilities,
    })))
}
