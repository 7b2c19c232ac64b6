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
        backend::cut,
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
    /// The model that it is for; the default one where there is none.
    #[serde(default)]
    base_model_name: Option<String>,
}

#[derive(Deserialize)]
struct Unload {
    lora_name: String,
}

/// `POST /v1/load_lora_adapter`: answers when requests can name it.
pub(super) async fn load(State(http): State<Http>, request: Request) -> Result<String, Failed<OpenAi>> {
    check_operator(request.headers(), request.extensions())?;
    let call = Call::read(&http, request, ContentType::Json).await?;
    let Load { lora_name, lora_path, base_model_name } = call.parse()?;
    let backend = http.models.backend(&call.caller, base_model_name.as_deref(), None).await?;
    let info = backend.engine.info();
    info.adapters.may_change()?;
    if http.models.is_taken(&lora_name) {
        let why = format!(
            "{:?} is loaded already, or the name of a model: unload the adapter first, or choose another name",
            cut(&lora_name, 256)
        );
        return Err(Error::invalid("lora_name", why).into());
    }
    let (adapters, base) = (info.adapters.clone(), info.name.clone());
    let said = format!("Success: LoRA adapter '{lora_name}' added successfully.");
    let loading = spawn_blocking(move || adapters.load(&lora_name, &lora_path, &base));
    loading.await.map_err(|error| Error::internal(format!("loading an adapter failed: {error}")))??;
    Ok(said)
}

/// `POST /v1/unload_lora_adapter`: no new request can name it; those under way end as they were promised.
pub(super) async fn unload(State(http): State<Http>, request: Request) -> Result<String, Failed<OpenAi>> {
    check_operator(request.headers(), request.extensions())?;
    let call = Call::read(&http, request, ContentType::Json).await?;
    let asked: Unload = call.parse()?;
    // Where no model has it, the default one says so.
    let of = Some(asked.lora_name.as_str()).filter(|name| http.models.knows(name));
    let backend = http.models.backend(&call.caller, of, None).await?;
    let adapters = &backend.engine.info().adapters;
    adapters.may_change()?;
    adapters.unload(&asked.lora_name)?;
    Ok(format!("Success: LoRA adapter '{}' removed successfully.", asked.lora_name))
}
