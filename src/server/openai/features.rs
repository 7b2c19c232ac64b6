//! Fields that ask for more than text: tools, constraints on the output, other media. All are read here, in one place,
//! and those that this server does not offer are refused by their names, because an answer that quietly ignores them
//! would be wrong.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{Error, Result},
    params::{Constraint, StructuredOutputs},
};

/// The fields. Values that ask for nothing (`null`, `[]`, `{"type": "text"}`, OpenAI's default) are fine.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Features {
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<Structured>,
    guided_json: Option<Schema>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    guided_whitespace_pattern: Option<String>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    web_search_options: Option<Value>,
    chat_template: Option<String>,
    prompt_logprobs: Option<u32>,
    prompt_embeds: Option<Value>,
    logits_processors: Option<Vec<Value>>,
    include_reasoning: Option<bool>,
    verbosity: Option<String>,
}

/// OpenAI's way to say what an answer must look like.
#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
}

/// Every schema is followed to the letter, whatever `strict` says.
#[derive(Debug, Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

/// vLLM's `structured_outputs`. What is not known is refused: it might be a constraint.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Structured {
    json: Option<Schema>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    structural_tag: Option<String>,
    whitespace_pattern: Option<String>,
    disable_any_whitespace: bool,
}

/// A schema, or its text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Schema {
    Text(String),
    Value(Value),
}

impl From<Schema> for Constraint {
    fn from(schema: Schema) -> Self {
        match schema {
            Schema::Text(text) => Self::Json(text),
            Schema::Value(value) => Self::Json(value.to_string()),
        }
    }
}

impl Features {
    /// Refuses what is not offered.
    ///
    /// # Errors
    /// `InvalidArgument` by the field's name.
    pub(super) fn check(&self) -> Result<()> {
        let modalities =
            self.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|kind| kind != "text"));
        let asked = [
            ("functions", some(self.functions.as_ref())),
            ("modalities", modalities),
            ("audio", self.audio.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
            ("chat_template", self.chat_template.is_some()),
            ("prompt_logprobs", self.prompt_logprobs.is_some()),
            ("prompt_embeds", self.prompt_embeds.is_some()),
            ("logits_processors", some(self.logits_processors.as_ref())),
            ("include_reasoning", self.include_reasoning == Some(false)),
            ("verbosity", self.verbosity.as_ref().is_some_and(|verbosity| verbosity != "medium")),
        ];
        match asked.into_iter().find(|(_, asked)| *asked) {
            Some((field, _)) => Err(Error::invalid(field, "is not offered by this server: leave it out")),
            None => Ok(()),
        }
    }

    /// Whether the answer's form is asked for as OpenAI has it.
    pub(super) fn has_response_format(&self) -> bool {
        self.response_format.as_ref().is_some_and(|format| format.kind != "text")
    }

    /// What the answer must look like.
    ///
    /// # Errors
    /// `InvalidArgument` by the field's name, where two fields say it or one does not say it well.
    pub(super) fn structured_outputs(self) -> Result<Option<StructuredOutputs>> {
        let structured = self.structured_outputs.unwrap_or_default();
        let format = self.response_format.map(ResponseFormat::constraint).transpose()?.flatten();
        let asked = [
            ("response_format", format),
            ("structured_outputs.json", structured.json.map(Constraint::from)),
            ("structured_outputs.json_object", structured.json_object.filter(|&on| on).map(|_| Constraint::JsonObject)),
            ("structured_outputs.regex", structured.regex.map(Constraint::Regex)),
            ("structured_outputs.choice", structured.choice.map(Constraint::Choice)),
            ("structured_outputs.grammar", structured.grammar.map(Constraint::Grammar)),
            ("structured_outputs.structural_tag", structured.structural_tag.map(Constraint::StructuralTag)),
            ("guided_json", self.guided_json.map(Constraint::from)),
            ("guided_regex", self.guided_regex.map(Constraint::Regex)),
            ("guided_choice", self.guided_choice.map(Constraint::Choice)),
            ("guided_grammar", self.guided_grammar.map(Constraint::Grammar)),
        ];
        let mut asked = asked.into_iter().filter_map(|(field, constraint)| Some((field, constraint?)));
        let Some((first, constraint)) = asked.next() else { return Ok(None) };
        if let Some((field, _)) = asked.next() {
            return Err(Error::invalid(field, format!("is set, and so is {first}: they exclude each other")));
        }
        Ok(Some(StructuredOutputs {
            constraint,
            whitespace_pattern: structured.whitespace_pattern.or(self.guided_whitespace_pattern),
            disable_any_whitespace: structured.disable_any_whitespace,
        }))
    }
}

impl ResponseFormat {
    fn constraint(self) -> Result<Option<Constraint>> {
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(Constraint::JsonObject)),
            "json_schema" => match self.json_schema.and_then(|format| format.schema) {
                Some(schema) => Ok(Some(Constraint::Json(schema.to_string()))),
                None => Err(Error::invalid("response_format.json_schema.schema", "must be set")),
            },
            other => {
                let other = crate::server::backend::cut(other, 64);
                let why = format!("is {other:?}, must be text, json_object or json_schema");
                Err(Error::invalid("response_format.type", why))
            }
        }
    }
}

fn some(list: Option<&Vec<Value>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Option<StructuredOutputs>> {
        serde_json::from_value::<Features>(body).unwrap().structured_outputs()
    }

    fn refused(body: Value) -> String {
        read(body).unwrap_err().violations.remove(0).field
    }

    #[test]
    fn each_way_to_ask_for_a_form_is_one_constraint() {
        let cases = [
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Constraint::JsonObject)),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}),
                Some(Constraint::Json("{}".into())),
            ),
            (json!({"structured_outputs": {"json": {}}}), Some(Constraint::Json("{}".into()))),
            (json!({"structured_outputs": {"json": "{}"}}), Some(Constraint::Json("{}".into()))),
            (json!({"structured_outputs": {"json_object": true}}), Some(Constraint::JsonObject)),
            (json!({"structured_outputs": {"regex": "a"}}), Some(Constraint::Regex("a".into()))),
            (json!({"structured_outputs": {"choice": ["a"]}}), Some(Constraint::Choice(vec!["a".into()]))),
            (json!({"structured_outputs": {"grammar": "g"}}), Some(Constraint::Grammar("g".into()))),
            (json!({"structured_outputs": {"structural_tag": "t"}}), Some(Constraint::StructuralTag("t".into()))),
            (json!({"guided_json": {}}), Some(Constraint::Json("{}".into()))),
            (json!({"guided_regex": "a"}), Some(Constraint::Regex("a".into()))),
            (json!({"guided_choice": ["a"]}), Some(Constraint::Choice(vec!["a".into()]))),
            (json!({"guided_grammar": "g"}), Some(Constraint::Grammar("g".into()))),
        ];
        for (body, expected) in cases {
            assert_eq!(read(body.clone()).unwrap(), expected.map(StructuredOutputs::from), "{body}");
        }
        let tight = json!({"structured_outputs": {"json_object": true, "disable_any_whitespace": true}});
        assert!(read(tight).unwrap().unwrap().disable_any_whitespace);
    }

    #[test]
    fn two_forms_or_half_a_form_are_refused_by_name() {
        assert_eq!(refused(json!({"guided_regex": "a", "response_format": {"type": "json_object"}})), "guided_regex");
        assert_eq!(refused(json!({"structured_outputs": {"json": {}, "regex": "a"}})), "structured_outputs.regex");
        assert_eq!(refused(json!({"response_format": {"type": "poem"}})), "response_format.type");
        let no_schema = json!({"response_format": {"type": "json_schema"}});
        assert_eq!(refused(no_schema), "response_format.json_schema.schema");
        assert!(serde_json::from_value::<Features>(json!({"structured_outputs": {"what": 1}})).is_err());
    }
}
