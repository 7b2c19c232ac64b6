//! Command R7B's format: `<|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": …}]<|END_ACTION|>`.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks =
    JsonCallMarks { marks: &["<|START_ACTION|>", "<|END_ACTION|>"], openers: 1, name: Name::Inside, bare: false };

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["cohere_command3", "cohere"],
    taught_by: &[&["<|START_ACTION|>"]],
    markers: MARKS.marks,
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let (open, close) = (grammar.marker("<|START_ACTION|>"), grammar.marker("<|END_ACTION|>"));
        let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "tool_name", "parameters"));
        format!("{open} \"[\" {} \"]\" {close}", grammar.repeated(&calls, ", "))
    },
};
