//! Grammars of tool calls, as Lark in llguidance's dialect: what a structured-output engine enforces.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::{
    ids::TokenId,
    params::{JSON_ESCAPES, JSON_WHITESPACE, limits},
    text::{Tool, reasoning::ReasoningFormat},
};

/// A string that stands as plain text between tags, and ends where the next tag begins.
const FREE_TEXT: &str = "/[^<]*/";

/// JSON of a schema, with the white space that is usual.
fn json(mut schema: Value) -> String {
    if let Some(schema) = schema.as_object_mut() {
        let options = json!({"whitespace_pattern": JSON_WHITESPACE, "json_allowed_escapes": JSON_ESCAPES});
        schema.insert("x-guidance".into(), options);
    }
    format!("%json {schema}")
}

/// A part of a schema that stands alone: it brings the whole along where it refers to anything, as a definition of its own.
fn standing_alone(mut part: Value, whole: &Map<String, Value>) -> Value {
    if !part.to_string().contains("\"$ref\"") {
        return part;
    }
    let mut whole = Value::Object(whole.clone());
    move_references(&mut part);
    move_references(&mut whole);
    if let Some(part) = part.as_object_mut() {
        // Nothing refers to definitions inside a part but by way of the whole.
        part.insert("$defs".into(), json!({ WHOLE: whole }));
    }
    part
}

/// The definition that a whole schema becomes.
const WHOLE: &str = "parameters";

/// References into a schema (`#`, `#/$defs/a`) become references into the definition that it becomes.
fn move_references(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            for (keyword, value) in object {
                match value {
                    Value::String(reference) if keyword == "$ref" && reference.starts_with('#') => {
                        *reference = format!("#/$defs/{WHOLE}{}", &reference[1..]);
                    }
                    // Values that stand for themselves.
                    _ if ["const", "enum", "default", "examples"].contains(&keyword.as_str()) => {}
                    value => move_references(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(move_references),
        _ => {}
    }
}

/// Parts of a grammar, joined as far as anybody would take them: what is longer is refused whole, so no more is written. An
/// argument brings its whole schema along, and there may be thousands of arguments.
fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    let mut joined = String::new();
    for part in parts {
        if !joined.is_empty() {
            joined.push_str(separator);
        }
        joined.push_str(&part);
        if joined.len() > limits::CONSTRAINT_BYTES {
            break;
        }
    }
    joined
}

/// Writes the parts of a grammar.
///
/// A mark is a literal, or the token itself where it is a special one, which no text can spell.
pub struct Grammar<'a> {
    pub(super) special: &'a dyn Fn(&str) -> Option<TokenId>,
    /// There is one call and no more.
    one_call: bool,
}

impl<'a> Grammar<'a> {
    /// `special` gives the id of a text that is a special token.
    #[must_use]
    pub fn new(special: &'a dyn Fn(&str) -> Option<TokenId>) -> Self {
        Self { special, one_call: false }
    }

    /// The same for answers of one call.
    #[must_use]
    pub fn one_call(self) -> Self {
        Self { one_call: true, ..self }
    }

    /// One call or more, one behind the other, with a text between each two where there is one to be.
    pub(super) fn repeated(&self, call: &str, between: &str) -> String {
        match (self.one_call, between) {
            (true, _) => format!("({call})"),
            (false, "") => format!("({call})+"),
            (false, between) => format!("({call}) ({} ({call}))*", Self::literal(between)),
        }
    }

    /// A text as it stands.
    pub(super) fn literal(text: &str) -> String {
        Value::from(text).to_string()
    }

    /// A mark: its token, or its text.
    pub(super) fn marker(&self, mark: &str) -> String {
        match (self.special)(mark) {
            Some(id) => format!("<[{}]>", id.0),
            None => Self::literal(mark),
        }
    }

    /// A text in which some of these marks stand.
    pub(super) fn marked(&self, text: &str, marks: &[&str]) -> String {
        let (mut parts, mut rest, mut at) = (Vec::new(), text, 0);
        // Once along the text, however many marks are in it.
        while let Some(c) = rest[at..].chars().next() {
            let Some(mark) = marks.iter().find(|mark| rest[at..].starts_with(**mark)) else {
                at += c.len_utf8();
                continue;
            };
            if at > 0 {
                parts.push(Self::literal(&rest[..at]));
            }
            parts.push(self.marker(mark));
            (rest, at) = (&rest[at + mark.len()..], 0);
        }
        if !rest.is_empty() {
            parts.push(Self::literal(rest));
        }
        parts.join(" ")
    }

    /// A tool's arguments, by its schema.
    pub(super) fn arguments(tool: &Tool) -> String {
        let schema = tool.parameters.clone().map_or_else(|| json!({ "type": "object" }), Value::Object);
        json(schema)
    }

    /// A call as one object, with these keys.
    pub(super) fn envelope(tool: &Tool, name_key: &str, arguments_key: &str) -> String {
        let head = format!("{{\"{name_key}\": {}, \"{arguments_key}\": ", Self::literal(&tool.name));
        format!("{} {} \"}}\"", Self::literal(&head), Self::arguments(tool))
    }

    /// A call as tags, an argument each: those that the schema asks for must be there, in its order.
    pub(super) fn tagged(
        tool: &Tool,
        open: &str,
        argument: impl Fn(&str, bool) -> String,
        argument_end: &str,
        close: &str,
    ) -> String {
        let parts = Self::tagged_parts(tool, |key, value| {
            let open = Self::literal(&argument(key, tool.takes_string(key)));
            // Free text takes the line break before its end along: a lexer cannot give it back.
            let end = if value == FREE_TEXT { argument_end.trim_start() } else { argument_end };
            format!("{open} {value} {}", Self::literal(end))
        });
        format!("{} {parts} {}", Self::literal(open), Self::literal(close))
    }

    /// The arguments of a call as `write` writes each, from its name and the grammar of its value.
    pub(super) fn tagged_parts(tool: &Tool, write: impl Fn(&str, &str) -> String) -> String {
        let Some(schema) = &tool.parameters else { return String::new() };
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return String::new() };
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let required: HashSet<&str> = required.filter_map(Value::as_str).collect();
        let part = |(key, part): (&String, &Value)| {
            let value = match tool.takes_string(key) {
                true => match part.get("enum").and_then(Value::as_array) {
                    Some(texts) => {
                        let texts = texts.iter().filter_map(Value::as_str).map(Self::literal);
                        format!("({})", texts.collect::<Vec<_>>().join(" | "))
                    }
                    None => FREE_TEXT.to_owned(),
                },
                false => json(standing_alone(part.clone(), schema)),
            };
            let written = write(key, &value);
            if required.contains(key.as_str()) { written } else { format!("({written})?") }
        };
        joined(properties.iter().map(part), " ")
    }

    /// One of the tools, as `write` writes it.
    pub(super) fn any(tools: &[Tool], write: impl Fn(&Tool) -> String) -> String {
        joined(tools.iter().map(|tool| format!("({})", write(tool))), " | ")
    }

    /// What comes before the calls where the model reasons: an expression, and the rules that it needs.
    pub(super) fn reasoning(&self, format: &ReasoningFormat, prompt: &str) -> (String, String) {
        let (expression, rules) = match (self.special)(format.end()) {
            // No text can spell the token, so the thought ends where it comes.
            Some(id) => (format!("thought <[{}]> gap", id.0), "thought: /(?s:.*)/".to_owned()),
            None => {
                let end = format.end().replace('/', "\\/").replace('|', "\\|").replace('[', "\\[").replace(']', "\\]");
                ("thought gap".to_owned(), format!("thought[lazy]: /(?s:.*){end}/"))
            }
        };
        let rules = format!("{rules}\ngap: /\\s*/");
        if format.begins_inside(prompt) {
            (expression, rules)
        } else {
            (format!("({} {expression})?", self.marker(format.start())), rules)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_parts_are_written_than_anybody_would_take() {
        let mut written = 0;
        let part = |_| {
            written += 1;
            "x".repeat(limits::CONSTRAINT_BYTES / 4)
        };
        assert!(joined((0..1_000_000).map(part), " | ").len() > limits::CONSTRAINT_BYTES);
        assert_eq!(written, 4, "four parts and what stands between them are too long already");
        assert_eq!(joined(["a", "b", "c"].map(str::to_owned).into_iter(), " | "), "a | b | c");
    }

    #[test]
    fn marks_in_a_text_are_their_tokens_wherever_they_stand() {
        let special = |text: &str| (text == "<a>").then_some(TokenId(7));
        let grammar = Grammar::new(&special);
        for (text, expected) in [
            ("", ""),
            ("é", "\"é\""),
            ("<a>", "<[7]>"),
            ("x<a><b>é<a", "\"x\" <[7]> \"<b>\" \"é<a\""),
            ("<b><a>", "\"<b>\" <[7]>"),
        ] {
            assert_eq!(grammar.marked(text, &["<a>", "<b>"]), expected, "{text}");
        }
    }
}
