//! GLM 4.5's format: `<tool_call>name\n<arg_key>key</arg_key>\n<arg_value>value</arg_value>\n</tool_call>`.

use super::{
    Grammar, ToolCallFormat,
    sink::CallIds,
    tagged_calls::{TaggedCalls, Tags},
};

const TAGS: Tags = Tags {
    text_marks: &["<tool_call>"],
    openers: 1,
    name_end: "\n",
    body_marks: &["<arg_key>", "</tool_call>"],
    key_end: &["<arg_value>"],
    value_end: &["</arg_value>"],
    trims_lines: false,
};

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["glm45", "glm47"],
    taught_by: &[&["<arg_key>"]],
    markers: &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(TaggedCalls::new(TAGS, tools)),
    grammar: |tools, grammar| {
        let marks = FORMAT.markers;
        let calls = Grammar::any(tools, |tool| {
            let parts = Grammar::tagged_parts(tool, |key, value| {
                let open = grammar.marked(&format!("<arg_key>{key}</arg_key>\n<arg_value>"), marks);
                format!("{open} {value} {} \"\\n\"", grammar.marker("</arg_value>"))
            });
            let open = grammar.marked(&format!("<tool_call>{}\n", tool.name), marks);
            format!("{open} {parts} {}", grammar.marker("</tool_call>"))
        });
        grammar.repeated(&calls, "\n")
    },
};
