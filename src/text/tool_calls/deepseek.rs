//! DeepSeek's formats. V3 and R1: `…call▁begin｜>function<｜tool▁sep｜>name\n```json\n{…}\n```<…call▁end｜>`; V3.1:
//! `…call▁begin｜>name<｜tool▁sep｜>{…}<…call▁end｜>`; since V3.2 tags of "DSML", a tag an argument.

use super::{
    Grammar, ToolCallFormat,
    json_calls::{JsonCallMarks, JsonCalls, Name},
    sink::CallIds,
    tagged_calls::{TaggedCalls, Tags},
};

const SECTION: &str = "<｜tool▁calls▁begin｜>";
const BEGIN: &str = "<｜tool▁call▁begin｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const END: &str = "<｜tool▁call▁end｜>";
const SECTION_END: &str = "<｜tool▁calls▁end｜>";

const MARKS: JsonCallMarks = JsonCallMarks {
    marks: &[SECTION, BEGIN, END, SECTION_END, "```"],
    openers: 2,
    name: Name::Before(name),
    bare: false,
};

/// The name in `function<｜tool▁sep｜>get_weather\n```json\n` or `get_weather<｜tool▁sep｜>`.
fn name(before: &str) -> Option<&str> {
    let call = before.rsplit(BEGIN).next()?;
    let (first, second) = call.split_once(SEPARATOR)?;
    let second = second.trim().trim_end_matches("```json").trim();
    let name = if second.is_empty() { first.trim() } else { second };
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["deepseek_v3", "deepseek_v31", "deepseek_r1"],
    taught_by: &[&[SECTION], &[BEGIN]],
    markers: &[SECTION, BEGIN, SEPARATOR, END, SECTION_END],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |tools| Box::new(JsonCalls::new(MARKS, tools)),
    grammar: |tools, grammar| {
        let [section, begin, separator, end, section_end] =
            [SECTION, BEGIN, SEPARATOR, END, SECTION_END].map(|mark| grammar.marker(mark));
        let calls = Grammar::any(tools, |tool| {
            format!("{begin} {} {separator} {} {end}", Grammar::literal(&tool.name), Grammar::arguments(tool))
        });
        format!("{section} {} {section_end}", grammar.repeated(&calls, ""))
    },
};

const TAGS: Tags = Tags {
    text_marks: &["<｜DSML｜invoke name=\"", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"],
    openers: 1,
    name_end: ">",
    body_marks: &["<｜DSML｜parameter name=\"", "</｜DSML｜invoke>"],
    key_end: &[">"],
    value_end: &["</｜DSML｜parameter>"],
    trims_lines: false,
};

pub(super) const DSML: ToolCallFormat = ToolCallFormat {
    names: &["deepseek_v32"],
    taught_by: &[&["｜DSML｜"]],
    markers: &["｜DSML｜"],
    parser: |tools| Box::new(TaggedCalls::new(TAGS, tools)),
    grammar: |tools, grammar| {
        let calls = Grammar::any(tools, |tool| {
            Grammar::tagged(
                tool,
                &format!("<｜DSML｜invoke name=\"{}\">\n", tool.name),
                |key, is_string| format!("<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">"),
                "</｜DSML｜parameter>\n",
                "</｜DSML｜invoke>\n",
            )
        });
        let (open, close) =
            (Grammar::literal("<｜DSML｜function_calls>\n"), Grammar::literal("</｜DSML｜function_calls>"));
        format!("{open} {} {close}", grammar.repeated(&calls, ""))
    },
    ..FORMAT
};
