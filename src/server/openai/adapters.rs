//! Adapters loaded and unloaded while the server runs, as vLLM has it: `/v1/load_lora_adapter`, `/v1/unload_lora_adapter`.

use std::path::PathBuf;

use axum::extract::{Request, State};
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::error::OpenAi;
use crate::{
    error::Error,
    server::{
        access::check_operator,
        http::{
            Http,
            call::{Call, ContentType},
            failure::Failed,
        },
    },
};

#[derive(Deserialize)]
struct Load {
    lora_name: String,
    lora_path: PathBuf,
}

#[derive(Deserialize)]
struct Unload {
    lora_name: String,
}

/// `POST /v1/load_lora_adapter`: answers when requests can name it.
pub(super) async fn load(State(http): State<Http>, request: Request) -> Result<String, Failed<OpenAi>> {
    let info = http.backend.engine.info();
    info.adapters.may_change()?;
    check_operator(request.headers(), request.extensions())?;
    let call = Call::read(&http, request, ContentType::Json).await?;
    let asked: Load = call.parse()?;
    let (adapters, base) = (info.adapters.clone(), info.name.clone());
    let Load { lora_name, lora_path } = asked;
    let said = format!("Success: LoRA adapter '{lora_name}' added successfully.");
    let loading = spawn_blocking(move || adapters.load(&lora_name, &lora_path, &base));
    loading.await.map_err(|error| Error::internal(format!("loading an adapter failed: {error}")))??;
    Ok(said)
}

/// `POST /v1/unload_lora_adapter`: no new request can name it; those under way end as they were promised.
pub(super) async fn unload(State(http): State<Http>, request: Request) -> Result<String, Failed<OpenAi>> {
    let adapters = &http.backend.engine.info().adapters;
    adapters.may_change()?;
    check_operator(request.headers(), request.extensions())?;
    let call = Call::read(&http, request, ContentType::Json).await?;
    let asked: Unload = call.parse()?;
    adapters.unload(&asked.lora_name)?;
    Ok(format!("Success: LoRA adapter '{}' removed successfully.", asked.lora_name))
}
