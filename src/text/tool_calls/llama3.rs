//! Llama 3's format: `{"name": …, "parameters": …}` as the whole answer, several joined by `; `, after
//! `<|python_tag|>` where the model sets it.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks = JsonCallMarks { marks: &["<|python_tag|>"], openers: 1, name: Name::Inside, bare: true };

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["llama3_json", "llama4_json"],
    taught_by: &[&["<|python_tag|>"], &["<|start_header_id|>", "\"parameters\":"], &["<|start_header_id|>", "tools"]],
    markers: MARKS.marks,
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, _| Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "parameters")),
};
