//! vLLM's `/tokenize` and `/detokenize`.

use axum::{
    Json,
    extract::{Request, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    error::OpenAi,
    messages::{Message, turns},
};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    server::{
        access::Caller,
        backend::check_model,
        http::{
            Http,
            call::{Call, ContentType},
            failure::Failed,
            prompt,
        },
    },
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokenize {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    /// True by default for a prompt; a chat template writes its own.
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

async fn ids_of(http: &Http, caller: &Caller, fields: Tokenize) -> Result<Vec<TokenId>> {
    match (fields.prompt, fields.messages) {
        (Some(text), None) => {
            let special = fields.add_special_tokens.unwrap_or(true);
            prompt::text_ids(&http.backend, caller, text, special).await
        }
        (None, Some(messages)) => {
            let generation = fields.add_generation_prompt.unwrap_or(true);
            prompt::chat_ids(&http.backend, caller, turns(messages)?, generation).await
        }
        _ => Err(Error::invalid("prompt", "must be set, or messages: one of them")),
    }
}

/// `POST /tokenize`.
pub(super) async fn tokenize(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let _admission = http.backend.admit_call(&call.caller)?;
    let fields: Tokenize = call.parse()?;
    let engine = &http.backend.engine;
    check_model(fields.model.as_deref(), engine.info())?;
    let with_strings = fields.return_token_strs == Some(true);
    let ids = ids_of(&http, &call.caller, fields).await?;
    let tokenizer = http.backend.tokenizer()?;
    let strings = || ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap_or_default()).collect::<Vec<_>>();
    Ok(Json(json!({
        "count": ids.len(),
        "max_model_len": engine.config().max_model_len,
        "tokens": ids.iter().map(|id| id.0).collect::<Vec<_>>(),
        "token_strs": with_strings.then(strings),
    })))
}

/// `POST /detokenize`.
pub(super) async fn detokenize(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let _admission = http.backend.admit_call(&call.caller)?;
    let fields: Detokenize = call.parse()?;
    check_model(fields.model.as_deref(), http.backend.engine.info())?;
    let ids = fields.tokens.into_iter().map(TokenId).collect();
    let text = prompt::decode(&http.backend, &call.caller, "tokens", ids, false).await?;
    Ok(Json(json!({"prompt": text})))
}
