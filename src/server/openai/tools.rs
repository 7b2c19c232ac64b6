//! Tools in OpenAI's shapes: what a request offers and which calls it brings along, and the calls and the reasoning of an
//! answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    server::{
        backend::cut,
        http::{
            parts::Part,
            thinking::with_effort,
            tools::{OfferedTool, offered},
        },
    },
    text::{ChatPrompt, Piece, ToolCall, ToolChoice},
};

/// What a chat is told besides its messages.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Around {
    tools: Option<Vec<OfferedTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    documents: Option<Vec<Map<String, Value>>>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    thinking_token_budget: Option<u32>,
    reasoning_effort: Option<String>,
}

impl Around {
    /// Tells the conversation.
    ///
    /// # Errors
    /// `InvalidArgument` by the path of what cannot be read.
    pub(super) fn tell(self, prompt: &mut ChatPrompt) -> Result<()> {
        prompt.tools = offered(self.tools.unwrap_or_default())?;
        prompt.tool_choice = choice(self.tool_choice.as_ref())?;
        prompt.parallel_tool_calls = self.parallel_tool_calls.unwrap_or(true);
        prompt.documents = self.documents.unwrap_or_default().into();
        prompt.chat_template_kwargs = self.chat_template_kwargs.unwrap_or_default().into();
        prompt.continue_final_message = self.continue_final_message.unwrap_or(false);
        prompt.add_generation_prompt = self.add_generation_prompt.unwrap_or(!prompt.continue_final_message);
        prompt.thinking_token_budget = self.thinking_token_budget;
        match self.reasoning_effort {
            Some(effort) => with_effort(prompt, "reasoning_effort", &effort),
            None => Ok(()),
        }
    }
}

/// `tool_choice`. Chat completions name a function as `{"function": {"name"}}`, responses as `{"type": "function", "name"}`.
///
/// # Errors
/// `InvalidArgument` for a choice that is none.
pub(super) fn choice(choice: Option<&Value>) -> Result<ToolChoice> {
    let named = |value: &Value| {
        let function = value.get("function").or(Some(value).filter(|value| value["type"] == "function"));
        Some(function?.get("name")?.as_str()?.to_owned())
    };
    match choice {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            other => {
                let why = format!("is {:?}, must be auto, none, required or a function", cut(other, 64));
                Err(Error::invalid("tool_choice", why))
            }
        },
        Some(value) => named(value)
            .map(ToolChoice::Named)
            .ok_or_else(|| Error::invalid("tool_choice", "must name a function: {\"function\": {\"name\": …}}")),
    }
}

/// An entry of a message's `tool_calls`.
#[derive(Debug, Deserialize)]
pub(super) struct MadeCall {
    #[serde(default)]
    id: String,
    function: CalledFunction,
}

#[derive(Debug, Deserialize)]
struct CalledFunction {
    name: String,
    #[serde(default)]
    arguments: String,
}

impl From<MadeCall> for ToolCall {
    fn from(call: MadeCall) -> Self {
        Self { id: call.id, name: call.function.name, arguments: call.function.arguments }
    }
}

/// What an answer holds besides its text.
#[derive(Debug, Default, Serialize)]
pub(super) struct Beside {
    /// What the model thought before it answered, as vLLM has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// Calls, or in a stream calls that begin and more of their arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
}

impl Beside {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.reasoning_content.is_none() && self.tool_calls.is_empty()
    }

    /// Whether there are calls.
    pub(super) fn calls(&self) -> bool {
        !self.tool_calls.is_empty()
    }

    /// What a delta brings.
    pub(super) fn of_delta(pieces: &[Piece]) -> Self {
        let mut calls: Vec<Value> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::ToolCall { index, id, name } => calls.push(json!({
                    "index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""},
                })),
                // One entry a call: there are clients that look at the first and no further.
                Piece::Arguments { index, delta } => match calls.last_mut().filter(|call| call["index"] == *index) {
                    Some(call) => {
                        if let Some(Value::String(arguments)) = call.pointer_mut("/function/arguments") {
                            arguments.push_str(delta);
                        }
                    }
                    None => calls.push(json!({"index": index, "function": {"arguments": delta}})),
                },
                Piece::Text(_) | Piece::Reasoning(_) => {}
            }
        }
        Self { reasoning_content: reasoning(pieces), tool_calls: calls }
    }

    /// What a whole answer holds.
    pub(super) fn of_whole(parts: &[Part]) -> Self {
        let mut beside = Self::default();
        for part in parts {
            match part {
                Part::Text(_) => {}
                Part::Reasoning(text) => beside.reasoning_content.get_or_insert_default().push_str(text),
                Part::Call(ToolCall { id, name, arguments }) => beside.tool_calls.push(json!({
                    "id": id, "type": "function", "function": {"name": name, "arguments": arguments},
                })),
            }
        }
        beside
    }
}

fn reasoning(pieces: &[Piece]) -> Option<String> {
    let of = |piece: &Piece| match piece {
        Piece::Reasoning(text) => Some(text.clone()),
        _ => None,
    };
    Some(pieces.iter().filter_map(of).collect::<String>()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http::parts::{parts, tests::pieces};

    #[test]
    fn a_whole_answer_has_its_calls_with_their_whole_arguments() {
        let beside = serde_json::to_value(Beside::of_whole(&parts(pieces()))).unwrap();
        assert_eq!(
            beside,
            json!({"reasoning_content": "first this", "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}},
                {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": ""}},
                {"id": "call_2", "type": "function", "function": {"name": "go", "arguments": "{}"}},
            ]})
        );
    }

    #[test]
    fn a_delta_has_calls_that_begin_and_more_of_their_arguments() {
        let beside = serde_json::to_value(Beside::of_delta(&pieces()[4..6])).unwrap();
        assert_eq!(
            beside,
            json!({"tool_calls": [
                {"index": 0, "id": "call_0", "type": "function", "function": {"name": "add", "arguments": "{\"a\":"}},
            ]})
        );
        let rest = Beside::of_delta(&pieces()[6..]).tool_calls;
        assert_eq!(rest[0], json!({"index": 0, "function": {"arguments": " 1}"}}));
        let told: Vec<_> = rest[1..].iter().map(|call| (&call["index"], &call["function"]["arguments"])).collect();
        assert_eq!(told, [(&json!(1), &json!("")), (&json!(2), &json!("{}"))]);
        assert!(Beside::of_delta(&[Piece::Text("well".into())]).is_empty());
    }

    #[test]
    fn one_call_at_a_time_is_asked_for_by_name() {
        let told = |body: Value| {
            let mut prompt = ChatPrompt::from(Vec::new());
            serde_json::from_value::<Around>(body).unwrap().tell(&mut prompt).unwrap();
            prompt.parallel_tool_calls
        };
        assert!(told(json!({})) && told(json!({"parallel_tool_calls": null})));
        assert!(!told(json!({"parallel_tool_calls": false})));
    }

    #[test]
    fn a_choice_is_a_word_or_a_function() {
        assert_eq!(choice(None).unwrap(), ToolChoice::Auto);
        assert_eq!(choice(Some(&json!("required"))).unwrap(), ToolChoice::Required);
        for named in
            [json!({"type": "function", "function": {"name": "add"}}), json!({"type": "function", "name": "add"})]
        {
            assert_eq!(choice(Some(&named)).unwrap(), ToolChoice::Named("add".into()));
        }
        for wrong in [json!("sometimes"), json!({"function": "add"}), json!({"name": "add"}), json!(3)] {
            assert!(choice(Some(&wrong)).unwrap_err().to_string().contains("tool_choice"), "{wrong}");
        }
    }
}
