//! Requests of Ollama's API.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    engine::Prompt,
    error::{Error, Result},
    params::{Constraint, SamplingParams},
    server::{
        backend::{Backend, cut},
        http::{
            Http,
            call::Call,
            prompt::role,
            thinking::{think, with_effort},
            tools::{OfferedTool, offered},
        },
    },
    text::{ChatMessage, ChatPrompt, Role, ToolCall},
};

/// `POST /api/chat`.
#[derive(Debug, Deserialize)]
pub(super) struct Chat {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<OfferedTool>>,
    #[serde(flatten)]
    shared: Shared,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<MadeCall>>,
    #[serde(default)]
    tool_name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    images: Option<Vec<Value>>,
}

/// An entry of a message's `tool_calls`.
#[derive(Debug, Deserialize)]
struct MadeCall {
    #[serde(default)]
    id: Option<String>,
    function: CalledFunction,
}

#[derive(Debug, Deserialize)]
struct CalledFunction {
    name: String,
    #[serde(default)]
    arguments: Map<String, Value>,
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
    context: Option<Vec<Value>>,
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
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u32>,
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
    format: Option<Constraint>,
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
    typical_p: Option<f32>,
    mirostat: Option<u32>,
    mirostat_tau: Option<f32>,
    mirostat_eta: Option<f32>,
    /// Tokens that penalties look back on: 0 for none, -1 for all of the context.
    repeat_last_n: Option<i64>,
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
        for (field, asked) in
            [("logprobs", self.logprobs == Some(true)), ("top_logprobs", self.top_logprobs.is_some_and(|n| n > 0))]
        {
            if asked {
                return Err(not_offered(field));
            }
        }
        let options = Value::Object(self.options.unwrap_or_default());
        let sampling = serde_path_to_error::deserialize(options)
            .map_err(|error| Error::invalid(format!("options.{}", error.path()), error.inner().to_string()))?;
        // Ollama streams unless told not to.
        Ok(Options { stream: self.stream != Some(false), model, sampling, format: constraint(self.format)? })
    }

    /// Tells the chat whether the model is to think.
    fn think(&self, chat: &mut ChatPrompt, can_think: bool) -> Result<()> {
        match &self.think {
            None | Some(Value::Null) => {}
            Some(Value::Bool(false)) => think(chat, false),
            Some(Value::String(word)) if word.is_empty() => {}
            Some(_) if !can_think => {
                return Err(Error::invalid("think", "is set, but the model's chat template knows of no reasoning"));
            }
            Some(Value::Bool(true)) => think(chat, true),
            Some(Value::String(effort)) => {
                with_effort(chat, "think", effort)?;
                think(chat, true);
            }
            Some(_) => return Err(Error::invalid("think", "must be true, false, or an effort such as low or high")),
        }
        Ok(())
    }
}

/// What an answer must look like.
fn constraint(format: Option<Value>) -> Result<Option<Constraint>> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(Constraint::JsonObject)),
        Some(schema @ Value::Object(_)) => Ok(Some(Constraint::Json(schema.to_string()))),
        Some(_) => Err(Error::invalid("format", "must be \"json\" or a JSON schema")),
    }
}

impl Message {
    fn turn(self, k: usize) -> Result<ChatMessage> {
        if some(self.images.as_ref()) {
            return Err(not_offered(&format!("messages[{k}].images")));
        }
        let role = role(&self.role).ok_or_else(|| {
            let why = format!("is {:?}, must be system, user, assistant or tool", cut(&self.role, 64));
            Error::invalid(format!("messages[{k}].role"), why)
        })?;
        let call = |MadeCall { id, function: CalledFunction { name, arguments } }| ToolCall {
            id: id.unwrap_or_default(),
            name,
            arguments: Value::Object(arguments).to_string(),
        };
        Ok(ChatMessage {
            reasoning: self.thinking.filter(|thinking| !thinking.is_empty()),
            tool_calls: self.tool_calls.unwrap_or_default().into_iter().map(call).collect(),
            tool_call_id: self.tool_call_id.filter(|id| !id.is_empty()),
            name: self.tool_name.filter(|name| !name.is_empty()),
            ..ChatMessage::new(role, self.content.unwrap_or_default())
        })
    }
}

/// Ties answers of tools to the calls that they answer, for templates that want ids: here tools are known by their names, or by
/// their order. Ids are as short as Mistral's templates want them.
fn tie(turns: &mut [ChatMessage]) {
    let (mut open, mut drawn) = (Vec::<(String, String)>::new(), 0);
    for turn in turns {
        for call in &mut turn.tool_calls {
            if call.id.is_empty() {
                call.id = format!("call{drawn:05}");
                drawn += 1;
            }
            open.push((call.id.clone(), call.name.clone()));
        }
        if turn.role != Role::Tool {
            continue;
        }
        let answered = open.iter().position(|(id, name)| match (&turn.tool_call_id, &turn.name) {
            (Some(given), _) => given == id,
            (None, Some(given)) => given == name,
            (None, None) => true,
        });
        if let Some((id, name)) = answered.map(|at| open.remove(at)) {
            turn.tool_call_id.get_or_insert(id);
            turn.name.get_or_insert(name);
        }
    }
}

impl Chat {
    /// The prompt, unless the call asks for nothing; and how to go on. A last message of the assistant's is the beginning of the
    /// answer. `can_think` says whether the model's template knows of
    /// reasoning.
    ///
    /// # Errors
    /// `InvalidArgument` by the field's name.
    pub(super) fn read(self, model: String, can_think: bool) -> Result<(Option<Prompt>, Options)> {
        let turns = self.messages.into_iter().enumerate().map(|(k, message)| message.turn(k));
        let mut turns = turns.collect::<Result<Vec<_>>>()?;
        tie(&mut turns);
        let mut chat = ChatPrompt::from(turns);
        chat.continue_assistant();
        chat.tools = offered(self.tools.unwrap_or_default())?;
        self.shared.think(&mut chat, can_think)?;
        Ok(((!chat.messages.is_empty()).then_some(Prompt::Chat(chat)), self.shared.read(model)?))
    }
}

impl Generate {
    /// As [`Chat::read`]. The prompt is a turn of a chat where the model has a template, unless it is raw.
    ///
    /// # Errors
    /// As [`Chat::read`].
    pub(super) fn read(self, model: String, templated: bool, can_think: bool) -> Result<(Option<Prompt>, Options)> {
        let is_plain = self.raw || !templated;
        let system = self.system.filter(|system| !system.is_empty());
        for (field, asked) in [
            ("images", some(self.images.as_ref())),
            ("suffix", self.suffix.is_some_and(|suffix| !suffix.is_empty())),
            ("template", self.template.is_some_and(|template| !template.is_empty())),
            ("context", some(self.context.as_ref())),
        ] {
            if asked {
                return Err(not_offered(field));
            }
        }
        if is_plain && system.is_some() {
            let why =
                "needs the model's chat template, which is not there or not asked for (raw): put it into the prompt";
            return Err(Error::invalid("system", why));
        }
        let system = system.into_iter().map(|system| ChatMessage::new(Role::System, system));
        let mut chat =
            ChatPrompt::from(system.chain([ChatMessage::new(Role::User, &*self.prompt)]).collect::<Vec<_>>());
        self.shared.think(&mut chat, can_think && !is_plain)?;
        let prompt = match self.prompt {
            prompt if prompt.is_empty() => None,
            prompt if is_plain => Some(Prompt::Text(prompt)),
            _ => Some(Prompt::Chat(chat)),
        };
        Ok((prompt, self.shared.read(model)?))
    }
}

impl Options {
    /// The sampling parameters: what is set over the model's defaults.
    ///
    /// # Errors
    /// `InvalidArgument` for a number of tokens that cannot be, and for penalties that would have to forget.
    pub(super) fn params(self, defaults: &SamplingParams) -> Result<SamplingParams> {
        let set = self.sampling;
        let max_tokens = match set.num_predict {
            None => defaults.max_tokens,
            Some(n) if n < 0 => None,
            Some(n) => Some(u32::try_from(n).map_err(|_| Error::invalid("options.num_predict", "is too large"))?),
        };
        let params = SamplingParams {
            max_tokens,
            temperature: set.temperature.unwrap_or(defaults.temperature),
            top_k: set.top_k.unwrap_or(defaults.top_k),
            top_p: set.top_p.unwrap_or(defaults.top_p),
            min_p: set.min_p.unwrap_or(defaults.min_p),
            typical_p: set.typical_p.unwrap_or(defaults.typical_p),
            mirostat: set.mirostat.unwrap_or(defaults.mirostat),
            mirostat_tau: set.mirostat_tau.unwrap_or(defaults.mirostat_tau),
            mirostat_eta: set.mirostat_eta.unwrap_or(defaults.mirostat_eta),
            repetition_penalty: set.repeat_penalty.unwrap_or(defaults.repetition_penalty),
            frequency_penalty: set.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: set.presence_penalty.unwrap_or(defaults.presence_penalty),
            seed: set.seed.map(i64::cast_unsigned).or(defaults.seed),
            stop: set.stop.unwrap_or_else(|| defaults.stop.clone()),
            structured_outputs: self.format.map(Into::into).or_else(|| defaults.structured_outputs.clone()),
            ..defaults.clone()
        };
        let none =
            SamplingParams { repetition_penalty: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, ..params.clone() };
        match set.repeat_last_n {
            Some(0) => Ok(none),
            Some(n) if n != -1 && none != params => {
                let why =
                    format!("is {n}, but penalties look back on all of the context: leave it out, or say -1 or 0");
                Err(Error::invalid("options.repeat_last_n", why))
            }
            _ => Ok(params),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_tools_find_their_calls_by_id_by_name_or_in_order() {
        let call = |name: &str| json!({"function": {"name": name, "arguments": {"a": 1}}});
        let body = json!({"messages": [
            {"role": "user", "content": "Go"},
            {"role": "assistant", "thinking": "Two.", "tool_calls": [call("f"), call("g"), call("f")]},
            {"role": "tool", "tool_name": "g", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "tool_call_id": "call00002", "content": "3"},
        ]});
        let chat: Chat = serde_json::from_value(body).unwrap();
        let (prompt, _) = chat.read("m".into(), false).unwrap();
        let Some(Prompt::Chat(chat)) = prompt else { panic!("no chat") };
        assert_eq!(chat.messages[1].reasoning.as_deref(), Some("Two."));
        let calls: Vec<_> = chat.messages[1].tool_calls.iter().map(|call| (&*call.id, &*call.arguments)).collect();
        assert_eq!(calls, ["call00000", "call00001", "call00002"].map(|id| (id, r#"{"a":1}"#)));
        let tied = chat.messages[2..].iter().map(|turn| (turn.tool_call_id.as_deref(), turn.name.as_deref()));
        let expected = [("call00001", "g"), ("call00000", "f"), ("call00002", "f")];
        assert_eq!(tied.collect::<Vec<_>>(), expected.map(|(id, name)| (Some(id), Some(name))));
    }

    #[test]
    fn penalties_look_back_on_everything_or_on_nothing() {
        let read = |options: Value| {
            let chat: Chat = serde_json::from_value(json!({"options": options})).unwrap();
            chat.read("m".into(), false).and_then(|(_, options)| options.params(&SamplingParams::default()))
        };
        let penalty = |n: i64| read(json!({"repeat_penalty": 1.5, "repeat_last_n": n}));
        assert_eq!(penalty(-1).unwrap().repetition_penalty, 1.5);
        assert_eq!(penalty(0).unwrap().repetition_penalty, 1.0);
        assert_eq!(penalty(64).unwrap_err().violations[0].field, "options.repeat_last_n");
        assert_eq!(read(json!({"repeat_last_n": 64})).unwrap(), SamplingParams::default(), "there is no penalty");
        let more = read(json!({"mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.5, "typical_p": 0.5})).unwrap();
        assert_eq!((more.mirostat, more.mirostat_tau, more.mirostat_eta, more.typical_p), (2, 4.0, 0.5, 0.5));
    }
}
