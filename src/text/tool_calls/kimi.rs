//! Kimi K2's format: a section of calls, each `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}`.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
};

const BEGIN: &str = "<|tool_call_begin|>";
const MARKS: JsonCallMarks = JsonCallMarks {
    marks: &["<|tool_calls_section_begin|>", BEGIN, "<|tool_call_end|>", "<|tool_calls_section_end|>"],
    openers: 2,
    name: Name::Before(name),
    bare: false,
};

/// The name in `functions.get_weather:0<|tool_call_argument_begin|>`.
fn name(before: &str) -> Option<&str> {
    let call = before.rsplit(BEGIN).next()?;
    let id = call.split("<|").next()?.trim();
    let name = id.strip_prefix("functions.").unwrap_or(id);
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["kimi_k2"],
    taught_by: &[&["<|tool_calls_section_begin|>"]],
    markers: &[
        "<|tool_calls_section_begin|>",
        BEGIN,
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_argument_begin|>",
    ],
    ids: CallIds::Numbered,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let [section, begin, arguments, end, section_end] = [
            "<|tool_calls_section_begin|>",
            BEGIN,
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            "<|tool_calls_section_end|>",
        ]
        .map(|mark| grammar.marker(mark));
        let calls = Grammar::any(tools, |tool| {
            let name = Grammar::literal(&format!("functions.{}:", tool.name));
            format!("{begin} {name} /[0-9]+/ {arguments} {} {end}", Grammar::arguments(tool))
        });
        format!("{section} {} {section_end}", grammar.repeated(&calls, ""))
    },
};
