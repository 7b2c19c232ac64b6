//! Input items of a response: messages, what the model thought, the functions that it called and what they gave.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    error::{Error, Result},
    server::{
        backend::cut,
        http::{content::Content, prompt::role},
    },
    text::{ChatMessage, Role, ToolCall},
};

/// An item: the fields of all kinds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Content>,
    summary: Option<Content>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Content>,
}

/// Where an item stands, and what it is called in lists.
struct Place {
    path: String,
    id: String,
}

impl Place {
    fn set<T>(&self, value: Option<T>, field: &str) -> Result<T> {
        value.ok_or_else(|| Error::invalid(format!("{}.{field}", self.path), "must be set"))
    }

    fn text(&self, content: Content, field: &str) -> Result<String> {
        content.text(&format!("{}.{field}", self.path))
    }
}

/// The turns that items are, and the items as they are listed to those who ask for them. Names of functions are looked up in
/// the turns that are `known`, too.
///
/// # Errors
/// `InvalidArgument` by the path of what is wrong.
pub(super) fn read(
    items: Vec<Item>,
    request_id: &str,
    known: &[ChatMessage],
) -> Result<(Vec<ChatMessage>, Vec<Value>)> {
    let (mut turns, mut listed) = (Vec::new(), Vec::with_capacity(items.len()));
    for (k, item) in items.into_iter().enumerate() {
        let place = Place { path: format!("input[{k}]"), id: format!("{request_id}_{k}") };
        listed.push(match item.kind.as_deref() {
            None | Some("message") => item.message(&place, &mut turns)?,
            Some("reasoning") => item.reasoning(&place, &mut turns)?,
            Some("function_call") => item.call(&place, &mut turns)?,
            Some("function_call_output") => item.output(&place, known, &mut turns)?,
            Some(other) => {
                let why = format!(
                    "is {:?}, must be message, reasoning, function_call or function_call_output",
                    cut(other, 64)
                );
                return Err(Error::invalid(format!("{}.type", place.path), why));
            }
        });
    }
    Ok((turns, listed))
}

/// The assistant's turn that so far is nothing but what it thought.
fn thinking(turns: &mut [ChatMessage]) -> Option<&mut ChatMessage> {
    let is_thinking =
        |turn: &&mut ChatMessage| turn.role == Role::Assistant && turn.content.is_empty() && turn.tool_calls.is_empty();
    turns.last_mut().filter(is_thinking)
}

impl Item {
    /// A text of the person's.
    pub(super) fn user(text: String) -> Self {
        Self { role: Some("user".into()), content: Some(Content::Text(text)), ..Self::default() }
    }

    fn message(self, place: &Place, turns: &mut Vec<ChatMessage>) -> Result<Value> {
        let named = role(self.role.as_deref().unwrap_or_default());
        let role = named.ok_or_else(|| {
            Error::invalid(format!("{}.role", place.path), "must be system, developer, user or assistant")
        })?;
        let text = place.text(place.set(self.content, "content")?, "content")?;
        let mut part = json!({"type": "input_text", "text": text});
        if role == Role::Assistant {
            part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
        }
        match thinking(turns).filter(|_| role == Role::Assistant) {
            Some(turn) => turn.content = text,
            None => turns.push(ChatMessage::new(role, text)),
        }
        let id = format!("msg_{}", place.id);
        Ok(json!({"id": id, "type": "message", "role": role.name(), "status": "completed", "content": [part]}))
    }

    fn reasoning(self, place: &Place, turns: &mut Vec<ChatMessage>) -> Result<Value> {
        let (field, thought) = match (self.content, self.summary) {
            (Some(content), _) => ("content", content),
            (None, summary) => ("summary", place.set(summary, "content")?),
        };
        let thought = place.text(thought, field)?;
        let content = json!([{"type": "reasoning_text", "text": thought}]);
        if thinking(turns).is_none() {
            turns.push(ChatMessage::new(Role::Assistant, ""));
        }
        if let Some(turn) = turns.last_mut() {
            turn.reasoning.get_or_insert_default().push_str(&thought);
        }
        Ok(json!({"id": format!("rs_{}", place.id), "type": "reasoning", "summary": [], "content": content}))
    }

    fn call(self, place: &Place, turns: &mut Vec<ChatMessage>) -> Result<Value> {
        let call = ToolCall {
            id: place.set(self.call_id, "call_id")?,
            name: place.set(self.name, "name")?,
            arguments: place.set(self.arguments, "arguments")?,
        };
        let listed = json!({
            "id": format!("fc_{}", place.id), "type": "function_call", "status": "completed",
            "call_id": call.id, "name": call.name, "arguments": call.arguments,
        });
        if turns.last().is_none_or(|turn| turn.role != Role::Assistant) {
            turns.push(ChatMessage::new(Role::Assistant, ""));
        }
        if let Some(turn) = turns.last_mut() {
            turn.tool_calls.push(call);
        }
        Ok(listed)
    }

    fn output(self, place: &Place, known: &[ChatMessage], turns: &mut Vec<ChatMessage>) -> Result<Value> {
        let id = place.set(self.call_id, "call_id")?;
        let text = place.text(place.set(self.output, "output")?, "output")?;
        let listed = json!({
            "id": format!("fco_{}", place.id), "type": "function_call_output", "status": "completed",
            "call_id": id, "output": text,
        });
        let mut calls = known.iter().chain(turns.iter()).rev().flat_map(|turn| &turn.tool_calls);
        let name = calls.find(|call| call.id == id).map(|call| call.name.clone());
        turns.push(ChatMessage { tool_call_id: Some(id), name, ..ChatMessage::new(Role::Tool, text) });
        Ok(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(list: Value) -> Vec<Item> {
        serde_json::from_value(list).unwrap()
    }

    #[test]
    fn what_the_model_thought_said_and_called_is_one_turn() {
        let list = json!([
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "b", "output": "12:00"},
        ]);
        let (turns, listed) = read(items(list.clone()), "r", &[]).unwrap();
        let call = |id: &str, name: &str| ToolCall { id: id.into(), name: name.into(), arguments: "{}".into() };
        let assistant = ChatMessage {
            reasoning: Some("Hm.".into()),
            tool_calls: vec![call("a", "weather"), call("b", "clock")],
            ..ChatMessage::new(Role::Assistant, "I look.")
        };
        let answer = |id: &str, name: Option<&str>, text: &str| ChatMessage {
            tool_call_id: Some(id.into()),
            name: name.map(str::to_owned),
            ..ChatMessage::new(Role::Tool, text)
        };
        assert_eq!(
            turns,
            [ChatMessage::new(Role::User, "Weather?"), assistant.clone(), answer("b", Some("clock"), "12:00")]
        );
        for (given, listed) in list.as_array().unwrap().iter().zip(&listed).skip(1) {
            assert_eq!(listed["type"], given["type"]);
            assert!(listed["id"].as_str().unwrap().contains("r_"), "{listed}");
        }
        // Of a call that an earlier response made.
        let late = json!([{"type": "function_call_output", "call_id": "a", "output": "sun"}]);
        let (turns, _) = read(items(late), "r", &[assistant]).unwrap();
        assert_eq!(turns, [answer("a", Some("weather"), "sun")]);
    }

    #[test]
    fn an_item_that_is_not_whole_is_refused_by_its_path() {
        for (item, field) in [
            (json!({"type": "item_reference", "id": "x"}), "input[0].type"),
            (json!({"type": "function_call", "name": "f", "arguments": "{}"}), "input[0].call_id"),
            (json!({"type": "function_call_output", "call_id": "a"}), "input[0].output"),
            (json!({"type": "reasoning", "id": "x"}), "input[0].content"),
            (json!({"role": "user", "content": [{"type": "input_image"}]}), "input[0].content[0].type"),
        ] {
            assert_eq!(read(items(json!([item])), "r", &[]).unwrap_err().violations[0].field, field);
        }
    }
}
