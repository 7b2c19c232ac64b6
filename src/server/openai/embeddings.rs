//! `POST /v1/embeddings`: inputs in, a vector each out.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{error::OpenAi, fields::backend_of, prompts::Prompts};
use crate::{
    engine::{EmbedInput, EmbedOptions, EmbedRequest, ModelInfo, Prompt},
    error::{Code, Error, Result},
    params::{Pooling, Usage},
    server::{
        backend::{check_embeds, name},
        held::Held,
        http::{
            Http,
            call::{Call, ContentType},
            failure::Failed,
        },
    },
};

/// OpenAI's fields, vLLM's, and `pooling`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    model: Option<String>,
    input: Prompts,
    encoding_format: Option<Encoding>,
    dimensions: Option<u32>,
    normalize: Option<bool>,
    pooling: Option<String>,
    /// -1 cuts inputs to what fits.
    truncate_prompt_tokens: Option<i64>,
    add_special_tokens: Option<bool>,
    messages: Option<Value>,
    priority: Option<i32>,
    cache_salt: Option<String>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", expecting = "must be \"float\" or \"base64\"")]
enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Its float32 numbers, least significant byte first, in base64.
    Base64,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Data>,
    model: &'a str,
    usage: Value,
}

#[derive(Debug, Serialize)]
struct Data {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    fn of(values: Vec<f32>, encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float => Self::Float(values),
            Encoding::Base64 => {
                let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

/// Handles a call.
pub(super) async fn create(State(http): State<Http>, request: Request) -> Result<Response, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let backend = &backend_of(&http, &call).await?;
    let info = backend.engine.info();
    let asked = call.parse::<Fields>().and_then(|fields| {
        let encoding = fields.encoding_format.unwrap_or_default();
        Ok((encoding, fields.request(info)?))
    });
    let (encoding, request) = asked.map_err(|error| backend.refused(error))?;
    let caller = call.caller.clone();
    drop(call);
    let is_single = request.inputs.len() == 1;
    let embedded = backend.embed(&caller, request).await.map_err(|error| located(error, is_single))?;
    let usage = usage(embedded.usage());
    let data = embedded.embeddings.into_iter().enumerate().map(|(index, embedding)| Data {
        object: "embedding",
        index,
        embedding: Vector::of(embedding.values, encoding),
    });
    let answer = Answer { object: "list", data: data.collect(), model: &info.name, usage };
    let mut response = Json(answer).into_response();
    response.extensions_mut().insert(Held::new(embedded.room));
    Ok(response)
}

impl Fields {
    fn request(self, info: &ModelInfo) -> Result<EmbedRequest> {
        check_embeds(self.model.as_deref(), info)?;
        if self.messages.is_some_and(|messages| !messages.is_null()) {
            return Err(Error::invalid("messages", "is not offered here: send the text as input"));
        }
        if self.add_special_tokens == Some(false) {
            return Err(Error::invalid("add_special_tokens", "is false: send token ids as input instead"));
        }
        let truncate = match self.truncate_prompt_tokens {
            None => false,
            Some(-1) => true,
            Some(n) => return Err(Error::invalid("truncate_prompt_tokens", format!("is {n}, must be -1: what fits"))),
        };
        if self.input.0.is_empty() {
            return Err(Error::invalid("input", "must be set and not empty"));
        }
        let inputs = self.input.0.into_iter().filter_map(|prompt| match prompt {
            Prompt::Text(text) => Some(EmbedInput::Text(text)),
            Prompt::Tokens(ids) => Some(EmbedInput::Tokens(ids)),
            // Never read from an input.
            Prompt::Chat(_) => None,
        });
        let options = EmbedOptions {
            pooling: self.pooling.as_deref().map(Pooling::parse).transpose()?,
            normalize: self.normalize.unwrap_or(true),
            dimensions: self.dimensions,
            truncate,
        };
        let cache_salt = self.cache_salt.map(|salt| name("cache_salt", salt)).transpose()?;
        let priority = self.priority.unwrap_or(0);
        Ok(EmbedRequest { options, priority, cache_salt, ..EmbedRequest::new(inputs.collect()) })
    }
}

/// The engine's complaint by this API's names: `input[3]`, or `input` where there is one only.
fn located(mut error: Error, is_single: bool) -> Error {
    for violation in &mut error.violations {
        if let Some(rest) = violation.field.strip_prefix("inputs") {
            let rest = if is_single { rest.strip_prefix("[0]").unwrap_or(rest) } else { rest };
            violation.field = format!("input{rest}").replace(".text", "").replace(".token_ids", "");
        }
    }
    if let ([violation], Code::InvalidArgument) = (error.violations.as_slice(), error.code) {
        error.message = format!("{}: {}", violation.field, violation.description);
    }
    error
}

/// As OpenAI writes it; with vLLM's count of what was cached.
fn usage(usage: Usage) -> Value {
    serde_json::json!({
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}
