//! Transcripts of every format, cut at every point.
//!
//! A writer spells calls as each format does ([`writers`]); the scenarios are the same for all, more than ten for each
//! format. Whatever the cut, the pieces must add up to those of the whole text, and the whole text's must be the calls that
//! were written.

mod writers;

use serde_json::{Value, json};

use crate::{
    ids::TokenId,
    params::FinishReason,
    text::{Ending, OutputFormat, OutputParser, Piece, Tool, ToolCallFormat, ToolChoice},
};

use self::writers::WRITERS;
use super::Grammar;

/// What a parser found, pieces joined.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    text: String,
    reasoning: String,
    /// Name and arguments of each call.
    calls: Vec<(String, String)>,
    ids: Vec<String>,
    tool_calls: bool,
}

impl Found {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text += &text,
                Piece::Reasoning(text) => self.reasoning += &text,
                Piece::ToolCall { index, id, name } => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push((name, String::new()));
                    self.ids.push(id);
                }
                Piece::Arguments { index, delta } => {
                    assert_eq!(index + 1, self.calls.len());
                    self.calls[index].1 += &delta;
                }
            }
        }
    }

    fn parsed(&self) -> Vec<(&str, Value)> {
        let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        self.calls.iter().map(|(name, arguments)| (name.as_str(), value(arguments))).collect()
    }
}

fn tools() -> Vec<Tool> {
    let schema = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "text": {"type": "string"}, "days": {"type": "integer"}, "wind": {"type": "boolean"},
        "deep": {"type": "object"}, "list": {"type": "array"}, "none": {},
    }, "required": ["city"]});
    let tool = |name: &str| Tool { name: name.into(), description: None, parameters: schema.as_object().cloned() };
    vec![tool("get_weather"), tool("clock"), tool("a-b_c.d")]
}

fn eos() -> FinishReason {
    FinishReason::EndOfSequence(TokenId(2))
}

fn run<'a>(format: &OutputFormat, parts: impl IntoIterator<Item = &'a str>, reason: &FinishReason) -> Found {
    run_after("", format, parts, reason)
}

fn run_after<'a>(
    prompt: &str,
    format: &OutputFormat,
    parts: impl IntoIterator<Item = &'a str>,
    reason: &FinishReason,
) -> Found {
    let mut parser = OutputParser::new(format, &tools(), prompt, 7);
    let mut found = Found::default();
    for part in parts {
        found.add(parser.push(part));
    }
    let Ending { pieces, tool_calls } = parser.finish(reason);
    found.add(pieces);
    found.tool_calls = tool_calls;
    found
}

/// The whole parse, after every two-way cut and character by character gave the same.
fn every_cut(format: &OutputFormat, prompt: &str, text: &str, reason: &FinishReason) -> Found {
    let whole = run_after(prompt, format, [text], reason);
    let mut ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for &at in &ends {
        assert_eq!(run_after(prompt, format, [&text[..at], &text[at..]], reason), whole, "cut at {at}: {text}");
    }
    ends.push(text.len());
    let single = ends.windows(2).map(|ends| &text[ends[0]..ends[1]]);
    assert_eq!(run_after(prompt, format, single, reason), whole, "by characters: {text}");
    whole
}

/// Whether text may stand before a call of the format.
fn takes_text_before(text: &str, opener: &str) -> bool {
    !opener.is_empty() && !"[{".contains(opener) && text.contains(opener)
}

fn format(name: &str) -> OutputFormat {
    OutputFormat::default().with_names(Some(name), None).expect("a name of the table")
}

#[test]
fn calls_come_back_as_they_were_written_wherever_the_text_is_cut() {
    let scenarios: [(&str, Vec<(&str, Value)>); 11] = [
        ("one call", vec![("get_weather", json!({"city": "Paris", "days": 2}))]),
        ("no arguments", vec![("clock", json!({}))]),
        ("two calls", vec![("get_weather", json!({"city": "Rome"})), ("clock", json!({"wind": true}))]),
        ("three of one tool", vec![("clock", json!({"days": 1})), ("clock", json!({})), ("clock", json!({"days": 3}))]),
        ("escapes", vec![("get_weather", json!({"city": "a \"b\" \\ c\nd\te/", "text": "{\"x\": [}"}))]),
        ("unicode", vec![("get_weather", json!({"city": "東京 é", "text": "👩‍👩‍👧 🦙"}))]),
        (
            "nested",
            vec![(
                "get_weather",
                json!({"city": "x", "deep": {"a": {"b": [1, {"c": null}]}, "e": {}}, "list": [[], [1.5, "y"]]}),
            )],
        ),
        ("kinds", vec![("get_weather", json!({"city": "12", "days": -3, "wind": false, "none": null}))]),
        ("long", vec![("get_weather", json!({"city": "a word and another, ".repeat(5), "list": vec![7; 9]}))]),
        ("four calls", (0..4).map(|day| ("get_weather", json!({"city": format!("no. {day}"), "days": day}))).collect()),
        ("an odd name", vec![("a-b_c.d", json!({"city": "", "text": "<b>1 < 2</b> & ]]>"}))]),
    ];
    for (name, write, opener) in WRITERS {
        for (scenario, calls) in &scenarios {
            let text = write(calls);
            let found = every_cut(&format(name), "", &text, &eos());
            assert_eq!(found.parsed(), *calls, "{name}, {scenario}: {text}");
            assert_eq!(found.text, "", "{name}, {scenario}: {text}");
            assert!(found.tool_calls, "{name}, {scenario}");
            assert_eq!(found.ids.len(), calls.len());
            if takes_text_before(&text, opener) {
                let found = every_cut(&format(name), "", &format!("I look: é\n\n{text}"), &eos());
                assert_eq!(found.parsed(), *calls, "{name}, {scenario}");
                assert_eq!(found.text, "I look: é", "{name}, {scenario}");
            }
        }
    }
}

#[test]
fn a_call_that_was_cut_off_is_never_reported_as_one() {
    for (name, write, _) in WRITERS {
        let text = write(&[("get_weather", json!({"city": "Paris", "deep": {"a": [1, 2]}}))]);
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        for &at in &ends {
            // Cuts of a cut are many; a tenth of them will do.
            let found = match at % 10 {
                0 => every_cut(&format(name), "", &text[..at], &FinishReason::Length),
                _ => run(&format(name), [&text[..at]], &FinishReason::Length),
            };
            assert!(!found.tool_calls, "{name}: {}", &text[..at]);
            assert!(found.calls.len() <= 1, "{name}");
            // The arguments so far are a beginning of the whole.
            let whole = run(&format(name), [text.as_str()], &eos());
            if let [(_, arguments)] = &found.calls[..] {
                assert!(whole.calls[0].1.starts_with(arguments), "{name}: {arguments}");
            }
        }
        // By its own end in the middle of the arguments: a call was begun, but the answer is not one.
        let at = text.find("Paris").expect("it is there") + 3;
        assert!(!run(&format(name), [&text[..at]], &eos()).tool_calls, "{name}");
    }
}

#[test]
fn what_only_looks_like_a_call_stays_text_to_the_letter() {
    for (name, _, opener) in WRITERS {
        let mut texts = vec![
            "Hello, a < b [and] {so} on; `x` é 🦙.".to_owned(),
            "{\"answer\": 42, \"name\": [1]}".to_owned(),
            "[1, 2, {\"name\": \"nobody\", \"arguments\": {}}]".to_owned(),
            "{\"name\": \"get_weather\"} is a name".to_owned(),
            "```json\n{\"a\": 1}\n```".to_owned(),
            String::new(),
        ];
        if !opener.is_empty() && !"[{".contains(opener) {
            texts.push(format!("The mark {opener} opens a call, and {opener}"));
            texts.push(format!("{opener} no, no {{ nothing"));
            texts.push(format!("a{}", &opener[..opener.len() - opener.chars().last().map_or(0, char::len_utf8)]));
        }
        for text in texts {
            let found = every_cut(&format(name), "", &text, &eos());
            assert_eq!((found.text.as_str(), found.calls.len()), (text.as_str(), 0), "{name}");
            assert!(!found.tool_calls);
        }
    }
}

#[test]
fn marks_inside_a_string_of_json_end_nothing() {
    // Between tags a value ends where the next tag begins, whatever it is; in JSON a string does not.
    let tagged = ["deepseek_v32", "glm45", "glm47", "minimax_m2", "qwen3_coder", "seed_oss", "gemma4", "functiongemma"];
    // Harmony's marks are tokens of their own, which no text has in it.
    let json = |name: &str| name != "openai" && !tagged.contains(&name);
    for (name, write, opener) in WRITERS.iter().filter(|(name, ..)| json(name)) {
        let plain = write(&[("clock", json!({}))]);
        // All that stands around the call, in a string of it: its own end among that.
        let arguments = json!({"city": format!("{opener} {plain} }}] ;"), "text": "```\n<|call|><|end|></s>[/INST]"});
        let calls = [("get_weather", arguments), ("clock", json!({"days": 1}))];
        let text = write(&calls);
        assert_eq!(every_cut(&format(name), "", &text, &eos()).parsed(), calls, "{name}: {text}");
    }
}

#[test]
fn text_behind_a_call_is_text() {
    for name in
        ["hermes", "granite", "qwen3_coder", "glm45", "gemma4", "kimi_k2", "deepseek_v3", "minimax_m2", "mistral"]
    {
        let (_, write, _) = WRITERS.iter().find(|(n, ..)| *n == name).expect("a writer");
        let text = write(&[("clock", json!({}))]) + "\nDone <b>.";
        let found = every_cut(&format(name), "", &text, &eos());
        assert_eq!((found.text.trim(), found.calls.len()), ("Done <b>.", 1), "{name}");
    }
}

#[test]
fn arguments_before_the_name_or_in_a_string_are_found_too() {
    let found = |text: &str| every_cut(&format("hermes"), "", text, &eos()).calls;
    let call = ("clock".to_owned(), "{\"days\": 1}".to_owned());
    for text in [
        r#"<tool_call>{"arguments": {"days": 1}, "name": "clock"}</tool_call>"#,
        r#"<tool_call>{"name": "clock", "arguments": "{\"days\": 1}"}</tool_call>"#,
        r#"<tool_call>{"id": "x", "type": "function", "function": {"name": "clock", "arguments": {"days": 1}}}</tool_call>"#,
    ] {
        assert_eq!(found(text), std::slice::from_ref(&call), "{text}");
    }
}

#[test]
fn reasoning_is_split_off_before_the_answer() {
    let format = |calls, reasoning| OutputFormat::default().with_names(Some(calls), Some(reasoning)).expect("names");
    let call = "<tool_call>{\"name\": \"clock\", \"arguments\": {}}</tool_call>";
    let cases = [
        // What the prompt ends with, the answer, its reasoning, text and number of calls.
        ("qwen3", "assistant\n", "<think>\nhm <b\n</think>\n\nyes".to_owned(), "hm <b", "yes", 0),
        ("qwen3", "assistant\n<think>\n", "hm\n</think>\n\nyes".to_owned(), "hm", "yes", 0),
        ("qwen3", "<think>\n\n</think>\n\n", "yes".to_owned(), "", "yes", 0),
        ("qwen3", "assistant\n", "yes <think>no</think>".to_owned(), "", "yes <think>no</think>", 0),
        (
            "qwen3",
            "assistant\n",
            format!("<think>a {call} b</think>{call}"),
            "a <tool_call>{\"name\": \"clock\", \"arguments\": {}}</tool_call> b",
            "",
            1,
        ),
        ("qwen3", "assistant\n", format!("<think></think>ok\n{call}"), "", "ok", 1),
        ("qwen3", "assistant\n", "<think>never ends".to_owned(), "never ends", "", 0),
        ("deepseek_r1", "assistant\n", "so</think>yes".to_owned(), "so", "yes", 0),
        ("mistral", "[/INST]", "[THINK]so[/THINK]yes".to_owned(), "so", "yes", 0),
        ("gemma4", "model\n", "<|channel>thought\nso\n<channel|>yes".to_owned(), "so", "yes", 0),
        ("cohere", "", "<|START_THINKING|>so<|END_THINKING|>yes".to_owned(), "so", "yes", 0),
    ];
    for (name, prompt, text, reasoning, answer, calls) in cases {
        let found = every_cut(&format("hermes", name), prompt, &text, &eos());
        assert_eq!((found.reasoning.as_str(), found.text.as_str()), (reasoning, answer), "{name}: {text}");
        assert_eq!(found.calls.len(), calls, "{name}: {text}");
    }
}

#[test]
fn harmony_tells_its_channels_apart_with_and_without_tools() {
    let text = "<|channel|>analysis<|message|>Let me see < 3.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.\
                <|end|><|start|>assistant<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{\"days\": 1}";
    let found = every_cut(&format("openai"), "", text, &eos());
    assert_eq!((found.reasoning.as_str(), found.text.as_str()), ("Let me see < 3.", "I look."));
    assert_eq!(found.calls, [("clock".to_owned(), "{\"days\": 1}".to_owned())]);
    assert!(found.tool_calls);
    let mut parser = OutputParser::new(&format("openai"), &[], "", 0);
    let mut found = Found::default();
    found.add(parser.push("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi"));
    found.add(parser.finish(&eos()).pieces);
    assert_eq!((found.reasoning.as_str(), found.text.as_str()), ("hm", "Hi"));
    let to_first = " to=functions.clock<|channel|>commentary json<|message|>{}";
    assert!(every_cut(&format("openai"), "", to_first, &eos()).tool_calls);
    assert_eq!(every_cut(&format("openai"), "", " to be or t", &eos()).text, "to be or t");
    assert_eq!(every_cut(&format("openai"), "", " to", &eos()).text, "to");
    let to_before = "<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{}<|call|>";
    assert!(every_cut(&format("openai"), "", to_before, &eos()).tool_calls);
}

#[test]
fn without_tools_calls_are_text() {
    let text = "<tool_call>{\"name\": \"clock\", \"arguments\": {}}</tool_call>";
    let mut parser = OutputParser::new(&format("hermes"), &[], "", 0);
    assert_eq!(parser.push(text), [Piece::Text(text.to_owned())]);
}

#[test]
fn ids_look_as_each_model_expects_them_and_differ() {
    for (name, ok) in [
        ("hermes", (|id| id.starts_with("call_") && id.len() == 29) as fn(&str) -> bool),
        ("mistral", |id| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric())),
        ("kimi_k2", |id| id.starts_with("functions.clock:")),
    ] {
        let (_, write, _) = WRITERS.iter().find(|(n, ..)| *n == name).expect("a writer");
        let ids = run(&format(name), [write(&[("clock", json!({})), ("clock", json!({}))]).as_str()], &eos()).ids;
        assert!(ids.len() == 2 && ids[0] != ids[1] && ids.iter().all(|id| ok(id)), "{name}: {ids:?}");
    }
}

#[test]
fn a_megabyte_that_never_becomes_a_call_ends_as_text() {
    for (name, start) in [
        ("hermes", "<tool_call>{\"x\": \""),
        ("json", "{\"x\": \""),
        ("mistral", "[TOOL_CALLS]"),
        ("kimi_k2", "<|tool_call_begin|>"),
        ("qwen3_coder", "<function="),
        ("gemma4", "<|tool_call>call:"),
        ("glm45", "<tool_call>"),
    ] {
        let mut parser = OutputParser::new(&format(name), &tools(), "", 0);
        let mut said: usize = parser.push(start).iter().map(piece_bytes).sum();
        let more = "x".repeat(1 << 16);
        for _ in 0..20 {
            said += parser.push(&more).iter().map(piece_bytes).sum::<usize>();
        }
        assert!(said + (1 << 17) > 20 << 16, "{name}: only {said} bytes came out");
    }
}

fn piece_bytes(piece: &Piece) -> usize {
    match piece {
        Piece::Text(text) | Piece::Reasoning(text) => text.len(),
        Piece::ToolCall { .. } => 0,
        Piece::Arguments { delta, .. } => delta.len(),
    }
}

#[test]
fn templates_choose_their_format_and_flags_override_it() {
    let named = |source: &str| ToolCallFormat::of_template(source).map(|format| format.names[0]);
    assert_eq!(named("{{ tools }} <tool_call>"), Some("hermes"));
    assert_eq!(named("<tool_call> <function= <parameter="), Some("qwen3_coder"));
    assert_eq!(named("[TOOL_CALLS]"), Some("mistral"));
    assert_eq!(named("{% if tools %}"), Some("json"));
    assert_eq!(named("{{ messages }}"), None);
    let error = OutputFormat::default().with_names(Some("nonsense"), None).unwrap_err();
    assert!(error.message.starts_with("--tool-call-parser: is \"nonsense\", must be one of openai"), "{error}");
    let error = OutputFormat::default().with_names(None, Some("nonsense")).unwrap_err();
    assert!(error.message.starts_with("--reasoning-parser:"), "{error}");
}

#[test]
fn every_format_writes_a_grammar_of_the_calls_that_a_choice_allows() {
    let special = |_: &str| None;
    let grammar = Grammar::new(&special);
    for name in ToolCallFormat::all_names() {
        let format = ToolCallFormat::named(name).expect("its own name");
        let of = |choice| format.constraint(&tools(), &choice, None, "", &grammar);
        assert_eq!(of(ToolChoice::Auto).unwrap(), None);
        let required = of(ToolChoice::Required).unwrap().expect("a grammar");
        assert!(required.starts_with("start: calls\ncalls: ") && required.contains("clock"), "{required}");
        let one = of(ToolChoice::Named("clock".into())).unwrap().expect("a grammar");
        assert!(one.contains("clock") && !one.contains("get_weather"), "{one}");
        assert_eq!(of(ToolChoice::Named("x".into())).unwrap_err().violations[0].field, "tool_choice");
    }
}

#[test]
fn of_an_answer_of_one_call_the_others_are_left_out() {
    let call =
        |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"city\": \"x\"}}}}\n</tool_call>");
    let answer = format!("Well. {}\n{}\n{}", call("clock"), call("get_weather"), call("clock"));
    let found = |parser: OutputParser| {
        let (mut parser, mut found) = (parser, Found::default());
        found.add(parser.push(&answer));
        let Ending { pieces, tool_calls } = parser.finish(&eos());
        found.add(pieces);
        found.tool_calls = tool_calls;
        found
    };
    let all = found(OutputParser::new(&format("hermes"), &tools(), "", 7));
    assert_eq!(all.calls.len(), 3);
    let first = found(OutputParser::new(&format("hermes"), &tools(), "", 7).first_call_only());
    assert_eq!((first.text.as_str(), first.tool_calls), ("Well.", true));
    assert_eq!((&first.calls[..], &first.ids[..]), (&all.calls[..1], &all.ids[..1]));
}

#[test]
fn a_grammar_of_one_call_repeats_none() {
    let special = |_: &str| None;
    for name in ToolCallFormat::all_names() {
        let format = ToolCallFormat::named(name).expect("its own name");
        let of = |grammar: Grammar<'_>| {
            let named = format.constraint(&tools(), &ToolChoice::Named("clock".into()), None, "", &grammar);
            // Rules behind the first are those of values.
            named.unwrap().expect("a grammar").lines().nth(1).unwrap_or_default().to_owned()
        };
        let (one, many) = (of(Grammar::new(&special).one_call()), of(Grammar::new(&special)));
        assert!(!one.ends_with(")+") && !one.contains("))*") && !one.contains(")+ "), "{name}: {one}");
        assert!(one.len() <= many.len(), "{name}");
    }
}
