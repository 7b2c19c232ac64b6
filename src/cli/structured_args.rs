//! The flags of `generate` and `chat` for what an answer must look like.

use std::{fs, path::Path};

use clap::Args;
use serde_json::Value;

use crate::params::{Constraint, StructuredOutputs};

/// What the text must look like; at most one of them.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[group(multiple = false)]
pub(super) struct StructuredArgs {
    /// A JSON value that this schema allows: the schema itself, or a file.
    #[arg(long, value_name = "FILE|JSON", value_parser = schema)]
    json_schema: Option<String>,
    /// Any JSON object.
    #[arg(long)]
    json_object: bool,
    /// A text that this regular expression matches from beginning to end.
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// One of these strings; may be repeated.
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// A text of this grammar, in Lark or EBNF: the grammar itself, or a file.
    #[arg(long, value_name = "FILE|GRAMMAR", value_parser = grammar)]
    grammar: Option<String>,
    /// Free text with tags that hold JSON, as vLLM describes them: the JSON itself, or a file.
    #[arg(long, value_name = "FILE|JSON", value_parser = schema)]
    structural_tag: Option<String>,
}

impl StructuredArgs {
    /// Whether it says nothing.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What the command line says.
    pub(super) fn outputs(&self) -> Option<StructuredOutputs> {
        let args = self.clone();
        let constraint = args
            .json_schema
            .map(Constraint::Json)
            .or(args.json_object.then_some(Constraint::JsonObject))
            .or(args.regex.map(Constraint::Regex))
            .or((!args.choice.is_empty()).then_some(Constraint::Choice(args.choice)))
            .or(args.grammar.map(Constraint::Grammar))
            .or(args.structural_tag.map(Constraint::StructuralTag));
        constraint.map(StructuredOutputs::from)
    }
}

/// JSON, or the contents of a file.
fn schema(text: &str) -> Result<String, String> {
    if serde_json::from_str::<Value>(text).is_ok() || text.trim_start().starts_with('{') {
        return Ok(text.to_owned());
    }
    read(text)
}

/// A grammar, or the contents of a file.
fn grammar(text: &str) -> Result<String, String> {
    if text.contains("::=") || text.contains(':') && !Path::new(text).exists() {
        return Ok(text.to_owned());
    }
    read(text)
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Structured {
        #[command(flatten)]
        args: StructuredArgs,
    }

    fn parse(args: &[&str]) -> Result<Option<Constraint>, clap::Error> {
        let parsed = Structured::try_parse_from(std::iter::once(&"x").chain(args))?;
        Ok(parsed.args.outputs().map(|outputs| outputs.constraint))
    }

    #[test]
    fn each_flag_names_one_constraint() {
        assert_eq!(parse(&[]).unwrap(), None);
        let cases = [
            (vec!["--json-schema", "{\"type\":\"null\"}"], Constraint::Json("{\"type\":\"null\"}".into())),
            (vec!["--json-object"], Constraint::JsonObject),
            (vec!["--regex", "a+"], Constraint::Regex("a+".into())),
            (vec!["--choice", "a", "--choice", "b"], Constraint::Choice(vec!["a".into(), "b".into()])),
            (vec!["--grammar", "start: \"a\""], Constraint::Grammar("start: \"a\"".into())),
            (vec!["--structural-tag", "{}"], Constraint::StructuralTag("{}".into())),
        ];
        for (args, expected) in cases {
            assert_eq!(parse(&args).unwrap(), Some(expected), "{args:?}");
        }
        assert!(parse(&["--regex", "a", "--json-object"]).is_err());
    }

    #[test]
    fn a_schema_or_grammar_may_stand_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("schema");
        fs::write(&path, "{\"type\": \"null\"}").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(parse(&["--json-schema", path]).unwrap(), Some(Constraint::Json("{\"type\": \"null\"}".into())));
        assert_eq!(parse(&["--grammar", path]).unwrap(), Some(Constraint::Grammar("{\"type\": \"null\"}".into())));
        assert!(parse(&["--json-schema", "/no/such/file"]).unwrap_err().to_string().contains("/no/such/file"));
    }
}
