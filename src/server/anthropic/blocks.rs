//! Content blocks of messages: text, thinking, calls of tools and their results.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    server::{backend::cut, http::content::Content},
    text::{ChatMessage, Role, ToolCall},
};

/// What a message says.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string or an array of content blocks with a type each")]
pub(super) enum Blocks {
    /// As it is.
    Text(String),
    /// In order.
    Blocks(Vec<Block>),
}

/// A content block: the fields of all kinds.
#[derive(Debug, Deserialize)]
pub(super) struct Block {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    input: Option<Map<String, Value>>,
    #[serde(default)]
    tool_use_id: Option<String>,
    #[serde(default)]
    content: Option<Content>,
}

fn set<T>(value: Option<T>, path: &str, field: &str) -> Result<T> {
    value.ok_or_else(|| Error::invalid(format!("{path}.{field}"), "must be set"))
}

impl Blocks {
    /// The turns that a message of this role is: results of tools are turns of their own. Calls of tools are looked up among the
    /// turns before, for their names.
    ///
    /// # Errors
    /// `InvalidArgument` by the path of a block that is not whole, or cannot stand here; `path` says where they stand.
    pub(super) fn turns(self, role: Role, path: &str, turns: &mut Vec<ChatMessage>) -> Result<()> {
        let blocks = match self {
            Self::Text(text) => {
                turns.push(ChatMessage::new(role, text));
                return Ok(());
            }
            Self::Blocks(blocks) => blocks,
        };
        let (mut turn, mut has_said, number) = (ChatMessage::new(role, ""), false, blocks.len());
        for (k, block) in blocks.into_iter().enumerate() {
            let path = format!("{path}[{k}]");
            match (block.kind.as_str(), role) {
                ("text", _) => {
                    turn.content.push_str(&set(block.text, &path, "text")?);
                    has_said = true;
                }
                ("thinking", Role::Assistant) => {
                    let thinking = set(block.thinking, &path, "thinking")?;
                    turn.reasoning.get_or_insert_default().push_str(&thinking);
                    has_said = true;
                }
                ("tool_use", Role::Assistant) => {
                    turn.tool_calls.push(ToolCall {
                        id: set(block.id, &path, "id")?,
                        name: set(block.name, &path, "name")?,
                        arguments: Value::Object(set(block.input, &path, "input")?).to_string(),
                    });
                    has_said = true;
                }
                ("tool_result", Role::User) => {
                    if std::mem::take(&mut has_said) {
                        turns.push(std::mem::replace(&mut turn, ChatMessage::new(role, "")));
                    }
                    let id = set(block.tool_use_id, &path, "tool_use_id")?;
                    let said = block.content.map(|content| content.text(&format!("{path}.content"))).transpose()?;
                    let mut calls = turns.iter().rev().flat_map(|turn| &turn.tool_calls);
                    let name = calls.find(|call| call.id == id).map(|call| call.name.clone());
                    turns.push(ChatMessage {
                        tool_call_id: Some(id),
                        name,
                        ..ChatMessage::new(Role::Tool, said.unwrap_or_default())
                    });
                }
                (other, _) => {
                    let why = format!("is {:?}, which the model cannot read here", cut(other, 64));
                    return Err(Error::invalid(format!("{path}.type"), why));
                }
            }
        }
        if has_said || number == 0 {
            turns.push(turn);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: &[(Role, Value)]) -> Result<Vec<ChatMessage>> {
        let mut turns = Vec::new();
        for (k, (role, content)) in messages.iter().enumerate() {
            let blocks: Blocks = serde_json::from_value(content.clone()).unwrap();
            blocks.turns(*role, &format!("messages[{k}].content"), &mut turns)?;
        }
        Ok(turns)
    }

    #[test]
    fn a_call_and_its_result_are_turns_that_templates_know() {
        let turns = read(&[
            (Role::User, json!("Weather?")),
            (
                Role::Assistant,
                json!([{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "I look."},
                       {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Bern"}}]),
            ),
            (
                Role::User,
                json!([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "Sun"}]},
                       {"type": "text", "text": "And now?"}]),
            ),
        ])
        .unwrap();
        let call = ToolCall { id: "a".into(), name: "weather".into(), arguments: r#"{"city":"Bern"}"#.into() };
        let assistant = ChatMessage {
            reasoning: Some("Hm.".into()),
            tool_calls: vec![call],
            ..ChatMessage::new(Role::Assistant, "I look.")
        };
        let result = ChatMessage {
            tool_call_id: Some("a".into()),
            name: Some("weather".into()),
            ..ChatMessage::new(Role::Tool, "Sun")
        };
        let user = |text: &str| ChatMessage::new(Role::User, text);
        assert_eq!(turns, [user("Weather?"), assistant, result, user("And now?")]);
    }

    #[test]
    fn a_block_that_cannot_stand_here_is_refused_by_its_path() {
        for (role, block, field) in [
            (Role::User, json!({"type": "image", "source": {}}), "messages[0].content[0].type"),
            (
                Role::User,
                json!({"type": "tool_use", "id": "a", "name": "f", "input": {}}),
                "messages[0].content[0].type",
            ),
            (Role::Assistant, json!({"type": "tool_result", "tool_use_id": "a"}), "messages[0].content[0].type"),
            (Role::Assistant, json!({"type": "tool_use", "id": "a", "input": {}}), "messages[0].content[0].name"),
            (Role::User, json!({"type": "text"}), "messages[0].content[0].text"),
            (
                Role::User,
                json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}),
                "messages[0].content[0].content[0].type",
            ),
        ] {
            let error = read(&[(role, json!([block]))]).unwrap_err();
            assert_eq!(error.violations[0].field, field);
        }
    }
}
