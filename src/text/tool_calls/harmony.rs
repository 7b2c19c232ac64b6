//! gpt-oss's format, harmony: an answer is messages, each with a header that says what it is.
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{…}<|call|>`
//!
//! <https://github.com/openai/harmony>

use super::{
    CallParser, Grammar, Sink, ToolCallFormat,
    json_stream::{JsonValue, ValueStep},
    sink::CallIds,
};
use crate::text::{
    Tool,
    marks::{Marks, Seen},
};

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["openai", "harmony", "gpt_oss"],
    taught_by: &[&["<|channel|>", "<|message|>"]],
    markers: MARKS,
    ids: CallIds::Call,
    is_whole_answer: true,
    parser: |_| Box::new(Harmony::new()),
    grammar: |tools, grammar| {
        let marks = |text: &str, grammar: &Grammar<'_>| grammar.marked(text, MARKS);
        let thought = "/(?s:[^<]*)/";
        let think = format!(
            "({} {thought} {})?",
            marks("<|channel|>analysis<|message|>", grammar),
            marks("<|end|><|start|>assistant", grammar)
        );
        let call = |tool: &Tool| {
            let header = format!("<|channel|>commentary to=functions.{} <|constrain|>json<|message|>", tool.name);
            format!("{} {}", marks(&header, grammar), Grammar::arguments(tool))
        };
        format!("{think} ({})", Grammar::any(tools, call))
    },
};

/// Special tokens of the format. Those that end a message come first, `<|message|>` after them.
const MARKS: &[&str] =
    &["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|constrain|>"];
/// Number of the mark that ends a header.
const MESSAGE: usize = 4;
/// Those before this one end a message.
const ENDS: usize = 4;
/// What stands before the recipient of a message.
const RECIPIENT: &str = "to=";
/// Most bytes of a header.
const MAX_HEADER_BYTES: usize = 512;

enum State {
    /// Before anything: without a header the answer is text. What has come may be the start of a recipient, ` to=`.
    Start(String),
    Header(String),
    Text,
    Reasoning,
    Call(JsonValue),
    /// Behind the arguments.
    Called,
}

struct Harmony {
    marks: Marks,
    state: State,
}

impl Harmony {
    fn new() -> Self {
        Self { marks: Marks::new(MARKS), state: State::Start(String::new()) }
    }

    fn plain(&mut self, c: char, sink: &mut Sink) {
        match &mut self.state {
            State::Start(start) => {
                start.push(c);
                let said = start.trim_start();
                if said.starts_with(RECIPIENT) {
                    self.state = State::Header(said.to_owned());
                } else if !RECIPIENT.starts_with(said) {
                    sink.texts(said);
                    self.state = State::Text;
                }
            }
            State::Header(header) => {
                header.push(c);
                if header.len() > MAX_HEADER_BYTES {
                    let header = std::mem::take(header);
                    self.state = State::Text;
                    sink.texts(&header);
                }
            }
            State::Text => sink.text(c),
            State::Reasoning => sink.reasoning(c),
            State::Call(value) => {
                let mut delta = String::new();
                let step = value.push(c, &mut delta);
                sink.arguments(&delta);
                match step {
                    ValueStep::More => {}
                    ValueStep::End => {
                        sink.end_call();
                        self.state = State::Called;
                    }
                    ValueStep::EndBefore | ValueStep::Bad => {
                        sink.break_call();
                        self.state = State::Text;
                        sink.text(c);
                    }
                }
            }
            State::Called => {}
        }
    }

    fn mark(&mut self, k: usize, sink: &mut Sink) {
        match (&mut self.state, k) {
            (State::Header(header), MESSAGE) => {
                let header = std::mem::take(header);
                self.state = begin(&header, sink);
            }
            (State::Header(header), k) if k >= ENDS => header.push_str(MARKS[k]),
            (State::Start(_) | State::Text, MESSAGE) => self.state = State::Text,
            // The marks of a string in the arguments are part of it.
            (State::Call(value), k) if k >= ENDS => {
                let mut delta = String::new();
                MARKS[k].chars().for_each(|c| {
                    value.push(c, &mut delta);
                });
                sink.arguments(&delta);
            }
            (state, _) => {
                if matches!(state, State::Call(_)) {
                    sink.break_call();
                }
                sink.end_reasoning();
                *state = State::Header(if k >= ENDS { MARKS[k].to_owned() } else { String::new() });
            }
        }
    }
}

/// What a message with this header is.
fn begin(header: &str, sink: &mut Sink) -> State {
    let recipient = header.split(RECIPIENT).nth(1).map(|rest| rest.split([' ', '<']).next().unwrap_or(rest));
    if let Some(name) = recipient.and_then(|recipient| recipient.strip_prefix("functions.")).filter(|n| !n.is_empty()) {
        sink.begin_call(name);
        return State::Call(JsonValue::default());
    }
    match header.contains("<|channel|>analysis") {
        true => State::Reasoning,
        false => State::Text,
    }
}

impl CallParser for Harmony {
    fn push(&mut self, c: char, sink: &mut Sink) {
        let (seen, text) = self.marks.push(c);
        text.chars().for_each(|c| self.plain(c, sink));
        if let Seen::Mark(k) = seen {
            self.mark(k, sink);
        }
    }

    fn finish(&mut self, _cut_off: bool, sink: &mut Sink) {
        self.marks.finish().chars().for_each(|c| self.plain(c, sink));
        if let State::Start(start) = &self.state {
            sink.texts(start.trim_start());
        }
    }
}
