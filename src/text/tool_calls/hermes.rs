//! Hermes' format, Qwen's too: `<tool_call>{"name": …, "arguments": …}</tool_call>`, once a call. Nemotron's is the
//! same with a list.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks =
    JsonCallMarks { marks: &["<tool_call>", "</tool_call>"], openers: 1, name: Name::Inside, bare: false };
const NEMOTRON_MARKS: JsonCallMarks = JsonCallMarks { marks: &["<TOOLCALL>", "</TOOLCALL>"], ..MARKS };

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["hermes", "qwen", "granite4"],
    taught_by: &[&["<tool_call>"]],
    markers: MARKS.marks,
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let (open, close) = (grammar.marker("<tool_call>"), grammar.marker("</tool_call>"));
        let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "arguments"));
        let call = format!("{open} \"\\n\" ({calls}) \"\\n\" {close}");
        grammar.repeated(&call, "\n")
    },
};

pub(super) const NEMOTRON: ToolCallFormat = ToolCallFormat {
    names: &["nemotron"],
    taught_by: &[&["<TOOLCALL>"]],
    markers: NEMOTRON_MARKS.marks,
    parser: |tools| Box::new(JsonCalls::new(NEMOTRON_MARKS, tools)),
    grammar: |tools, grammar| {
        let (open, close) = (grammar.marker("<TOOLCALL>"), grammar.marker("</TOOLCALL>"));
        let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "arguments"));
        format!("{open} \"[\" {} \"]\" {close}", grammar.repeated(&calls, ", "))
    },
    ..FORMAT
};
