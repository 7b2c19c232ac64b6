//! A conversation as requests bring it: messages, and what the template is told beside them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Tool, ToolCall, ToolChoice, json_map_bytes};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The answer of a tool that the model called.
    Tool,
}

impl Role {
    /// The name that templates know the role by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What the model thought before it said so.
    pub reasoning: Option<String>,
    /// The tools that the model called.
    pub tool_calls: Vec<ToolCall>,
    /// The call that this is a tool's answer to.
    pub tool_call_id: Option<String>,
    /// The name of the tool that answers, or of the person who speaks.
    pub name: Option<String>,
}

impl ChatMessage {
    /// A message of `role` that says `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), reasoning: None, tool_calls: Vec::new(), tool_call_id: None, name: None }
    }

    /// As chat templates know messages; what is not there is left out.
    pub(super) fn for_template(&self) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), self.role.name().into());
        message.insert("content".into(), self.content.as_str().into());
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(ToolCall::for_template);
            message.insert("tool_calls".into(), calls.collect());
        }
        let texts =
            [("reasoning_content", &self.reasoning), ("tool_call_id", &self.tool_call_id), ("name", &self.name)];
        for (key, text) in texts {
            if let Some(text) = text {
                message.insert(key.into(), text.as_str().into());
            }
        }
        Value::Object(message)
    }
}

/// A conversation to go on with.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatPrompt {
    /// What was said.
    pub messages: Vec<ChatMessage>,
    /// What the model may call.
    pub tools: Arc<[Tool]>,
    /// Whether it does.
    pub tool_choice: ToolChoice,
    /// Whether an answer may hold more than one call.
    pub parallel_tool_calls: bool,
    /// Documents for templates that know of them, each a map.
    pub documents: Arc<[Map<String, Value>]>,
    /// Further variables for the template (`enable_thinking`); they win over ours.
    pub chat_template_kwargs: Arc<Map<String, Value>>,
    /// Which of the model's templates; by default `tool_use` where there are tools and it is one, else `default`.
    pub chat_template: Option<String>,
    /// End the prompt with the start of an answer.
    pub add_generation_prompt: bool,
    /// Go on with the last message instead of answering it.
    pub continue_final_message: bool,
    /// Most tokens of reasoning; then its end is forced.
    pub thinking_token_budget: Option<u32>,
}

impl ChatPrompt {
    /// The same, but for what was said.
    #[must_use]
    pub fn with_messages(&self, messages: Vec<ChatMessage>) -> Self {
        let Self { messages: _, tools, tool_choice, documents, chat_template_kwargs, chat_template, .. } = self;
        Self {
            messages,
            tools: tools.clone(),
            tool_choice: tool_choice.clone(),
            documents: documents.clone(),
            chat_template_kwargs: chat_template_kwargs.clone(),
            chat_template: chat_template.clone(),
            ..*self
        }
    }

    /// Has a last message of the assistant's be the beginning of the answer, as APIs have it that know of nothing else to say with
    /// one. A message that calls tools is whole.
    pub fn continue_assistant(&mut self) {
        let last = self.messages.last();
        self.continue_final_message =
            last.is_some_and(|last| last.role == Role::Assistant && last.tool_calls.is_empty());
        self.add_generation_prompt = !self.continue_final_message;
    }

    /// Bytes of all but the messages.
    #[must_use]
    pub fn bytes_beside(&self) -> usize {
        let tool = |tool: &Tool| {
            let description = tool.description.as_ref().map_or(0, String::len);
            size_of::<Tool>() + tool.name.len() + description + tool.parameters.as_ref().map_or(0, json_map_bytes)
        };
        self.tools.iter().map(tool).sum::<usize>()
            + self.documents.iter().map(json_map_bytes).sum::<usize>()
            + json_map_bytes(&self.chat_template_kwargs)
            + self.chat_template.as_ref().map_or(0, String::len)
    }
}

impl From<Vec<ChatMessage>> for ChatPrompt {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self {
            messages,
            tools: Arc::default(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            documents: Arc::default(),
            chat_template_kwargs: Arc::default(),
            chat_template: None,
            add_generation_prompt: true,
            continue_final_message: false,
            thinking_token_budget: None,
        }
    }
}
