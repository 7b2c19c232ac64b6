//! How each format spells calls: what the scenarios of the transcripts are written with.

use serde_json::Value;

/// Spells calls in a format.
pub(super) type Write = fn(&[(&str, Value)]) -> String;

fn joined(calls: &[(&str, Value)], between: &str, write: impl Fn(&str, &Value) -> String) -> String {
    calls.iter().map(|(name, arguments)| write(name, arguments)).collect::<Vec<_>>().join(between)
}

fn envelope(name: &str, arguments: &Value) -> String {
    format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}")
}

/// A tag an argument.
fn tagged(arguments: &Value, write: impl Fn(&str, &str, bool) -> String) -> String {
    let arguments = arguments.as_object().expect("an object");
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    arguments.iter().map(|(key, value)| write(key, &text(value), value.is_string())).collect()
}

fn gemma_value(value: &Value, quote: &str) -> String {
    match value {
        Value::String(text) => format!("{quote}{text}{quote}"),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(|v| gemma_value(v, quote)).collect::<Vec<_>>().join(","))
        }
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("{key}:{}", gemma_value(value, quote)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// A format by name, how it spells calls, and the marks that open one.
pub(super) const WRITERS: &[(&str, Write, &str)] = &[
    (
        "hermes",
        |calls| joined(calls, "\n", |n, a| format!("<tool_call>\n{}\n</tool_call>", envelope(n, a))),
        "<tool_call>",
    ),
    ("nemotron", |calls| format!("<TOOLCALL>[{}]</TOOLCALL>", joined(calls, ", ", envelope)), "<TOOLCALL>"),
    ("granite", |calls| format!("<|tool_call|>[{}]", joined(calls, ", ", envelope)), "<|tool_call|>"),
    ("phi4_mini_json", |calls| format!("<|tool_call|>[{}]<|/tool_call|>", joined(calls, ",", envelope)), "functools"),
    ("phi", |calls| format!("functools[{}]", joined(calls, ", ", envelope)), "functools"),
    (
        "cohere",
        |calls| {
            let call = |n: &str, a: &Value| {
                format!("{{\"tool_call_id\": \"0\", \"tool_name\": \"{n}\", \"parameters\": {a}}}")
            };
            format!("<|START_ACTION|>[\n    {}\n]<|END_ACTION|>", joined(calls, ",\n    ", call))
        },
        "<|START_ACTION|>",
    ),
    ("mistral", |calls| format!("[TOOL_CALLS][{}]", joined(calls, ", ", envelope)), "[TOOL_CALLS]"),
    ("mistral", |calls| joined(calls, "", |n, a| format!("[TOOL_CALLS]{n}[ARGS]{a}")), "[TOOL_CALLS]"),
    ("mistral", |calls| joined(calls, "", |n, a| format!("[TOOL_CALLS]{n}[CALL_ID]abc[ARGS]{a}")), "[TOOL_CALLS]"),
    ("llama3_json", |calls| joined(calls, "; ", |n, a| format!("{{\"name\": \"{n}\", \"parameters\": {a}}}")), "{"),
    ("llama3_json", |calls| format!("<|python_tag|>{}", joined(calls, ";", envelope)), "<|python_tag|>"),
    ("json", |calls| format!("[{}]", joined(calls, ", ", envelope)), "["),
    ("json", |calls| format!("```json\n[{}]\n```", joined(calls, ", ", envelope)), "```json"),
    (
        "kimi_k2",
        |calls| {
            let call = |n: &str, a: &Value| {
                format!("<|tool_call_begin|>functions.{n}:0<|tool_call_argument_begin|>{a}<|tool_call_end|>")
            };
            format!("<|tool_calls_section_begin|>{}<|tool_calls_section_end|>", joined(calls, "", call))
        },
        "<|tool_calls_section_begin|>",
    ),
    (
        "deepseek_v3",
        |calls| {
            let call = |n: &str, a: &Value| {
                format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{a}\n```<｜tool▁call▁end｜>")
            };
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", joined(calls, "\n", call))
        },
        "<｜tool▁calls▁begin｜>",
    ),
    (
        "deepseek_v31",
        |calls| {
            let call = |n: &str, a: &Value| format!("<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{a}<｜tool▁call▁end｜>");
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", joined(calls, "", call))
        },
        "<｜tool▁call▁begin｜>",
    ),
    (
        "deepseek_v32",
        |calls| {
            let call = |n: &str, a: &Value| {
                let arguments = tagged(a, |key, value, is_string| {
                    format!("<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">{value}</｜DSML｜parameter>\n")
                });
                format!("<｜DSML｜invoke name=\"{n}\">\n{arguments}</｜DSML｜invoke>\n")
            };
            format!("<｜DSML｜function_calls>\n{}</｜DSML｜function_calls>", joined(calls, "", call))
        },
        "<｜DSML｜function_calls>",
    ),
    (
        "glm45",
        |calls| {
            joined(calls, "\n", |n, a| {
                let arguments =
                    tagged(a, |key, value, _| format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"));
                format!("<tool_call>{n}\n{arguments}</tool_call>")
            })
        },
        "<tool_call>",
    ),
    (
        "glm47",
        |calls| {
            joined(calls, "", |n, a| {
                let arguments =
                    tagged(a, |key, value, _| format!("<arg_key>{key}</arg_key><arg_value>{value}</arg_value>"));
                format!("<tool_call>{n}{arguments}</tool_call>")
            })
        },
        "<tool_call>",
    ),
    (
        "minimax_m2",
        |calls| {
            let call = |n: &str, a: &Value| {
                let arguments = tagged(a, |key, value, _| format!("<parameter name=\"{key}\">{value}</parameter>\n"));
                format!("<invoke name=\"{n}\">\n{arguments}</invoke>\n")
            };
            format!("<minimax:tool_call>\n{}</minimax:tool_call>", joined(calls, "", call))
        },
        "<minimax:tool_call>",
    ),
    (
        "qwen3_coder",
        |calls| {
            joined(calls, "\n", |n, a| {
                let arguments = tagged(a, |key, value, _| format!("<parameter={key}>\n{value}\n</parameter>\n"));
                format!("<tool_call>\n<function={n}>\n{arguments}</function>\n</tool_call>")
            })
        },
        "<tool_call>",
    ),
    (
        "seed_oss",
        |calls| {
            joined(calls, "\n", |n, a| {
                let arguments = tagged(a, |key, value, _| format!("<parameter={key}>{value}</parameter>\n"));
                format!("<seed:tool_call>\n<function={n}>\n{arguments}</function>\n</seed:tool_call>")
            })
        },
        "<seed:tool_call>",
    ),
    (
        "gemma4",
        |calls| joined(calls, "", |n, a| format!("<|tool_call>call:{n}{}<tool_call|>", gemma_value(a, "<|\"|>"))),
        "<|tool_call>",
    ),
    (
        "functiongemma",
        |calls| {
            joined(calls, "", |n, a| {
                format!("<start_function_call>call:{n}{}<end_function_call>", gemma_value(a, "<escape>"))
            })
        },
        "<start_function_call>",
    ),
    (
        "openai",
        |calls| {
            joined(calls, "<|call|><|start|>assistant", |n, a| {
                format!("<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{a}")
            })
        },
        "",
    ),
];
