//! Whether and how hard a model is to think, in the variables that chat templates know. What a request sets there itself
//! stays as it is.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    error::{Error, Result},
    server::backend::{Backend, cut},
    text::ChatPrompt,
};

/// OpenAI's efforts.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Asks for an effort, in OpenAI's words; `field` is where a request has it.
///
/// # Errors
/// `InvalidArgument` for a word that is none of them.
pub(crate) fn with_effort(chat: &mut ChatPrompt, field: &str, effort: &str) -> Result<()> {
    if !EFFORTS.contains(&effort) {
        let why = format!("is {:?}, must be one of {}", cut(effort, 64), EFFORTS.join(", "));
        return Err(Error::invalid(field, why));
    }
    set(chat, "reasoning_effort", effort.into());
    if effort == "none" {
        think(chat, false);
    }
    Ok(())
}

/// Has the model think before it answers, or not: Qwen's templates know the first name, DeepSeek's the second.
pub(crate) fn think(chat: &mut ChatPrompt, on: bool) {
    for name in ["enable_thinking", "thinking"] {
        set(chat, name, on.into());
    }
}

/// Whether the model's chat template knows of reasoning.
pub(crate) fn can_think(backend: &Backend) -> bool {
    backend.engine.text().chat_template.as_ref().is_some_and(|template| template.output_format().reasons())
}

fn set(chat: &mut ChatPrompt, name: &str, value: Value) {
    Arc::make_mut(&mut chat.chat_template_kwargs).entry(name).or_insert(value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(effort: &str, kwargs: Value) -> Result<Value> {
        let mut chat = ChatPrompt::from(Vec::new());
        chat.chat_template_kwargs = Arc::new(kwargs.as_object().cloned().unwrap_or_default());
        with_effort(&mut chat, "reasoning_effort", effort)?;
        Ok(Value::Object(chat.chat_template_kwargs.as_ref().clone()))
    }

    #[test]
    fn an_effort_is_a_variable_of_the_template_and_none_is_no_thinking() {
        for effort in &EFFORTS[1..] {
            assert_eq!(told(effort, json!({})).unwrap(), json!({"reasoning_effort": effort}));
        }
        let none = json!({"reasoning_effort": "none", "enable_thinking": false, "thinking": false});
        assert_eq!(told("none", json!({})).unwrap(), none);
        let own = json!({"reasoning_effort": "much", "enable_thinking": true, "thinking": true});
        assert_eq!(told("none", own.clone()).unwrap(), own, "what the request says itself wins");
        assert_eq!(told("frob", json!({})).unwrap_err().violations[0].field, "reasoning_effort");
    }
}
