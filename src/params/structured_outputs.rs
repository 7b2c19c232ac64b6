//! What a generated text must look like: a schema, a regular expression, a grammar. Names are vLLM's `structured_outputs`.

use super::limits;
use crate::error::{Error, Result};

/// White space between two parts of JSON where nothing else is asked for, as a regular expression: a blank, or a new line
/// and its indentation. Were there no bound, a model that has lost its way could go on with blank lines for as long as it
/// may speak.
pub const JSON_WHITESPACE: &str = r"[ \t]|\r?\n[ \t]{0,40}";

/// What may follow a backslash in a string of generated JSON. `u` is none of it: a name spelled `\\u0061` would be another
/// `a`, to which no rule for `a` applied. So of control characters a string has those that have a letter of their own.
pub const JSON_ESCAPES: &str = "nrbtf\\\"";

/// The form of an answer. Exactly one constraint, and how free its white space is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StructuredOutputs {
    /// What the text must match, from its first character to its last.
    pub constraint: Constraint,
    /// A regular expression for what may stand between two JSON tokens; without it a blank or a new line and its indentation.
    pub whitespace_pattern: Option<String>,
    /// Nothing stands between two JSON tokens.
    pub disable_any_whitespace: bool,
}

/// One way to say what a text must look like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Constraint {
    /// A JSON value that a JSON schema, given as text, allows.
    Json(String),
    /// Any JSON object.
    JsonObject,
    /// A regular expression in the syntax of Rust's `regex`, over the whole text.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark, or in EBNF as GBNF writes it (`root ::= …`).
    Grammar(String),
    /// Free text in which certain tags, once begun, must hold JSON of a schema: a JSON object
    /// `{"structures": [{"begin", "schema", "end"}], "triggers": […]}`.
    StructuralTag(String),
}

impl From<Constraint> for StructuredOutputs {
    /// With the white space that is usual.
    fn from(constraint: Constraint) -> Self {
        Self { constraint, whitespace_pattern: None, disable_any_whitespace: false }
    }
}

impl StructuredOutputs {
    /// The path of the constraint's field, for errors.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self.constraint {
            Constraint::Json(_) => "structured_outputs.json",
            Constraint::JsonObject => "structured_outputs.json_object",
            Constraint::Regex(_) => "structured_outputs.regex",
            Constraint::Choice(_) => "structured_outputs.choice",
            Constraint::Grammar(_) => "structured_outputs.grammar",
            Constraint::StructuralTag(_) => "structured_outputs.structural_tag",
        }
    }

    /// Checks sizes; what the constraint says is checked when it is compiled.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field.
    pub fn validate(&self) -> Result<()> {
        let field = self.field();
        let bytes = match &self.constraint {
            Constraint::JsonObject => 0,
            Constraint::Json(text)
            | Constraint::Regex(text)
            | Constraint::Grammar(text)
            | Constraint::StructuralTag(text) => {
                if text.trim().is_empty() {
                    return Err(Error::invalid(field, "is empty"));
                }
                text.len()
            }
            Constraint::Choice(choices) => {
                if choices.is_empty() || choices.len() > limits::CHOICES {
                    let why = format!("has {} entries, must have 1 to {}", choices.len(), limits::CHOICES);
                    return Err(Error::invalid(field, why));
                }
                choices.iter().map(String::len).sum()
            }
        };
        if bytes > limits::CONSTRAINT_BYTES {
            let why = format!("has {bytes} bytes, at most {} are allowed", limits::CONSTRAINT_BYTES);
            return Err(Error::invalid(field, why));
        }
        self.validate_whitespace()
    }

    fn validate_whitespace(&self) -> Result<()> {
        let Some(pattern) = &self.whitespace_pattern else { return Ok(()) };
        let field = "structured_outputs.whitespace_pattern";
        if self.disable_any_whitespace {
            return Err(Error::invalid(field, "is set, and so is disable_any_whitespace: they exclude each other"));
        }
        if pattern.len() > limits::WHITESPACE_PATTERN_BYTES {
            let most = limits::WHITESPACE_PATTERN_BYTES;
            return Err(Error::invalid(field, format!("has {} bytes, at most {most} are allowed", pattern.len())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(outputs: StructuredOutputs) -> String {
        outputs.validate().unwrap_err().violations.remove(0).field
    }

    #[test]
    fn sizes_are_bounded_by_field() {
        let long = "a".repeat(limits::CONSTRAINT_BYTES + 1);
        let cases = [
            (Constraint::Json(long.clone()), "structured_outputs.json"),
            (Constraint::Regex(long.clone()), "structured_outputs.regex"),
            (Constraint::Grammar(long.clone()), "structured_outputs.grammar"),
            (Constraint::Grammar(" \n".into()), "structured_outputs.grammar"),
            (Constraint::StructuralTag(long.clone()), "structured_outputs.structural_tag"),
            (Constraint::Choice(vec![long]), "structured_outputs.choice"),
            (Constraint::Choice(Vec::new()), "structured_outputs.choice"),
            (Constraint::Choice(vec!["a".into(); limits::CHOICES + 1]), "structured_outputs.choice"),
        ];
        for (constraint, field) in cases {
            assert_eq!(refused(constraint.into()), field);
        }
        assert!(StructuredOutputs::from(Constraint::Choice(vec!["a".into(); limits::CHOICES])).validate().is_ok());
    }

    #[test]
    fn white_space_is_either_described_or_forbidden() {
        let outputs = StructuredOutputs {
            whitespace_pattern: Some(" ?".into()),
            disable_any_whitespace: true,
            ..Constraint::JsonObject.into()
        };
        assert_eq!(refused(outputs.clone()), "structured_outputs.whitespace_pattern");
        assert!(StructuredOutputs { disable_any_whitespace: false, ..outputs }.validate().is_ok());
    }
}
