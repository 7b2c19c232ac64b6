//! [`OutputParser`]: the text of an answer to typed pieces: text, reasoning, tool calls. Any face can hold one.
//!
//! Parsers under [`tool_calls`](super::tool_calls) and [`reasoning`](super::reasoning) take one character at a time, so
//! what they find cannot depend on how the text was cut into tokens or messages.

use super::{
    Tool,
    reasoning::{ReasoningFormat, ReasoningSplit},
    tool_calls::{CallParser, Sink, ToolCallFormat},
};
use crate::{error::Result, params::FinishReason};

/// A part of an answer, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text for the reader.
    Text(String),
    /// What the model thought before it answered.
    Reasoning(String),
    /// A tool call begins.
    ToolCall {
        /// Counts the calls of an answer from 0.
        index: usize,
        /// Ties the tool's answer to the call.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments, JSON text.
    Arguments {
        /// Of which call.
        index: usize,
        /// To be appended to what came before.
        delta: String,
    },
}

/// How the answer's text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What was held back till now.
    pub pieces: Vec<Piece>,
    /// The answer is tool calls: there is at least one, all are whole, and no limit cut the answer off.
    pub tool_calls: bool,
}

/// The formats that a model writes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutputFormat {
    /// Of tool calls; none where nobody taught it any.
    pub tool_calls: Option<&'static ToolCallFormat>,
    /// Of reasoning.
    pub reasoning: Option<&'static ReasoningFormat>,
}

impl OutputFormat {
    /// The formats that this chat template teaches.
    #[must_use]
    pub fn of_template(source: &str) -> Self {
        Self { tool_calls: ToolCallFormat::of_template(source), reasoning: ReasoningFormat::of_template(source) }
    }

    /// The same, with the formats named by `--tool-call-parser` and `--reasoning-parser` in place of those detected.
    ///
    /// # Errors
    /// `InvalidArgument` that names the flag and lists the names.
    pub fn with_names(mut self, tool_calls: Option<&str>, reasoning: Option<&str>) -> Result<Self> {
        if let Some(name) = tool_calls {
            self.tool_calls = Some(ToolCallFormat::named(name)?);
        }
        if let Some(name) = reasoning {
            self.reasoning = Some(ReasoningFormat::named(name)?);
        }
        Ok(self)
    }

    /// Whether what the model thinks is told apart from what it says.
    #[must_use]
    pub fn reasons(&self) -> bool {
        self.reasoning.is_some() || self.tool_calls.is_some_and(|format| format.is_whole_answer)
    }

    /// Texts that must reach the parser though they may be special tokens.
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        let calls = self.tool_calls.map_or(&[][..], |format| format.markers);
        let reasoning = self.reasoning.map_or([].as_slice(), |format| format.markers);
        calls.iter().chain(reasoning).copied()
    }
}

/// Turns an answer's text, as it comes, into pieces. The pieces put together do not depend on where the text was cut.
pub struct OutputParser {
    reasoning: Option<ReasoningSplit>,
    calls: Option<Box<dyn CallParser>>,
    sink: Sink,
}

impl OutputParser {
    /// A parser for the answer to `prompt`, the rendered one, whose end may have begun the reasoning. With no `tools`,
    /// or where the choice is not to call any, what looks like a call is text. `id_seed` makes the ids of calls.
    #[must_use]
    pub fn new(format: &OutputFormat, tools: &[Tool], prompt: &str, id_seed: u64) -> Self {
        let wanted = format.tool_calls.filter(|format| format.is_whole_answer || !tools.is_empty());
        let whole_answer = wanted.is_some_and(|format| format.is_whole_answer);
        Self {
            reasoning: format.reasoning.filter(|_| !whole_answer).map(|format| format.split(prompt)),
            calls: wanted.map(|format| format.parser(tools)),
            sink: Sink::new(wanted.map(|format| format.ids).unwrap_or_default(), id_seed),
        }
    }

    /// The same for an answer that may hold one call: others that the model goes on to make are left out.
    #[must_use]
    pub fn first_call_only(mut self) -> Self {
        self.sink.take_first_call_only();
        self
    }

    /// The pieces that this text makes certain; neighbours of one kind come as one.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        for c in text.chars() {
            match &mut self.reasoning {
                Some(split) => {
                    let answer = split.push(c, &mut self.sink);
                    answer.chars().for_each(|c| feed(&mut self.calls, c, &mut self.sink));
                }
                None => feed(&mut self.calls, c, &mut self.sink),
            }
        }
        self.sink.take()
    }

    /// The end of the answer: what was held back, and whether it ends in tool calls. A call that `max_tokens` cut off
    /// is none.
    pub fn finish(&mut self, reason: &FinishReason) -> Ending {
        if let Some(split) = &mut self.reasoning {
            let answer = split.finish(&mut self.sink);
            answer.chars().for_each(|c| feed(&mut self.calls, c, &mut self.sink));
        }
        let cut_off = matches!(reason, FinishReason::Length);
        if let Some(calls) = &mut self.calls {
            calls.finish(cut_off, &mut self.sink);
        }
        self.sink.finish();
        Ending { tool_calls: !cut_off && self.sink.all_calls_whole(), pieces: self.sink.take() }
    }
}

/// A character of the answer proper.
fn feed(calls: &mut Option<Box<dyn CallParser>>, c: char, sink: &mut Sink) {
    match calls {
        Some(calls) => calls.push(c, sink),
        None => sink.text(c),
    }
}
