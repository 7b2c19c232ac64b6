//! Requests of Ollama's API.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    engine::Prompt,
    error::{Error, Result},
    params::SamplingParams,
    server::{
        backend::{Backend, cut},
        http::{
            Http,
            call::Call,
            prompt::{conversation, role},
        },
    },
    text::{ChatMessage, Role},
};

/// `POST /api/chat`.
#[derive(Debug, Deserialize)]
pub(super) struct Chat {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(flatten)]
    shared: Shared,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    images: Option<Vec<Value>>,
}

/// `POST /api/generate`.
#[derive(Debug, Deserialize)]
pub(super) struct Generate {
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    template: Option<String>,
    #[serde(default)]
    images: Option<Vec<Value>>,
    /// The prompt goes to the model as it is.
    #[serde(default)]
    raw: bool,
    #[serde(flatten)]
    shared: Shared,
}

/// What both have.
#[derive(Debug, Deserialize)]
struct Shared {
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    format: Option<Value>,
    #[serde(default)]
    think: Option<Value>,
    #[serde(default)]
    options: Option<Map<String, Value>>,
}

/// How to go on.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) stream: bool,
    /// The model's name, or an adapter's.
    pub(super) model: String,
    sampling: Sampling,
}

/// The options that concern sampling; those that concern how a model is loaded are the server's affair.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sampling {
    /// Negative: to the end of the context.
    num_predict: Option<i64>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<Vec<String>>,
}

/// The model that is asked; older clients say `name`.
#[derive(Debug, Deserialize)]
struct Named {
    #[serde(alias = "name")]
    model: String,
}

/// The model that a call names, and the name of it or of its adapter that was meant. Ollama's clients may add `:latest`.
///
/// # Errors
/// `InvalidArgument` where the call names none; as [`Models::backend`](crate::server::models::Models::backend).
pub(super) async fn backend_of(http: &Http, call: &Call) -> Result<(Backend, String)> {
    let name = name_of(http, call)?;
    Ok((http.models.backend(&call.caller, Some(&name), None).await?, name))
}

/// The name of the model that a call names, or of its adapter, likewise.
///
/// # Errors
/// `InvalidArgument` where the call names none.
pub(super) fn name_of(http: &Http, call: &Call) -> Result<String> {
    let Named { model } = call.parse().map_err(|error| http.models.refused(error))?;
    let short = model.strip_suffix(":latest").filter(|short| http.models.knows(short));
    Ok(short.unwrap_or(&model).to_owned())
}

fn not_offered(field: &str) -> Error {
    Error::invalid(field, "is not offered by this server: leave it out")
}

fn some(list: Option<&Vec<Value>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

impl Shared {
    fn read(self, model: String) -> Result<Options> {
        let set = |value: &Option<Value>| value.as_ref().is_some_and(|value| value != "" && *value != false);
        if set(&self.format) {
            return Err(not_offered("format"));
        }
        if set(&self.think) {
            return Err(not_offered("think"));
        }
        let options = Value::Object(self.options.unwrap_or_default());
        let sampling = serde_path_to_error::deserialize(options)
            .map_err(|error| Error::invalid(format!("options.{}", error.path()), error.inner().to_string()))?;
        // Ollama streams unless told not to.
        Ok(Options { stream: self.stream != Some(false), model, sampling })
    }
}

impl Chat {
    /// The prompt, unless the call asks for nothing; and how to go on.
    ///
    /// # Errors
    /// `InvalidArgument` by the field's name.
    pub(super) fn read(self, model: String) -> Result<(Option<Prompt>, Options)> {
        if some(self.tools.as_ref()) {
            return Err(not_offered("tools"));
        }
        let turn = |(k, message): (usize, Message)| {
            if some(message.images.as_ref()) {
                return Err(not_offered(&format!("messages[{k}].images")));
            }
            let role = role(&message.role).ok_or_else(|| {
                let why = format!("is {:?}, must be system, user, assistant or tool", cut(&message.role, 64));
                Error::invalid(format!("messages[{k}].role"), why)
            })?;
            Ok(ChatMessage::new(role, message.content))
        };
        let turns = self.messages.into_iter().enumerate().map(turn).collect::<Result<Vec<_>>>()?;
        Ok(((!turns.is_empty()).then(|| conversation(turns)), self.shared.read(model)?))
    }
}

impl Generate {
    /// As [`Chat::read`]. The prompt is a turn of a chat where the model has a template, unless it is raw.
    ///
    /// # Errors
    /// As [`Chat::read`].
    pub(super) fn read(self, model: String, templated: bool) -> Result<(Option<Prompt>, Options)> {
        for (field, asked) in [
            ("images", some(self.images.as_ref())),
            ("suffix", self.suffix.is_some_and(|suffix| !suffix.is_empty())),
            ("template", self.template.is_some_and(|template| !template.is_empty())),
        ] {
            if asked {
                return Err(not_offered(field));
            }
        }
        let prompt = match self.prompt {
            prompt if prompt.is_empty() => None,
            prompt if self.raw || !templated => Some(Prompt::Text(prompt)),
            prompt => {
                let system = self.system.filter(|system| !system.is_empty());
                let mut turns: Vec<_> =
                    system.into_iter().map(|system| ChatMessage::new(Role::System, system)).collect();
                turns.push(ChatMessage::new(Role::User, prompt));
                Some(conversation(turns))
            }
        };
        Ok((prompt, self.shared.read(model)?))
    }
}

impl Options {
    /// The sampling parameters: what is set over the model's defaults.
    ///
    /// # Errors
    /// `InvalidArgument` for a number of tokens that cannot be.
    pub(super) fn params(self, defaults: &SamplingParams) -> Result<SamplingParams> {
        let set = self.sampling;
        let max_tokens = match set.num_predict {
            None => defaults.max_tokens,
            Some(n) if n < 0 => None,
            Some(n) => Some(u32::try_from(n).map_err(|_| Error::invalid("options.num_predict", "is too large"))?),
        };
        Ok(SamplingParams {
            max_tokens,
            temperature: set.temperature.unwrap_or(defaults.temperature),
            top_k: set.top_k.unwrap_or(defaults.top_k),
            top_p: set.top_p.unwrap_or(defaults.top_p),
            min_p: set.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: set.repeat_penalty.unwrap_or(defaults.repetition_penalty),
            frequency_penalty: set.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: set.presence_penalty.unwrap_or(defaults.presence_penalty),
            seed: set.seed.map(i64::cast_unsigned).or(defaults.seed),
            stop: set.stop.unwrap_or_else(|| defaults.stop.clone()),
            ..defaults.clone()
        })
    }
}
