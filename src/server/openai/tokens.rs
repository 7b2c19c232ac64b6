//! vLLM's `/tokenize` and `/detokenize`.

use axum::{
    Json,
    extract::{Request, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    error::OpenAi,
    fields::backend_of,
    messages::{Message, turns},
    tools::Around,
};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    server::{
        backend::Backend,
        http::{
            Http,
            call::{Call, ContentType},
            failure::Failed,
            prompt,
        },
    },
    text::ChatPrompt,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokenize {
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    /// True by default for a prompt; a chat template writes its own.
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detokenize {
    tokens: Vec<u32>,
}

async fn ids_of(backend: &Backend, call: &Call, fields: Tokenize) -> Result<Vec<TokenId>> {
    let (caller, special) = (&call.caller, fields.add_special_tokens);
    match (fields.prompt, fields.messages) {
        (Some(text), None) => prompt::text_ids(backend, caller, text, special.unwrap_or(true)).await,
        (None, Some(messages)) => {
            let mut chat = ChatPrompt::from(turns(messages)?);
            call.parse::<Around>()?.tell(&mut chat)?;
            prompt::chat_ids(backend, caller, chat, special.unwrap_or(false)).await
        }
        _ => Err(Error::invalid("prompt", "must be set, or messages: one of them")),
    }
}

/// `POST /tokenize`.
pub(super) async fn tokenize(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let mut admission = http.models.admit_call(&call.caller)?;
    let fields: Tokenize = call.parse()?;
    let backend = &backend_of(&http, &call).await?;
    let with_strings = fields.return_token_strs == Some(true);
    let ids = ids_of(backend, &call, fields).await?;
    admission.admitted();
    let tokenizer = backend.tokenizer()?;
    let strings = || ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap_or_default()).collect::<Vec<_>>();
    Ok(Json(json!({
        "count": ids.len(),
        "max_model_len": backend.engine.config().max_model_len,
        "tokens": ids.iter().map(|id| id.0).collect::<Vec<_>>(),
        "token_strs": with_strings.then(strings),
    })))
}

/// `POST /detokenize`.
pub(super) async fn detokenize(State(http): State<Http>, request: Request) -> Result<Json<Value>, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let mut admission = http.models.admit_call(&call.caller)?;
    let fields: Detokenize = call.parse()?;
    let backend = &backend_of(&http, &call).await?;
    let ids = fields.tokens.into_iter().map(TokenId).collect();
    let text = prompt::decode(backend, &call.caller, "tokens", ids, false).await?;
    admission.admitted();
    Ok(Json(json!({"prompt": text})))
}
