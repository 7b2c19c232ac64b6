//! `messages` of a chat: roles, and contents as strings or parts.

use serde::Deserialize;

use super::tools::MadeCall;

use crate::{
    error::{Error, Result},
    server::{
        backend::cut,
        http::{content::Content, prompt::role},
    },
    text::{ChatMessage, Role, ToolCall},
};

/// One message.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<MadeCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
}

/// The messages as chat templates know them.
///
/// # Errors
/// `InvalidArgument` by the path of what is wrong.
pub(crate) fn turns(messages: Vec<Message>) -> Result<Vec<ChatMessage>> {
    if messages.is_empty() {
        return Err(Error::invalid("messages", "is empty, must have at least one message"));
    }
    messages.into_iter().enumerate().map(|(k, message)| turn(&format!("messages[{k}]"), message)).collect()
}

fn turn(path: &str, message: Message) -> Result<ChatMessage> {
    let role = role(&message.role).ok_or_else(|| {
        let why = format!("is {:?}, must be system, developer, user, assistant or tool", cut(&message.role, 64));
        Error::invalid(format!("{path}.role"), why)
    })?;
    let content = match message.content {
        Some(content) => content.text(&format!("{path}.content"))?,
        // An assistant may have said nothing.
        None if role == Role::Assistant => String::new(),
        None => return Err(Error::invalid(format!("{path}.content"), "must be set")),
    };
    Ok(ChatMessage {
        reasoning: message.reasoning_content,
        tool_calls: message.tool_calls.unwrap_or_default().into_iter().map(ToolCall::from).collect(),
        tool_call_id: message.tool_call_id,
        name: message.name,
        ..ChatMessage::new(role, content)
    })
}
