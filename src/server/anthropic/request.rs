//! Requests of the Messages API: the conversation, and how to go on with it.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    engine::Request,
    error::{Error, Result},
    params::SamplingParams,
    server::{
        backend::cut,
        http::{
            content::Content,
            prompt::{conversation, role},
        },
    },
    text::{ChatMessage, Role},
};

/// What is said so far; counting tokens needs no more.
#[derive(Debug, Deserialize)]
pub(super) struct Conversation {
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    system: Option<Content>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Content,
}

/// How to go on.
#[derive(Debug, Deserialize)]
pub(super) struct Messages {
    max_tokens: u32,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(default)]
    stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    top_k: Option<u32>,
    #[serde(default)]
    thinking: Option<Thinking>,
}

#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

impl Conversation {
    /// The model that is asked, or an adapter.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// The messages as chat templates know them, with the system's first.
    ///
    /// # Errors
    /// `InvalidArgument` by the path of what is wrong.
    pub(super) fn turns(self) -> Result<Vec<ChatMessage>> {
        if self.tools.is_some_and(|tools| !tools.is_empty()) {
            return Err(Error::invalid("tools", "is not offered by this server: leave it out"));
        }
        if self.messages.is_empty() {
            return Err(Error::invalid("messages", "is empty, must have at least one message"));
        }
        let mut turns = Vec::with_capacity(self.messages.len() + 1);
        if let Some(system) = self.system {
            turns.push(ChatMessage::new(Role::System, system.text("system")?));
        }
        for (k, message) in self.messages.into_iter().enumerate() {
            let role = role(&message.role).filter(|role| matches!(role, Role::User | Role::Assistant));
            let role = role.ok_or_else(|| {
                let why = format!("is {:?}, must be user or assistant", cut(&message.role, 64));
                Error::invalid(format!("messages[{k}].role"), why)
            })?;
            turns.push(ChatMessage::new(role, message.content.text(&format!("messages[{k}].content"))?));
        }
        Ok(turns)
    }
}

impl Messages {
    /// The engine's request.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not offered; ranges are the engine's to check.
    pub(super) fn request(self, id: &str, turns: Vec<ChatMessage>, defaults: &SamplingParams) -> Result<Request> {
        if self.thinking.is_some_and(|thinking| thinking.kind != "disabled") {
            return Err(Error::invalid("thinking", "is not offered by this server: leave it out"));
        }
        let params = SamplingParams {
            max_tokens: Some(self.max_tokens),
            stop: self.stop_sequences.unwrap_or_else(|| defaults.stop.clone()),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            ..defaults.clone()
        };
        Ok(Request { request_id: id.to_owned(), params, ..Request::new(conversation(turns)) })
    }
}
