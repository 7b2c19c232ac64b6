//! Requests of the Messages API: the conversation, and how to go on with it.

use serde::Deserialize;
use serde_json::Value;

use super::{
    blocks::Blocks,
    tools::{Choice, OfferedTool, offered},
};
use crate::{
    engine::{Prompt, Request},
    error::{Error, Result},
    params::{Constraint, SamplingParams},
    server::{
        backend::cut,
        http::{
            content::Content,
            prompt::role,
            thinking::{think, with_effort},
        },
    },
    text::{ChatMessage, ChatPrompt, Role},
};

/// What is said so far; counting tokens needs no more.
#[derive(Debug, Deserialize)]
pub(super) struct Conversation {
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    system: Option<Content>,
    #[serde(default)]
    tools: Option<Vec<OfferedTool>>,
    #[serde(default)]
    tool_choice: Option<Choice>,
    #[serde(default)]
    thinking: Option<Thinking>,
    #[serde(default)]
    output_config: Option<OutputConfig>,
    #[serde(default)]
    mcp_servers: Option<Vec<Value>>,
    #[serde(default)]
    container: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Blocks,
}

#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    budget_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    #[serde(default)]
    effort: Option<String>,
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
    output_format: Option<Format>,
    #[serde(default)]
    output_config: Option<Formatted>,
}

/// What of `output_config` says what the answer must look like.
#[derive(Debug, Deserialize)]
struct Formatted {
    #[serde(default)]
    format: Option<Format>,
}

#[derive(Debug, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    schema: Option<Value>,
}

impl Format {
    fn constraint(self) -> Result<Constraint> {
        match (self.kind.as_str(), self.schema) {
            ("json_schema", Some(schema)) => Ok(Constraint::Json(schema.to_string())),
            _ => Err(Error::invalid("output_config.format", "must have the type json_schema, and a schema")),
        }
    }
}

impl Conversation {
    /// The model that is asked, or an adapter.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// The conversation as chat templates know it, with the system's message first. A last message of the assistant's is the
    /// beginning of the answer. `can_think` says whether the model's template knows of reasoning.
    ///
    /// # Errors
    /// `InvalidArgument` by the path of what is wrong.
    pub(super) fn chat(self, can_think: bool) -> Result<ChatPrompt> {
        for (field, asked) in [
            ("mcp_servers", self.mcp_servers.is_some_and(|servers| !servers.is_empty())),
            ("container", self.container.is_some()),
        ] {
            if asked {
                return Err(Error::invalid(field, "is not offered by this server: leave it out"));
            }
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
            message.content.turns(role, &format!("messages[{k}].content"), &mut turns)?;
        }
        let mut chat = ChatPrompt::from(turns);
        chat.continue_assistant();
        chat.tools = offered(self.tools.unwrap_or_default())?;
        if let Some(choice) = self.tool_choice {
            choice.tell(&mut chat)?;
        }
        if let Some(effort) = self.output_config.and_then(|config| config.effort) {
            with_effort(&mut chat, "output_config.effort", &effort)?;
        }
        if let Some(thinking) = self.thinking {
            thinking.tell(&mut chat, can_think)?;
        }
        Ok(chat)
    }
}

impl Thinking {
    fn tell(self, chat: &mut ChatPrompt, can_think: bool) -> Result<()> {
        match self.kind.as_str() {
            "disabled" => think(chat, false),
            "enabled" | "adaptive" if !can_think => {
                return Err(Error::invalid("thinking", "is asked for, but the model's chat template knows of none"));
            }
            "adaptive" => think(chat, true),
            "enabled" => {
                think(chat, true);
                chat.thinking_token_budget = self.budget_tokens;
            }
            other => {
                let why = format!("is {:?}, must be enabled, adaptive or disabled", cut(other, 64));
                return Err(Error::invalid("thinking.type", why));
            }
        }
        Ok(())
    }
}

impl Messages {
    /// The engine's request.
    ///
    /// # Errors
    /// `InvalidArgument` for a form of the answer that is not offered; ranges are the engine's to check.
    pub(super) fn request(self, id: &str, chat: ChatPrompt, defaults: &SamplingParams) -> Result<Request> {
        let format = self.output_config.and_then(|config| config.format).or(self.output_format);
        let constraint = format.map(Format::constraint).transpose()?;
        let params = SamplingParams {
            max_tokens: Some(self.max_tokens),
            stop: self.stop_sequences.unwrap_or_else(|| defaults.stop.clone()),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            structured_outputs: constraint.map(Into::into).or_else(|| defaults.structured_outputs.clone()),
            ..defaults.clone()
        };
        Ok(Request { request_id: id.to_owned(), params, ..Request::new(Prompt::Chat(chat)) })
    }
}
