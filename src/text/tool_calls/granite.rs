//! Granite 3's format: `<|tool_call|>[{"name": …, "arguments": …}, …]`, with `<tool_call>` in some versions.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks = JsonCallMarks {
    marks: &["<|tool_call|>", "<tool_call>", "</tool_call>"],
    openers: 2,
    name: Name::Inside,
    bare: false,
};

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["granite"],
    taught_by: &[&["<|tool_call|>"]],
    markers: MARKS.marks,
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "arguments"));
        format!("{} \"[\" {} \"]\"", grammar.marker("<|tool_call|>"), grammar.repeated(&calls, ", "))
    },
};
