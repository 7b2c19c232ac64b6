//! Qwen3-Coder's format: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.
//! Seed-OSS and Step 3.5 write the same, with other tags around it.

use super::{
    Grammar, ToolCallFormat,
    sink::CallIds,
    tagged_calls::{TaggedCalls, Tags},
};

const TAGS: Tags = Tags {
    text_marks: &["<function=", "<tool_call>", "</tool_call>"],
    openers: 1,
    name_end: ">",
    body_marks: &["<parameter=", "</function>"],
    key_end: &[">"],
    value_end: &["</parameter>"],
    trims_lines: true,
};
const SEED_TAGS: Tags = Tags { text_marks: &["<function=", "<seed:tool_call>", "</seed:tool_call>"], ..TAGS };

fn grammar_of(tools: &[super::Tool], grammar: &Grammar<'_>, [open, close]: [&str; 2]) -> String {
    let (open, close) = (grammar.marker(open), grammar.marker(close));
    let calls = Grammar::any(tools, |tool| {
        Grammar::tagged(
            tool,
            &format!("<function={}>\n", tool.name),
            |key, _| format!("<parameter={key}>\n"),
            "\n</parameter>\n",
            "</function>\n",
        )
    });
    let call = format!("{open} \"\\n\" ({calls}) {close}");
    grammar.repeated(&call, "\n")
}

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["qwen3_coder", "qwen3_xml", "step3p5"],
    taught_by: &[&["<function=", "<parameter="]],
    markers: &["<tool_call>", "</tool_call>"],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(TaggedCalls::new(TAGS, tools)),
    grammar: |tools, grammar| grammar_of(tools, grammar, ["<tool_call>", "</tool_call>"]),
};

pub(super) const SEED_OSS: ToolCallFormat = ToolCallFormat {
    names: &["seed_oss"],
    taught_by: &[&["<seed:tool_call>"]],
    markers: &["<seed:tool_call>", "</seed:tool_call>"],
    parser: |tools| Box::new(TaggedCalls::new(SEED_TAGS, tools)),
    grammar: |tools, grammar| grammar_of(tools, grammar, ["<seed:tool_call>", "</seed:tool_call>"]),
    ..FORMAT
};
