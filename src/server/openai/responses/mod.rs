//! `/v1/responses`: answers that the server keeps, so that a conversation can go on from one by its id, and that can be
//! made in the background.

mod answer;
mod background;
mod events;
mod items;
mod making;
mod request;
mod store;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{FromRef, Path, Request, State},
    http::Uri,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use serde_json::{Value, json};

use self::{
    answer::{Answer, Draft, IN_PROGRESS, Outcome},
    events::{Keeping, ResponseEvents},
    request::{Asked, Mode},
    store::{Record, Store},
};
use super::{error::OpenAi, fields::backend_of};
use crate::{
    engine::{Engine, Prompt, Request as EngineRequest},
    error::{Code, Error, Result},
    server::{
        access::Caller,
        backend::cut,
        http::{
            Http,
            call::{Call, ContentType},
            choices::Choices,
            failure::{Failed, Failure, method_not_allowed},
            frames::Telling,
            paths::Renames,
        },
    },
    text::{ChatMessage, ChatPrompt, Role},
};

const RENAMES: Renames = &[
    ("max_tokens", "max_output_tokens"),
    ("prompt.text", "input"),
    ("prompt", "input"),
    ("structured_outputs.json", "text.format.schema"),
    ("structured_outputs", "text.format"),
];

/// What these calls hold.
#[derive(Clone)]
struct Responses {
    http: Http,
    store: Arc<Store>,
}

impl FromRef<Responses> for Arc<Store> {
    fn from_ref(responses: &Responses) -> Self {
        responses.store.clone()
    }
}

/// The routes.
pub(super) fn routes(http: Http) -> Router {
    Router::new()
        .route("/v1/responses", post(create))
        .route("/v1/responses/{id}", get(retrieve).delete(delete))
        .route("/v1/responses/{id}/cancel", post(cancel))
        .route("/v1/responses/{id}/input_items", get(input_items))
        .method_not_allowed_fallback(method_not_allowed::<OpenAi>)
        .with_state(Responses { http, store: Arc::default() })
}

/// A call that was understood: what the engine is asked, and what is kept of it.
struct Prepared {
    mode: Mode,
    store: bool,
    request: EngineRequest,
    draft: Draft,
    turns: Vec<ChatMessage>,
    input: Vec<Value>,
}

fn prepare(engine: &Engine, store: &Store, call: &Call) -> Result<Prepared> {
    let asked: Asked = call.parse()?;
    let mode = asked.check()?;
    let known = match asked.previous() {
        Some(id) => Some(store.turns(&call.caller.owner(), id).ok_or_else(|| gone("previous_response_id", id))?),
        None => None,
    };
    let mut turns = known.map(|turns| turns.to_vec()).unwrap_or_default();
    let params = asked.params(&engine.info().default_params)?;
    let id = format!("resp_{}", call.request_id);
    let model = asked.model().unwrap_or(&engine.info().name).to_owned();
    let draft = Draft::new(id, &model, &asked, &params);
    let (keep, instructions) = (asked.keeps(), asked.instructions());
    let mut chat = ChatPrompt::from(Vec::new());
    asked.tell(&mut chat)?;
    let (new, input) = asked.input(&call.request_id, &turns)?;
    turns.extend(new);
    let said = instructions.map(|text| ChatMessage::new(Role::System, text)).into_iter().chain(turns.clone());
    chat.messages = said.collect();
    let request = EngineRequest {
        request_id: call.request_id.clone(),
        model: Some(model),
        params,
        ..EngineRequest::new(Prompt::Chat(chat))
    };
    Ok(Prepared { mode, store: keep, request, draft, turns, input })
}

/// `POST /v1/responses`.
async fn create(State(state): State<Responses>, request: Request) -> Result<Response, Failed<OpenAi>> {
    let Responses { http, store } = state;
    let call = Call::read(&http, request, ContentType::Json).await?;
    let backend = &backend_of(&http, &call).await?;
    let prepared = prepare(&backend.engine, &store, &call).map_err(|error| backend.refused(error))?;
    let Prepared { mode, store: keep, request, draft, turns, input } = prepared;
    let mut record = Record::new(call.caller.owner(), draft.unfinished(IN_PROGRESS), turns, input);
    let streams = http.models.streams();
    if let Mode::Background { streams: is_told } = mode {
        let events = if is_told { streams.resume_ring_bytes } else { 0 };
        record = store.admit(record, events).map_err(|error| backend.refused(error))?;
    }
    let choices = Choices::open(backend, &call.caller, [request], 1, RENAMES).await?;
    drop(call);
    match mode {
        Mode::Stream => {
            let keeping = if keep { Keeping::Whole(store, record.into()) } else { Keeping::Nothing };
            Ok(Telling::new(choices, ResponseEvents::new(draft, keeping)).sse())
        }
        Mode::Background { streams: false } => {
            let answer = record.response.clone();
            background::make(store, record, choices, draft);
            Ok(Json(&*answer).into_response())
        }
        Mode::Background { streams: true } => Ok(background::tell(store, record, choices, draft, &streams)?),
        Mode::Wait => {
            let (whole, finished) = choices.one().await?;
            let answer = Answer::from(whole);
            let response = draft.finished(&answer, &Outcome::Ended(finished));
            if keep {
                store.keep(&draft.id, record, response.clone(), &answer);
            }
            Ok(Json(response).into_response())
        }
    }
}

/// `GET /v1/responses/{id}`, as far as it is made; with `stream` its events, from behind the one that `starting_after` names.
async fn retrieve(
    State(store): State<Arc<Store>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Failed<OpenAi>> {
    if let Some(after) = background::wanted(uri.query().unwrap_or_default())? {
        let events = store.read(&caller.owner(), &id, after).ok_or_else(|| gone("response_id", &id))?;
        return Ok(background::events(events?, after));
    }
    let response = store.response(&caller.owner(), &id).ok_or_else(|| gone("response_id", &id))?;
    Ok(Json(&*response).into_response())
}

/// `DELETE /v1/responses/{id}`; one that is being made is cancelled.
async fn delete(
    State(store): State<Arc<Store>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failed<OpenAi>> {
    if !store.remove(&caller.owner(), &id) {
        return Err(gone("response_id", &id).into());
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// `POST /v1/responses/{id}/cancel`.
async fn cancel(
    State(store): State<Arc<Store>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Failed<OpenAi>> {
    let owner = caller.owner();
    let response = store.response(&owner, &id).ok_or_else(|| gone("response_id", &id))?;
    if response["background"] != true {
        return Err(Error::invalid("response_id", "is of a response that is not made in the background").into());
    }
    drop(response);
    let cancelled = store.cancel(&owner, &id).ok_or_else(|| gone("response_id", &id))?;
    Ok(Json(&*cancelled).into_response())
}

/// The items of a request, as OpenAI lists them.
#[derive(Serialize)]
struct Items<'a> {
    object: &'static str,
    data: &'a [Value],
    first_id: &'a str,
    last_id: &'a str,
    has_more: bool,
}

/// `GET /v1/responses/{id}/input_items`.
async fn input_items(
    State(store): State<Arc<Store>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Failed<OpenAi>> {
    let items = store.input(&caller.owner(), &id).ok_or_else(|| gone("response_id", &id))?;
    let (first_id, last_id) = (id_of(items.first()), id_of(items.last()));
    Ok(Json(Items { object: "list", data: &items, first_id, last_id, has_more: false }).into_response())
}

fn id_of(item: Option<&Value>) -> &str {
    item.and_then(|item| item["id"].as_str()).unwrap_or_default()
}

fn gone(field: &str, id: &str) -> Error {
    let why = format!("no response {:?} is kept here: it never was, or newer ones took its place", cut(id, 128));
    let mut error = Error::invalid(field, why);
    error.code = Code::NotFound;
    error
}

/// What a client is told of an answer that failed after it was admitted.
fn told(error: Error) -> Outcome {
    Outcome::Failed(Failure::from(error).message)
}
