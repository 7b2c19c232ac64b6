//! Ollama's `POST /api/embed`, and the older `/api/embeddings`.

use std::time::Instant;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Ollama, answer::nanos, request::backend_of};
use crate::{
    engine::{EmbedInput, EmbedOptions, EmbedRequest},
    error::Result,
    server::{
        backend::check_embeds,
        held::Held,
        http::{
            Http,
            call::{Call, ContentType},
            failure::Failed,
            paths::{Renames, rename},
        },
    },
};

const RENAMES: Renames = &[("inputs", "input")];
const LEGACY_RENAMES: Renames = &[("inputs[0].text", "prompt"), ("inputs[0]", "prompt")];

/// `options` and `keep_alive` concern how a model is loaded, which is the server's affair.
#[derive(Debug, Deserialize)]
struct Embed {
    #[serde(default)]
    input: Input,
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default)]
    dimensions: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string or an array of strings")]
enum Input {
    One(String),
    Many(Vec<String>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Debug, Deserialize)]
struct Legacy {
    #[serde(default)]
    prompt: String,
}

#[derive(Debug, Serialize)]
struct Embedded<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    total_duration: Value,
    load_duration: u64,
    prompt_eval_count: u32,
}

#[derive(Debug, Serialize)]
struct LegacyEmbedded {
    embedding: Vec<f32>,
}

/// An answer that holds the room of its vectors until it is sent.
fn answer(answer: impl Serialize, held: Option<Held>) -> Response {
    let mut response = Json(answer).into_response();
    if let Some(held) = held {
        response.extensions_mut().insert(held);
    }
    response
}

/// `POST /api/embed`: vectors of length 1. Without an input the call asks for the model to be loaded, which it is.
pub(super) async fn embed(State(http): State<Http>, request: Request) -> Result<Response, Failed<Ollama>> {
    let began = Instant::now();
    let call = Call::read(&http, request, ContentType::Any).await?;
    let (backend, model) = backend_of(&http, &call).await?;
    let asked = check_embeds(Some(&model), backend.engine.info()).and_then(|()| call.parse());
    let Embed { input, truncate, dimensions } = asked.map_err(|error| backend.refused(error))?;
    let caller = call.caller.clone();
    drop(call);
    let texts = match input {
        Input::One(text) if text.is_empty() => Vec::new(),
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    let (mut embeddings, mut prompt_eval_count, mut held) = (Vec::new(), 0, None);
    if !texts.is_empty() {
        // Ollama cuts an input that is too long unless told not to.
        let options = EmbedOptions { truncate: truncate != Some(false), dimensions, ..EmbedOptions::default() };
        let inputs = texts.into_iter().map(EmbedInput::Text).collect();
        let embedded = backend.embed(&caller, EmbedRequest { options, ..EmbedRequest::new(inputs) }).await;
        let embedded = embedded.map_err(|error| rename(error, RENAMES))?;
        prompt_eval_count = embedded.usage().prompt_tokens;
        embeddings.extend(embedded.embeddings.into_iter().map(|embedding| embedding.values));
        held = Some(Held::new(embedded.room));
    }
    let total_duration = nanos(began.elapsed());
    Ok(answer(Embedded { model: &model, embeddings, total_duration, load_duration: 0, prompt_eval_count }, held))
}

/// `POST /api/embeddings`: one vector, as long as it comes.
pub(super) async fn legacy(State(http): State<Http>, request: Request) -> Result<Response, Failed<Ollama>> {
    let call = Call::read(&http, request, ContentType::Any).await?;
    let (backend, model) = backend_of(&http, &call).await?;
    let asked = check_embeds(Some(&model), backend.engine.info()).and_then(|()| call.parse());
    let Legacy { prompt } = asked.map_err(|error| backend.refused(error))?;
    let caller = call.caller.clone();
    drop(call);
    if prompt.is_empty() {
        return Ok(answer(LegacyEmbedded { embedding: Vec::new() }, None));
    }
    let options = EmbedOptions { truncate: true, normalize: false, ..EmbedOptions::default() };
    let request = EmbedRequest { options, ..EmbedRequest::new(vec![EmbedInput::Text(prompt)]) };
    let embedded = backend.embed(&caller, request).await.map_err(|error| rename(error, LEGACY_RENAMES))?;
    let first = embedded.embeddings.into_iter().next().map(|embedding| embedding.values);
    Ok(answer(LegacyEmbedded { embedding: first.unwrap_or_default() }, Some(Held::new(embedded.room))))
}
