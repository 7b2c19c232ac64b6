//! Reasoning in generated text: a table of the marks that models set around it, and what splits it off.

use super::{
    marks::{Marks, Seen},
    tool_calls::Sink,
};
use crate::error::{Error, Result};

/// How a model marks its reasoning.
#[derive(Debug)]
pub struct ReasoningFormat {
    /// vLLM's names for it, as `--reasoning-parser` takes them.
    pub names: &'static [&'static str],
    /// What stands before it and behind it.
    marks: &'static [&'static str; 2],
    /// The special tokens in those: the parser must see them.
    pub(super) markers: &'static [&'static str],
    /// The answer begins inside the reasoning even where the prompt does not say so.
    begins_inside: bool,
}

/// Every format. The first whose marks a template holds is taken; the last row is chosen by name only.
const FORMATS: &[ReasoningFormat] = &[
    ReasoningFormat::marked(&["mistral"], &["[THINK]", "[/THINK]"]),
    ReasoningFormat::marked(&["seed_oss"], &["<seed:think>", "</seed:think>"]),
    ReasoningFormat::marked(&["cohere"], &["<|START_THINKING|>", "<|END_THINKING|>"]),
    ReasoningFormat {
        markers: &["<|channel>", "<channel|>"],
        ..ReasoningFormat::marked(&["gemma4"], &["<|channel>thought", "<channel|>"])
    },
    ReasoningFormat::marked(&["apertus"], &["<|inner_prefix|>", "<|inner_suffix|>"]),
    ReasoningFormat::marked(
        &["qwen3", "glm45", "granite", "hunyuan_a13b", "deepseek_v3", "kimi_k2", "think"],
        &["<think>", "</think>"],
    ),
    ReasoningFormat {
        begins_inside: true,
        ..ReasoningFormat::marked(&["deepseek_r1", "minimax_m2", "step3"], &["<think>", "</think>"])
    },
];

impl ReasoningFormat {
    const fn marked(names: &'static [&'static str], marks: &'static [&'static str; 2]) -> Self {
        Self { names, marks, markers: marks, begins_inside: false }
    }

    /// The format that this chat template teaches.
    #[must_use]
    pub fn of_template(source: &str) -> Option<&'static Self> {
        // Templates write the start or look for the end, which they drop the reasoning of earlier turns by.
        FORMATS.iter().find(|format| format.marks.iter().any(|mark| source.contains(mark)))
    }

    /// The format of that name.
    ///
    /// # Errors
    /// `InvalidArgument` that lists the names.
    pub fn named(name: &str) -> Result<&'static Self> {
        FORMATS.iter().find(|format| format.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = FORMATS.iter().flat_map(|format| format.names).copied().collect();
            Error::invalid("--reasoning-parser", format!("is {name:?}, must be one of {}", names.join(", ")))
        })
    }

    /// The text that starts the reasoning.
    #[must_use]
    pub fn start(&self) -> &'static str {
        self.marks[0]
    }

    /// The text that ends it: what is forced where a budget is spent.
    #[must_use]
    pub fn end(&self) -> &'static str {
        self.marks[1]
    }

    /// Whether an answer to this prompt begins inside the reasoning: the prompt ends with its start.
    #[must_use]
    pub fn begins_inside(&self, prompt: &str) -> bool {
        let prompt = prompt.trim_end();
        prompt.ends_with(self.start()) || (self.begins_inside && !prompt.ends_with(self.end()))
    }

    pub(super) fn split(&self, prompt: &str) -> ReasoningSplit {
        let inside = self.begins_inside(prompt);
        ReasoningSplit {
            end: &self.marks[1..],
            marks: Marks::new(if inside { &self.marks[1..] } else { &self.marks[..1] }),
            state: if inside { State::Reasoning } else { State::Before },
            at_start: true,
        }
    }
}

/// Where the answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but spaces has come, and the start of reasoning may.
    Before,
    /// Inside.
    Reasoning,
    /// Behind it, or never was there any.
    Answer,
}

/// Splits the reasoning off the start of an answer. Spaces around the reasoning and before the answer are left out.
pub(super) struct ReasoningSplit {
    end: &'static [&'static str],
    marks: Marks,
    state: State,
    /// Only spaces have come since the state began.
    at_start: bool,
}

impl ReasoningSplit {
    /// Takes a character; gives those that belong to the answer.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> String {
        let mut answer = String::new();
        if self.state == State::Answer {
            self.plain(c, &mut answer, sink);
            return answer;
        }
        let (seen, text) = self.marks.push(c);
        text.chars().for_each(|c| self.plain(c, &mut answer, sink));
        match (seen, self.state) {
            (Seen::Mark(_), State::Before) => {
                self.marks = Marks::new(self.end);
                (self.state, self.at_start) = (State::Reasoning, true);
            }
            (Seen::Mark(_), State::Reasoning) => {
                sink.end_reasoning();
                (self.state, self.at_start) = (State::Answer, true);
            }
            // The start of reasoning in the midst of an answer is text.
            (_, State::Answer) => answer += &self.marks.finish(),
            (Seen::Nothing, _) => {}
        }
        answer
    }

    /// A character that is part of no mark.
    fn plain(&mut self, c: char, answer: &mut String, sink: &mut Sink) {
        match self.state {
            State::Before => {
                answer.push(c);
                if !c.is_whitespace() {
                    (self.state, self.at_start) = (State::Answer, false);
                }
            }
            State::Reasoning if self.at_start && c.is_whitespace() => {}
            State::Answer if self.at_start && c.is_whitespace() => {}
            State::Reasoning => {
                self.at_start = false;
                sink.reasoning(c);
            }
            State::Answer => {
                self.at_start = false;
                answer.push(c);
            }
        }
    }

    /// The end of the answer: what was held back is what it seems.
    pub(super) fn finish(&mut self, sink: &mut Sink) -> String {
        let mut answer = String::new();
        self.marks.finish().chars().for_each(|c| self.plain(c, &mut answer, sink));
        answer
    }
}
