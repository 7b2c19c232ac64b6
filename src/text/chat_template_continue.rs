//! `continue_final_message`: a prompt that ends inside its last message, for the model to go on with, as Hugging Face's
//! `apply_chat_template` makes it: the message is marked, and the rendered text ends where the mark came out.

use serde_json::Value;

use crate::error::{Error, Result};

/// What marks the end of the message. Templates that trim leave its last space out, which tells that they do.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Where errors say the fault is.
const FIELD: &str = "continue_final_message";

/// Marks the end of the last message; gives the text that it ended with.
///
/// # Errors
/// `InvalidArgument` where there is no message, or no text in it.
pub(super) fn mark(messages: &mut [Value]) -> Result<String> {
    let Some(last) = messages.last_mut() else {
        return Err(Error::invalid(FIELD, "is set, but there is no message to go on with"));
    };
    let text = match last.get_mut("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    };
    let Some(text) = text else {
        return Err(Error::invalid(FIELD, "is set, but the last message has no text to go on with"));
    };
    let before = text.clone();
    text.push_str(MARK);
    Ok(before)
}

/// The rendered text up to the mark.
///
/// # Errors
/// `InvalidArgument` where the template left the message out.
pub(super) fn cut(mut prompt: String, text: &str) -> Result<String> {
    let found = prompt.rfind(MARK.trim_end()).filter(|_| prompt.contains(text.trim()));
    let Some(at) = found else {
        return Err(Error::invalid(FIELD, "is set, but the chat template changes the last message or leaves it out"));
    };
    let spaces_stay = prompt[at..].starts_with(MARK);
    prompt.truncate(at);
    if !spaces_stay {
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(prompt)
}
