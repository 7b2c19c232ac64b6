//! Tool calls in generated text: a table of the formats that models write them in, a small file each.
//!
//! Three readers do the work: [`json_calls`] (JSON arguments between marks), [`tagged_calls`] (a tag an argument) and
//! two of their own kind ([`gemma`], [`harmony`]). All take one character at a time and put what they find into a
//! [`Sink`], so the pieces do not depend on how the text was cut. A row is found by the text of the chat template that
//! teaches the format, or by vLLM's name for it (`--tool-call-parser`).
//!
//! Each row also writes the grammar that makes a model call tools, for `tool_choice` `required` and a named tool
//! ([`ToolCallFormat::constraint`]).

mod cohere;
mod deepseek;
mod envelope;
mod gemma;
mod glm;
mod grammar;
mod granite;
mod harmony;
mod hermes;
mod json;
mod json_calls;
mod json_stream;
mod kimi;
mod llama3;
mod minimax;
mod mistral;
mod phi;
mod qwen3_coder;
mod sink;
mod tagged_calls;
#[cfg(test)]
mod transcripts;

pub use self::grammar::Grammar;
use self::sink::CallIds;
pub(super) use self::sink::Sink;
use super::{Tool, ToolChoice, reasoning::ReasoningFormat};
use crate::{
    error::{Error, Result},
    params::limits,
};

/// Reads an answer, one character at a time.
pub(super) trait CallParser: Send {
    /// Takes a character.
    fn push(&mut self, c: char, sink: &mut Sink);

    /// The end: what was held back is what it seems, but a call that was cut off is no text.
    fn finish(&mut self, cut_off: bool, sink: &mut Sink);
}

/// A format that models write tool calls in.
pub struct ToolCallFormat {
    /// Names for it, vLLM's first, as `--tool-call-parser` takes them.
    pub names: &'static [&'static str],
    /// A chat template that holds all texts of one of these sets teaches it.
    taught_by: &'static [&'static [&'static str]],
    /// Texts of the format that may be special tokens: the parser must see them.
    pub(super) markers: &'static [&'static str],
    pub(super) ids: CallIds,
    /// It frames all that the model writes, reasoning and text too, so it is read even without tools.
    pub(super) is_whole_answer: bool,
    parser: fn(&[Tool]) -> Box<dyn CallParser>,
    /// The grammar of one or more calls of any of these tools. Where it is longer than a constraint may be, it need not be
    /// whole.
    grammar: fn(&[Tool], &Grammar<'_>) -> String,
}

/// Every format. The first that a template teaches is taken, so those whose marks others share come later.
const FORMATS: &[ToolCallFormat] = &[
    harmony::FORMAT,
    deepseek::DSML,
    deepseek::FORMAT,
    kimi::FORMAT,
    gemma::FORMAT,
    gemma::FUNCTION_GEMMA,
    glm::FORMAT,
    minimax::FORMAT,
    qwen3_coder::SEED_OSS,
    qwen3_coder::FORMAT,
    mistral::FORMAT,
    cohere::FORMAT,
    phi::FORMAT,
    granite::FORMAT,
    hermes::NEMOTRON,
    hermes::FORMAT,
    llama3::FORMAT,
    json::FORMAT,
];

impl ToolCallFormat {
    /// The format that this chat template teaches; plain JSON where it knows of tools, but of no mark that we know.
    #[must_use]
    pub fn of_template(source: &str) -> Option<&'static Self> {
        let teaches = |format: &&ToolCallFormat| {
            format.taught_by.iter().any(|marks| marks.iter().all(|mark| source.contains(mark)))
        };
        FORMATS.iter().find(teaches)
    }

    /// The format of that name.
    ///
    /// # Errors
    /// `InvalidArgument` that lists the names.
    pub fn named(name: &str) -> Result<&'static Self> {
        FORMATS.iter().find(|format| format.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = FORMATS.iter().flat_map(|format| format.names).copied().collect();
            Error::invalid("--tool-call-parser", format!("is {name:?}, must be one of {}", names.join(", ")))
        })
    }

    /// The names of all formats.
    pub fn all_names() -> impl Iterator<Item = &'static str> {
        FORMATS.iter().flat_map(|format| format.names).copied()
    }

    pub(super) fn parser(&self, tools: &[Tool]) -> Box<dyn CallParser> {
        (self.parser)(tools)
    }

    /// A Lark grammar, in llguidance's dialect, of the answers that this choice allows: calls in this format, behind
    /// reasoning where the model reasons. None where the choice constrains nothing. `prompt` is the rendered one.
    ///
    /// # Errors
    /// `InvalidArgument` where the choice names a tool that the request does not bring, there are none, or their schemas make
    /// a grammar longer than a constraint may be.
    pub fn constraint(
        &self,
        tools: &[Tool],
        choice: &ToolChoice,
        reasoning: Option<&ReasoningFormat>,
        prompt: &str,
        grammar: &Grammar<'_>,
    ) -> Result<Option<String>> {
        let chosen: Vec<Tool> = match choice {
            ToolChoice::Auto | ToolChoice::None => return Ok(None),
            ToolChoice::Required => tools.to_vec(),
            ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).cloned().collect(),
        };
        if chosen.is_empty() {
            let why = match choice {
                ToolChoice::Named(name) => format!("names {name:?}, which is not among the tools"),
                _ => "is required, but there are no tools".to_owned(),
            };
            return Err(Error::invalid("tool_choice", why));
        }
        let calls = (self.grammar)(&chosen, grammar);
        if calls.len() > limits::CONSTRAINT_BYTES {
            let why = format!(
                "make a grammar of more than the {} bytes that are allowed: let tool_choice name one, or make their \
                 schemas smaller (an argument that refers to definitions may need all of them)",
                limits::CONSTRAINT_BYTES
            );
            return Err(Error::invalid("tools", why));
        }
        let thought = reasoning.filter(|_| !self.is_whole_answer).map(|reasoning| grammar.reasoning(reasoning, prompt));
        Ok(Some(match thought {
            Some((start, rules)) => format!("start: {start} calls\n{rules}\ncalls: {calls}\n"),
            None => format!("start: calls\ncalls: {calls}\n"),
        }))
    }
}

impl std::fmt::Debug for ToolCallFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ToolCallFormat").field("names", &self.names).finish_non_exhaustive()
    }
}
