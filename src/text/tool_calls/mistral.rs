//! Mistral's formats: `[TOOL_CALLS][{"name": …, "arguments": …}, …]`, and since version 11 of its tokenizer
//! `[TOOL_CALLS]name[ARGS]{…}` for each call, with `[CALL_ID]` before `[ARGS]` in some.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks =
    JsonCallMarks { marks: &["[TOOL_CALLS]"], openers: 1, name: Name::Before(name), bare: false };

/// The name in `get_weather[CALL_ID]a1b2c3d4e[ARGS]`.
fn name(before: &str) -> Option<&str> {
    let name = before.split('[').next()?.trim();
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["mistral"],
    taught_by: &[&["[TOOL_CALLS]"]],
    markers: &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    ids: CallIds::Nine,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let open = grammar.marker("[TOOL_CALLS]");
        if (grammar.special)("[ARGS]").is_none() {
            let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "arguments"));
            return format!("{open} \"[\" {} \"]\"", grammar.repeated(&calls, ", "));
        }
        let arguments = grammar.marker("[ARGS]");
        let call = |tool: &crate::text::Tool| {
            format!("{open} {} {arguments} {}", Grammar::literal(&tool.name), Grammar::arguments(tool))
        };
        grammar.repeated(&Grammar::any(tools, call), "")
    },
};
