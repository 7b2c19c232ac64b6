//! Prompts' tokens without generating anything, for calls that count or show them, and the roles that clients name.

use std::time::SystemTime;

use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    server::{access::Caller, backend::Backend},
    text::{ChatPrompt, Role, validate_tools},
};

/// The role that a client names. OpenAI's `developer` is what templates know as `system`.
pub(crate) fn role(name: &str) -> Option<Role> {
    match name {
        "system" | "developer" => Some(Role::System),
        "user" => Some(Role::User),
        "assistant" => Some(Role::Assistant),
        "tool" | "function" => Some(Role::Tool),
        _ => None,
    }
}

/// A text's tokens.
///
/// # Errors
/// `FailedPrecondition` where the model has no tokenizer; the tokenizer's.
pub(crate) async fn text_ids(
    backend: &Backend,
    caller: &Caller,
    text: String,
    add_special_tokens: bool,
) -> Result<Vec<TokenId>> {
    let tokenizer = backend.tokenizer()?;
    backend.work(caller, move || tokenizer.encode(&text, add_special_tokens)).await
}

/// The tokens that a conversation is to the model. The tokenizer's special tokens are its template's to write, unless they
/// are asked for.
///
/// # Errors
/// `InvalidArgument` for tools that cannot be called; `FailedPrecondition` where the model has no tokenizer or chat template; theirs.
pub(crate) async fn chat_ids(
    backend: &Backend,
    caller: &Caller,
    chat: ChatPrompt,
    add_special_tokens: bool,
) -> Result<Vec<TokenId>> {
    validate_tools("tools", &chat.tools)?;
    let tokenizer = backend.tokenizer()?;
    let template = backend.engine.text().chat_template.clone();
    let template =
        template.ok_or_else(|| Error::new(Code::FailedPrecondition, "the model came without a chat template"))?;
    let rendered = move || template.render_prompt(&chat, SystemTime::now());
    backend.work(caller, move || tokenizer.encode(&rendered()?, add_special_tokens)).await
}

/// The text of some tokens.
///
/// # Errors
/// `InvalidArgument` for an id beyond the vocabulary, by its index in `field`; `FailedPrecondition` without a tokenizer.
pub(crate) async fn decode(
    backend: &Backend,
    caller: &Caller,
    field: &str,
    ids: Vec<TokenId>,
    skip_special: bool,
) -> Result<String> {
    let tokenizer = backend.tokenizer()?;
    let vocab_size = backend.engine.info().vocab_size;
    if let Some((k, id)) = ids.iter().enumerate().find(|(_, id)| id.index() >= vocab_size) {
        let why = format!("is {id}, but the vocabulary has {vocab_size} entries");
        return Err(Error::invalid(format!("{field}[{k}]"), why));
    }
    backend.work(caller, move || Ok(tokenizer.decode(&ids, skip_special))).await
}
