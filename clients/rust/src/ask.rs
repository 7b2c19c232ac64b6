//! What a request asks: a prompt or messages, how to sample, how long it may take.

use std::time::Duration;

use crate::v1::{
    ChatOptions, EmbedInput, GenerateRequest, GenerateStreamRequest, Message, Prompt, RequestOptions, Role,
    SamplingParams, TokenIds, UserTurn, embed_input, prompt,
};

/// Messages, and what the chat template is told beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Messages {
    /// In the order in which they were said.
    pub messages: Vec<Message>,
    /// Tools and the like.
    pub chat: Option<ChatOptions>,
}

/// A request: of a [`Prompt`] that is continued, or of [`Messages`] that are answered. Text and token ids become one by
/// themselves wherever it is taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask<What> {
    /// What is continued or answered.
    pub what: What,
    /// The model, the sampling parameters, what becomes of a slow reader.
    pub options: RequestOptions,
    /// The deadline, retries included; the client's own unless set.
    pub timeout: Option<Duration>,
}

impl Ask<Prompt> {
    /// Of a prompt: text, or token ids.
    pub fn prompt(prompt: impl Into<Prompt>) -> Self {
        Self { what: prompt.into(), ..Self::default() }
    }

    pub(crate) fn generate(&self) -> GenerateRequest {
        GenerateRequest { prompt: Some(self.what.clone()), options: Some(self.options.clone()) }
    }

    pub(crate) fn generate_stream(&self) -> GenerateStreamRequest {
        GenerateStreamRequest { prompt: Some(self.what.clone()), options: Some(self.options.clone()) }
    }
}

impl Ask<Messages> {
    /// Of messages, or of one thing that a user says.
    pub fn chat(messages: impl Into<Messages>) -> Self {
        Self { what: messages.into(), ..Self::default() }
    }

    /// Tools, and what else the chat template is told.
    #[must_use]
    pub fn chat_options(mut self, chat: ChatOptions) -> Self {
        self.what.chat = Some(chat);
        self
    }
}

impl<What> Ask<What> {
    /// How tokens are chosen, and when to stop.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.options.sampling = Some(sampling);
        self
    }

    /// All options at once.
    #[must_use]
    pub fn options(mut self, options: RequestOptions) -> Self {
        self.options = options;
        self
    }

    /// Goes on when its connection breaks, and is read on where it was.
    #[must_use]
    pub fn resumable(mut self) -> Self {
        self.options.resumable = Some(true);
        self
    }

    /// The deadline, retries included. The server refuses at once what cannot meet it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// Makes requests of what their prompts and messages are made of.
macro_rules! asked_by {
    ($($from:ty => $what:ty),*) => {$(
        impl From<$from> for Ask<$what> {
            fn from(what: $from) -> Self {
                Self { what: what.into(), ..Self::default() }
            }
        }
    )*};
}

asked_by!(&str => Prompt, Vec<u32> => Prompt, &str => Messages, Vec<Message> => Messages);

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self { prompt: Some(prompt::Prompt::Text(text.to_owned())) }
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self { prompt: Some(prompt::Prompt::TokenIds(TokenIds { ids })) }
    }
}

impl From<&str> for Messages {
    fn from(said: &str) -> Self {
        vec![Message::new(Role::User, said)].into()
    }
}

impl From<Vec<Message>> for Messages {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, chat: None }
    }
}

impl Message {
    /// Something that was said.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

impl From<&str> for UserTurn {
    fn from(content: &str) -> Self {
        Self { content: content.to_owned(), ..Self::default() }
    }
}

impl From<&str> for EmbedInput {
    fn from(text: &str) -> Self {
        Self { input: Some(embed_input::Input::Text(text.to_owned())) }
    }
}

impl From<Vec<u32>> for EmbedInput {
    fn from(ids: Vec<u32>) -> Self {
        Self { input: Some(embed_input::Input::TokenIds(TokenIds { ids })) }
    }
}
