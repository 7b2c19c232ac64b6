//! Between the chat messages of `candlewick.v1` and the engine's.

use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    proto::candlewick::v1 as wire,
    text::{ChatMessage, ChatPrompt, Piece, Role, Tool, ToolCall, ToolChoice},
};

/// Most documents a request.
const MAX_DOCUMENTS: usize = 256;

/// The conversation, with what the template is told beside it.
///
/// # Errors
/// `InvalidArgument` with the field's path.
pub(super) fn prompt(messages: Vec<wire::Message>, options: Option<wire::ChatOptions>) -> Result<ChatPrompt> {
    let messages: Result<Vec<_>> = messages.into_iter().enumerate().map(|(k, message)| turn(k, message)).collect();
    let options = options.unwrap_or_default();
    let tools: Result<Vec<_>> = options.tools.into_iter().enumerate().map(|(k, each)| tool(k, each)).collect();
    if options.documents_json.len() > MAX_DOCUMENTS {
        let why = format!("has {} entries, at most {MAX_DOCUMENTS} are allowed", options.documents_json.len());
        return Err(Error::invalid("chat.documents_json", why));
    }
    let documents = options.documents_json.iter().enumerate();
    let documents: Result<Vec<_>> =
        documents.map(|(k, text)| object(&format!("chat.documents_json[{k}]"), text)).collect();
    let kwargs = options.chat_template_kwargs_json.as_deref().filter(|text| !text.is_empty());
    let continues = options.continue_final_message.unwrap_or(false);
    if continues && options.add_generation_prompt == Some(true) {
        let why = "cannot be with add_generation_prompt: an answer is gone on with, or a new one begins";
        return Err(Error::invalid("chat.continue_final_message", why));
    }
    Ok(ChatPrompt {
        tools: tools?.into(),
        tool_choice: choice(options.tool_choice)?,
        documents: documents?.into(),
        chat_template_kwargs: kwargs
            .map(|text| object("chat.chat_template_kwargs_json", text))
            .transpose()?
            .unwrap_or_default()
            .into(),
        chat_template: options.chat_template.filter(|name| !name.is_empty()),
        add_generation_prompt: options.add_generation_prompt.unwrap_or(!continues),
        continue_final_message: continues,
        thinking_token_budget: options.thinking_token_budget,
        ..messages?.into()
    })
}

pub(super) fn turn(k: usize, message: wire::Message) -> Result<ChatMessage> {
    let role = match message.role() {
        wire::Role::System => Role::System,
        wire::Role::User => Role::User,
        wire::Role::Assistant => Role::Assistant,
        wire::Role::Tool => Role::Tool,
        wire::Role::Unspecified => {
            return Err(Error::invalid(format!("messages[{k}].role"), "must be system, user, assistant or tool"));
        }
    };
    if !message.tool_calls.is_empty() && role != Role::Assistant {
        let why = "are the model's: only messages of the assistant have them";
        return Err(Error::invalid(format!("messages[{k}].tool_calls"), why));
    }
    let call = |call: wire::ToolCall| ToolCall { id: call.id, name: call.name, arguments: call.arguments };
    Ok(ChatMessage {
        role,
        content: message.content,
        reasoning: message.reasoning,
        tool_calls: message.tool_calls.into_iter().map(call).collect(),
        tool_call_id: message.tool_call_id,
        name: message.name,
    })
}

fn tool(k: usize, tool: wire::Tool) -> Result<Tool> {
    let schema = tool.parameters_json.as_deref().filter(|text| !text.is_empty());
    let parameters = schema.map(|text| object(&format!("chat.tools[{k}].parameters_json"), text)).transpose()?;
    Ok(Tool { name: tool.name, description: tool.description, parameters })
}

fn choice(choice: Option<wire::ToolChoice>) -> Result<ToolChoice> {
    use wire::{ToolChoiceMode as Mode, tool_choice::Choice};
    Ok(match choice.and_then(|choice| choice.choice) {
        Some(Choice::Name(name)) => ToolChoice::Named(name),
        Some(Choice::Mode(mode)) => match Mode::try_from(mode) {
            Ok(Mode::None) => ToolChoice::None,
            Ok(Mode::Required) => ToolChoice::Required,
            Ok(Mode::Auto | Mode::Unspecified) => ToolChoice::Auto,
            Err(_) => return Err(Error::invalid("chat.tool_choice", format!("has mode {mode}, which is none"))),
        },
        None => ToolChoice::Auto,
    })
}

fn object(field: &str, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|error| Error::invalid(field, format!("is no JSON object: {error}")))
}

/// The assistant's message that these pieces make.
pub(super) fn answer(content: String, pieces: Vec<Piece>) -> wire::Message {
    let mut message = wire::Message { role: wire::Role::Assistant.into(), content, ..wire::Message::default() };
    for piece in pieces {
        match piece {
            Piece::Text(_) => {}
            Piece::Reasoning(text) => message.reasoning.get_or_insert_default().push_str(&text),
            Piece::ToolCall { id, name, .. } => {
                message.tool_calls.push(wire::ToolCall { id, name, arguments: String::new() });
            }
            Piece::Arguments { delta, .. } => {
                if let Some(call) = message.tool_calls.last_mut() {
                    call.arguments.push_str(&delta);
                }
            }
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> wire::Message {
        wire::Message { role: wire::Role::User.into(), content: "hi".into(), ..wire::Message::default() }
    }

    fn field(messages: Vec<wire::Message>, options: wire::ChatOptions) -> String {
        prompt(messages, Some(options)).unwrap_err().violations[0].field.clone()
    }

    #[test]
    fn what_a_chat_gets_wrong_is_named_by_its_path() {
        let options = wire::ChatOptions::default;
        let schema = wire::Tool { name: "f".into(), parameters_json: Some("[]".into()), ..wire::Tool::default() };
        let cases = [
            (wire::ChatOptions { tools: vec![schema], ..options() }, "chat.tools[0].parameters_json"),
            (
                wire::ChatOptions { documents_json: vec!["{}".into(), "x".into()], ..options() },
                "chat.documents_json[1]",
            ),
            (wire::ChatOptions { documents_json: vec!["{}".into(); 300], ..options() }, "chat.documents_json"),
            (
                wire::ChatOptions { chat_template_kwargs_json: Some("3".into()), ..options() },
                "chat.chat_template_kwargs_json",
            ),
            (
                wire::ChatOptions {
                    continue_final_message: Some(true),
                    add_generation_prompt: Some(true),
                    ..options()
                },
                "chat.continue_final_message",
            ),
        ];
        for (options, want) in cases {
            assert_eq!(field(vec![user()], options), want);
        }
        let nobody = wire::Message::default();
        assert_eq!(field(vec![user(), nobody], options()), "messages[1].role");
        let called = wire::Message { tool_calls: vec![wire::ToolCall::default()], ..user() };
        assert_eq!(field(vec![called], options()), "messages[0].tool_calls");
    }

    #[test]
    fn an_answer_holds_reasoning_text_and_calls() {
        let pieces = vec![
            Piece::Reasoning("hm".into()),
            Piece::Text("a".into()),
            Piece::ToolCall { index: 0, id: "i".into(), name: "f".into() },
            Piece::Arguments { index: 0, delta: "{".into() },
            Piece::Arguments { index: 0, delta: "}".into() },
        ];
        let message = answer("a".into(), pieces);
        assert_eq!((message.content.as_str(), message.reasoning.as_deref()), ("a", Some("hm")));
        let call = wire::ToolCall { id: "i".into(), name: "f".into(), arguments: "{}".into() };
        assert_eq!(message.tool_calls, [call]);
    }
}
