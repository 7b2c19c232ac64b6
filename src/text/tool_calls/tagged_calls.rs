//! Calls as tags, an argument each: `<function=name><parameter=key>value</parameter></function>` and its relatives.
//! Values are plain text; the tool's schema says what they stand for, and JSON is made of them on the way.

use serde_json::Value;

use super::{
    CallParser, Sink,
    json_stream::{escape, quoted},
};
use crate::text::{
    Tool,
    marks::{Marks, Seen},
};

/// Most bytes of a name with what stands around it.
const MAX_NAME_BYTES: usize = 512;
/// Most bytes of a value that waits for its end; a longer one is a string.
const MAX_HELD_BYTES: usize = 1 << 20;
/// Bytes held before a call has begun.
const MAX_RAW_BYTES: usize = 4096;

/// A format of this kind.
#[derive(Clone, Copy)]
pub(super) struct Tags {
    /// What opens a call first of all, and then tags around calls, which are left out.
    pub text_marks: &'static [&'static str],
    /// How many of those open a call's name; none of the others may stand in the text alone.
    pub openers: usize,
    /// What ends the name of a call: a text, or the start of the next tag.
    pub name_end: &'static str,
    /// What opens an argument, and what closes the call.
    pub body_marks: &'static [&'static str; 2],
    /// What ends an argument's name.
    pub key_end: &'static [&'static str],
    /// What closes an argument.
    pub value_end: &'static [&'static str],
    /// A line break at each end of a value is not part of it.
    pub trims_lines: bool,
}

enum State {
    Text,
    /// Between tags around calls.
    Between,
    Name(String),
    Body,
    Key(String),
    Value(Argument),
}

/// An argument that is being read.
struct Argument {
    /// It goes out as it comes, as a string.
    streams: bool,
    /// The value so far, where it does not.
    held: String,
    /// The schema's types.
    types: Option<Value>,
    at_start: bool,
    /// A line break that may be the last.
    line_break: bool,
}

/// Parses any format of this kind.
pub(super) struct TaggedCalls {
    tags: Tags,
    tools: Vec<Tool>,
    marks: Marks,
    state: State,
    raw: String,
    /// The call's name, for its schema.
    name: String,
    /// The call has arguments.
    has_arguments: bool,
}

impl TaggedCalls {
    pub(super) fn new(tags: Tags, tools: &[Tool]) -> Self {
        Self {
            marks: Marks::new(tags.text_marks),
            tags,
            tools: tools.to_vec(),
            state: State::Text,
            raw: String::new(),
            name: String::new(),
            has_arguments: false,
        }
    }

    fn enter(&mut self, state: State, marks: &'static [&'static str]) {
        self.state = state;
        self.marks = Marks::new(marks);
    }

    fn back_to_text(&mut self, sink: &mut Sink) {
        sink.texts(&std::mem::take(&mut self.raw));
        self.enter(State::Text, self.tags.text_marks);
    }

    /// In the text, or between tags around calls.
    fn outside(&mut self, c: char, sink: &mut Sink) {
        let (seen, text) = self.marks.push(c);
        for c in text.chars() {
            if matches!(self.state, State::Between) {
                self.raw.push(c);
                if !c.is_whitespace() || self.raw.len() > MAX_RAW_BYTES {
                    self.state = State::Text;
                    sink.texts(&std::mem::take(&mut self.raw));
                }
            } else {
                sink.text(c);
            }
        }
        let Seen::Mark(k) = seen else { return };
        self.raw.push_str(self.tags.text_marks[k]);
        if k < self.tags.openers {
            // Until the name is whole the marks are text that waits.
            self.enter(State::Name(String::new()), &[]);
        } else if self.raw.trim() == self.tags.text_marks[k] && sink.all_calls_whole() {
            self.raw.clear();
            self.state = State::Between;
        } else {
            self.state = State::Between;
        }
    }

    fn name(&mut self, c: char, sink: &mut Sink) {
        let State::Name(name) = &mut self.state else { return };
        // A name that the next tag ends.
        let by_tag = c == '<' && !self.tags.name_end.contains('>');
        if name.is_empty() && c.is_whitespace() && self.raw.len() < MAX_RAW_BYTES {
            return self.raw.push(c);
        }
        if !by_tag && !self.tags.name_end.contains(c) {
            self.raw.push(c);
            name.push(c);
            let cannot_be = name.len() > MAX_NAME_BYTES || (self.tags.name_end == ">" && c.is_whitespace());
            if cannot_be || c == '{' {
                self.back_to_text(sink);
            }
            return;
        }
        let name = name.trim_end_matches('"').trim().to_owned();
        let fits = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
        if !fits {
            self.back_to_text(sink);
            return self.outside(c, sink);
        }
        self.raw.clear();
        sink.begin_call(&name);
        self.name = name;
        self.has_arguments = false;
        self.enter(State::Body, self.tags.body_marks);
        if by_tag {
            self.body(c, sink);
        }
    }

    fn body(&mut self, c: char, sink: &mut Sink) {
        let (seen, text) = self.marks.push(c);
        if !text.trim().is_empty() {
            // Neither an argument nor the end.
            sink.break_call();
            let held = self.marks.finish();
            self.back_to_text(sink);
            return text.chars().chain(held.chars()).for_each(|c| self.outside(c, sink));
        }
        match seen {
            Seen::Mark(0) => self.enter(State::Key(String::new()), self.tags.key_end),
            Seen::Mark(_) => {
                sink.arguments(if self.has_arguments { "}" } else { "{}" });
                sink.end_call();
                self.enter(State::Between, self.tags.text_marks);
            }
            Seen::Nothing => {}
        }
    }

    fn key(&mut self, c: char, sink: &mut Sink) {
        let State::Key(key) = &mut self.state else { return };
        let (seen, text) = self.marks.push(c);
        key.push_str(&text);
        if key.len() > MAX_NAME_BYTES {
            sink.break_call();
            return self.back_to_text(sink);
        }
        if seen == Seen::Nothing {
            return;
        }
        // `<parameter name="key" string="true">`: behind the name there may be more.
        let (name, more) = key.split_once(['"', '<']).unwrap_or((key, ""));
        let (name, said_string) = (name.trim().to_owned(), more.contains("string=\"true\""));
        let tool = self.tools.iter().find(|tool| tool.name == self.name);
        let streams = said_string || tool.is_some_and(|tool| tool.takes_string(&name));
        let types = tool.and_then(|tool| tool.argument_type(&name)).cloned();
        sink.arguments(if self.has_arguments { ", " } else { "{" });
        sink.arguments(&format!("{}: {}", quoted(&name), if streams { "\"" } else { "" }));
        self.has_arguments = true;
        let argument = Argument { streams, held: String::new(), types, at_start: true, line_break: false };
        self.enter(State::Value(argument), self.tags.value_end);
    }

    fn value(&mut self, c: char, sink: &mut Sink) {
        let State::Value(argument) = &mut self.state else { return };
        let (seen, text) = self.marks.push(c);
        let mut delta = String::new();
        text.chars().for_each(|c| argument.push(c, self.tags.trims_lines, &mut delta));
        if seen != Seen::Nothing {
            argument.end(&mut delta);
            self.enter(State::Body, self.tags.body_marks);
        }
        sink.arguments(&delta);
    }
}

impl Argument {
    fn push(&mut self, c: char, trims_lines: bool, delta: &mut String) {
        let first = std::mem::take(&mut self.at_start);
        if trims_lines && c == '\n' {
            if first {
                return;
            }
            if !std::mem::replace(&mut self.line_break, true) {
                return;
            }
        } else if std::mem::take(&mut self.line_break) {
            self.take('\n', delta);
        }
        self.take(c, delta);
    }

    fn take(&mut self, c: char, delta: &mut String) {
        if self.streams {
            return escape(c, delta);
        }
        self.held.push(c);
        if self.held.len() > MAX_HELD_BYTES {
            self.streams = true;
            delta.push('"');
            std::mem::take(&mut self.held).chars().for_each(|c| escape(c, delta));
        }
    }

    /// The value is whole: what it stands for.
    fn end(&mut self, delta: &mut String) {
        if self.streams {
            return delta.push('"');
        }
        let text = self.held.trim();
        let json: Option<Value> = serde_json::from_str(text).ok();
        // Python's spelling of the constants, which models slip into.
        let constant = match text {
            "True" => Some("true"),
            "False" => Some("false"),
            "None" => Some("null"),
            _ => None,
        };
        match constant.filter(|_| !self.allows("string")) {
            Some(constant) => delta.push_str(constant),
            None if json.is_some_and(|json| !json.is_string() || self.types.is_none()) => delta.push_str(text),
            None => delta.push_str(&quoted(&self.held)),
        }
    }

    /// Whether the schema says that the value may be of this type.
    fn allows(&self, name: &str) -> bool {
        match &self.types {
            Some(Value::Array(types)) => types.iter().any(|each| each == name),
            Some(each) => each == name,
            None => false,
        }
    }
}

impl CallParser for TaggedCalls {
    fn push(&mut self, c: char, sink: &mut Sink) {
        match &self.state {
            State::Text | State::Between => self.outside(c, sink),
            State::Name(_) => self.name(c, sink),
            State::Body => self.body(c, sink),
            State::Key(_) => self.key(c, sink),
            State::Value(_) => self.value(c, sink),
        }
    }

    fn finish(&mut self, cut_off: bool, sink: &mut Sink) {
        let held = self.marks.finish();
        match &mut self.state {
            State::Text | State::Between => {
                // A tag that a call was to follow is no text where the answer was cut off.
                if !cut_off {
                    sink.texts(&std::mem::take(&mut self.raw));
                }
                sink.texts(&held);
            }
            State::Name(_) if !cut_off => sink.texts(&std::mem::take(&mut self.raw)),
            // As far as it came, less what may have been its end where it was cut off.
            State::Value(argument) if argument.streams && !cut_off => {
                let mut delta = String::new();
                held.chars().for_each(|c| argument.take(c, &mut delta));
                sink.arguments(&delta);
            }
            _ => {}
        }
    }
}
