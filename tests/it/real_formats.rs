//! Tool calls as real chat templates write them, read back by the format that each template is found to teach.

use std::fs;

use candlewick::{
    ids::TokenId,
    params::FinishReason,
    text::{ChatTemplate, OutputFormat, OutputParser, Piece, RenderOptions, Tool},
};
use serde_json::{Value, json};

use crate::text_vectors::shared;

/// Templates that write calls in no format that we have, or write no calls at all.
const UNKNOWN: &[&str] = &[
    "Apertus-8B-Instruct.jinja",
    "Apriel-1.6-15b-Thinker-fixed.jinja",
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "GigaChat3-10B-A1.8B.jinja",
    "GigaChat3.1-10B-A1.8B.jinja",
    "HuggingFaceTB-SmolLM3-3B.jinja",
    "LFM2-8B-A1B.jinja",
    "LFM2.5-Instruct.jinja",
    "MiroThinker.jinja",
    "deepseek-ai-DeepSeek-V4.jinja",
    "google-gemma-2-2b-it.jinja",
    "ibm-granite-granite-3.3-2B-Instruct.jinja",
    "llama-cpp-rwkv-world.jinja",
    "meetkai-functionary-medium-v3.1.jinja",
    "meetkai-functionary-medium-v3.2.jinja",
    "microsoft-Phi-3.5-mini-instruct.jinja",
    "unsloth-Apriel-1.5.jinja",
    "upstage-Solar-Open-100B.jinja",
];

/// Templates that write nested values as Python shows them, which is no JSON: those come back as text.
const PYTHON_VALUES: &[&str] = &["ByteDance-Seed-OSS.jinja"];

fn tools() -> Vec<Tool> {
    let schema = json!({"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Which"}, "days": {"type": "integer", "description": "How many"},
        "options": {"type": "object", "description": "More", "properties": {"wind": {"type": "boolean", "description": "?"}}},
    }});
    let tool = |name: &str| Tool {
        name: name.into(),
        description: Some("A tool".into()),
        parameters: schema.as_object().cloned(),
    };
    vec![tool("get_weather"), tool("clock")]
}

/// What the template adds to the prompt for an answer of these calls, if it writes answers that way.
fn written(template: &ChatTemplate, calls: &[(&str, Value)]) -> Option<(String, String)> {
    let wire = |tool: &Tool| json!({"type": "function", "function": serde_json::to_value(tool).expect("a value")});
    let tools: Vec<Value> = tools().iter().map(wire).collect();
    let user = json!({"role": "user", "content": "Weather?"});
    let calls: Vec<Value> = calls
        .iter()
        .enumerate()
        .map(|(k, (name, arguments))| {
            json!({"id": format!("abcdefg{k:02}"), "type": "function", "function": {"name": name, "arguments": arguments}})
        })
        .collect();
    let answer = json!({"role": "assistant", "content": "", "tool_calls": calls});
    let bare_answer = json!({"role": "assistant", "tool_calls": calls});
    let options = |add_generation_prompt| RenderOptions {
        tools: tools.clone(),
        add_generation_prompt,
        ..RenderOptions::default()
    };
    let prompt = template.render_messages([&user], &options(true)).ok()?;
    // Some templates write calls only where the answer has no content.
    let whole = [&answer, &bare_answer]
        .into_iter()
        .filter_map(|answer| template.render_messages([&user, answer], &options(false)).ok())
        .find(|text| text.contains("Paris") || text.contains("Rome"))?;
    // Some prompts end with the start of reasoning that the whole conversation does not have.
    let bare = prompt.trim_end().trim_end_matches("<think>").trim_end_matches("[THINK]").trim_end();
    let output = whole.strip_prefix(&prompt).or_else(|| whole.strip_prefix(bare))?;
    Some((bare.to_owned(), output.to_owned()))
}

fn read(format: &OutputFormat, prompt: &str, output: &str) -> Vec<(String, Value)> {
    let mut parser = OutputParser::new(format, &tools(), prompt, 0);
    let mut pieces = parser.push(output);
    pieces.extend(parser.finish(&FinishReason::EndOfSequence(TokenId(0))).pieces);
    let mut calls: Vec<(String, String)> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::ToolCall { name, .. } => calls.push((name, String::new())),
            Piece::Arguments { index, delta } => calls[index].1 += &delta,
            Piece::Text(_) | Piece::Reasoning(_) => {}
        }
    }
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    calls.into_iter().map(|(name, arguments)| (name, value(&arguments))).collect()
}

#[test]
fn calls_that_real_templates_write_are_read_back() {
    let Some(folder) = shared("data/templates/real") else { return };
    let one = vec![("get_weather", json!({"city": "Paris é \"x\" <b>", "days": 2, "options": {"wind": true}}))];
    let two = vec![("get_weather", json!({"city": "Rome"})), ("clock", json!({"city": "a\nb", "days": -1}))];
    let (mut read_back, mut unwritten, mut wrong) = (0, Vec::new(), Vec::new());
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    for path in paths {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let template = ChatTemplate::from_file(&path, "<bos>", "<eos>").expect("it compiles");
        let format = template.output_format();
        for calls in [&one, &two] {
            let Some((prompt, output)) = written(&template, calls) else {
                unwritten.push(name.clone());
                continue;
            };
            // A template that writes the first call alone has only that one read back.
            let calls: Vec<_> = calls.iter().filter(|(name, _)| output.contains(name)).collect();
            let got = read(&format, &prompt, &output);
            let same = got.len() == calls.len() && got.iter().zip(&calls).all(|(a, b)| a.0 == b.0 && a.1 == b.1);
            match same {
                true => read_back += 1,
                false if UNKNOWN.contains(&name.as_str()) => {}
                false if PYTHON_VALUES.contains(&name.as_str()) && output.contains("True") => {}
                false => wrong.push(format!("{name} ({:?}): {output:?}: {got:?}", format.tool_calls)),
            }
        }
    }
    unwritten.dedup();
    println!("{read_back} answers read back; templates that write none: {unwritten:?}");
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(read_back >= 40, "only {read_back}");
}
