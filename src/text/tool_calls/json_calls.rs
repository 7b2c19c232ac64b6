//! Calls whose arguments are JSON, between marks: `<tool_call>{"name": …, "arguments": …}</tool_call>`,
//! `[TOOL_CALLS]name[ARGS]{…}`, `{"name": …, "parameters": …}` alone, and what lies between.

use super::{
    CallParser, Sink,
    envelope::{Envelope, EnvelopeStep},
    json_stream::{JsonValue, ValueStep},
};
use crate::text::{
    Tool,
    marks::{Marks, Seen},
};

/// Most bytes of a name with what stands around it.
const MAX_NAME_BYTES: usize = 512;
/// Spaces that may stand between the parts of a call, in bytes.
const MAX_SPACES: usize = 4096;
/// Most bytes of an object that has not shown yet whether it is a call.
const MAX_OBJECT_BYTES: usize = 1 << 20;

/// Where the name of a call stands.
#[derive(Clone, Copy)]
pub(super) enum Name {
    /// In the object, beside the arguments.
    Inside,
    /// Before the arguments' `{`: what stands there, to the name.
    Before(fn(&str) -> Option<&str>),
}

/// A format of this kind.
#[derive(Clone, Copy)]
pub(super) struct JsonCallMarks {
    /// What opens a call, or a list of them, and then what may stand between calls and behind them and is left out.
    pub marks: &'static [&'static str],
    /// How many of the marks open.
    pub openers: usize,
    /// Where the name stands.
    pub name: Name,
    /// An answer may begin with a call that nothing marks, if it calls a tool of the request.
    pub bare: bool,
}

enum State {
    Text,
    /// Behind a mark, where a call may begin.
    Between,
    /// In the name before the arguments.
    Name(String),
    Object(Envelope),
    Arguments(JsonValue),
}

/// Parses any format of this kind.
pub(super) struct JsonCalls {
    format: JsonCallMarks,
    tools: Vec<String>,
    marks: Marks,
    state: State,
    /// What was read since the last call that is not text yet, in case it is.
    raw: String,
    /// Nothing marked what is being read.
    unmarked: bool,
    /// A list is open.
    in_list: bool,
    /// A call may begin here: an opener was seen, or a comma.
    expects: bool,
}

impl JsonCalls {
    pub(super) fn new(format: JsonCallMarks, tools: &[Tool]) -> Self {
        Self {
            tools: tools.iter().map(|tool| tool.name.clone()).collect(),
            marks: Marks::new(format.marks),
            state: if format.bare { State::Between } else { State::Text },
            raw: String::new(),
            unmarked: format.bare,
            in_list: false,
            expects: format.bare,
            format,
        }
    }

    /// What was read is text after all.
    fn back_to_text(&mut self, sink: &mut Sink) {
        sink.texts(&std::mem::take(&mut self.raw));
        self.state = State::Text;
        self.unmarked = false;
        self.in_list = false;
    }

    /// A call has ended; more may follow.
    fn after_call(&mut self) {
        self.raw.clear();
        self.state = State::Between;
        self.expects = self.in_list || self.unmarked;
    }

    fn text(&mut self, c: char, sink: &mut Sink) {
        let (seen, text) = self.marks.push(c);
        sink.texts(&text);
        if let Seen::Mark(k) = seen {
            self.mark(k, sink);
        }
    }

    /// A mark is whole.
    fn mark(&mut self, k: usize, sink: &mut Sink) {
        let opens = k < self.format.openers;
        if !opens && matches!(self.state, State::Text) {
            // A closing mark that nothing opened.
            return sink.texts(self.format.marks[k]);
        }
        self.raw.push_str(self.format.marks[k]);
        if opens {
            self.unmarked = false;
            self.expects = true;
            self.state = match self.format.name {
                Name::Inside => State::Between,
                Name::Before(_) => State::Name(String::new()),
            };
        } else if self.raw.trim() == self.format.marks[k] {
            // Behind a call: no part of the text.
            self.raw.clear();
        }
    }

    /// Between the parts of calls.
    fn between(&mut self, c: char, sink: &mut Sink) {
        if !self.marks.is_holding() {
            match c {
                '{' if self.expects => {
                    self.raw.push(c);
                    self.state = State::Object(Envelope::new());
                    return;
                }
                '[' if self.expects && !self.in_list => {
                    self.raw.push(c);
                    self.in_list = true;
                    return;
                }
                ']' if self.in_list && self.raw.trim().is_empty() => {
                    self.in_list = false;
                    self.expects = self.unmarked;
                    return;
                }
                ',' | ';' if self.raw.trim().is_empty() => {
                    self.raw.push(c);
                    self.expects = true;
                    return;
                }
                // The end of a fence.
                '`' if self.format.bare && sink.all_calls_whole() && is_behind_call(&self.raw) => {
                    self.raw.push(c);
                    return;
                }
                c if c.is_whitespace() && self.raw.len() < MAX_SPACES => {
                    self.raw.push(c);
                    return;
                }
                _ => {}
            }
        }
        let (seen, text) = self.marks.push(c);
        if !text.is_empty() {
            self.back_to_text(sink);
            // What the marks held back begins no mark here; in the text it may.
            let held = self.marks.finish();
            text.chars().chain(held.chars()).for_each(|c| self.text(c, sink));
        } else if let Seen::Mark(k) = seen {
            self.mark(k, sink);
        }
    }

    fn name(&mut self, c: char, sink: &mut Sink) {
        let State::Name(before) = &mut self.state else { return };
        let blank = before.trim().is_empty();
        self.raw.push(c);
        if c == '{' && !blank {
            let Name::Before(clean) = self.format.name else { return };
            match clean(before) {
                Some(name) => {
                    sink.begin_call(name);
                    self.raw.clear();
                    self.state = State::Arguments(JsonValue::default());
                    self.arguments(c, sink);
                }
                None => self.back_to_text(sink),
            }
        } else if blank && (c == '[' || c == '{') {
            // The same mark before calls with the name inside.
            self.raw.pop();
            self.state = State::Between;
            self.between(c, sink);
        } else if before.len() >= MAX_NAME_BYTES {
            self.back_to_text(sink);
        } else {
            before.push(c);
        }
    }

    fn object(&mut self, c: char, sink: &mut Sink) {
        let State::Object(envelope) = &mut self.state else { return };
        let known = |name: &str| self.tools.iter().any(|tool| tool == name);
        let known: Option<&dyn Fn(&str) -> bool> = if self.unmarked { Some(&known) } else { None };
        let step = envelope.push(c, known, sink);
        if envelope.has_begun() {
            self.raw.clear();
        }
        match step {
            EnvelopeStep::Call => self.after_call(),
            EnvelopeStep::More if self.raw.len() < MAX_OBJECT_BYTES => {
                if !envelope.has_begun() {
                    self.raw.push(c);
                }
            }
            _ => {
                self.back_to_text(sink);
                self.text(c, sink);
            }
        }
    }

    fn arguments(&mut self, c: char, sink: &mut Sink) {
        let State::Arguments(value) = &mut self.state else { return };
        let mut delta = String::new();
        let step = value.push(c, &mut delta);
        sink.arguments(&delta);
        match step {
            ValueStep::More => {}
            ValueStep::End => {
                sink.end_call();
                self.after_call();
            }
            ValueStep::EndBefore | ValueStep::Bad => {
                sink.break_call();
                self.back_to_text(sink);
                self.text(c, sink);
            }
        }
    }
}

impl CallParser for JsonCalls {
    fn push(&mut self, c: char, sink: &mut Sink) {
        match &self.state {
            State::Text => self.text(c, sink),
            State::Between => self.between(c, sink),
            State::Name(_) => self.name(c, sink),
            State::Object(_) => self.object(c, sink),
            State::Arguments(_) => self.arguments(c, sink),
        }
    }

    fn finish(&mut self, cut_off: bool, sink: &mut Sink) {
        let in_call = !matches!(self.state, State::Text) && !self.unmarked;
        let raw = std::mem::take(&mut self.raw);
        let behind_call = is_behind_call(&raw) && sink.all_calls_whole();
        // A marked call that was cut off before its name is no text; nor is what separates calls.
        if !(behind_call || (cut_off && in_call)) {
            sink.texts(&raw);
        }
        sink.texts(&self.marks.finish());
    }
}

/// Whether nothing but what separates calls, or closes a fence around them, stands here.
fn is_behind_call(raw: &str) -> bool {
    raw.chars().all(|c| c.is_whitespace() || ",;`".contains(c))
}
