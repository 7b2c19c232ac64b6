//! MiniMax M2's format: `<minimax:tool_call><invoke name="…"><parameter name="…">…</parameter></invoke>…`.

use super::{
    Grammar, ToolCallFormat,
    sink::CallIds,
    tagged_calls::{TaggedCalls, Tags},
};

const TAGS: Tags = Tags {
    text_marks: &["<invoke name=\"", "<minimax:tool_call>", "</minimax:tool_call>"],
    openers: 1,
    name_end: ">",
    body_marks: &["<parameter name=\"", "</invoke>"],
    key_end: &[">"],
    value_end: &["</parameter>"],
    trims_lines: false,
};

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["minimax_m2"],
    taught_by: &[&["minimax:tool_call"]],
    markers: &["<minimax:tool_call>", "</minimax:tool_call>"],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(TaggedCalls::new(TAGS, tools)),
    grammar: |tools, grammar| {
        let calls = Grammar::any(tools, |tool| {
            Grammar::tagged(
                tool,
                &format!("<invoke name=\"{}\">\n", tool.name),
                |key, _| format!("<parameter name=\"{key}\">"),
                "</parameter>\n",
                "</invoke>\n",
            )
        });
        let [open, close] = ["<minimax:tool_call>", "</minimax:tool_call>"].map(|mark| grammar.marker(mark));
        format!("{open} \"\\n\" {} {close}", grammar.repeated(&calls, ""))
    },
};
