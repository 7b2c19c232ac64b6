//! From a constraint to a [`Grammar`], within limits of size and work.

use std::sync::Mutex;

use llguidance::{
    Matcher as Parser, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::InferenceCapabilities,
};
use serde_json::{Value, json};

use super::{Vocabulary, ebnf, schema, structural_tag};
use crate::{
    error::{Error, Result},
    params::{Constraint, JSON_ESCAPES, JSON_WHITESPACE, StructuredOutputs},
};

/// Stack that compiling may need: it recurses along references. Only what is touched is taken from memory.
pub const COMPILER_STACK_BYTES: usize = 512 << 20;

/// States of a lexer, a kilobyte or two each; each sequence has a lexer of its own.
const MAX_LEXER_STATES: usize = 20_000;
/// Brackets within brackets, in grammars and expressions.
const MAX_NESTING: usize = 100;

/// Compiles constraints for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    vocab_size: usize,
}

/// A compiled constraint, which any number of sequences may follow.
pub struct Grammar {
    /// Never advanced. Behind a lock because it is not to be looked at from two threads.
    template: Mutex<Parser>,
    field: &'static str,
    vocab_size: usize,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("field", &self.field).finish_non_exhaustive()
    }
}

impl Compiler {
    /// A compiler for a vocabulary, which it walks a few times: half a second for 150,000 tokens.
    ///
    /// # Errors
    /// `Internal` where the vocabulary cannot be used.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self> {
        let capabilities = InferenceCapabilities { ff_tokens: false, ..InferenceCapabilities::default() };
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&vocabulary.env, capabilities, &slices)
            .map_err(|error| Error::internal(format!("the vocabulary cannot be used for grammars: {error}")))?;
        *factory.limits_mut() =
            ParserLimits { max_lexer_states: MAX_LEXER_STATES, verbose_errors: false, ..ParserLimits::default() };
        factory.quiet();
        Ok(Self { factory, vocab_size: vocabulary.size() })
    }

    /// Compiles one constraint. The work is bounded, to a second or a few at the worst, and so is the memory; the stack
    /// should have [`COMPILER_STACK_BYTES`].
    ///
    /// # Errors
    /// `InvalidArgument` that names the field, and in a schema the keyword, where it cannot be followed.
    pub fn compile(&self, outputs: &StructuredOutputs) -> Result<Grammar> {
        outputs.validate()?;
        let field = outputs.field();
        let refused = |error: &dyn std::fmt::Display| Error::invalid(field, readable(&error.to_string()));
        let parser = self.factory.create_parser(source(outputs)?).map_err(|error| refused(&error))?;
        let mut template = Parser::new(Ok(parser));
        // What is the same for every sequence is computed here; and a grammar that allows nothing shows it.
        let mut first = template.deep_clone();
        if first.compute_ff_tokens().is_empty() && !first.is_stopped() {
            template.compute_mask().map_err(|error| refused(&error))?;
        }
        Ok(Grammar { template: Mutex::new(template), field, vocab_size: self.vocab_size })
    }
}

impl Grammar {
    /// A parser of one's own at the start of the text.
    pub(super) fn start(&self) -> Parser {
        self.template.lock().unwrap_or_else(std::sync::PoisonError::into_inner).deep_clone()
    }

    /// The path of the request's field that it came from.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// The constraint as llguidance takes it.
fn source(outputs: &StructuredOutputs) -> Result<TopLevelGrammar> {
    let field = outputs.field();
    Ok(match &outputs.constraint {
        Constraint::Json(text) => {
            TopLevelGrammar::from_json_schema(with_whitespace(schema::parse(field, text)?, outputs))
        }
        Constraint::JsonObject => {
            TopLevelGrammar::from_json_schema(with_whitespace(json!({"type": "object"}), outputs))
        }
        Constraint::Regex(regex) => {
            bounded_nesting(field, regex)?;
            TopLevelGrammar::from_regex(regex)
        }
        Constraint::Choice(choices) => TopLevelGrammar::from_lark(format!(
            "start: {}",
            choices.iter().map(|choice| quoted(choice)).collect::<Vec<_>>().join(" | ")
        )),
        Constraint::Grammar(grammar) => {
            bounded_nesting(field, grammar)?;
            if ebnf::is_ebnf(grammar) {
                return Ok(TopLevelGrammar::from_lark(ebnf::to_lark(field, grammar)?));
            }
            schema::check_embedded(field, grammar)?;
            TopLevelGrammar::from_lark(grammar.clone())
        }
        Constraint::StructuralTag(text) => {
            let wrap = |schema| with_whitespace(schema, outputs);
            TopLevelGrammar::from_lark(structural_tag::to_lark(field, text, &wrap)?)
        }
    })
}

/// A schema with what llguidance is to know of white space, and of escapes.
fn with_whitespace(schema: Value, outputs: &StructuredOutputs) -> Value {
    let mut options = match &outputs.whitespace_pattern {
        Some(pattern) => json!({"whitespace_pattern": pattern}),
        None if outputs.disable_any_whitespace => json!({"whitespace_flexible": false}),
        None => json!({"whitespace_pattern": JSON_WHITESPACE}),
    };
    options["json_allowed_escapes"] = JSON_ESCAPES.into();
    match schema {
        Value::Object(mut object) => {
            object.insert("x-guidance".into(), options);
            Value::Object(object)
        }
        // `true` and `false` are schemas as well.
        other => json!({"x-guidance": options, "allOf": [other]}),
    }
}

/// A string as Lark writes it.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What a parser that recurses is to be spared. Brackets in strings count as well: who nests so deeply there can be asked
/// not to.
fn bounded_nesting(field: &str, text: &str) -> Result<()> {
    let (mut depth, mut escaped) = (0_usize, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => {}
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
        if depth > MAX_NESTING {
            return Err(Error::invalid(field, format!("has brackets nested more than {MAX_NESTING} deep")));
        }
    }
    Ok(())
}

/// A message of llguidance's, without what is for its own developers, and no longer than a message should be.
pub(super) fn readable(message: &str) -> String {
    const LONGEST: usize = 500;
    let message = ["\n<non-verbose/>", "\n<backtrace>"]
        .iter()
        .fold(message, |message, mark| message.split(mark).next().unwrap_or(message))
        .trim();
    if message.starts_with("panic:") {
        tracing::warn!(message, "llguidance failed on a grammar");
        return "the library that follows grammars fails on it".to_owned();
    }
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn a_message_ends_before_what_is_for_developers() {
        assert_eq!(readable("no such rule\n<non-verbose/>\nstate: 3"), "no such rule");
        assert_eq!(readable("no such rule\n<backtrace>\n0: main"), "no such rule");
        let panicked = readable("panic: index out of bounds\n<backtrace>\n0: main\n</backtrace>");
        assert!(!panicked.contains("index") && !panicked.contains("main"), "{panicked}");
        assert_eq!(readable(&"é".repeat(600)).chars().count(), 501);
    }
}
