//! `POST /v1/chat/completions`: messages in, the assistant's turn out.

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
    fields::{Fields, Requests, StreamOptions, backend_of},
    logprobs::TokenNames,
    messages::{Message, turns},
    samplers::Samplers,
    tools::{Around, Beside},
};
use crate::{
    engine::{Delta, Engine, Finished, Prompt},
    error::{Error, Result},
    server::http::{
        Http,
        call::{Call, ContentType},
        choices::Choices,
        failure::Failed,
        frames::Telling,
        parts::parts,
        paths::Renames,
    },
    text::ChatPrompt,
};

const ROLE: &str = "assistant";
const RENAMES: Renames = &[("prompt.text", "messages"), ("prompt", "messages"), ("logprobs", "top_logprobs")];
/// Where the form of the answer is OpenAI's `response_format`.
const FORMAT_RENAMES: Renames = &[
    ("prompt.text", "messages"),
    ("prompt", "messages"),
    ("logprobs", "top_logprobs"),
    ("structured_outputs.json", "response_format.json_schema.schema"),
    ("structured_outputs", "response_format"),
];

/// What only chats have.
#[derive(Debug, Deserialize)]
struct Chat {
    messages: Vec<Message>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u32>,
    #[serde(default)]
    echo: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: usize,
    message: Said,
    logprobs: Option<Value>,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
struct Said {
    role: &'static str,
    /// Null where the answer is calls alone.
    content: Option<String>,
    refusal: Option<String>,
    #[serde(flatten)]
    beside: Beside,
}

#[derive(Debug, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: SaidNow,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

/// What is new in the assistant's message.
#[derive(Debug, Default, Serialize)]
struct SaidNow {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(flatten)]
    beside: Beside,
}

/// A call that was understood.
struct Asked {
    stream: Option<StreamOptions>,
    /// One.
    requests: Requests,
    answers: usize,
    as_token_ids: Option<bool>,
    renames: Renames,
}

/// Handles a call.
pub(super) async fn create(State(http): State<Http>, request: Request) -> Result<Response, Failed<OpenAi>> {
    let call = Call::read(&http, request, ContentType::Json).await?;
    let backend = &backend_of(&http, &call).await?;
    let engine = &backend.engine;
    let asked = read(engine, &call).map_err(|error| backend.refused(error))?;
    let model = asked.requests.alike.model.clone();
    let answers = asked.answers;
    let choices = Choices::open(backend, &call.caller, asked.requests, answers, asked.renames).await?;
    let writer = Writer { names: TokenNames::new(engine.text().tokenizer.clone(), asked.as_token_ids) };
    let stamp = Stamp::new("chatcmpl-", &call.request_id, model.as_ref().unwrap_or(&engine.info().name));
    drop(call);
    match asked.stream {
        Some(options) => Ok(Telling::new(choices, Chunks::new(stamp, writer, options, answers, answers)).sse()),
        None => Ok(Json(whole(choices, &writer, &stamp).await?).into_response()),
    }
}

fn read(engine: &Engine, call: &Call) -> Result<Asked> {
    let (mut fields, chat, features): (Fields, Chat, Features) = (call.parse()?, call.parse()?, call.parse()?);
    let around: Around = call.parse()?;
    features.check()?;
    let renames = if features.has_response_format() { FORMAT_RENAMES } else { RENAMES };
    if chat.top_logprobs.is_some_and(|n| n > 0) && chat.logprobs != Some(true) {
        return Err(Error::invalid("top_logprobs", "needs logprobs to be true"));
    }
    if chat.echo == Some(true) {
        return Err(Error::invalid("echo", "is not offered for a chat: the message is known"));
    }
    let (answers, params) = (fields.answers()?, fields.params(&engine.info().default_params)?);
    let mut params = call.parse::<Samplers>()?.over(params)?;
    if chat.logprobs == Some(true) {
        params.logprobs = Some(chat.top_logprobs.unwrap_or(0));
    }
    params.structured_outputs = features.structured_outputs()?.or(params.structured_outputs);
    let mut prompt = ChatPrompt::from(turns(chat.messages)?);
    around.tell(&mut prompt)?;
    Ok(Asked {
        stream: fields.streams(),
        requests: fields.requests(engine, &call.request_id, vec![Prompt::Chat(prompt)], answers, params)?,
        answers,
        as_token_ids: fields.return_tokens_as_token_ids,
        renames,
    })
}

async fn whole(choices: Choices, writer: &Writer, stamp: &Stamp) -> Result<impl Serialize> {
    let (mut written, mut usages, mut reasoning) = (Vec::new(), Vec::new(), 0);
    for (index, (whole, finished)) in choices.whole().await?.into_iter().enumerate() {
        reasoning += whole.reasoning.count();
        let beside = Beside::of_whole(&parts(whole.pieces));
        let content = Some(whole.text).filter(|text| !text.is_empty() || !beside.calls());
        written.push(Choice {
            index,
            message: Said { role: ROLE, content, refusal: None, beside },
            logprobs: writer.names.chat(&whole.tokens),
            finish_reason: finish_reason(&finished),
            stop_reason: stop_reason(&finished.reason),
        });
        usages.push(finished.usage);
    }
    let answers = written.len();
    Ok(stamp.envelope("chat.completion", written, Some(usage(total(&usages, answers), reasoning))))
}

/// Writes the choices of a call.
struct Writer {
    names: TokenNames,
}

impl ChunkWriter for Writer {
    type Choice = ChunkChoice;
    const OBJECT: &'static str = "chat.completion.chunk";

    fn started(&mut self, index: usize) -> Option<ChunkChoice> {
        let delta = SaidNow { role: Some(ROLE), content: Some(String::new()), ..SaidNow::default() };
        Some(ChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None })
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Option<ChunkChoice> {
        let logprobs = self.names.chat(&delta.tokens);
        let beside = Beside::of_delta(&delta.pieces);
        let says = !delta.text.is_empty() || logprobs.is_some() || !beside.is_empty();
        let content = Some(delta.text).filter(|text| !text.is_empty() || beside.is_empty());
        let delta = SaidNow { content, beside, ..SaidNow::default() };
        says.then_some(ChunkChoice { index, delta, logprobs, finish_reason: None, stop_reason: None })
    }

    fn finished(&mut self, index: usize, finished: &Finished) -> ChunkChoice {
        let (finish_reason, stop_reason) = (Some(finish_reason(finished)), stop_reason(&finished.reason));
        ChunkChoice { index, delta: SaidNow::default(), logprobs: None, finish_reason, stop_reason }
    }
}
