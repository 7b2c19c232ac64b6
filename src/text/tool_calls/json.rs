//! Plain JSON, where nothing marks a call: an object with `name` and `arguments`, or a list of them, as the whole
//! answer. Only tools of the request are calls; any other JSON is text.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const MARKS: JsonCallMarks = JsonCallMarks { marks: &["```json"], openers: 1, name: Name::Inside, bare: true };

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["json"],
    taught_by: &[&["tools"]],
    markers: &[],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let calls = Grammar::any(tools, |tool| Grammar::envelope(tool, "name", "arguments"));
        format!("{calls} | \"[\" {} \"]\"", grammar.repeated(&calls, ", "))
    },
};
