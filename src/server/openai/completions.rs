//! `POST /v1/completions`: prompts in, their continuations out.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    answer::{Stamp, finish_reason, stop_reason, total, usage},
    chunks::{ChunkWriter, Chunks},
    error::OpenAi,
    features::Features,
    fields::{Fields, StreamOptions, backend_of},
    logprobs::TokenNames,
    prompts::Prompts,
    samplers::Samplers,
};
use crate::{
    engine::{self, Delta, Engine, Finished, Prompt},
    error::{Error, Result},
    server::{
        backend::Backend,
        http::{
            Http,
            call::{Call, ContentType},
            choices::Choices,
            failure::Failed,
            frames::Telling,
            paths::Renames,
            prompt::decode,
        },
    },
};

const OBJECT: &str = "text_completion";
/// Tokens an answer where the request does not say, as in OpenAI's API.
const MAX_TOKENS: u32 = 16;
const RENAMES: Renames = &[("prompt.token_ids", "prompt"), ("prompt.text", "prompt")];
/// Where the form of the answer is OpenAI's `response_format`.
const FORMAT_RENAMES: Renames = &[
    ("prompt.token_ids", "prompt"),
    ("prompt.text", "prompt"),
    ("structured_outputs.json", "response_format.json_schema.schema"),
    ("structured_outputs", "response_format"),
];

/// What only completions have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Completion {
    prompt: Prompts,
    suffix: Option<String>,
    echo: Option<bool>,
    logprobs: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

/// A call that was understood.
struct Asked {
    stream: Option<StreamOptions>,
    requests: Vec<engine::Request>,
    answers: usize,
    echo: bool,
    as_token_ids: Option<bool>,
    renames: Renames,
}

/// Handles a call.
pub(super) async fn create(State(http): State<Http>, request: Request) -> Result<Response, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let backend = &backend_of(&http, &call).await?;
    let engine = &backend.engine;
    let asked = read(engine, &call).map_err(|error| backend.refused(error))?;
    let mut echoes = Vec::new();
    for request in asked.requests.iter().step_by(asked.answers).filter(|_| asked.echo) {
        echoes.push(text_of(backend, &request.prompt).await?);
    }
    let model = asked.requests.first().and_then(|request| request.model.clone());
    let choices = Choices::open(backend, &call.caller, asked.requests, asked.renames).await?;
    let names = TokenNames::new(engine.text().tokenizer.clone(), asked.as_token_ids);
    let writer = Writer { echoes, answers: asked.answers, offsets: vec![0; choices.number()], names };
    let stamp = Stamp::new("cmpl-", &call.request_id, model.as_ref().unwrap_or(&engine.info().name));
    drop(call);
    match asked.stream {
        Some(options) => {
            let chunks = Chunks::new(stamp, writer, options, choices.number(), asked.answers);
            Ok(Telling::new(choices, chunks).sse())
        }
        None => Ok(Json(whole(choices, writer, &stamp).await?).into_response()),
    }
}

fn read(engine: &Engine, call: &Call) -> Result<Asked> {
    let (mut fields, own, features): (Fields, Completion, Features) = (call.parse()?, call.parse()?, call.parse()?);
    features.check()?;
    let renames = if features.has_response_format() { FORMAT_RENAMES } else { RENAMES };
    own.check()?;
    let (answers, params) = (fields.answers()?, fields.params(&engine.info().default_params)?);
    let mut params = call.parse::<Samplers>()?.over(params)?;
    params.max_tokens = params.max_tokens.or(Some(MAX_TOKENS));
    params.structured_outputs = features.structured_outputs()?.or(params.structured_outputs);
    params.logprobs = own.logprobs.or(params.logprobs);
    Ok(Asked {
        stream: fields.streams(),
        requests: fields.requests(engine, &call.request_id, own.prompt.0, &params, answers)?,
        answers,
        echo: own.echo == Some(true),
        as_token_ids: fields.return_tokens_as_token_ids,
        renames,
    })
}

impl Completion {
    fn check(&self) -> Result<()> {
        if self.prompt.0.is_empty() {
            return Err(Error::invalid("prompt", "must be set and not empty"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Error::invalid("suffix", "is not offered by this server: leave it out"));
        }
        if self.echo == Some(true) && self.logprobs.is_some() {
            return Err(Error::invalid("echo", "is not offered with logprobs: those of a prompt are not computed"));
        }
        Ok(())
    }
}

async fn text_of(backend: &Backend, prompt: &Prompt) -> Result<String> {
    match prompt {
        Prompt::Tokens(ids) => decode(backend, "prompt", ids.clone(), true).await,
        Prompt::Text(text) => Ok(text.clone()),
        // Completions have no messages.
        Prompt::Chat(_) => Ok(String::new()),
    }
}

async fn whole(choices: Choices, mut writer: Writer, stamp: &Stamp) -> Result<impl Serialize> {
    let (mut written, mut usages) = (Vec::new(), Vec::new());
    for (index, (whole, finished)) in choices.whole().await?.into_iter().enumerate() {
        let echo = writer.echo(index).to_owned();
        let logprobs = writer.logprobs(index, &whole.tokens);
        let finished_choice = writer.finished(index, &finished);
        written.push(Choice { text: echo + &whole.text, logprobs, ..finished_choice });
        usages.push(finished.usage);
    }
    Ok(stamp.envelope(OBJECT, written, Some(usage(total(&usages, writer.answers)))))
}

/// Writes the choices of a call.
struct Writer {
    /// The prompts' texts, where they are to be repeated before the answers.
    echoes: Vec<String>,
    answers: usize,
    /// Characters of tokens written so far, a choice.
    offsets: Vec<usize>,
    names: TokenNames,
}

impl Writer {
    fn echo(&self, index: usize) -> &str {
        self.echoes.get(index / self.answers).map_or("", String::as_str)
    }

    fn logprobs(&mut self, index: usize, tokens: &[crate::params::SampledToken]) -> Option<Value> {
        self.names.completion(tokens, self.offsets.get_mut(index)?)
    }
}

impl ChunkWriter for Writer {
    type Choice = Choice;
    const OBJECT: &'static str = OBJECT;

    fn started(&mut self, index: usize) -> Option<Choice> {
        let text = self.echo(index).to_owned();
        let said = Choice { index, text, logprobs: None, finish_reason: None, stop_reason: None };
        (!said.text.is_empty()).then_some(said)
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Option<Choice> {
        let logprobs = self.logprobs(index, &delta.tokens);
        let said = Choice { index, text: delta.text, logprobs, finish_reason: None, stop_reason: None };
        (!said.text.is_empty() || said.logprobs.is_some()).then_some(said)
    }

    fn finished(&mut self, index: usize, finished: &Finished) -> Choice {
        let (finish_reason, stop_reason) = (Some(finish_reason(finished)), stop_reason(&finished.reason));
        Choice { index, text: String::new(), logprobs: None, finish_reason, stop_reason }
    }
}
