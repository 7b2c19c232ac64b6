//! What a chat needs beside its tokens: the rendered prompt, how the answer is read, and what constrains it.

use std::time::SystemTime;

use super::ModelText;
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    params::{Constraint, SamplingParams, ThinkingBudget},
    text::{ChatPrompt, Grammar, OutputFormat, OutputParser, Tokenizer, ToolChoice, validate_tools},
};

/// A chat that is ready to be tokenized.
pub(super) struct RenderedChat {
    /// The prompt, with the special tokens that the template wrote.
    pub prompt: String,
    /// Reads the answer, one a sequence.
    pub parsers: Vec<OutputParser>,
    /// Special tokens that the parser must see.
    pub markers: Vec<TokenId>,
}

/// Renders a chat, and sets in `params` what it asks of sampling. `seed` makes the ids of tool calls.
///
/// # Errors
/// `FailedPrecondition` where the model has no chat template; `InvalidArgument` that names the field where the chat
/// cannot be rendered, or asks for what the model does not know.
pub(super) fn render(
    text: &ModelText,
    tokenizer: &Tokenizer,
    chat: &ChatPrompt,
    params: &mut SamplingParams,
    seed: u64,
) -> Result<RenderedChat> {
    let template = text.chat_template.as_ref().ok_or_else(no_template)?;
    let mut format = template.output_format();
    let prompt = template.render_prompt(chat, SystemTime::now())?;
    let special = |text: &str| tokenizer.token_to_id(text).filter(|&id| tokenizer.is_special(id));
    if params.structured_outputs.is_some() && format.reasoning.is_some_and(|kind| kind.begins_inside(&prompt)) {
        // What must look like something is the answer from its first token; it never comes to end a reasoning.
        format.reasoning = None;
    }
    if let Some(grammar) = constraint(&format, chat, &prompt, &special)? {
        constrain(params, grammar)?;
    }
    if let Some(tokens) = chat.thinking_token_budget {
        params.thinking_budget = Some(thinking_budget(tokenizer, &format, &prompt, tokens)?);
    }
    let tools = if chat.tool_choice == ToolChoice::None { &[][..] } else { &chat.tools };
    let parser = |k: u64| {
        let parser = OutputParser::new(&format, tools, &prompt, seed ^ k);
        if one_call(chat) { parser.first_call_only() } else { parser }
    };
    let parsers = (0..params.num_sequences() as u64).map(parser).collect();
    Ok(RenderedChat { prompt, parsers, markers: format.markers().filter_map(special).collect() })
}

/// What the template makes of a chat.
///
/// # Errors
/// `FailedPrecondition` where the model has no chat template; `InvalidArgument` that names the field where the chat cannot be
/// rendered.
pub(crate) fn prompt_text(text: &ModelText, chat: &ChatPrompt) -> Result<String> {
    check(chat)?;
    text.chat_template.as_ref().ok_or_else(no_template)?.render_prompt(chat, SystemTime::now())
}

/// The error for a chat with a model that has no template.
pub(super) fn no_template() -> Error {
    Error::new(Code::FailedPrecondition, "the model came without a chat template: use Generation instead")
}

/// Checks what can be seen without the model.
///
/// # Errors
/// `InvalidArgument` that names the field.
pub(super) fn check(chat: &ChatPrompt) -> Result<()> {
    if chat.messages.is_empty() {
        return Err(Error::invalid("messages", "is empty, must have at least one message"));
    }
    validate_tools("tools", &chat.tools)?;
    match &chat.tool_choice {
        ToolChoice::Named(name) if chat.tools.iter().all(|tool| tool.name != *name) => {
            Err(Error::invalid("tool_choice", format!("names {name:?}, which is not among the tools")))
        }
        ToolChoice::Required if chat.tools.is_empty() => {
            Err(Error::invalid("tool_choice", "is required, but there are no tools"))
        }
        _ => Ok(()),
    }
}

/// Whether an answer may hold one call only. Who names a tool wants it called, as OpenAI's API and vLLM have it, and not
/// called until the model tires of it.
fn one_call(chat: &ChatPrompt) -> bool {
    !chat.parallel_tool_calls || matches!(chat.tool_choice, ToolChoice::Named(_))
}

/// The grammar of the calls that the choice asks for, if it asks for any.
fn constraint(
    format: &OutputFormat,
    chat: &ChatPrompt,
    prompt: &str,
    special: &dyn Fn(&str) -> Option<TokenId>,
) -> Result<Option<String>> {
    if matches!(chat.tool_choice, ToolChoice::Auto | ToolChoice::None) {
        return Ok(None);
    }
    let calls = format.tool_calls.ok_or_else(|| {
        Error::invalid("tool_choice", "cannot be enforced: the model's chat template teaches no format of tool calls")
    })?;
    let grammar = Grammar::new(special);
    let grammar = if one_call(chat) { grammar.one_call() } else { grammar };
    calls.constraint(&chat.tools, &chat.tool_choice, format.reasoning, prompt, &grammar)
}

/// The seam to structured output: has sampling follow a Lark grammar.
///
/// # Errors
/// `InvalidArgument` where the request has a form of its own for the answer: it cannot have both.
fn constrain(params: &mut SamplingParams, lark: String) -> Result<()> {
    if params.structured_outputs.is_some() {
        let why =
            "asks for a tool call, and structured output (structured_outputs, response_format) for something else";
        return Err(Error::invalid("tool_choice", why));
    }
    params.structured_outputs = Some(Constraint::Grammar(lark).into());
    Ok(())
}

/// The budget with the tokens that it is kept by.
fn thinking_budget(tokenizer: &Tokenizer, format: &OutputFormat, prompt: &str, tokens: u32) -> Result<ThinkingBudget> {
    let reasoning = format.reasoning.ok_or_else(|| {
        Error::invalid("thinking_token_budget", "is set, but the model's chat template knows of no reasoning")
    })?;
    let ids = |text: &str| match tokenizer.token_to_id(text) {
        Some(id) => Ok(vec![id]),
        None => tokenizer.encode(text, false),
    };
    let (start, end) = (ids(reasoning.start())?, ids(reasoning.end())?);
    Ok(ThinkingBudget { tokens, start, end, begins_inside: reasoning.begins_inside(prompt) })
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::text::{ChatMessage, Role, Tool, ToolCallFormat};

    fn chat() -> ChatPrompt {
        vec![ChatMessage::new(Role::User, "hi")].into()
    }

    fn tool(name: &str) -> Tool {
        Tool { name: name.to_owned(), description: None, parameters: None }
    }

    #[test]
    fn a_choice_of_tools_must_name_one_that_is_there() {
        let field = |chat: &ChatPrompt| check(chat).unwrap_err().violations[0].field.clone();
        let named = ToolChoice::Named("f".into());
        assert_eq!(field(&ChatPrompt { tool_choice: named.clone(), ..chat() }), "tool_choice");
        assert_eq!(field(&ChatPrompt { tool_choice: ToolChoice::Required, ..chat() }), "tool_choice");
        assert_eq!(field(&ChatPrompt { tools: [tool("")].into(), ..chat() }), "tools[0].name");
        assert_eq!(field(&Vec::new().into()), "messages");
        check(&ChatPrompt { tool_choice: named, tools: [tool("f")].into(), ..chat() }).unwrap();
    }

    #[test]
    fn a_choice_makes_a_grammar_in_the_models_own_format() {
        let format = OutputFormat::of_template("tools <tool_call> <think>");
        let asked = ChatPrompt { tool_choice: ToolChoice::Required, tools: [tool("f")].into(), ..chat() };
        let lark = constraint(&format, &asked, "", &|_| None).unwrap().unwrap();
        assert!(lark.starts_with("start: (\"<think>\" thought gap)? calls\n"), "{lark}");
        let special = |text: &str| (text == "<tool_call>").then_some(TokenId(7));
        assert!(constraint(&format, &asked, "", &special).unwrap().unwrap().contains("<[7]>"));
        assert_eq!(constraint(&format, &chat(), "", &|_| None).unwrap(), None);
        let error = constraint(&OutputFormat::default(), &asked, "", &|_| None).unwrap_err();
        assert_eq!(error.violations[0].field, "tool_choice");
    }

    #[test]
    fn tools_whose_grammar_would_be_too_long_are_refused_in_every_format_that_enforces_schemas() {
        // Each argument refers to the definitions: written one by one, each brings all of them along.
        let arguments = (0..2000).map(|k| (format!("a{k}"), json!({ "$ref": "#/$defs/d" })));
        let schema = json!({
            "properties": arguments.collect::<Map<_, _>>(),
            "$defs": { "d": { "description": "x".repeat(200 << 10), "type": "integer" } },
        });
        let tool = Tool { name: "f".into(), description: None, parameters: schema.as_object().cloned() };
        let asked = ChatPrompt { tool_choice: ToolChoice::Required, tools: [tool.clone(), tool].into(), ..chat() };
        for name in ToolCallFormat::all_names() {
            let format = OutputFormat { tool_calls: ToolCallFormat::named(name).ok(), reasoning: None };
            let grammar = constraint(&format, &asked, "", &|_| None);
            if ["gemma4", "functiongemma"].contains(&name) {
                assert!(grammar.unwrap().unwrap().len() < 1000, "{name} enforces no schema");
                continue;
            }
            let error = grammar.unwrap_err();
            assert_eq!((error.code, error.violations[0].field.as_str()), (Code::InvalidArgument, "tools"), "{name}");
        }
    }

    #[test]
    fn a_choice_of_tools_and_another_form_exclude_each_other() {
        let mut params = SamplingParams::default();
        constrain(&mut params, "start: \"a\"".into()).unwrap();
        assert_eq!(params.structured_outputs, Some(Constraint::Grammar("start: \"a\"".into()).into()));
        let error = constrain(&mut params, "start: \"a\"".into()).unwrap_err();
        assert_eq!(error.violations[0].field, "tool_choice");
    }
}
