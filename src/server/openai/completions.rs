//! `POST /v1/completions`: prompts in, their continuations out.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    answer::{LENGTH, Stamp, finish_reason, stop_reason, total, usage},
    chunks::{ChunkWriter, Chunks},
    error::OpenAi,
    features::Features,
    fields::{Fields, Requests, StreamOptions, backend_of},
    logprobs::TokenNames,
    prompts::Prompts,
    samplers::Samplers,
};
use crate::{
    engine::{Delta, Engine, Finished, Prompt, Request as EngineRequest},
    error::{Error, Result},
    ids::TokenId,
    params::{PromptLogprobs, SampledToken, Usage},
    server::{
        access::Caller,
        backend::Backend,
        http::{
            Http,
            call::{Call, ContentType},
            choices::Choices,
            failure::Failed,
            frames::Telling,
            paths::Renames,
            prompt::{decode, text_ids},
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
    /// One a prompt.
    requests: Requests,
    answers: usize,
    echo: bool,
    /// Nothing is wanted but what is repeated. The engine always says a token; it is left out.
    only_echo: bool,
    as_token_ids: Option<bool>,
    renames: Renames,
}

/// Handles a call.
pub(super) async fn create(State(http): State<Http>, request: Request) -> Result<Response, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let backend = &backend_of(&http, &call).await?;
    let engine = &backend.engine;
    let asked = read(engine, &call).map_err(|error| backend.refused(error))?;
    let repeated = if asked.echo { asked.requests.prompts().to_vec() } else { Vec::new() };
    let alike = asked.requests.alike.clone();
    let model = alike.model.clone();
    let choices = Choices::open(backend, &call.caller, asked.requests, asked.answers, asked.renames).await?;
    // Now that it was admitted: this is work too.
    let mut echoes = Vec::new();
    for prompt in repeated {
        echoes.push(Echo::of(backend, &call.caller, prompt, &alike).await?);
    }
    let names = TokenNames::new(engine.text().tokenizer.clone(), asked.as_token_ids);
    let offsets = vec![0; choices.number()];
    let writer = Writer { echoes, answers: asked.answers, only_echo: asked.only_echo, offsets, names };
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
    let only_echo = own.echo == Some(true) && params.max_tokens == Some(0);
    if only_echo {
        params.max_tokens = Some(1);
    }
    params.structured_outputs = features.structured_outputs()?.or(params.structured_outputs);
    params.logprobs = own.logprobs.or(params.logprobs);
    // What is repeated is told of as what is said.
    params.prompt_logprobs = own.logprobs.filter(|_| own.echo == Some(true));
    Ok(Asked {
        stream: fields.streams(),
        requests: fields.requests(engine, &call.request_id, own.prompt.0, answers, params)?,
        answers,
        echo: own.echo == Some(true),
        only_echo,
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
        Ok(())
    }
}

/// A prompt that is repeated before its answers.
struct Echo {
    text: String,
    /// Its first token, where log-probabilities are asked for: nothing predicts it, so it comes with no event.
    first: Option<TokenId>,
}

impl Echo {
    /// `alike` says how prompts are read, and what is told of them.
    async fn of(backend: &Backend, caller: &Caller, prompt: Prompt, alike: &EngineRequest) -> Result<Self> {
        let EngineRequest { prompt_options, params, .. } = alike;
        let wants_first = params.prompt_logprobs.is_some();
        let kept = |ids| prompt_options.kept(ids, backend.engine.config().max_model_len, params);
        Ok(match prompt {
            Prompt::Tokens(ids) => {
                let ids = kept(ids);
                let first = ids.first().copied().filter(|_| wants_first);
                Self { text: decode(backend, caller, "prompt", ids, true).await?, first }
            }
            Prompt::Text(text) if wants_first || prompt_options.truncate.is_some() => {
                let special = prompt_options.add_special_tokens.unwrap_or(true);
                let ids = text_ids(backend, caller, text.clone(), special).await?;
                let whole = ids.len();
                let ids = kept(ids);
                let first = ids.first().copied().filter(|_| wants_first);
                let is_cut = ids.len() < whole;
                let text = if is_cut { decode(backend, caller, "prompt", ids, true).await? } else { text };
                Self { text, first }
            }
            Prompt::Text(text) => Self { text, first: None },
            // Completions have no messages.
            Prompt::Chat(_) => Self { text: String::new(), first: None },
        })
    }
}

async fn whole(choices: Choices, mut writer: Writer, stamp: &Stamp) -> Result<impl Serialize> {
    let (mut written, mut usages) = (Vec::new(), Vec::new());
    for (index, (whole, finished)) in choices.whole().await?.into_iter().enumerate() {
        let (echo, first) = writer.echo(index);
        let (text, tokens) = if writer.only_echo { Default::default() } else { (whole.text, whole.tokens) };
        let tokens: Vec<_> = whole.prompt.into_iter().chain(tokens).collect();
        let logprobs = writer.logprobs(index, first, &tokens);
        let finished_choice = writer.finished(index, &finished);
        written.push(Choice { text: echo + &text, logprobs, ..finished_choice });
        usages.push(writer.usage(finished.usage));
    }
    Ok(stamp.envelope(OBJECT, written, Some(usage(total(&usages, writer.answers), 0))))
}

/// Writes the choices of a call.
struct Writer {
    /// The prompts, where they are to be repeated before the answers.
    echoes: Vec<Echo>,
    answers: usize,
    only_echo: bool,
    /// Characters of tokens written so far, a choice.
    offsets: Vec<usize>,
    names: TokenNames,
}

impl Writer {
    fn echo(&self, index: usize) -> (String, Option<TokenId>) {
        self.echoes.get(index / self.answers).map(|echo| (echo.text.clone(), echo.first)).unwrap_or_default()
    }

    fn logprobs(&mut self, index: usize, first: Option<TokenId>, tokens: &[SampledToken]) -> Option<Value> {
        self.names.completion(first, tokens, self.offsets.get_mut(index)?)
    }
}

impl ChunkWriter for Writer {
    type Choice = Choice;
    const OBJECT: &'static str = OBJECT;

    fn usage(&self, usage: Usage) -> Usage {
        let completion_tokens = if self.only_echo { 0 } else { usage.completion_tokens };
        Usage { completion_tokens, ..usage }
    }

    fn started(&mut self, index: usize) -> Option<Choice> {
        let (text, first) = self.echo(index);
        let logprobs = self.logprobs(index, first, &[]);
        let said = Choice { index, text, logprobs, finish_reason: None, stop_reason: None };
        (!said.text.is_empty() || said.logprobs.is_some()).then_some(said)
    }

    fn prompt(&mut self, index: usize, prompt: &PromptLogprobs) -> Option<Choice> {
        let logprobs = Some(self.logprobs(index, None, &prompt.tokens)?);
        Some(Choice { index, text: String::new(), logprobs, finish_reason: None, stop_reason: None })
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Option<Choice> {
        if self.only_echo {
            return None;
        }
        let logprobs = self.logprobs(index, None, &delta.tokens);
        let said = Choice { index, text: delta.text, logprobs, finish_reason: None, stop_reason: None };
        (!said.text.is_empty() || said.logprobs.is_some()).then_some(said)
    }

    fn finished(&mut self, index: usize, finished: &Finished) -> Choice {
        let (finish_reason, stop_reason) = match self.only_echo {
            // However the token that nobody wanted would have ended it.
            true => (Some(LENGTH), None),
            false => (Some(finish_reason(finished)), stop_reason(&finished.reason)),
        };
        Choice { index, text: String::new(), logprobs: None, finish_reason, stop_reason }
    }
}
