//! Phi 4's formats: `<|tool_call|>[{"name": …, "arguments": …}]<|/tool_call|>`, and `functools[…]`, which
//! FireFunction writes too.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks = JsonCallMarks {
    marks: &["<|tool_call|>", "functools", "<|/tool_call|>"],
    openers: 2,
    name: Name::Inside,
    bare: false,
};

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["phi4_mini_json", "phi"],
    taught_by: &[&["<|/tool_call|>"], &["functools"], &["<|/tool|>"]],
    markers: &["<|tool_call|>", "<|/tool_call|>"],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "arguments"));
        let list = format!("\"[\" {} \"]\"", grammar.repeated(&calls, ", "));
        match ((grammar.special)("<|tool_call|>"), (grammar.special)("<|/tool_call|>")) {
            (Some(open), Some(close)) => format!("<[{}]> {list} <[{}]>", open.0, close.0),
            _ => format!("\"functools\" {list}"),
        }
    },
};
