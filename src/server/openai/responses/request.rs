//! Requests for a response: the input, and how to go on.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::items::{self, Item};
use crate::{
    error::{Error, Result},
    params::{Constraint, SamplingParams},
    server::{
        backend::cut,
        http::{thinking::with_effort, tools::check_kind},
        openai::tools::choice,
    },
    text::{ChatMessage, ChatPrompt, Tool},
};

/// Pairs of `metadata`, characters of a key, and characters of a value: OpenAI's bounds.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// The fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    model: Option<String>,
    input: Option<Input>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stream: Option<bool>,
    store: Option<bool>,
    background: Option<bool>,
    previous_response_id: Option<String>,
    pub(super) metadata: Option<Map<String, Value>>,
    text: Option<Text>,
    tools: Option<Vec<FunctionTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    include: Option<Vec<String>>,
    top_logprobs: Option<u32>,
    truncation: Option<String>,
    conversation: Option<Value>,
    prompt: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string or an array of items")]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// An entry of `tools`. Those that are no functions have other fields.
#[derive(Debug, Deserialize)]
struct FunctionTool {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    #[serde(default)]
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Reasoning {
    #[serde(default)]
    effort: Option<String>,
    #[serde(default)]
    summary: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Text {
    #[serde(default)]
    format: Option<Format>,
    #[serde(default)]
    verbosity: Option<String>,
}

/// What the answer must look like. Every schema is followed to the letter, whatever `strict` says.
#[derive(Debug, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    schema: Option<Value>,
    #[serde(default)]
    strict: Option<bool>,
}

impl Format {
    fn constraint(&self) -> Result<Option<Constraint>> {
        match (self.kind.as_str(), &self.schema) {
            ("text", _) => Ok(None),
            ("json_object", _) => Ok(Some(Constraint::JsonObject)),
            ("json_schema", Some(schema)) => Ok(Some(Constraint::Json(schema.to_string()))),
            ("json_schema", None) => Err(Error::invalid("text.format.schema", "must be set")),
            (other, _) => {
                let why = format!("is {:?}, must be text, json_object or json_schema", cut(other, 64));
                Err(Error::invalid("text.format.type", why))
            }
        }
    }

    /// As it is repeated in the answer.
    fn repeated(&self) -> Value {
        match &self.schema {
            Some(schema) if self.kind == "json_schema" => {
                let name = self.name.as_deref().unwrap_or("response");
                json!({"type": self.kind, "name": name, "schema": schema, "strict": self.strict})
            }
            _ => json!({"type": self.kind}),
        }
    }
}

/// How the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// When it is whole.
    Wait,
    /// As it comes.
    Stream,
    /// Later, by its id; and as it comes, for whoever asks for that by its id.
    Background { streams: bool },
}

impl Asked {
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    pub(super) fn previous(&self) -> Option<&str> {
        self.previous_response_id.as_deref()
    }

    pub(super) fn instructions(&self) -> Option<String> {
        self.instructions.clone()
    }

    /// Whether the answer is to be kept, as it is unless the request says otherwise.
    pub(super) fn keeps(&self) -> bool {
        self.store != Some(false)
    }

    /// How the answer is wanted.
    ///
    /// # Errors
    /// `InvalidArgument` by the name of a field that asks for what is not offered.
    pub(super) fn check(&self) -> Result<Mode> {
        // Nobody here sums up what a model thought; `auto` takes the best summary that there is.
        let summary = self.reasoning.as_ref().and_then(|reasoning| reasoning.summary.as_ref());
        let verbosity = self.text.as_ref().and_then(|text| text.verbosity.as_ref());
        for (field, asked) in [
            ("reasoning.summary", summary.is_some_and(|summary| summary != "auto")),
            ("text.verbosity", verbosity.is_some_and(|verbosity| verbosity != "medium")),
            ("include", self.include.as_ref().is_some_and(|include| !include.is_empty())),
            ("top_logprobs", self.top_logprobs.is_some_and(|n| n > 0)),
            ("truncation", self.truncation.as_ref().is_some_and(|kind| kind != "disabled")),
            ("conversation", self.conversation.is_some()),
            ("prompt", self.prompt.is_some()),
        ] {
            if asked {
                return Err(Error::invalid(field, "is not offered by this server: leave it out"));
            }
        }
        self.check_metadata()?;
        match (self.stream == Some(true), self.background == Some(true)) {
            (_, true) if !self.keeps() => Err(Error::invalid("store", "must not be false for a background response")),
            (streams, true) => Ok(Mode::Background { streams }),
            (true, false) => Ok(Mode::Stream),
            (false, false) => Ok(Mode::Wait),
        }
    }

    /// It is kept as long as the response, for nobody but the client.
    fn check_metadata(&self) -> Result<()> {
        let (most_pairs, most_key, most_value) = METADATA;
        let Some(metadata) = &self.metadata else { return Ok(()) };
        let fits = |text: &str, most: usize| text.chars().nth(most).is_none();
        let is_wrong = metadata.len() > most_pairs
            || metadata.iter().any(|(key, value)| {
                !fits(key, most_key) || !value.as_str().is_some_and(|value| fits(value, most_value))
            });
        if is_wrong {
            let why = format!(
                "may have {most_pairs} pairs of texts, keys of {most_key} characters and values of {most_value}"
            );
            return Err(Error::invalid("metadata", why));
        }
        Ok(())
    }

    fn format(&self) -> Option<&Format> {
        self.text.as_ref()?.format.as_ref()
    }

    /// The sampling parameters: what is set over the model's defaults.
    ///
    /// # Errors
    /// `InvalidArgument` by the name of the field that does not say well what the answer must look like.
    pub(super) fn params(&self, defaults: &SamplingParams) -> Result<SamplingParams> {
        let constraint = self.format().map(Format::constraint).transpose()?.flatten();
        Ok(SamplingParams {
            max_tokens: self.max_output_tokens.or(defaults.max_tokens),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            structured_outputs: constraint.map(Into::into).or_else(|| defaults.structured_outputs.clone()),
            ..defaults.clone()
        })
    }

    /// Tells the chat which functions there are, and how hard to think.
    ///
    /// # Errors
    /// `InvalidArgument` by the path of what is wrong.
    pub(super) fn tell(&self, chat: &mut ChatPrompt) -> Result<()> {
        let tools = self.tools.iter().flatten().enumerate().map(|(k, tool)| tool.function(k));
        chat.tools = tools.collect::<Result<_>>()?;
        chat.tool_choice = choice(self.tool_choice.as_ref())?;
        chat.parallel_tool_calls = self.parallel_tool_calls.unwrap_or(true);
        match self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_ref()) {
            Some(effort) => with_effort(chat, "reasoning.effort", effort),
            None => Ok(()),
        }
    }

    /// What repeats the request in its answer.
    pub(super) fn repeated(&self, params: &SamplingParams) -> Value {
        json!({
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "metadata": self.metadata.clone().unwrap_or_default(),
            "background": self.background == Some(true),
            "store": self.keeps(),
            "max_output_tokens": self.max_output_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "tools": self.tools.iter().flatten().map(FunctionTool::repeated).collect::<Vec<_>>(),
            "tool_choice": self.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "reasoning": {
                "effort": self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone()),
                "summary": null,
            },
            "text": {"format": self.format().map_or_else(|| json!({"type": "text"}), Format::repeated)},
        })
    }

    /// The new turns after those that are known, and the items that they are to those who ask for them.
    ///
    /// # Errors
    /// `InvalidArgument` by the path of what is wrong.
    pub(super) fn input(self, request_id: &str, known: &[ChatMessage]) -> Result<(Vec<ChatMessage>, Vec<Value>)> {
        let items = match self.input.ok_or_else(|| Error::invalid("input", "must be set"))? {
            Input::Text(text) => vec![Item::user(text)],
            Input::Items(items) => items,
        };
        if items.is_empty() {
            return Err(Error::invalid("input", "is empty, must have at least one item"));
        }
        items::read(items, request_id, known)
    }
}

impl FunctionTool {
    fn function(&self, k: usize) -> Result<Tool> {
        check_kind(k, Some(&self.kind))?;
        let name = self.name.clone().ok_or_else(|| Error::invalid(format!("tools[{k}].name"), "must be set"))?;
        Ok(Tool { name, description: self.description.clone(), parameters: self.parameters.clone() })
    }

    fn repeated(&self) -> Value {
        json!({
            "type": self.kind, "name": self.name, "description": self.description, "parameters": self.parameters,
            "strict": self.strict.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_an_answer_is_read_and_repeated() {
        let asked = |format: Value| -> Asked { serde_json::from_value(json!({"text": {"format": format}})).unwrap() };
        let defaults = SamplingParams::default();
        let schema = json!({"type": "object"});
        let format = json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
        for (format, constraint) in [
            (json!({"type": "text"}), None),
            (json!({"type": "json_object"}), Some(Constraint::JsonObject)),
            (format, Some(Constraint::Json(schema.to_string()))),
        ] {
            let asked = asked(format.clone());
            assert_eq!(asked.params(&defaults).unwrap().structured_outputs, constraint.map(Into::into));
            assert_eq!(asked.repeated(&defaults)["text"]["format"], format);
        }
        let refused = |format: Value| asked(format).params(&defaults).unwrap_err().violations[0].field.clone();
        assert_eq!(refused(json!({"type": "poem"})), "text.format.type");
        assert_eq!(refused(json!({"type": "json_schema", "name": "n"})), "text.format.schema");
        assert_eq!(Asked::default().repeated(&defaults)["text"]["format"], json!({"type": "text"}));
    }
}
